"""What a client shows to be let in."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import grpc
import pytest

from servicekit import chain, connect, only
from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.current import current_call
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import By, Code, Error
from servicekit.middleware import AccessLog, Credentials, Token
from servicekit.testing import RecordedCall, make_call, run, scripted

from .probes import Log

Untyped: TypeAlias = Any
"""What is one of several things, or wrong on purpose."""


class Factory:
    """Makes a new token each time, good for ``lifetime`` seconds."""

    def __init__(self, lifetime: float | None = 100.0) -> None:
        self.lifetime = lifetime
        self.made = 0
        self.failure: Exception | None = None
        self.held: asyncio.Event | None = None

    async def __call__(self) -> Token:
        self.made += 1
        if self.held is not None:
            await self.held.wait()
        if self.failure is not None:
            raise self.failure
        return Token(value=f"Bearer canary-{self.made}", expires_in=self.lifetime)


def client(clock: MovableClock | None = None, **settings: Untyped) -> RecordedCall:
    return make_call(side=Side.CLIENT, clock=clock, **settings)


async def sent(link: Credentials, clock: MovableClock | None = None, **settings: Untyped) -> list[str | bytes]:
    """What left in the header."""
    endpoint = scripted("ok")
    await run(link, endpoint, "hi", client(clock, **settings))
    return endpoint.calls[0].metadata.get_all("authorization")


async def test_one_token_for_all_calls_until_it_is_old() -> None:
    """Fetched once however many come at once, and again in the background before it expires."""
    factory, clock = Factory(), MovableClock()
    link = Credentials(factory)
    assert await asyncio.gather(*(sent(link, clock) for _ in range(10))) == [["Bearer canary-1"]] * 10
    await clock.advance(69.0)
    assert (await sent(link, clock), factory.made) == (["Bearer canary-1"], 1)
    await clock.advance(1.0)
    assert await sent(link, clock) == ["Bearer canary-1"]  # still good
    await clock.advance(0.0)
    assert (await sent(link, clock), factory.made) == (["Bearer canary-2"], 2)
    await clock.advance(100.0)
    assert await sent(link, clock) == ["Bearer canary-3"]  # the old one has expired: this call has waited


async def test_a_short_lived_token_is_kept_for_half_of_its_time() -> None:
    """However long before its end it should be replaced."""
    factory, clock = Factory(10.0), MovableClock()
    link = Credentials(factory)
    for _ in range(3):
        assert await sent(link, clock) == ["Bearer canary-1"]
        await clock.advance(1.0)
    await clock.advance(2.0)
    await sent(link, clock)
    await clock.advance(0.0)
    assert factory.made == 2


async def test_a_plain_text_and_a_plain_function_will_do() -> None:
    """A key that never changes, in a header of its own."""
    made: list[int] = []

    def key() -> str:
        made.append(1)
        return "canary"

    link, clock = Credentials(key, header="x-api-key"), MovableClock()
    endpoint = scripted("ok", "ok")
    for _ in range(2):
        await run(link, endpoint, "hi", client(clock))
        await clock.advance(1e6)
    assert [call.metadata.get("x-api-key") for call in endpoint.calls] == ["canary"] * 2
    assert len(made) == 1


async def test_each_attempt_has_what_is_good_then() -> None:
    """Inside a retry: one entry in each attempt, the newer token in the later one."""
    factory, clock = Factory(), MovableClock()

    async def twice(request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        with pytest.raises(Error):
            await next(request, call)
        await clock.advance(200.0)
        return await next(request, call.fork())

    endpoint = scripted(Error(Code.UNAVAILABLE), "ok")
    call = client(clock, metadata=[("authorization", "Bearer the caller's own")])
    assert await run([twice, Credentials(factory)], endpoint, "hi", call) == "ok"
    assert [made.metadata.get_all("authorization") for made in endpoint.calls] == [
        ["Bearer canary-1"],
        ["Bearer canary-2"],
    ]


async def test_a_token_that_the_server_refuses_is_not_used_again() -> None:
    """But a server that refuses all of them does not make a factory run at every call."""
    factory, clock = Factory(), MovableClock()
    link = Credentials(factory)
    told: list[str] = []
    for _ in range(5):
        call = client(clock)
        call.on_decision(lambda _link, decision: told.append(decision))
        with pytest.raises(Error):
            await run(link, scripted(Error(Code.UNAUTHENTICATED, by=By.PEER)), "hi", call)
    assert factory.made == 1
    await clock.advance(1.0)
    for _ in range(5):
        with pytest.raises(Error):
            await run(link, scripted(Error(Code.UNAUTHENTICATED, by=By.PEER)), "hi", client(clock))
    assert await sent(link, clock) == ["Bearer canary-2"]
    assert told == ["sent", "rejected"] * 5


async def test_without_a_token_there_is_no_call() -> None:
    """UNAVAILABLE, with the time to come back, refused on this side; what the factory raised is not shown."""
    factory, clock, log = Factory(), MovableClock(), Log()
    factory.failure = ValueError("canary: the client secret")
    link = Credentials(factory, interval=2.0)
    for _ in range(3):
        with pytest.raises(Error) as caught:
            await run([AccessLog(log.telemetry), link], scripted(), "hi", client(clock))
        error = caught.value
        assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "NO_CREDENTIALS", 2.0)
        assert (error.begun, error.refused) == (False, True)
        assert "canary" not in repr(error) + repr(error.__cause__)
        assert "ValueError" in repr(error.__cause__)
    assert factory.made == 1
    assert "canary" not in log.text
    factory.failure = None
    await clock.advance(2.0)
    assert await sent(link, clock) == ["Bearer canary-2"]


@pytest.mark.parametrize("made", ["", None, 7, "two\nlines", " space", Token(value="")])
async def test_what_is_no_credential_is_not_sent(made: Untyped) -> None:
    """It is as if there were none."""
    with pytest.raises(Error) as caught:
        await run(Credentials(lambda: made), scripted(), "hi", client())
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_factory_that_hangs_is_given_up() -> None:
    """After ``timeout`` seconds; a caller who leaves before does not stop it for the others."""
    factory, clock = Factory(), MovableClock()
    factory.held = asyncio.Event()
    link = Credentials(factory, timeout=5.0)
    first, second = (asyncio.create_task(sent(link, clock)) for _ in range(2))
    await clock.advance(1.0)
    first.cancel()
    await clock.advance(3.0)
    assert not second.done()
    await clock.advance(1.0)
    with pytest.raises(Error, match="no credentials"):
        await second
    assert factory.made == 1


async def test_the_factory_works_for_nobody_in_particular() -> None:
    """What it calls does not end with the deadline of the served call that happened to come first."""

    def factory() -> str:
        with pytest.raises(LookupError):
            current_call()
        return "canary"

    async def serve(_request: Message, call: Call) -> Message:
        assert current_call() is call
        return await sent(Credentials(factory))

    assert await run([], scripted(serve), "hi", make_call()) == ["canary"]


async def test_it_is_for_clients() -> None:
    """A server that had it in its chain would believe that it had checked something."""
    with pytest.raises(Error, match="internal error"):
        await run(Credentials(Factory()), scripted("ok"), "hi", make_call())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"factory": "Bearer canary"}, "but str"),
        ({"header": "Authorization"}, "Authorization"),
        ({"early": -1}, "early=-1"),
        ({"timeout": 0}, "timeout=0"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Untyped], words: str) -> None:
    """Where it is written, and without a secret that was put in the wrong place."""
    given: dict[str, Untyped] = {"factory": Factory()} | settings
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        Credentials(**given)
    assert "canary" not in str(caught.value)


def test_the_repr_has_no_secret() -> None:
    """Neither the link's nor the token's."""
    shown = repr(Credentials(Factory())) + repr(Token(value="canary", expires_in=1.0))
    assert shown == "Credentials(header='authorization')Token(expires_in=1.0)"
    with pytest.raises(ValueError, match="expires_in=0"):
        Token(value="canary", expires_in=0)


REMOTE = [
    "example.org:1",
    "10.0.0.1:1",
    "dns:///example.org:1",
    "ipv4:127.0.0.1:1,10.0.0.2:2",
    "ipv6:[2001:db8::1]:1",
    "xds:///a",
]
LOCAL = [
    "127.0.0.1:1",
    "localhost:1",
    "LocalHost",
    "127.9.9.9",
    "[::1]:1",
    "dns:///localhost:1",
    "dns:localhost:1",
    "ipv4:127.0.0.1:1,127.0.0.2:2",
    "ipv6:[::1]:1",
    "ipv6:%5B::1%5D:1",
    "unix:/run/a",
    "unix:///run/a",
    "unix-abstract:a",
]


@pytest.mark.parametrize("target", REMOTE)
@pytest.mark.parametrize("kept", [False, True], ids=["for all", "for some"])
async def test_they_do_not_leave_the_machine_in_plaintext(target: str, *, kept: bool) -> None:
    """A channel that would send them so is not made, and the message names both ways out."""
    link = Credentials(Factory())
    with pytest.raises(ValueError, match=r"plaintext to .*ssl_channel_credentials.*plaintext=True") as raised:
        connect(target, middleware=[only("/a.B/C", chain(link)) if kept else link])
    assert repr(target) in str(raised.value)


@pytest.mark.parametrize("target", REMOTE)
async def test_told_so_they_do(target: str) -> None:
    """Something else may encrypt; and over TLS there is nothing to tell."""
    async with connect(target, middleware=[Credentials(Factory(), plaintext=True)]):
        pass
    async with connect(target, middleware=[Credentials(Factory())], credentials=grpc.ssl_channel_credentials()):
        pass


@pytest.mark.parametrize("target", LOCAL)
async def test_on_this_machine_they_are_at_home(target: str) -> None:
    """A loopback address and a Unix socket are nobody else's."""
    async with connect(target, middleware=[Credentials(Factory())]):
        pass
