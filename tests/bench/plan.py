"""What is compared with what, and the limits that must hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from .echo import ECHO, EXPAND, many_path
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
            Subject(name="native", label="servicekit, native wire, no middleware", server="native", shape=_UNARY),
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
            Subject(name="native", label="servicekit, native wire, no middleware", server="native", shape=_STREAM),
            Subject(name="kit-10", label="servicekit, 10 pass-through", server="kit-10", shape=_STREAM),
            Subject(name="kit-standard", label="servicekit, standard(telemetry)", server="kit-standard", shape=_STREAM),
        ),
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
