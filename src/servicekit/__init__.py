"""An async gRPC-first service framework."""
