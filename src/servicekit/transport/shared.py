"""What all methods of one server share."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field

from servicekit.clock import Clock, SystemClock
from servicekit.endpoint import Chain
from servicekit.mapping import ErrorMapping

from .in_flight import InFlight


@dataclass(slots=True, kw_only=True)
class Serving:
    """The chain, the meaning of exceptions, the clock, who is being served, and whether the server is on its way out."""

    links: Chain = field(default_factory=lambda: Chain(()))
    errors: ErrorMapping = field(default_factory=ErrorMapping)
    clock: Clock = field(default_factory=SystemClock)
    in_flight: InFlight = field(default_factory=InFlight)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    largest: int = sys.maxsize
    """Bytes of the largest response that the wire sends: a larger one fails here, where the log sees it."""
