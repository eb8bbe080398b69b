"""The messages and stubs of the echo service, generated from its proto."""
