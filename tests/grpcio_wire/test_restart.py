"""One request with a ``:path`` that is not UTF-8 ends a grpc.aio server; this listener goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from servicekit.errors import Error
from servicekit.grpcio import core, server
from servicekit.grpcio.channel import channel_to
from servicekit.grpcio.client import GrpcioWire
from servicekit.grpcio.server import GrpcioListener
from servicekit.grpcio.sockets import share
from servicekit.method import Kind
from servicekit.wire import BindError, Incoming, Route
from tests.grpcio_wire.ground import CLOCK, OK, connected, echo, head, headers, joined

DEADLY = headers(b"/t/\xff")


def files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def until(condition: Callable[[], object], *, within: float = 2.0) -> None:
    """Return when ``condition`` holds; nothing tells of these moments but what is looked at."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.001)


async def answered(wire: GrpcioWire) -> bool:
    """Call until the client has heard that its old connection is gone."""
    async with asyncio.timeout(1):
        while True:
            try:
                return (await wire.unary(head(), b"x")).data == b"x"
            except Error:
                await asyncio.sleep(0)


async def attack(listener: GrpcioListener, address: str) -> None:
    before = listener.restarts
    while listener.restarts == before:  # a connection that still lands on the last server kills nobody
        with contextlib.suppress(TimeoutError, OSError):
            async with connected(address, DEADLY):
                await until(lambda: listener.restarts > before, within=0.1)
    await until(lambda: listener._replacing is not None and listener._replacing.done())


async def test_a_bare_server_dies_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """The trap itself, for the day that grpc.aio does without it."""
    bare = grpc.aio.server()
    address = f"127.0.0.1:{bare.add_insecure_port('127.0.0.1:0')}"
    await bare.start()
    async with connected(address, DEADLY):
        with pytest.raises(UnicodeDecodeError):
            await bare.wait_for_termination(5.0)
    caplog.clear()


async def test_calls_go_on_and_those_in_flight_finish() -> None:
    """A client loses the calls of that instant at most, and no connection is refused: that would cost it a back-off."""
    release, held = asyncio.Event(), asyncio.Event()
    failures: list[Error] = []
    done = False

    async def serve(incoming: Incoming) -> None:
        if incoming.data == b"hold":
            held.set()
            await release.wait()
        await incoming.finish(OK, incoming.data)

    async with joined(serve) as (wire, listener, address):
        told: list[BaseException] = []
        listener._on_restart = told.append
        holding = asyncio.create_task(wire.unary(head(), b"hold"))
        await held.wait()

        async def call() -> tuple[int, int]:
            answered, interruptions, interrupted = 0, 0, False
            while not done:
                try:
                    answered += (await wire.unary(head(), b"x")).data == b"x"
                    interrupted = False
                except Error as error:
                    failures.append(error)
                    interruptions += not interrupted  # how often it asks within one is the machine's affair
                    interrupted = True
                await asyncio.sleep(0)
            return answered, interruptions

        calling = [asyncio.create_task(call()) for _ in range(4)]
        await wire.unary(head(), b"warm")
        for _ in range(3):
            await attack(listener, address)
            assert await answered(wire)
        done = True
        for task in calling:
            answered_calls, interruptions = await task
            assert answered_calls
            assert interruptions <= 3
        assert not any("failed to connect" in error.message for error in failures)
        assert listener.restarts == len(told) == 3
        assert isinstance(told[0], UnicodeDecodeError)
        release.set()
        assert (await holding).data == b"hold"


async def test_twenty_in_a_row_leave_nothing_behind() -> None:
    """Neither servers nor sockets nor tasks pile up, and the port is nobody else's in the end."""
    async with joined(echo) as (wire, listener, address):
        await wire.unary(head(), b"")
        await attack(listener, address)
        opened, tasks = files(), len(asyncio.all_tasks())
        for _ in range(20):
            await attack(listener, address)
        await until(lambda: not listener._retired and not listener._tasks, within=5)
        assert await answered(wire)
        assert listener.restarts == 21
        assert files() <= opened + 4
        assert len(asyncio.all_tasks()) <= tasks + 2
        with pytest.raises(BindError):
            GrpcioListener(CLOCK).bind(address)


async def test_without_the_kernels_leave_it_waits_for_the_old_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sockets of this process cannot be found, the port is bound once the old server has let go of it."""
    monkeypatch.setattr(server, "share", lambda *_, **__: False)
    async with joined(echo) as (wire, listener, address):
        await attack(listener, address)
        assert await answered(wire)
        with pytest.raises(RuntimeError):
            grpc.aio.server().add_insecure_port(address)


async def test_a_unix_socket_is_taken_over_when_the_old_server_has_removed_it(tmp_path: Path) -> None:
    """The old server unlinks the path when it stops, whoever listens there by then."""
    listener = GrpcioListener(CLOCK)
    unix = listener.bind(f"unix:{tmp_path}/s")
    address = listener.bind("127.0.0.1:0")
    route = Route(kind=Kind.UNARY, serve=echo)
    await listener.start(lambda _: route)
    for _ in range(3):
        await attack(listener, address)
    await until(lambda: not listener._retired)
    for where in (unix, address):
        wire = GrpcioWire(channel_to(where, None), CLOCK)
        assert (await wire.unary(head(), b"x")).data == b"x"
        await wire.close(0)
    await listener.stop(0)


async def test_a_port_that_is_lost_is_said_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody can take the dead server's place, ``failed`` returns why."""

    def bind(*_: object) -> str:
        raise BindError("taken by somebody")

    monkeypatch.setattr(server, "_PATIENCE", 0.05)
    async with joined(echo) as (_, listener, address):
        monkeypatch.setattr(core.CoreServer, "bind", bind)
        async with connected(address, DEADLY), asyncio.timeout(2):
            error = await listener.failed()
        assert address in str(error)


@pytest.mark.parametrize("step", ["__init__", "start"])
async def test_whatever_prevents_a_restart_is_said_aloud(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Too many open files, for one: a port that accepts and never answers is worse than a process that ends."""

    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    async with joined(echo) as (_, listener, address):
        monkeypatch.setattr(core.CoreServer, step, fail)
        async with connected(address, DEADLY), asyncio.timeout(2):
            error = await listener.failed()
        monkeypatch.undo()
    assert isinstance(error, OSError)


async def test_a_restart_that_nobody_can_be_told_of_is_one_all_the_same() -> None:
    """What a callback raises is its own affair, for asyncio to log; the server serves."""
    noise: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))

    def tell(_: BaseException) -> None:
        raise LookupError

    async with joined(echo) as (wire, listener, address):
        listener._on_restart = tell
        await attack(listener, address)
        assert await answered(wire)
        assert not listener._failed.is_set()


async def test_a_grpcio_that_hides_its_main_loop_is_watched_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without grpc.aio's private parts the server still dies, but not in silence."""
    monkeypatch.setattr(core, "_is_main_loop", lambda _: False)
    async with joined(echo) as (_, listener, address):
        async with connected(address, DEADLY), asyncio.timeout(2):
            error = await listener.failed()
        assert isinstance(error, UnicodeDecodeError)
        assert listener.restarts == 0


async def test_a_stop_in_the_middle_of_a_restart_is_a_stop() -> None:
    """Whatever the moment, ``stop`` ends both servers."""
    for turns in range(0, 40, 4):
        async with joined(echo) as (_, listener, address), connected(address, DEADLY):
            await until(lambda: listener.restarts)
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(3):
                await listener.stop(0)
            host, _, port = address.rpartition(":")
            with pytest.raises(ConnectionError):
                await asyncio.open_connection(host, int(port))


def test_sharing_says_whether_it_found_the_port() -> None:
    """Nobody listens on port 1 here."""
    assert not share(["127.0.0.1:1"], allowed=True)
    assert share([], allowed=True)
