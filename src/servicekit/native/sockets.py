"""Listening sockets: from an address as people write it to sockets that are bound, and back to the name of a peer."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from typing import Final, TypeAlias
from urllib.parse import quote

from servicekit.wire import BindError

_PORT: Final = re.compile(r"(?:(?:dns:(?://[^/]*)?/*)|(?:ipv[46]:))?(?:\[([^\]]+)\]|([^:\[\]]*)):(\d{1,5})")
_LAST_PORT: Final = 65_535
_BACKLOG: Final = 1024
_TRIES: Final = 20  # of free ports, until one is free on every address of a name
_IN_USE: Final = "it is taken, or not an address of this machine"

Sockets: TypeAlias = "list[socket.socket]"


def listening(address: str, *, reuse_port: bool = False) -> tuple[str, Sockets]:
    """Return the address with the port that was bound, and the sockets, one for each address that a name has.

    Known are ``host:port`` (also with gRPC's ``dns:``, ``ipv4:`` and ``ipv6:``), ``unix:path``, ``unix-abstract:name``
    and ``fd:number``, a listening socket that this process was started with; that one stays open here. A name's
    addresses are looked up, and waited for. Raises BindError, naming the address.
    """
    try:
        if address.startswith("fd:"):
            return address, [_inherited(address)]
        path = _unix_path(address)
        if path is not None:
            if not path.strip("\0/ "):
                raise ValueError("it has no name")  # noqa: TRY301 - told as what follows
            return address, [_unix(path)]
        found = _PORT.fullmatch(address)
        if found is None:
            raise ValueError("it is none of host:port, unix:path and fd:number")  # noqa: TRY301 - told as what follows
        host, port = found[1] or found[2], int(found[3])
        if port > _LAST_PORT:
            raise ValueError(f"{port} is no port (0 to {_LAST_PORT})")  # noqa: TRY301 - as above
        bound = _internet(host, port, reuse_port=reuse_port)
    except BindError:
        raise
    except (OSError, OverflowError, ValueError) as error:
        why = _IN_USE if getattr(error, "errno", None) in {errno.EADDRINUSE, errno.EADDRNOTAVAIL} else str(error)
        raise BindError(f"cannot listen on {address!r}: {why}") from error
    return f"{address[: found.start(3)]}{bound[0].getsockname()[1]}", bound


def forget(sockets: Sockets) -> None:
    """Remove the paths that Unix sockets have in the file system: nobody finds them any more."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            name = sock.getsockname()
            if sock.family == socket.AF_UNIX and isinstance(name, str) and name:
                _remove(name)


def release(sockets: Sockets) -> None:
    """Close listening sockets that no loop has, and remove their paths."""
    forget(sockets)
    for sock in sockets:
        sock.close()


def peer_name(name: object) -> str:
    """Return the name of a peer from what ``getpeername`` says, as grpc core spells it."""
    if isinstance(name, tuple):
        host, port = name[0], name[1]
        if ":" in host:
            return f"ipv6:{quote(f'[{host}]', safe='')}:{port}".replace("%3A", ":")
        return f"ipv4:{host}:{port}"
    if isinstance(name, bytes):
        return f"unix-abstract:{name[1:].decode(errors='replace')}"
    return f"unix:{name or ''}"


def _internet(host: str, port: int, *, reuse_port: bool) -> Sockets:
    flags = socket.AI_PASSIVE
    known = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    # The same address may come more than once; the wildcard of IPv6 takes IPv4 with it.
    places = list(dict.fromkeys((family, place) for family, _, _, _, place in known))
    if not host and any(family == socket.AF_INET6 for family, _ in places):
        places = [(socket.AF_INET6, ("::", port))]
    for attempt in range(_TRIES):
        sockets: Sockets = []
        chosen = port
        try:
            for family, place in places:
                sock = _bound(family, (place[0], chosen, *place[2:]), reuse_port=reuse_port)
                sockets.append(sock)
                chosen = sock.getsockname()[1]
        except OSError as error:
            for sock in sockets:
                sock.close()
            if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT} and len(places) > 1:
                places = [place for place in places if place[0] == socket.AF_INET]  # a name with an address we lack
                continue
            if port or not sockets or attempt == _TRIES - 1:
                raise
        else:
            return sockets
    raise OSError(errno.EADDRINUSE, _IN_USE)


def _bound(family: int, place: tuple[object, ...], *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # So that a port whose old connections are still dying can be had; nobody can take one that is listened on.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, place[0] != "::")
        sock.bind(place)
        return _listen(sock)
    except BaseException:
        sock.close()
        raise


def _listen(sock: socket.socket) -> socket.socket:
    sock.listen(_BACKLOG)
    sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
    return sock


def _unix_path(address: str) -> str | None:
    if address.startswith("unix-abstract:"):
        return "\0" + address.removeprefix("unix-abstract:")
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return path.removeprefix("//") if path.startswith("///") else path
    return None


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not path.startswith("\0") and not _answers(path):
            _remove(path)  # of a server that died
        sock.bind(path)
        return _listen(sock)
    except BaseException:
        sock.close()
        raise


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        try:
            asking.connect(path)
        except BlockingIOError:  # its queue is full, so it has one
            return True
        except OSError:
            return False
        return True


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - one call of the system, no object
            os.unlink(path)  # noqa: PTH108 - as above


def _inherited(address: str) -> socket.socket:
    sock = socket.socket(fileno=os.dup(int(address.removeprefix("fd:"))))
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise BindError(f"cannot listen on {address!r}: it is no socket that listens")
    sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
    return sock
