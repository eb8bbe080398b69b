"""HTTP/2 without I/O: bytes in, events out (RFC 9113, RFC 7541)."""
