from buf.validate import validate_pb2 as _validate_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EncryptRequest(_message.Message):
    __slots__ = ("key", "key_id", "text", "context")
    KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    key: str
    key_id: str
    text: str
    context: bytes
    def __init__(self, key: _Optional[str] = ..., key_id: _Optional[str] = ..., text: _Optional[str] = ..., context: _Optional[bytes] = ...) -> None: ...

class EncryptResponse(_message.Message):
    __slots__ = ("envelope",)
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    envelope: str
    def __init__(self, envelope: _Optional[str] = ...) -> None: ...

class DecryptRequest(_message.Message):
    __slots__ = ("key", "key_id", "envelope", "context")
    KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    key: str
    key_id: str
    envelope: str
    context: bytes
    def __init__(self, key: _Optional[str] = ..., key_id: _Optional[str] = ..., envelope: _Optional[str] = ..., context: _Optional[bytes] = ...) -> None: ...

class DecryptResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class EncryptStreamStart(_message.Message):
    __slots__ = ("key", "key_id", "context")
    KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    key: str
    key_id: str
    context: bytes
    def __init__(self, key: _Optional[str] = ..., key_id: _Optional[str] = ..., context: _Optional[bytes] = ...) -> None: ...

class EncryptStreamRequest(_message.Message):
    __slots__ = ("start", "chunk")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    start: EncryptStreamStart
    chunk: bytes
    def __init__(self, start: _Optional[_Union[EncryptStreamStart, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class EncryptStreamResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class DecryptStreamStart(_message.Message):
    __slots__ = ("key", "key_id", "context")
    KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    key: str
    key_id: str
    context: bytes
    def __init__(self, key: _Optional[str] = ..., key_id: _Optional[str] = ..., context: _Optional[bytes] = ...) -> None: ...

class DecryptStreamRequest(_message.Message):
    __slots__ = ("start", "chunk")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    start: DecryptStreamStart
    chunk: bytes
    def __init__(self, start: _Optional[_Union[DecryptStreamStart, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class DecryptStreamResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...
