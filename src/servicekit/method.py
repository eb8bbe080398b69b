"""What is called: one method of a service, and which of the four kinds it is of."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import MethodOptions


class Kind(enum.Enum):
    """The four kinds of RPC, by which side sends a stream."""

    UNARY = "unary"
    CLIENT_STREAM = "client_stream"
    SERVER_STREAM = "server_stream"
    BIDI_STREAM = "bidi_stream"

    request_streaming: bool
    response_streaming: bool

    def __init__(self, word: str) -> None:
        self.request_streaming = word in {"client_stream", "bidi_stream"}
        self.response_streaming = word in {"server_stream", "bidi_stream"}

    @classmethod
    def of(cls, *, request_streaming: bool, response_streaming: bool) -> Kind:
        """Return the kind with these two properties."""
        if request_streaming:
            return cls.BIDI_STREAM if response_streaming else cls.CLIENT_STREAM
        return cls.SERVER_STREAM if response_streaming else cls.UNARY


class Idempotency(enum.Enum):
    """What a proto's ``idempotency_level`` promises about calling the method twice."""

    UNKNOWN = "unknown"
    NO_SIDE_EFFECTS = "no_side_effects"
    IDEMPOTENT = "idempotent"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Method:
    """One method of a service, read from its descriptor. ``path`` is what goes on the wire, ``/package.Service/Name``.

    ``options`` are the method's protobuf options, None when no descriptor of it is known. Every method that a server
    does not have shares one Method with ``known=False``, so that labels stay bounded whatever clients ask for.
    ``auxiliary`` marks the server's own services (health, reflection): limits on load and time let them pass.

    A stub has objects of its own for its methods: what is kept for a method has ``path`` for its key.
    """

    service: str
    name: str
    kind: Kind
    idempotency: Idempotency = Idempotency.UNKNOWN
    options: MethodOptions | None = None
    known: bool = True
    auxiliary: bool = False
    path: str = field(init=False)

    def __post_init__(self) -> None:
        """Spell the path once: it is read at every call."""
        object.__setattr__(self, "path", f"/{self.service}/{self.name}")
