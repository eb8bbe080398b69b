"""The native wire beside grpc.aio's: one client makes the same calls of one servicer, and sees the same of both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicekit import Kind, Server, Telemetry

from .differing import SHAPES, End, Outcome, Plan, Seen, Servicer, outcome

RECEIVED, SENT = 20_000, 30_000
LIMITS = [("grpc.max_receive_message_length", RECEIVED), ("grpc.max_send_message_length", SENT)]
EVERYTHING = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
GZIP = grpc.Compression.Gzip
NO = grpc.Compression.NoCompression

SIZES = st.one_of(st.integers(0, 40), st.sampled_from([0, 1000, 16_379, 16_384, 20_000]))
TOO_LARGE = st.sampled_from([20_001, 30_000, 30_001, 70_000])


def bodies(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(0, 255))


KEYS = st.one_of(
    st.from_regex(r"[a-z0-9_.-]{1,12}", fullmatch=True),
    st.sampled_from(["a", "b", ".", "_", "-", "0", "cookie", "accept", "authorization", "x-forwarded-for", "date"]),
)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=24).map(str.strip)
RESERVED = ("grpc-",)


def _pair(key: str, text: str, data: bytes, binary: bool) -> tuple[str, str | bytes]:  # noqa: FBT001 - drawn
    if key.endswith("-bin"):
        return key, data
    return (key + "-bin", data) if binary else (key, text)


PAIR = st.builds(_pair, KEYS, VALUES, st.binary(max_size=24), st.booleans()).filter(
    lambda pair: not pair[0].startswith(RESERVED)
)
METADATA = st.lists(PAIR, max_size=4).flatmap(lambda pairs: st.sampled_from([tuple(pairs), (*pairs, *pairs[:1])]))
FAILURES = st.sampled_from([code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
DETAILS = st.one_of(
    st.just(""), st.text(max_size=20), st.sampled_from(["ä%20%", "100 %", "a\nb\0", "日本語", "x" * 300])
)


@st.composite
def _messages(draw: st.DrawFn, many: bool) -> list[bytes]:  # noqa: FBT001 - a kind is two of them
    rarely = draw(st.integers(0, 9)) == 9
    body = bodies(st.one_of(SIZES, TOO_LARGE) if rarely else SIZES)
    return draw(st.lists(body, max_size=4)) if many else [draw(body)]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    kind = draw(st.sampled_from(list(Kind)))
    shape = draw(st.sampled_from(SHAPES[kind]))
    requests = draw(_messages(kind.request_streaming))
    responses = draw(_messages(kind.response_streaming))
    too_large = any(len(request) > RECEIVED for request in requests)  # whether that comes before the end is a race
    fits = not too_large and all(len(response) <= SENT for response in responses)
    hangs = fits and shape != "plain" and draw(st.integers(0, 9)) == 0
    cancel = draw(st.booleans())
    end = End(
        by="hang" if hangs else draw(st.sampled_from(["return", "return", "abort", "code", "raise"])),
        code=draw(FAILURES),
        details=draw(DETAILS),
        trailers=draw(METADATA),
    )
    takes_all = not kind.request_streaming or too_large or draw(st.booleans())
    return Plan(
        kind=kind,
        shape=shape,
        requests=tuple(requests),
        responses=tuple(responses),
        take=None if takes_all else draw(st.integers(0, len(requests))),
        half_close="early" if takes_all else draw(st.sampled_from(["early", "late"])),
        metadata=draw(METADATA),
        headers=draw(METADATA),
        headers_sent=draw(st.sampled_from(["never", "before", "after"])),
        trailers=draw(METADATA),
        compression=draw(st.sampled_from([None, GZIP, NO])),
        answered_with=draw(st.sampled_from([None, GZIP, NO])),
        timeout=(30.0 if cancel else 0.05) if hangs else draw(st.sampled_from([None, 30.0])),
        cancel=hangs and cancel,
        end=end,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What may differ, why that is right, for which calls, and the outcome without it."""

    what: str
    why: str
    of: Callable[[Plan], bool]
    without: Callable[[Outcome], Outcome]


def _too_large(plan: Plan) -> bool:
    return any(len(request) > RECEIVED for request in plan.requests)


def _lost(plan: Plan, outcome: Outcome) -> bool:
    ends_early = _too_large(plan) or plan.take is not None
    return plan.kind is Kind.BIDI_STREAM and ends_early and outcome.details == FROM_CORE


def _without_reference(outcome: Outcome) -> Outcome:
    return replace(outcome, trailers=[(key, "" if key == "x-error-id" else value) for key, value in outcome.trailers])


DIFFERENCES = (
    Difference(
        what="the value of x-error-id",
        why="A random reference, another one for each error.",
        of=lambda plan: plan.end.by == "raise",
        without=_without_reference,
    ),
    Difference(
        what="the words for a request that is too large",
        why="Both say RESOURCE_EXHAUSTED; the words are for people, and core has two ways to put it.",
        of=_too_large,
        without=lambda outcome: replace(outcome, details=""),
    ),
    Difference(
        what="what the servicer saw of a stream with a message that is too large, and whether its headers went out",
        why="Such a call is ended over the servicer's head as soon as the length is known: it may have begun, or not yet.",
        of=lambda plan: plan.kind.request_streaming and _too_large(plan),
        without=lambda outcome: replace(outcome, headers=[], seen=Seen()),
    ),
    Difference(
        what="the words for a deadline that has passed",
        why="Both ends end the call then, and the client's core words it by which of them was first: a race over either.",
        of=lambda plan: plan.end.by == "hang" and not plan.cancel,
        without=lambda outcome: replace(outcome, details=""),
    ),
    Difference(
        what="the initial metadata of a stream that ends without a message",
        why="grpc.aio's client asks for it when its request is out. Where the status is there by then, as from a server "
        "that answers at once, it takes the initial metadata for empty. It went over the wire from both.",
        of=lambda plan: plan.kind is not Kind.UNARY and plan.headers_sent != "never",
        without=lambda outcome: outcome if outcome.messages else replace(outcome, headers=[]),
    ),
)
"""All that is not the same over both wires."""

FROM_CORE = "Internal error from Core"
"""What grpc.aio's client makes of a call that its server ends while messages are being written: the status, which is
there, is lost to it (servicekit's own client reports it). Over grpcio it loses that race in up to a quarter of such calls;
over the native wire, whose answer is there sooner, in most, and where the first message is too large in all. It is asked
again, and where it never gets the status there is nothing to compare."""
AGAIN = 50


class Both:
    """Two servers with the same servicer each, and a plain client of each."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.ends: dict[str, tuple[grpc.aio.Channel, Servicer]] = {}

    async def compare(self, plan: Plan) -> None:
        """Raise AssertionError when a call as ``plan`` says differs otherwise than it may."""
        # How far a call gets before its deadline, or before an early end, is a race of the client's: what is a difference
        # between the wires comes back each time.
        tries = AGAIN if plan.end.by == "hang" and not plan.cancel else 5
        native, grpcio = await self._outcomes(plan)
        while native != grpcio and tries > 1 and not _lost(plan, native):
            tries -= 1
            native, grpcio = await self._outcomes(plan)
        assert native == grpcio or _lost(plan, native)

    async def _outcomes(self, plan: Plan) -> tuple[Outcome, Outcome]:
        return await self._outcome("native", plan), await self._outcome("grpcio", plan)

    async def _outcome(self, wire: str, plan: Plan) -> Outcome:
        found = await outcome(*self.ends[wire], plan)
        for _ in range(AGAIN):
            if found.details != FROM_CORE:
                break
            found = await outcome(*self.ends[wire], plan)
        for difference in DIFFERENCES:
            if difference.of(plan) and found.details != FROM_CORE:
                found = difference.without(found)
        return found


@contextlib.asynccontextmanager
async def both() -> AsyncIterator[Both]:
    async with contextlib.AsyncExitStack() as stack:
        pair = Both()
        for wire in ("grpcio", "native"):
            servicer = Servicer()
            server = Server("127.0.0.1:0", wire=wire, options=LIMITS, middleware=[], telemetry=Telemetry(log=None))
            server.add_generic_rpc_handlers([servicer.handler()])
            await stack.enter_async_context(server)
            channel = grpc.aio.insecure_channel(server.addresses[0], options=EVERYTHING)
            await stack.enter_async_context(channel)
            pair.ends[wire] = channel, servicer
        yield pair


def compared(examples: int) -> None:
    """Compare so many calls, all over the same two connections."""
    with asyncio.Runner() as runner:
        opening = both()
        pair = runner.run(opening.__aenter__())

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(plans())
        def compare(plan: Plan) -> None:
            runner.run(pair.compare(plan))

        try:
            compare()
        finally:
            runner.run(opening.__aexit__(None, None, None))


@pytest.fixture(autouse=True)
def _a_quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "servicekit")
    caplog.set_level(logging.CRITICAL, "asyncio")  # on tasks that grpc.aio's client leaves behind


def test_a_client_sees_the_same() -> None:
    """Whatever a client and a servicer do, neither can tell the native wire from grpc.aio's, but for ``DIFFERENCES``."""
    compared(60)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.timeout(600)
def test_a_client_sees_the_same_at_length() -> None:
    """The same rule, on 1,000 calls."""
    compared(1000)
