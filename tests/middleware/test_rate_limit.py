"""So many calls a second for each who calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit import CallError
from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Message
from servicekit.errors import Code, Error
from servicekit.method import Kind
from servicekit.middleware.rate_limit import RateLimit
from servicekit.middleware.redis_limit import RedisLimit
from servicekit.principal import Principal
from servicekit.testing import RecordedCall, make_call, pair, run, scripted
from servicekit.testing.pair import Over
from tests.middleware.decisions import Decisions
from tests.transport.clients import ANSWERS, ask, both, echo, every_kind


async def answer(_request: Message, _call: Call) -> Message:
    return "ok"


async def passes(link: RateLimit, call: RecordedCall) -> bool:
    """Whether the call is let through."""
    try:
        await run(link, answer, "hi", call)
    except Error as error:
        if error.code is not Code.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


async def refusal(link: RateLimit, call: RecordedCall) -> Error:
    """What the refused caller gets; the endpoint is not run."""
    endpoint = scripted("ok")
    with pytest.raises(Error) as caught:
        await run(link, endpoint, "hi", call)
    assert endpoint.calls == []
    return caught.value


async def test_the_burst_passes_and_then_the_rate() -> None:
    """Burst at once, one more each 1/rate seconds."""
    clock, link = MovableClock(), RateLimit(per_second=10, burst=3)
    assert [await passes(link, make_call(clock=clock)) for _ in range(5)] == [True, True, True, False, False]
    await clock.advance(0.1)
    assert [await passes(link, make_call(clock=clock)) for _ in range(2)] == [True, False]


async def test_what_the_refused_caller_gets() -> None:
    """RESOURCE_EXHAUSTED, and when there will be a token; it is our own refusal, and no work was begun."""
    clock, link = MovableClock(), RateLimit(per_second=4, burst=1)
    await passes(link, make_call(clock=clock))
    await clock.advance(0.05)
    call = make_call(clock=clock)
    decisions = Decisions(call)
    error = await refusal(link, call)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert error.retry_after == pytest.approx(0.2)
    assert error.refused
    assert not error.begun
    assert decisions.seen == [("rate_limit", "refused")]


async def test_burst_is_a_seconds_worth_by_default() -> None:
    """And at least one."""
    assert RateLimit(per_second=2.5).burst == 3
    assert RateLimit(per_second=0.1).burst == 1


async def test_each_peer_has_its_own_wherever_it_connects_from() -> None:
    """The host is the key, not the port, which is another one for each connection."""
    clock, link = MovableClock(), RateLimit(per_second=1, burst=1)
    peers = ["ipv4:10.0.0.1:5000", "ipv4:10.0.0.1:5001", "ipv4:10.0.0.2:5000", "ipv6:%5B::1%5D:7", "ipv6:%5B::1%5D:8"]
    peers += ["unix:/run/a", "unix:/run/a", "unix:/run/b"]
    seen = [await passes(link, make_call(clock=clock, peer=peer)) for peer in peers]
    assert seen == [True, False, True, True, False, True, False, True]


async def test_each_principal_has_its_own() -> None:
    """Whatever roles its token says; those without one share one."""
    clock, link = MovableClock(), RateLimit(per_second=1, burst=1, key="principal")
    alice, bob = Principal(name="alice", scheme="basic"), Principal(name="bob", scheme="basic")
    admin = Principal(name="alice", scheme="basic", roles=frozenset({"admin"}))
    seen = []
    for principal in (alice, admin, bob, "carol", "carol", None, None):
        call = make_call(clock=clock)
        if principal is not None:
            call.state["principal"] = principal
        seen.append(await passes(link, call))
    assert seen == [True, False, True, True, False, True, False]


async def test_each_method_has_its_own_and_a_function_says_what_else() -> None:
    """Two more kinds of key."""
    clock = MovableClock()
    by_method = RateLimit(per_second=1, burst=1, key="method")
    assert await passes(by_method, make_call(clock=clock, peer="a"))
    assert not await passes(by_method, make_call(clock=clock, peer="b"))
    by_tenant = RateLimit(per_second=1, burst=1, key=lambda call: call.metadata.text("tenant"))
    seen = [await passes(by_tenant, make_call(clock=clock, metadata=[("tenant", name)])) for name in ("a", "a", "b")]
    assert seen == [True, False, True]


async def test_remembers_the_keys_that_were_seen_last() -> None:
    """At most ``max_keys``; the one that is let go begins anew."""
    clock, link = MovableClock(), RateLimit(per_second=1, burst=1, max_keys=2)
    seen = [await passes(link, make_call(clock=clock, peer=peer)) for peer in ("a", "b", "a", "c", "a", "b")]
    assert seen == [True, True, False, True, False, True]
    assert len(link._lines) == 2


async def test_the_servers_own_methods_pass() -> None:
    """Health and reflection are not counted."""
    clock, link = MovableClock(), RateLimit(per_second=1, burst=1, key="method")
    assert [await passes(link, make_call(clock=clock, auxiliary=True)) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("side", list(Side))
async def test_waits_in_order(side: Side) -> None:
    """With ``wait`` each gets its turn, first come, first served, at the rate."""
    clock, link, order = MovableClock(), RateLimit(per_second=10, burst=1, wait=True), []

    async def one(name: int) -> None:
        call = make_call(clock=clock, side=side)
        decisions = Decisions(call)
        await run(link, answer, "hi", call)
        order.append((name, round(clock.time() - 1000.0, 6)))
        assert decisions.seen == ([("rate_limit", "waited")] if name else [])

    tasks = [asyncio.create_task(one(name)) for name in range(4)]
    await clock.advance(0.25)
    assert order == [(0, 0.0), (1, 0.1), (2, 0.2)]
    await clock.advance(0.1)
    await asyncio.gather(*tasks)
    assert order[-1] == (3, 0.3)
    assert clock.pending == 0


async def test_nobody_overtakes_those_who_wait() -> None:
    """A newcomer at the very moment at which there is a token queues behind."""
    clock, link = MovableClock(), RateLimit(per_second=10, burst=1, wait=True)
    await passes(link, make_call(clock=clock))
    first = asyncio.create_task(passes(link, make_call(clock=clock)))
    await clock.advance(0.05)
    clock._now += 0.051  # the token is there, and the timer has not run yet
    second = asyncio.create_task(passes(link, make_call(clock=clock)))
    await clock.advance(0.01)
    assert first.done()
    assert not second.done()
    await clock.advance(0.1)
    assert await second


async def test_does_not_wait_past_the_deadline() -> None:
    """A call whose turn would come too late is refused at once, and takes no place in the line."""
    clock, link = MovableClock(), RateLimit(per_second=10, burst=1, wait=True)
    await passes(link, make_call(clock=clock))
    waiting = asyncio.create_task(passes(link, make_call(clock=clock)))
    await clock.advance(0.0)
    error = await refusal(link, make_call(clock=clock, deadline=clock.time() + 0.15))
    assert error.retry_after == pytest.approx(0.2)
    in_time = asyncio.create_task(passes(link, make_call(clock=clock, deadline=clock.time() + 0.25)))
    await clock.advance(0.21)
    assert await waiting
    assert await in_time


@pytest.mark.parametrize("when", ["before its turn", "at its turn", "after its turn"])
async def test_who_leaves_the_line_takes_no_token(when: str) -> None:
    """Cancelled while it waits, or when it has its turn and has not run yet: the next one has that turn."""
    clock, link = MovableClock(), RateLimit(per_second=10, burst=1, wait=True)
    await passes(link, make_call(clock=clock))
    leaving = asyncio.create_task(passes(link, make_call(clock=clock)))
    staying = asyncio.create_task(passes(link, make_call(clock=clock)))
    await clock.advance(0.05)
    line = next(iter(link._lines._values.values()))
    if when == "after its turn":
        clock._now += 0.051
        line._serve(clock)
        assert len(line.waiting) == 1
    leaving.cancel()
    if when == "at its turn":
        clock._now += 0.051
        line._serve(clock)
        assert len(line.waiting) == 0
    await clock.advance(0.06)
    assert leaving.cancelled()
    assert staying.done()
    assert await staying
    assert clock.pending == 0


async def test_the_last_to_leave_stops_the_timer() -> None:
    """Nothing is left of a line."""
    clock, link = MovableClock(), RateLimit(per_second=0.001, burst=1, wait=True)
    await passes(link, make_call(clock=clock))
    tasks = [asyncio.create_task(passes(link, make_call(clock=clock))) for _ in range(3)]
    await clock.advance(1.0)
    assert clock.pending == 1
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert clock.pending == 0


@given(
    arrivals=st.lists(
        st.tuples(st.floats(0.0, 0.5), st.booleans(), st.one_of(st.none(), st.floats(0.0, 0.5))), max_size=25
    ),
    stall=st.floats(0.0, 5.0),
)
@settings(max_examples=100, deadline=None)
def test_the_bound_holds_for_those_who_wait_leave_and_come_late(
    arrivals: list[tuple[float, bool, float | None]], stall: float
) -> None:
    """Accepted in any window w: at most rate * w + burst, exactly; also when the loop stood still for a while."""
    accepted: list[Fraction] = []

    async def scenario() -> None:
        clock, link = MovableClock(), RateLimit(per_second=7.3, burst=3, wait=True)

        async def endpoint(_request: Message, _call: Call) -> Message:
            accepted.append(Fraction(clock.time()))

        tasks = []
        for number, (pause, leaves, deadline) in enumerate(arrivals):
            await clock.advance(pause)
            if number == len(arrivals) // 2:
                clock._now += stall  # no timer runs in all that time
            until = None if deadline is None else clock.time() + deadline
            tasks.append(asyncio.create_task(run(link, endpoint, "hi", make_call(clock=clock, deadline=until))))
            if leaves and number % 2:
                tasks[number // 2].cancel()
        await clock.advance(60.0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert clock.pending == 0

    asyncio.run(scenario())
    for first, begin in enumerate(accepted):
        for last in range(first, len(accepted)):
            assert last - first + 1 <= (accepted[last] - begin) * Fraction(7.3) + 3


@both
@every_kind
async def test_every_kind_on_a_wire(kind: Kind, over: Over) -> None:
    """A stream counts once; the refusal arrives with its pushback."""
    async with pair(echo(), over=over, middleware=[RateLimit(per_second=0.01, burst=1)]) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]
        with pytest.raises(CallError) as caught:
            await ask(ends.channel, kind)
        assert caught.value.error.code is Code.RESOURCE_EXHAUSTED
        assert caught.value.error.reason == "RATE_LIMITED"
        retry_after = caught.value.error.retry_after
        assert retry_after is not None
        assert 90.0 < retry_after <= 100.0


@every_kind
async def test_every_kind_on_the_client(kind: Kind) -> None:
    """There it never reaches the wire."""
    async with pair(echo(), client=[RateLimit(per_second=1, burst=1, key="method")]) as ends:
        assert await ask(ends.channel, kind) == ANSWERS[kind]
        with pytest.raises(CallError) as caught:
            await ask(ends.channel, kind)
        assert caught.value.error.refused


class FakeStore:
    """A store that answers what it is told to: seconds, or an exception."""

    def __init__(self, *answers: float | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def check(self, *, per_second: float, burst: int) -> None:
        if per_second > 1000:
            msg = f"per_second={per_second!r} is too fast for this store"
            raise ValueError(msg)

    async def take(self, key: str, *, per_second: float, burst: int) -> float:
        self.asked.append(key)
        answer = self.answers.pop(0)
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_store_decides() -> None:
    """It is asked with the key; what it says of the time goes to the caller."""
    clock, store = MovableClock(), FakeStore(0.0, 0.5)
    link = RateLimit(per_second=5, store=store)
    assert await passes(link, make_call(clock=clock, peer="ipv4:10.0.0.1:80"))
    assert (await refusal(link, make_call(clock=clock, peer="ipv4:10.0.0.1:81"))).retry_after == pytest.approx(0.5)
    assert store.asked == ["ipv4:10.0.0.1"] * 2


async def test_a_store_is_not_asked_for_what_it_has_said() -> None:
    """Until a key has tokens again, refusing it costs no round trip; another key is another matter."""
    clock, store = MovableClock(), FakeStore(0.5, 0.0, 0.0)
    link = RateLimit(per_second=5, store=store)
    assert not await passes(link, make_call(clock=clock, peer="a"))
    await clock.advance(0.4)
    assert (await refusal(link, make_call(clock=clock, peer="a"))).retry_after == pytest.approx(0.1)
    assert await passes(link, make_call(clock=clock, peer="b"))
    await clock.advance(0.1)
    assert await passes(link, make_call(clock=clock, peer="a"))
    assert store.asked == ["a", "b", "a"]


async def test_waiting_for_a_store_is_asking_again() -> None:
    """Never past the deadline."""
    clock, store = MovableClock(), FakeStore(0.5, 0.2, 0.0, 0.5)
    link = RateLimit(per_second=5, store=store, wait=True)
    call = make_call(clock=clock)
    decisions = Decisions(call)
    waiting = asyncio.create_task(passes(link, call))
    await clock.advance(0.69)
    assert not waiting.done()
    await clock.advance(0.02)
    assert await waiting
    assert decisions.seen == [("rate_limit", "waited")]
    assert (await refusal(link, make_call(clock=clock, deadline=clock.time() + 0.4))).code is Code.RESOURCE_EXHAUSTED


async def test_fails_open(caplog: pytest.LogCaptureFixture) -> None:
    """By default calls pass while the store cannot be asked; it is left alone for a second, and the log tells twice."""
    clock, store = MovableClock(), FakeStore(ConnectionError("gone"), ConnectionError("gone"), 0.0, 0.0)
    link = RateLimit(per_second=5, store=store)
    told = []
    with caplog.at_level(logging.INFO, "servicekit"):
        for pause in (0.0, 0.5, 0.6, 1.1, 0.0):
            await clock.advance(pause)
            call = make_call(clock=clock)
            decisions = Decisions(call)
            assert await passes(link, call)
            told.append([decision for _, decision in decisions.seen])
    assert told == [["failed_open"], ["failed_open"], ["failed_open"], [], []]
    assert len(store.asked) == 4
    assert [record.getMessage() for record in caplog.records] == [
        "the store of a rate limit cannot be asked: ConnectionError('gone')",
        "the store of a rate limit answers again",
    ]


async def test_fails_closed() -> None:
    """With ``fail_open=False`` they are refused with UNAVAILABLE, and told to come back."""
    clock, store = MovableClock(), FakeStore(ConnectionError("secret"))
    link = RateLimit(per_second=5, store=store, fail_open=False)
    for _ in range(2):
        call = make_call(clock=clock)
        decisions = Decisions(call)
        error = await refusal(link, call)
        assert (error.code, error.retry_after, error.refused) == (Code.UNAVAILABLE, 1.0, True)
        assert "secret" not in str(error)
        assert decisions.seen == [("rate_limit", "failed_closed")]
    assert len(store.asked) == 1


def test_a_store_refuses_what_it_cannot_keep() -> None:
    """Where it is written."""
    with pytest.raises(ValueError, match="per_second=2000"):
        RateLimit(per_second=2000, store=FakeStore())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"per_second": 0}, "per_second=0"),
        ({"per_second": "5"}, "per_second='5'"),
        ({"per_second": 5, "burst": 0}, "burst=0"),
        ({"per_second": 5, "burst": 1.5}, r"burst=1\.5"),
        ({"per_second": 5, "max_keys": 0}, "max_keys=0"),
        ({"per_second": 5, "key": "host"}, "key='host'"),
        ({"per_second": 5, "key": 7}, "key=7"),
    ],
)
def test_refuses_what_is_no_limit(wrong: dict[str, float], named: str) -> None:
    """Setting and value are named."""
    with pytest.raises((ValueError, TypeError), match=named):
        RateLimit(**wrong)  # type: ignore[arg-type]  # that is the point


def test_shows_its_settings() -> None:
    """As they are used."""
    assert repr(RateLimit(per_second=5, burst=2)).startswith("RateLimit(per_second=5, burst=2, key='peer', wait=False")


# Redis.


@pytest.mark.parametrize(
    ("per_second", "burst"), [(500, 100), (2.5, 3), (0.3, 1)], ids=["less than a second", "a part", "no part"]
)
def test_redis_counts_in_whole_seconds(per_second: float, burst: int) -> None:
    """The burst is what comes in during some of them."""
    with pytest.raises(ValueError, match=f"burst={burst}"):
        RateLimit(per_second=per_second, burst=burst, store=RedisLimit("redis://127.0.0.1:1"))


def test_redis_hides_its_url() -> None:
    """It may hold a password; so may one that is refused."""
    assert repr(RedisLimit("redis://user:hunter2@127.0.0.1:1")) == "RedisLimit(prefix='servicekit', timeout=0.25)"
    for url in ("http://user:hunter2@127.0.0.1:1", "redis://user:hunter2@127.0.0.1:x", "redis://user:hunter2@[::1:1"):
        with pytest.raises(ValueError, match=f"url=.*{url.partition(':')[0]}") as caught:
            RedisLimit(url)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__context__ is None


async def test_redis_that_is_not_there_is_no_answer() -> None:
    """Failing open or closed is RateLimit's."""
    store = RedisLimit("redis://127.0.0.1:1")
    assert await passes(RateLimit(per_second=1, store=store), make_call())
    with pytest.raises(Error) as caught:
        await run(RateLimit(per_second=1, store=store, fail_open=False), answer, "hi", make_call())
    assert caught.value.code is Code.UNAVAILABLE
    await store.close()


def test_redis_names_its_extra() -> None:
    """Who has not installed it is told what to install."""
    code = textwrap.dedent("""
        import sys
        sys.modules["limits"] = None
        import servicekit.middleware.rate_limit
        try:
            import servicekit.middleware.redis_limit
        except ImportError as error:
            print(error)
    """)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "RedisLimit needs the extra servicekit[redis]"


@dataclass
class Redis:
    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis of our own."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server: apt-get install redis-server")
    socket = tmp_path / "redis.sock"
    command = [server, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        running = Redis(f"redis+unix://{socket}", process)
        try:
            until = time.monotonic() + 10.0
            while not socket.exists():
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            yield running
        finally:
            running.stop()


ASKING = """
import asyncio, sys
from servicekit.clock import SystemClock
from servicekit.errors import Error
from servicekit.middleware.rate_limit import RateLimit
from servicekit.middleware.redis_limit import RedisLimit
from servicekit.testing import make_call, run

async def answer(request, call):
    return "ok"

async def main():
    store = RedisLimit(sys.argv[1], timeout=5.0)
    link = RateLimit(per_second=1, burst=20, store=store, fail_open=False)
    clock, passed = SystemClock(), 0
    sys.stdin.readline()
    for _ in range(50):
        try:
            await run(link, answer, "hi", make_call(clock=clock, peer="ipv4:10.0.0.1:1"))
        except Error as error:
            assert error.code.name == "RESOURCE_EXHAUSTED", error
            assert 0 < error.retry_after <= 20.0, error.retry_after
        else:
            passed += 1
    print(passed)
    await store.close()

asyncio.run(main())
"""


@pytest.mark.integration
def test_two_processes_share_a_limit(redis: Redis) -> None:
    """What one has taken the other does not get: 20 in twenty seconds, together."""
    command = [sys.executable, "-c", ASKING, redis.url]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        shown = [process.communicate("go\n", timeout=50)[0] for process in processes]
    assert sum(int(line) for line in shown) == 20


@pytest.fixture
async def store(redis: Redis) -> AsyncIterator[RedisLimit]:
    store = RedisLimit(redis.url, timeout=5.0)
    yield store
    await store.close()


@pytest.mark.integration
async def test_redis_keeps_keys_apart_and_gives_what_the_rate_brings(store: RedisLimit) -> None:
    """One key's calls are not another's; a second later there are as many again."""
    assert [await store.take("a", per_second=3, burst=3) for _ in range(3)] == [0.0] * 3
    delay = await store.take("a", per_second=3, burst=3)
    assert 0 < delay <= 1.0
    assert await store.take("b", per_second=3, burst=3) == 0.0
    await asyncio.sleep(delay + 0.01)
    assert await store.take("a", per_second=3, burst=3) == 0.0


@pytest.mark.integration
async def test_a_redis_that_goes_is_no_answer(store: RedisLimit, redis: Redis) -> None:
    """Connections that break while they are used are a store that cannot be asked."""
    link = RateLimit(per_second=5, store=store, fail_open=False)
    assert await passes(link, make_call())
    redis.stop()
    with pytest.raises(Error) as caught:
        await run(link, answer, "hi", make_call())
    assert caught.value.code is Code.UNAVAILABLE
