"""For users' tests and ours."""

from servicekit.clock import MovableClock

from .leaks import no_leaks
from .pair import Pair, pair
from .recorded import RecordedCall, Recorder, make_call, run
from .scripted import Scripted, scripted, sends, waits

__all__ = [
    "MovableClock",
    "Pair",
    "RecordedCall",
    "Recorder",
    "Scripted",
    "make_call",
    "no_leaks",
    "pair",
    "run",
    "scripted",
    "sends",
    "waits",
]
