"""Who listens where: the names of one network, and the RPCs that wait for a name to be taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeAlias

from servicekit.errors import Code
from servicekit.wire import BindError

from .exchange import Exchange

Accept: TypeAlias = "Callable[[Exchange], None]"

_FIRST_PORT = 49152  # RFC 6335, section 6: where the dynamic ports begin


class Addresses:
    """A name is free, then claimed, then open (it answers), then free again."""

    def __init__(self) -> None:
        """Begin with every name free."""
        self._accept: dict[str, Accept | None] = {}
        self._waiting: dict[str, list[Exchange]] = {}
        self._ports = itertools.count(_FIRST_PORT)

    def claim(self, address: str) -> str:
        """Take a name and return it, with a port of its own for port 0. Raises BindError when it is taken."""
        if not address:
            raise BindError("cannot listen on '': an address in memory is any name, or host:port")
        host, _, port = address.rpartition(":")
        if host and port == "0":
            address = next(name for number in self._ports if (name := f"{host}:{number}") not in self._accept)
        if address in self._accept:
            raise BindError(f"cannot listen on {address!r}: the address is taken")
        self._accept[address] = None
        return address

    def open(self, address: str, accept: Accept) -> None:
        """Let ``accept`` have every RPC to a claimed name from now on, and those that wait for it."""
        self._accept[address] = accept
        for exchange in self._waiting.pop(address, ()):
            accept(exchange)

    def release(self, address: str) -> None:
        """Make a name free."""
        self._accept.pop(address, None)

    def deliver(self, address: str, exchange: Exchange, *, wait: bool) -> None:
        """Hand an RPC to whoever answers there; else let it wait, or fail it."""
        accept = self._accept.get(address)
        if accept is not None:
            accept(exchange)
        elif wait:
            self._waiting.setdefault(address, []).append(exchange)
        else:
            exchange.fail(Code.UNAVAILABLE, f"nobody listens on {address!r}")

    def forget(self, address: str, exchange: Exchange) -> None:
        """Let an RPC no longer wait; harmless when it does not."""
        waiting = self._waiting.get(address, [])
        if exchange in waiting:
            waiting.remove(exchange)
        if not waiting:
            self._waiting.pop(address, None)
