"""A fault anywhere in the chain: nobody gets through who was not checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message, Middleware
from servicekit.errors import Code, Error
from servicekit.metadata import Metadata
from servicekit.method import Kind
from servicekit.middleware import Authorize, BasicAuth, JwtAuth, Validation, hash_password, standard
from servicekit.principal import PRINCIPAL
from servicekit.testing import pair
from servicekit.testing.pair import Over
from tests.middleware.probes import Log

from .echo import BODY, Reached, call, over_both
from .tokens import AUDIENCE, ISSUER, bearer, jwks, token

Untyped: TypeAlias = Any
"""What is one of several things, or wrong on purpose."""


every_kind = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)

STRANGER = token(aud="elsewhere")


def chained(log: Log) -> list[Middleware]:
    return [
        *standard(log.telemetry),
        JwtAuth(jwks(), issuer=ISSUER, audience=AUDIENCE),
        Authorize({"/servicekit.testing.v1.EchoService/*": ["reader"]}),
        Validation(),
    ]


# Faults of a link: (request, call, next) as of any other


async def raises_before(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    raise ZeroDivisionError


async def raises_after(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    await next(request, call)
    raise ZeroDivisionError


async def is_cancelled(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    raise asyncio.CancelledError


async def swallows(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    try:
        return await next(request, call)
    except BaseException:  # noqa: BLE001 - that is the fault
        return None


async def tries_again(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    for _ in range(3):
        try:
            return await next(request, call.fork())
        except Error:
            continue
    return await next(request, call)


async def goes_on_without_waiting(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    task = asyncio.ensure_future(next(request, call))
    await asyncio.wait([task])
    task.exception()
    return None


async def gives_up_on_what_is_inside(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    task = asyncio.ensure_future(next(request, call))
    task.cancel()
    await asyncio.wait([task])
    return await next(request, call)


async def fails_the_call(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    call.fail(ZeroDivisionError())
    return await next(request, call)


async def ends_the_call(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    call.end(Error(Code.ABORTED))
    return await next(request, call)


async def loses_the_state(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    call.state.clear()
    return await next(request, call)


async def breaks_the_state(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    call.state[PRINCIPAL] = "alice"
    return await next(request, call)


async def breaks_the_metadata(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    call.metadata = None  # type: ignore[assignment]
    return await next(request, call)


async def breaks_the_clock(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    call.clock = None  # type: ignore[assignment]
    return await next(request, call)


async def breaks_the_observers(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    call.on_decision(fail)
    call.on_received(fail)
    return await next(request, call)


async def loses_the_request(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    return await next(None, call)


FAULTS: list[Callable[..., Untyped]] = [
    raises_before,
    raises_after,
    is_cancelled,
    swallows,
    tries_again,
    goes_on_without_waiting,
    gives_up_on_what_is_inside,
    fails_the_call,
    ends_the_call,
    loses_the_state,
    breaks_the_state,
    breaks_the_metadata,
    breaks_the_clock,
    breaks_the_observers,
    loses_the_request,
]


@over_both
@every_kind
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_fault_at_any_place_lets_nobody_through(fault: Middleware, kind: Kind, over: Over) -> None:
    """Outside, between and inside the links that check; without credentials, and with those of somebody else."""
    for place in range(len(chained(Log())) + 1):
        servicer, log = Reached(), Log()
        links = chained(log)
        links.insert(place, fault)
        async with pair(servicer.register, over=over, middleware=links) as ends:
            for metadata in ((), (bearer(STRANGER),)):
                answers = await asyncio.gather(_answer(ends, kind, metadata))
                assert servicer.reached == [], f"{fault} at {place}"
                assert STRANGER not in log.text + repr(answers)
                assert BODY not in log.text + repr(answers)


async def _answer(ends: Untyped, kind: Kind, metadata: Untyped) -> str:
    try:
        async with asyncio.timeout(5):
            await call(ends, kind, metadata)
    except Exception as error:  # noqa: BLE001 - any answer but the handler's will do
        return repr(error)
    return "ok"


# Faults inside the links that check

EXCEPTIONS = [
    ZeroDivisionError(STRANGER),
    KeyError(STRANGER),
    OSError(STRANGER),
    MemoryError(),
    RecursionError(),
    LookupError(),
]


def _failing(error: Exception) -> Callable[..., Untyped]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def _returning(value: object) -> Callable[..., Untyped]:
    async def answer(*_: object, **__: object) -> object:
        return value

    return answer


@pytest.fixture(params=["_decode", "_header", "_key", "_principal", "_check", "get_all"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[JwtAuth, Exception], None]:
    """Break one part of a JwtAuth, or of what it reads."""

    def breaks(link: JwtAuth, error: Exception) -> None:
        if request.param == "get_all":
            monkeypatch.setattr(Metadata, "get_all", _failing(error))
        elif request.param in {"_decode", "_header"}:
            monkeypatch.setattr(link, request.param, _failing(error))
        else:
            monkeypatch.setattr(JwtAuth, request.param, _failing(error))

    return breaks


@every_kind
async def test_a_fault_inside_authentication_lets_nobody_through(broken: Callable[..., None], kind: Kind) -> None:
    """Not even those who are somebody: UNAUTHENTICATED, an id, and no text of the fault's anywhere."""
    for error in EXCEPTIONS:
        servicer, log = Reached(), Log()
        links = chained(log)
        (link,) = (link for link in links if isinstance(link, JwtAuth))
        async with pair(servicer.register, middleware=links) as ends:
            broken(link, error)
            answer = await _answer(ends, kind, (bearer(token()),))
        assert servicer.reached == []
        assert "UNAUTHENTICATED" in answer
        assert type(error).__name__ in str(log.line["exception"])
        assert STRANGER not in log.text + answer


@every_kind
@pytest.mark.parametrize("value", [None, True, "alice", {"name": "alice"}], ids=repr)
async def test_a_check_that_names_nobody_lets_nobody_through(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, value: object
) -> None:
    """What is no Principal is nobody, however true it is."""
    monkeypatch.setattr(JwtAuth, "_check", _returning(value))
    servicer, log = Reached(), Log()
    async with pair(servicer.register, middleware=chained(log)) as ends:
        answer = await _answer(ends, kind, (bearer(token()),))
    assert servicer.reached == []
    assert "UNAUTHENTICATED" in answer


@every_kind
@pytest.mark.parametrize("error", EXCEPTIONS, ids=lambda error: type(error).__name__)
async def test_a_fault_inside_authorization_lets_nobody_through(kind: Kind, error: Exception) -> None:
    """PERMISSION_DENIED, or UNAVAILABLE for what looks like a lost back end."""
    for rule in (_failing(error), _returning("yes")):
        servicer, log = Reached(), Log()
        links = [*chained(log)[:-2], Authorize({"/servicekit.testing.v1.EchoService/*": rule})]
        async with pair(servicer.register, middleware=links) as ends:
            answer = await _answer(ends, kind, (bearer(token()),))
        assert servicer.reached == []
        assert "PERMISSION_DENIED" in answer or "UNAVAILABLE" in answer
        assert STRANGER not in log.text + answer


@every_kind
async def test_a_fault_while_a_password_is_hashed_lets_nobody_through(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Neither the first one nor those who wait for the same answer."""
    import base64  # noqa: PLC0415 - here only
    import hashlib  # noqa: PLC0415 - here only

    link = BasicAuth({"alice": hash_password("canary", cost=10, parallel=1)})
    monkeypatch.setattr(hashlib, "scrypt", _failing(MemoryError("canary")))
    servicer, log = Reached(), Log()
    right = ("authorization", "Basic " + base64.b64encode(b"alice:canary").decode())
    async with pair(servicer.register, middleware=[*standard(log.telemetry), link]) as ends:
        answers = await asyncio.gather(*(_answer(ends, kind, [right]) for _ in range(5)))
    assert servicer.reached == []
    assert all("UNAUTHENTICATED" in answer for answer in answers)
    assert "canary" not in log.text + repr(answers)
