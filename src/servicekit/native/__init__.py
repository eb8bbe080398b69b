"""A wire of our own: gRPC over HTTP/2 on asyncio, on top of the protocol without I/O in ``http2``."""
