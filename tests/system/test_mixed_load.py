"""Mixed load in which random calls are cancelled, reset and cut off, for 15 s, and with SOAK=1 for ten minutes.

The same for each seed, as far as the machine lets it: who does what is drawn beforehand, who is faster is not.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

from servicekit.native.options import NativeOptions
from servicekit.native.protocol import Link
from servicekit.testing import no_leaks
from tests.native_wire.ground import listening
from tests.native_wire.test_mixed import ROUTES, settled, visit
from tests.system.load import SOAK

SECONDS = 600.0 if SOAK else 15.0
AT_ONCE = 12


@pytest.mark.system
@pytest.mark.timeout(900)
async def test_nothing_is_left_of_a_long_load(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not a task, a deadline, a stream, a connection, a byte held nor a byte of credit, after any number of visits."""
    caplog.set_level("CRITICAL")
    left: Counter[str] = Counter()
    links: set[Link] = set()
    made, lost = Link.connection_made, Link.connection_lost

    def noting(self: Link, transport: asyncio.Transport) -> None:
        made(self, transport)
        links.add(self)

    def checking(self: Link, exc: Exception | None) -> None:
        lost(self, exc)
        asyncio.get_running_loop().call_later(2.0, check, self)

    def check(link: Link) -> None:
        """Look at a connection when every task that served it has had time to end."""
        links.discard(link)
        left["bytes held"] += link.held
        left["credit owed"] += link.credit + link.http2._credit.lent
        left["calls"] += len(link._calls) + len(link._ending) + len(link._ended) + len(link._gathering)

    monkeypatch.setattr(Link, "connection_made", noting)
    monkeypatch.setattr(Link, "connection_lost", checking)
    seed, until = random.Random(20).randrange(1 << 30), time.monotonic() + SECONDS
    visits = 0
    async with no_leaks(patience=5.0):
        async with listening(ROUTES, options=NativeOptions(received=50_000)) as (listener, address):
            while time.monotonic() < until:
                await asyncio.gather(*(visit(address, seed + visits + number) for number in range(AT_ONCE)))
                visits += AT_ONCE
            await settled(listener, [])
            wheel = len(listener._shared.wheel)
            async with asyncio.timeout(10):
                while links:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.05)
        assert listener.connections == 0
        assert not listener._shared.serving
    print(f"\n{visits} connections in {SECONDS:.0f} s from seed {seed}; left over: {dict(left)}, {wheel} deadlines")
    assert wheel == 0
    assert not any(left.values())
