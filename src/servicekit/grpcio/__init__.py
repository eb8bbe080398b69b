"""A Wire over grpc core: what people run today, with the traps of grpc.aio repaired below the seam."""
