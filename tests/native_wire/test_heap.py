"""Memory for large messages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys
from servicekit.native.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        buffers = [bytearray(b"x" * 1_000_000) for _ in range(5)]
        del buffers
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10

if sys.argv[1] == "keep":
    keep_freed_memory()
faults()
print(faults())
"""


def faults(word: str, **environment: str) -> int:
    """Return how many pages a round of allocating 5 MB has to fetch from the system."""
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, word], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back at once: apt-get install libc6"
)
def test_what_large_messages_free_is_kept_for_the_next() -> None:
    """Without it, 5 MB are given back and fetched again for each call, page by page; the environment has the last word.

    Where in its memory a process has its heap is random, and now and then it matters: each is asked three times.
    """
    assert min(faults("keep") for _ in range(3)) < 200
    assert max(faults("leave") for _ in range(3)) > 500
    assert max(faults("keep", MALLOC_TRIM_THRESHOLD_="131072") for _ in range(3)) > 500
