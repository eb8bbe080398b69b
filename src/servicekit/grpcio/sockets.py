"""The sockets that core listens on, found among the files of this process.

Core closes them in a thread of its own and hands out none of them. A server that takes another one's place before that
needs the kernel's leave to bind the same port: SO_REUSEPORT, which may be set on a socket that is bound already, and
taken away again. Linux remembers that it was given once: from then on a server of the same user that asks for
SO_REUSEPORT itself may bind the very same address. One that does not ask, as no listener here does, is refused as ever.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

_FILES = "/dev/fd"
_UNNUMBERED = re.compile(r"(unix|unix-abstract|vsock):(.*)", re.DOTALL)
_SCHEME = re.compile(r"^(dns|ipv4|ipv6):(//[^/]*/)?")
_LAST_PORT = 65535
_PORT = re.compile(r":(\d+)$")


def share(addresses: Iterable[str], *, allowed: bool) -> bool:
    """Allow, or no longer, that another server binds these ports too; return whether each of them was found."""
    ports = {int(match[1]) for address in addresses if (match := _PORT.search(address))}
    found: set[int] = set()
    try:
        files = [int(name) for name in os.listdir(_FILES)]  # noqa: PTH208 - names are all that is wanted
    except (OSError, ValueError):
        return False
    for file in files:
        port = _share(file, ports, allowed=allowed)
        if port is not None:
            found.add(port)
    return found == ports


def _share(file: int, ports: set[int], *, allowed: bool) -> int | None:
    with contextlib.suppress(OSError):  # it was closed meanwhile, or this is no such system
        if not stat.S_ISSOCK(os.fstat(file).st_mode):
            return None
        with socket.socket(fileno=os.dup(file)) as listening:
            if listening.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            port: int = listening.getsockname()[1]
            if port not in ports or not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return None
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, allowed)
            return port
    return None


def unix_path(address: str) -> str | None:
    """Return the path of a unix socket's address, or None for all others (abstract names among them)."""
    if not address.startswith("unix:"):
        return None
    return address.removeprefix("unix:").removeprefix("//")


def wrong_address(address: str) -> str | None:
    """Return what is wrong with ``address``, None where nothing is as far as its text tells."""
    if (match := _UNNUMBERED.fullmatch(address)) is not None:
        return None if match[2].strip("/ ") else f"it has no name after {match[1]}:"
    if "://" in address.removeprefix("dns://").removeprefix("ipv4://").removeprefix("ipv6://"):
        return "it is a URL, and gRPC's addresses are host:port"
    if "," in address:
        return "it is several: give a list of them"
    host, colon, port = _SCHEME.sub("", address).rpartition(":")
    if not colon or port.endswith("]"):
        return "it has no port (host:port, with port 0 for any that is free)"
    if not port.isdecimal() or not port.isascii() or int(port) > _LAST_PORT:
        return f"{port!r} is no port (0 to {_LAST_PORT})"
    if not host or host != host.strip():
        return f"{host!r} is no host (0.0.0.0 or [::] for every one of this machine)"
    if ":" in host and not host.startswith("["):
        return "an IPv6 address goes in brackets, as in [::1]:0"
    return None


def wrong_target(target: str) -> str | None:
    """Return why nothing can be reached at ``target``, None where something may be as far as its text tells.

    Core takes some of these: the port 99999 for 34463, and what follows ``dns://`` for the server to ask for names. A
    name without a port is one with 443 (the gRPC naming document).
    """
    if (match := _UNNUMBERED.fullmatch(target)) is not None:
        return None if match[2].strip("/ ") else f"it has no name after {match[1]}:"
    if re.fullmatch(r"dns://[^/]*/?", target):
        return "dns:// is followed by the server that is asked for names: write dns:///host:port, with three slashes"
    if target.startswith(("xds:", "google-c2p")):
        return None
    for address in unquote(_SCHEME.sub("", target)).split(","):
        host, colon, port = address.rpartition(":")
        if not colon or port.endswith("]") or (":" in host and not host.startswith("[")):
            continue  # a name alone, or an IPv6 address
        if port in {"http", "https"}:  # core knows these two
            continue
        if not port.isdecimal() or not port.isascii() or not 0 < int(port) <= _LAST_PORT:
            return f"{port!r} is no port (1 to {_LAST_PORT})"
    return None


def answers(path: str) -> bool:
    """Return whether somebody listens at the unix socket ``path``; at once, also where they take no connections."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        with contextlib.suppress(BlockingIOError):  # its queue is full, so it has one
            probe.connect(path)
        return True
    return False
