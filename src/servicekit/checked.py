"""Settings of ``Server`` and ``connect``, looked at where they are given: a wrong one is named, with its value.

What is found late is found in production: a wrong ``drain`` at SIGTERM, when the calls in flight are lost by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from .grpcio.settings import are_channel_credentials, are_options, are_server_credentials, is_compression
from .native.tls import TlsCredentials, credentials_of
from .process.drain import Drain
from .telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable


def _with(*names: str) -> Callable[[Any], bool]:
    return lambda value: all(callable(getattr(value, name, None)) for name in names)


def _is_a(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_listed(value: Any) -> bool:  # noqa: ANN401 - as above
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _are_addresses(value: Any) -> bool:  # noqa: ANN401 - as above
    return isinstance(value, str) or (
        _is_listed(value) and isinstance(value, Collection) and all(isinstance(each, str) for each in value)
    )


def _are_server_credentials(value: Any) -> bool:  # noqa: ANN401 - as above
    return are_server_credentials(value) or isinstance(value, TlsCredentials)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "address": (_are_addresses, "a str, or several of them"),
    "target": (_is_a(str), "a str"),
    "middleware": (_is_listed, "a sequence of middleware"),
    "telemetry": (_is_a(Telemetry), "a Telemetry"),
    "drain": (_is_a(Drain), "a Drain"),
    "interceptors": (_is_listed, "a sequence of grpc.aio's interceptors"),
    "options": (are_options, "a sequence of (name, int or str)"),
    "compression": (is_compression, "a grpc.Compression"),
    "server_credentials": (_are_server_credentials, "grpc.ServerCredentials, or TlsCredentials for wire='native'"),
    "channel_credentials": (are_channel_credentials, "grpc.ChannelCredentials"),
    "threads": (_is_a(Executor), "an Executor of concurrent.futures"),
    "health": (_is_a(bool), "True or False"),
    "reflection": (_is_a(bool), "True or False"),
    "clock": (_with("time", "sleep", "call_at"), "a Clock"),
    "listener": (lambda value: isinstance(value, str) or _with("bind", "start", "stop", "failed")(value), "a Listener"),
    "wire": (lambda value: isinstance(value, str) or _with("unary", "open", "close")(value), "a Wire"),
}
_OPTIONAL = {
    "middleware",
    "telemetry",
    "drain",
    "compression",
    "server_credentials",
    "channel_credentials",
    "threads",
    "clock",
}
_TOLD = {"listener": "wire"}


def check(**settings: object) -> None:
    """Raise TypeError for the first setting that is not what its name promises, with its value.

    ``listener`` is what a server takes as ``wire``. Of credentials only the type is said: they may be a key.
    """
    for name, value in settings.items():
        fits, what = _RULES[name]
        if not (value is None and name in _OPTIONAL) and not fits(value):
            secret = name.endswith("credentials")
            told = f"credentials of type {type(value).__name__}" if secret else f"{_TOLD.get(name, name)}={value!r}"
            msg = f"{told}: not {what}"
            raise TypeError(msg)


def check_credentials(wire: object, credentials: object) -> None:
    """Raise TypeError for server credentials that are another wire's than ``wire``, where that is one of ours."""
    if credentials is None or wire not in ("grpcio", "native"):
        return
    if wire == "native":
        credentials_of(credentials)
    elif isinstance(credentials, TlsCredentials):
        msg = "TlsCredentials are for wire='native'; wire='grpcio' takes grpc.ssl_server_credentials(…)"
        raise TypeError(msg)


def in_a_loop(what: str) -> None:
    """Raise RuntimeError, with what to write, where no event loop runs: what is made would belong to none."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        msg = f"{what} is written inside of a coroutine: async def main(): …, and asyncio.run(main())"
        raise RuntimeError(msg) from None
