"""A rate limit that several processes keep together, in Redis."""

from __future__ import annotations

import contextlib
import math
import time

try:
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import RedisStorage
    from limits.aio.storage.redis.coredis import CoredisBridge
    from limits.aio.strategies import MovingWindowRateLimiter
    from limits.errors import ConfigurationError
except ImportError as error:
    msg = "RedisLimit needs the extra servicekit[redis]"
    raise ImportError(msg) from error

from servicekit.policy.checked import kind, rate, seconds, text

_LEAST = 0.001
_CLOSE = 1e-9


class RedisLimit:
    """A store for ``RateLimit(store=...)``: all who name the same ``url`` and ``prefix`` share its limits.

    Redis, or what speaks its protocol, at ``url``: "redis://[user:password@]host:port[/database]", "rediss://…" for TLS,
    "redis+unix:///path". An answer that takes longer than ``timeout`` (0.25 s) is none. Connections are made when they
    are first needed; ``close()`` ends them.

    It is a moving window (of ``limits``), so ``burst`` has to be a whole number of seconds of ``per_second``: at most
    ``burst`` calls in any ``burst / per_second`` seconds, which keeps the promise of ``RateLimit`` exactly. Redis holds
    a list of up to ``burst`` times for each key, for as long as they count. The times are those of the clients' clocks,
    which therefore have to agree.
    """

    __slots__ = ("_limiter", "_storage", "prefix", "timeout")

    def __init__(self, url: str, *, timeout: float = 0.25, prefix: str = "servicekit") -> None:
        """Raise ValueError or TypeError, naming setting and value, for what cannot be reached at all. Nothing is sent."""
        self.timeout = seconds("timeout", timeout)
        scheme = kind("url", url, str, "text", secret=True).partition("://")[0]
        if scheme not in {"redis", "rediss", "redis+unix"}:
            msg = f"url={scheme!r}://...: give redis://, rediss:// or redis+unix://"  # the rest may hold a password
            raise ValueError(msg)
        self.prefix = text("prefix", prefix)
        storage: RedisStorage | None = None
        with contextlib.suppress(ConfigurationError, ValueError):  # their texts show the URL
            storage = RedisStorage(f"async+{url}", key_prefix=prefix, stream_timeout=timeout, connect_timeout=timeout)
        if storage is None:
            msg = f"url={scheme}://...: give a host and a port, or a path"
            raise ValueError(msg)
        self._storage = storage
        self._limiter = MovingWindowRateLimiter(storage)

    def check(self, *, per_second: float, burst: int) -> None:
        """Raise ValueError, naming the settings, unless ``burst`` is what comes in during whole seconds."""
        _window(per_second, burst)

    async def take(self, key: str, *, per_second: float, burst: int) -> float:
        """Take one of the tokens of ``key`` and return 0.0; else the seconds for which there will be none."""
        item = RateLimitItemPerSecond(burst, _window(per_second, burst))
        if await self._limiter.hit(item, key):
            return 0.0
        stats = await self._limiter.get_window_stats(item, key)
        return max(_LEAST, stats.reset_time - time.time())  # limits stamps its entries with this clock

    async def close(self) -> None:
        """Close the connections; the next ``take`` makes new ones."""
        bridge = self._storage.bridge
        if isinstance(bridge, CoredisBridge):  # what limits makes, unless it is asked for another client
            bridge.get_connection().connection_pool.disconnect()

    def __repr__(self) -> str:
        """Return the prefix and the timeout, never the URL: it may hold a password."""
        return f"RedisLimit(prefix={self.prefix!r}, timeout={self.timeout})"


def _window(per_second: float, burst: int) -> int:
    window = round(burst / rate("per_second", per_second))
    if window < 1 or not math.isclose(window * per_second, burst, rel_tol=_CLOSE):
        msg = (
            f"burst={burst!r} is not what comes in during whole seconds at per_second={per_second!r}:"
            " a shared limit counts in those"
        )
        raise ValueError(msg)
    return window
