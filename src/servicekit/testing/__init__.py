"""For users' tests and ours."""

from .recorded import RecordedCall, Recorder, make_call, run
from .scripted import Scripted, scripted, sends, waits

__all__ = ["RecordedCall", "Recorder", "Scripted", "make_call", "run", "scripted", "sends", "waits"]
