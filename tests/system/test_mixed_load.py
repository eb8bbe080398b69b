"""Mixed load in which random calls are cancelled, reset and cut off, for a minute, and with SOAK=1 for ten minutes.

The same for each seed, as far as the machine lets it: who does what is drawn beforehand, who is faster is not.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

from servicekit.native.options import NativeOptions
from servicekit.native.protocol import ClientLine
from servicekit.testing import no_leaks
from tests.native_wire.ground import listening
from tests.native_wire.test_mixed import ROUTES, settled, visit
from tests.system.load import SOAK

SECONDS = 600.0 if SOAK else 60.0
AT_ONCE = 12


@pytest.mark.system
@pytest.mark.timeout(900)
async def test_nothing_is_left_of_a_long_load(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not a task, a deadline, a stream, a connection, a byte held nor a byte of credit, after any number of visits."""
    caplog.set_level("CRITICAL")
    left: Counter[str] = Counter()
    lines: set[ClientLine] = set()
    made, lost = ClientLine.connection_made, ClientLine.connection_lost

    def noting(self: ClientLine, transport: asyncio.Transport) -> None:
        made(self, transport)
        lines.add(self)

    def checking(self: ClientLine, exc: Exception | None) -> None:
        lost(self, exc)
        asyncio.get_running_loop().call_later(2.0, check, self)

    def check(line: ClientLine) -> None:
        """Look at a connection when every task that served it has had time to end."""
        lines.discard(line)
        left["bytes held"] += line.held
        left["credit owed"] += line.credit + line.http2._credit.lent
        left["calls"] += len(line._calls) + len(line._ending) + len(line._ended) + len(line._gathering)

    monkeypatch.setattr(ClientLine, "connection_made", noting)
    monkeypatch.setattr(ClientLine, "connection_lost", checking)
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
                while lines:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.05)
        assert listener.connections == 0
        assert not listener._shared.serving
    print(f"\n{visits} connections in {SECONDS:.0f} s from seed {seed}; left over: {dict(left)}, {wheel} deadlines")
    assert wheel == 0
    assert not any(left.values())
