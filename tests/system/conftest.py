"""What every system test has: a heap that costs nothing while it is measured."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_long_collection() -> Iterator[None]:
    """Keep the collector from what others have left: thousands of collected tests hold the loop for 200 ms at a time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
