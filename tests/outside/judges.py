"""Finding the programs that judge our wire: other people's, built from source by ``make judges``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

BUILT = Path(__file__).parents[2] / ".judges"


def judge(name: str) -> str:
    """Return where the program of that name is; skip the test where it is not, saying what brings it."""
    found = shutil.which(name, path=BUILT)
    if found is None:
        pytest.skip(f"there is no {name} here: make judges (needs Go >= 1.26 and its module proxy)")
    return found
