"""What holds for every test."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Take what was imported out of the collector's sight: every leak check has it look at all there is."""
    gc.collect()
    gc.freeze()
