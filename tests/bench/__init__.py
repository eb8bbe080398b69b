"""What a call costs: `make bench` measures it, as ratios to bare grpc.aio taken in the same minutes."""
