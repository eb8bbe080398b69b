from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from pathlib import Path

import pytest

from servicekit.clock import SystemClock
from servicekit.method import Kind
from servicekit.native.server import NativeListener
from servicekit.native.sockets import listening, peer_name, release
from servicekit.wire import BindError, Incoming, Route, Status


async def finish(incoming: Incoming) -> None:
    await incoming.finish(Status(), b"")


ROUTE = Route(kind=Kind.UNARY, serve=finish)


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("127.0.0.1:0", "127.0.0.1:{}"),
        ("ipv4:127.0.0.1:0", "ipv4:127.0.0.1:{}"),
        ("localhost:0", "localhost:{}"),
        ("[::1]:0", "[::1]:{}"),
        ("dns:///localhost:0", "dns:///localhost:{}"),
        ("[::]:0", "[::]:{}"),
    ],
)
def test_an_address_comes_back_with_its_port(address: str, bound: str) -> None:
    """Port 0 is a free one, the same on every address of a name, and somebody listens there."""
    found, sockets = listening(address)
    try:
        ports = {sock.getsockname()[1] for sock in sockets}
        assert len(ports) == 1
        assert found == bound.format(*ports)
        for sock in sockets:
            with socket.socket(sock.family) as client:
                client.connect(sock.getsockname()[:2])
    finally:
        release(sockets)


def test_every_address_can_be_listened_on() -> None:
    """The wildcard of IPv6 takes clients that speak IPv4 too."""
    _, sockets = listening("[::]:0")
    try:
        with socket.create_connection(("127.0.0.1", sockets[0].getsockname()[1])):
            pass
    finally:
        release(sockets)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "256.0.0.1:0", "fd:0", "fd:x"])
def test_what_is_no_address_is_named(address: str) -> None:
    """BindError names it, whatever is wrong with it."""
    with pytest.raises(BindError, match=address.replace(".", r"\.") or "''"):
        listening(address)


def test_a_taken_address_is_refused_unless_it_is_shared_on_purpose() -> None:
    """Two servers share a port only if both say so."""
    address, sockets = listening("127.0.0.1:0")
    with pytest.raises(BindError, match="taken"):
        listening(address, reuse_port=True)
    release(sockets)
    address, sockets = listening("127.0.0.1:0", reuse_port=True)
    with pytest.raises(BindError, match="taken"):
        listening(address)
    _, more = listening(address, reuse_port=True)
    release([*sockets, *more])


def test_a_unix_socket_goes_with_its_server(tmp_path: Path) -> None:
    """Its path can be bound while nobody listens there, also one that a server left behind, and is gone at the end."""
    address = f"unix:{tmp_path}/a.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(f"{tmp_path}/a.sock")
    left.close()
    found, sockets = listening(address)
    assert found == address
    with pytest.raises(BindError, match="taken"):
        listening(address)
    release(sockets)
    assert not (tmp_path / "a.sock").exists()


def test_a_file_in_the_way_of_a_unix_socket_stays(tmp_path: Path) -> None:
    """What is no socket is not ours to remove."""
    (tmp_path / "a.sock").write_text("precious")
    with pytest.raises(BindError):
        listening(f"unix:{tmp_path}/a.sock")
    assert (tmp_path / "a.sock").read_text() == "precious"


def test_a_listening_socket_may_be_handed_in() -> None:
    """By its number; whoever made it keeps it."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        address, sockets = listening(f"fd:{given.fileno()}")
        assert address == f"fd:{given.fileno()}"
        assert sockets[0].getsockname() == given.getsockname()
        release(sockets)
        with socket.create_connection(given.getsockname()):
            pass
    with socket.socket() as idle, pytest.raises(BindError, match="no socket that listens"):
        listening(f"fd:{idle.fileno()}")


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        (("127.0.0.1", 5), "ipv4:127.0.0.1:5"),
        (("::1", 5, 0, 0), "ipv6:%5B::1%5D:5"),
        ("", "unix:"),
        ("/tmp/x", "unix:/tmp/x"),
        (b"\0name", "unix-abstract:name"),
        (None, "unix:"),
    ],
)
def test_peers_are_spelled_as_grpc_core_does(name: object, peer: str) -> None:
    """Code that reads ``context.peer()`` finds what it knows."""
    assert peer_name(name) == peer


async def test_a_connection_that_comes_at_the_last_moment_is_closed() -> None:
    """What asyncio has accepted in the turn in which its server is closed it forgets, and never closes."""
    for turns in range(4):
        listener = NativeListener(SystemClock())
        address = listener.bind("127.0.0.1:0")
        await listener.start(lambda _: ROUTE)
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await listener.stop(0)
            client.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            with contextlib.suppress(ConnectionResetError):
                while await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1024), 5):
                    pass
        gc.collect()
