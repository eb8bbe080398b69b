"""The reference service: encrypts and decrypts text and streams with a passphrase."""
