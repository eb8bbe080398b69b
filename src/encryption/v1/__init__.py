"""The messages and stubs of the encryption service, generated from its proto."""
