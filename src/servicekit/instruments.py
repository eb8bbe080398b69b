"""Counters, gauges and histograms as whoever measures sees them: three small things, whatever library keeps them.

A *family* is one metric with the names of its labels; its *children* are the series, one for each combination of label
values. A child is cheap to use and dear to find, so callers find it once and keep it::

    calls = provider.counter("shop.orders", "Orders taken.", labels=("shop.kind",))
    gifts = calls.labels("gift")  # once
    gifts.add()  # at each order

Names, of metrics and of labels, are dotted words, as OpenTelemetry writes them, with the unit beside the name ("s",
"By"); a provider spells both the way its backend wants them. Label values come from small, bounded sets: who puts into
one what a client has sent lets the client fill the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from .call import Side
from .errors import Code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .method import Method

T_co = TypeVar("T_co", covariant=True)

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The upper bounds of a histogram of durations, as OpenTelemetry's RPC conventions advise."""


class Counter(Protocol):
    """A figure that only grows. Safe to use from any thread, as are the others."""

    def add(self, amount: float = 1.0, /) -> None:
        """Add ``amount``, which is not negative."""


class Gauge(Protocol):
    """A figure that goes up and down."""

    def set(self, value: float, /) -> None:
        """Make it ``value``."""

    def add(self, amount: float = 1.0, /) -> None:
        """Add ``amount``, which may be negative."""


class Histogram(Protocol):
    """How figures are distributed."""

    def observe(self, value: float, /, trace_id: str | None = None) -> None:
        """Count ``value``; ``trace_id`` (32 hex digits) names a trace in which it can be looked at, as an exemplar."""


class Family(Protocol[T_co]):
    """One metric: its children, by the values of its labels."""

    def labels(self, *values: str) -> T_co:
        """Return the child of these values, one for each label, in order; the same one each time."""


class Provider(Protocol):
    """Where metrics are kept. Asked twice for one name, it returns the same family, so that parts may share one.

    Raises ValueError when the same name is asked for with another kind, unit or labels. "" as a label's value means
    that the label is absent.
    """

    def counter(self, name: str, description: str, *, unit: str = "", labels: Sequence[str] = ()) -> Family[Counter]:
        """Return the counters called ``name``."""

    def gauge(self, name: str, description: str, *, unit: str = "", labels: Sequence[str] = ()) -> Family[Gauge]:
        """Return the gauges called ``name``."""

    def histogram(
        self,
        name: str,
        description: str,
        *,
        unit: str = "",
        labels: Sequence[str] = (),
        buckets: Sequence[float] = SECONDS,
    ) -> Family[Histogram]:
        """Return the histograms called ``name``, with ``buckets`` as upper bounds, growing, infinity left out."""


OTHER: Final = "_OTHER"
"""What every method is called that a server does not have: OpenTelemetry's own word, so that labels stay bounded."""


def name_of(method: Method) -> str:
    """Return what spans and labels call ``method``: "package.Service/Name", or ``OTHER``."""
    return method.path[1:] if method.known else OTHER


def is_error(code: Code, side: Side) -> bool:
    """Return whether OpenTelemetry's conventions for gRPC take this outcome for an error, seen from this side.

    On a client all but OK are; on a server what is not the client's own mistake.
    """
    return code in _SERVER_ERRORS or (side is Side.CLIENT and code is not Code.OK)


_SERVER_ERRORS: Final = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)
