"""Life of the process: from the signal that ends it to the exit code."""
