"""What can go wrong in the service: every exception it raises on purpose, in one place.

No message, argument, cause or context of these holds a key, a passphrase or a text: they may be logged and sent.
"""


class EncryptionError(Exception):
    """The base of all of them, for those who map them to an answer."""


class InvalidInput(EncryptionError):
    """Raised when a request or a keyring breaks a rule; names field and rule, never the value.

    What is to be decrypted breaks none: whatever is wrong with it is DecryptionFailed.
    """


class UnknownKey(EncryptionError):
    """Raised when the key id that is to encrypt is not the keyring's primary; decryption never raises this."""

    def __init__(self) -> None:
        super().__init__("key_id does not encrypt here: it is unknown or was rotated out")


class DecryptionFailed(EncryptionError):
    """Raised when a decryption fails, for whatever reason: always in the same words, which tell nobody the reason."""

    def __init__(self) -> None:
        super().__init__("decryption failed")


class Busy(EncryptionError):
    """Raised when too many wait for a key to be derived from a passphrase; no work was begun, asking again is safe."""

    def __init__(self) -> None:
        super().__init__("too many passphrases are being worked on")
