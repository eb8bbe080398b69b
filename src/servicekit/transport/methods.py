"""From a path to a Method: what the descriptors linked into this process say about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions

from servicekit.method import Idempotency, Kind, Method

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

_LEVELS = {
    MethodOptions.IDEMPOTENCY_UNKNOWN: Idempotency.UNKNOWN,
    MethodOptions.NO_SIDE_EFFECTS: Idempotency.NO_SIDE_EFFECTS,
    MethodOptions.IDEMPOTENT: Idempotency.IDEMPOTENT,
}

UNKNOWN = Method(service="unknown", name="unknown", kind=Kind.BIDI_STREAM, known=False)
"""What every method is that a server does not have. A stream, so that no wire waits for its message."""

AUXILIARY = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.channelz.v1.Channelz",
    }
)
"""Services about the server itself: limits on load and time let them pass."""


def describe(path: str, kind: Kind) -> Method:
    """Return the Method of ``/package.Service/Name``, with its options where its descriptor is linked in."""
    service, _, name = path.removeprefix("/").partition("/")
    descriptor = _find(service, name)
    if descriptor is None:
        return Method(service=service, name=name, kind=kind, auxiliary=service in AUXILIARY)
    options = descriptor.GetOptions()
    return Method(
        service=service,
        name=name,
        kind=kind,
        idempotency=_LEVELS.get(options.idempotency_level, Idempotency.UNKNOWN),
        options=options,
        auxiliary=service in AUXILIARY,
    )


def _find(service: str, name: str) -> MethodDescriptor | None:
    try:
        return descriptor_pool.Default().FindServiceByName(service).methods_by_name.get(name)
    except KeyError:
        return None
