"""What is compared with what, and the limits that must hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from .echo import CHAT, ECHO, EXPAND, SUM, many_path
from .load import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One thing that is measured: a server under load, or where ``client`` names one a client that makes it."""

    name: str
    label: str
    server: str
    shape: Shape
    client: str | None = None
    loop: str | None = None  # None: the one that was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Subjects whose rounds are interleaved; all are compared with the first."""

    name: str
    title: str
    unit: Literal["call", "message"]
    subjects: tuple[Subject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What ``subject`` may cost at ``most`` of ``against``, or its rate be at ``least``."""

    says: str
    group: str
    subject: str
    against: str
    most: float | None = None
    least: float | None = None


_UNARY = Shape(ECHO)
_STREAM = Shape(EXPAND, streaming=True, connections=4, streams=2)


def _many(server: str, count: int, label: str) -> Subject:
    return Subject(name=server, label=label, server=server, shape=Shape(many_path(count)))


def _clients(shape: Shape) -> tuple[Subject, ...]:
    return (
        Subject(name="bare", label="bare grpc.aio channel", server="bare", client="bare", shape=shape),
        Subject(name="kit-0", label="servicekit channel, no middleware", server="bare", client="kit-0", shape=shape),
    )


def _wires(name: str, title: str, shape: Shape, *more: str, unit: Literal["call", "message"] = "call") -> Group:
    """Return a group of one thing over our own wire, grpcio's and, where ``more`` names them, those of others."""
    secured = "-tls" if shape.tls else ""
    return Group(
        name=name,
        title=title,
        unit=unit,
        subjects=(
            Subject(name="bare", label="bare grpc.aio", server=f"bare{secured}", shape=shape),
            Subject(name="native", label="servicekit, wire='native'", server=f"native{secured}", shape=shape),
            *(Subject(name=other, label=_PEERS[other], server=other, shape=shape) for other in more),
        ),
    )


_PEERS: Final = {
    "kit-full": "servicekit, standard and RateLimit",
    "native-full": "servicekit, native, standard and RateLimit",
    "pygrpc-native": "pygrpc-native 0.5 (Rust)",
    "grpc-go": "grpc-go 1.85, which decodes nothing",
}

GROUPS: Final[tuple[Group, ...]] = (
    Group(
        name="unary",
        title="Server, unary calls of 100 bytes each way",
        unit="call",
        subjects=(
            Subject(name="bare", label="bare grpc.aio", server="bare", shape=_UNARY),
            Subject(name="again", label="bare grpc.aio, once more", server="bare", shape=_UNARY),
            Subject(
                name="asyncio", label="bare grpc.aio on asyncio's loop", server="bare", shape=_UNARY, loop="asyncio"
            ),
            Subject(name="stock", label="stock: contrib otel, prometheus, structlog", server="stock", shape=_UNARY),
            Subject(name="kit-0", label="servicekit, no middleware", server="kit-0", shape=_UNARY),
            Subject(name="kit-1", label="servicekit, 1 pass-through", server="kit-1", shape=_UNARY),
            Subject(name="kit-10", label="servicekit, 10 pass-through", server="kit-10", shape=_UNARY),
            Subject(name="kit-standard", label="servicekit, standard(telemetry)", server="kit-standard", shape=_UNARY),
        ),
    ),
    Group(
        name="methods",
        title="Server, unary calls to a service of very many methods",
        unit="call",
        subjects=(
            _many("bare-4", 4, "bare grpc.aio, 4 methods"),
            _many("bare-200", 200, "bare grpc.aio, 200 methods"),
            _many("kit-4", 4, "servicekit, 4 methods"),
            _many("kit-200", 200, "servicekit, 200 methods"),
        ),
    ),
    Group(
        name="stream",
        title="Server, streaming responses of 100 bytes",
        unit="message",
        subjects=(
            Subject(name="bare", label="bare grpc.aio", server="bare", shape=_STREAM),
            Subject(name="stock", label="stock: contrib otel, prometheus, structlog", server="stock", shape=_STREAM),
            Subject(name="kit-0", label="servicekit, no middleware", server="kit-0", shape=_STREAM),
            Subject(name="kit-10", label="servicekit, 10 pass-through", server="kit-10", shape=_STREAM),
            Subject(name="kit-standard", label="servicekit, standard(telemetry)", server="kit-standard", shape=_STREAM),
        ),
    ),
    _wires(
        "wire",
        "Wires, unary calls of 100 bytes that all say the same",
        _UNARY,
        "kit-full",
        "native-full",
        "pygrpc-native",
        "grpc-go",
    ),
    _wires(
        "wire-fresh",
        "Wires, unary calls of 100 bytes with fresh metadata",
        replace(_UNARY, fresh=True),
        "pygrpc-native",
        "grpc-go",
    ),
    _wires(
        "wire-single",
        "Wires, unary calls of 100 bytes, one at a time",
        replace(_UNARY, connections=1, streams=1),
        "pygrpc-native",
        "grpc-go",
    ),
    _wires("wire-tls", "Wires, unary calls of 100 bytes over TLS", replace(_UNARY, tls=True)),
    _wires(
        "wire-10k",
        "Wires, unary calls of 10 KiB each way",
        replace(_UNARY, payload=10 * 1024),
        "pygrpc-native",
        "grpc-go",
    ),
    _wires(
        "wire-1m",
        "Wires, unary calls of 1 MiB each way",
        replace(_UNARY, payload=1024 * 1024, streams=1),
        "pygrpc-native",
        "grpc-go",
    ),
    _wires("wire-expand", "Wires, streamed responses", _STREAM, "pygrpc-native", "grpc-go", unit="message"),
    _wires(
        "wire-chat",
        "Wires, both streamed, each message answered",
        replace(_STREAM, path=CHAT, uploading=True),
        "grpc-go",
        unit="message",
    ),
    _wires(
        "wire-sum",
        "Wires, streamed requests",
        replace(_STREAM, path=SUM, streaming=False, uploading=True),
        "grpc-go",
        unit="message",
    ),
    Group(
        name="client",
        title="Client, unary calls to a bare grpc.aio server",
        unit="call",
        subjects=_clients(replace(_UNARY, connections=1)),
    ),
    Group(
        name="client-stream",
        title="Client, streaming responses from a bare grpc.aio server",
        unit="message",
        subjects=_clients(replace(_STREAM, connections=1)),
    ),
)


def _native(says: str, group: str, most: float, against: str = "bare") -> Limit:
    return Limit(says=f"wire='native', {says}", group=group, subject="native", against=against, most=most)


LIMITS: Final[tuple[Limit, ...]] = (
    Limit(
        says="ten pass-through middleware cost at most 1.05 of bare grpc.aio's CPU per call",
        group="unary",
        subject="kit-10",
        against="bare",
        most=1.05,
    ),
    Limit(
        says="200 methods cost at most 1.05 of what 4 do",
        group="methods",
        subject="kit-200",
        against="kit-4",
        most=1.05,
    ),
    Limit(
        says="server streaming brings at least 0.95 of bare grpc.aio's messages per second",
        group="stream",
        subject="kit-0",
        against="bare",
        least=0.95,
    ),
    _native("the same call over and over: at most 0.06 of grpc.aio's CPU", "wire", 0.06),
    _native("fresh metadata in every call: at most 0.13 of grpc.aio's CPU", "wire-fresh", 0.13),
    _native("fresh metadata in every call: at most 1.25 of pygrpc-native's CPU", "wire-fresh", 1.25, "pygrpc-native"),
    _native("one call at a time: at most 0.30 of grpc.aio's CPU", "wire-single", 0.30),
    _native("over TLS: at most 0.08 of grpc.aio's CPU", "wire-tls", 0.08),
    _native("10 KiB: at most 0.12 of grpc.aio's CPU", "wire-10k", 0.12),
    _native("1 MiB: at most 0.8 of grpc.aio's CPU", "wire-1m", 0.8),
    _native("streamed responses: 15 times the messages per CPU second, 0.067", "wire-expand", 1 / 15),
    _native("both streamed: 12 times the messages per CPU second, 0.083", "wire-chat", 1 / 12),
    _native("streamed requests: 8 times the messages per CPU second, 0.125", "wire-sum", 1 / 8),
    *(
        _native(f"{title}: no more than pygrpc-native's CPU", group, 1.0, "pygrpc-native")
        for group, title in (
            ("wire", "the same call over and over"),
            ("wire-single", "one call at a time"),
            ("wire-10k", "10 KiB"),
            ("wire-1m", "1 MiB"),
            ("wire-expand", "streamed responses"),
        )
    ),
)


def chosen(only: Iterable[str], loop: str) -> list[Group]:
    """Return the groups of which something is asked for, with that and the base. Raises ValueError for a strange name.

    A name is a group's or a subject's; none at all means everything. What would be measured twice, because ``loop``
    is asyncio's anyway, is left out.
    """
    wanted = set(only)
    known = {group.name for group in GROUPS} | {subject.name for group in GROUPS for subject in group.subjects}
    if wanted - known:
        msg = f"nothing is called {', '.join(sorted(wanted - known))}: there is {', '.join(sorted(known))}"
        raise ValueError(msg)
    found = []
    for group in GROUPS:
        base, *others = [subject for subject in group.subjects if subject.loop != loop]
        if wanted and group.name not in wanted:
            others = [subject for subject in others if subject.name in wanted]
            if not others and base.name not in wanted:
                continue
        found.append(replace(group, subjects=(base, *others)))
    return found
