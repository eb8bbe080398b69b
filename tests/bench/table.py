"""The figures as text, with what is needed to read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from .stats import Estimate, estimate, ratios, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .measure import Sample, Samples
    from .plan import Group, Limit

LEGEND: Final = """\
How to read it: every figure but those of the first line is a ratio to the first line, taken round by round; it is the
median, and in brackets the interval that holds the true median with 95 % confidence (order statistics of the rounds,
no resampling). CPU is user and system time of the process that is measured, all its threads. Latencies are those of a
saturated server: they are what the queue makes of the rate. Expect two runs on a quiet machine to differ by some 3 %
in CPU and 5 % in rates, on a busy one by several times that. "bare grpc.aio, once more" is the same thing in another
process: what is no further from 1 than that line is no difference. Never compare the absolute figures with another
machine's, or with another day's. A limit is broken when all of the interval is beyond it, and in doubt when only the
median is."""

_WIDTH: Final = 44
_SMALL: Final = 0.2  # below it a third place tells something


def rows(group: Group, samples: Samples, load: str) -> list[str]:
    """Return the lines of one group."""
    base = group.subjects[0]
    first = samples[base.name]
    cost, rate, p50, p99 = (estimate(part).median for part in _parts(first))
    noise = spread(_parts(first)[0])
    lines = [
        f"{group.title}. Load: {load}. The first line's own rounds: half within ±{noise:.1%}.",
        f"{'':{_WIDTH}}{f'CPU/{group.unit}':<21}{f'{group.unit}s/s':<21}{'p50':<9}{'p99':<9}".rstrip(),
        f"{base.label:{_WIDTH}}{f'{cost * 1e6:.1f} µs':<21}{f'{rate:,.0f}':<21}"
        f"{f'{p50 * 1e3:.1f} ms':<9}{f'{p99 * 1e3:.1f} ms':<9}".rstrip(),
    ]
    for subject in group.subjects[1:]:
        estimates = compared(samples[subject.name], first)
        lines.append(
            f"{subject.label:{_WIDTH}}{_shown(estimates[0]):<21}{_shown(estimates[1]):<21}"
            f"{estimates[2].median:<9.2f}{estimates[3].median:<9.2f}".rstrip()
        )
    return lines


def compared(values: Sequence[Sample], base: Sequence[Sample]) -> tuple[Estimate, ...]:
    """Return the ratios of ``values`` to ``base``: of the cost, the rate, the median latency and the 99th percentile."""
    return tuple(estimate(ratios(part, against)) for part, against in zip(_parts(values), _parts(base), strict=True))


def ruling(limit: Limit, samples: Samples) -> tuple[bool, str]:
    """Return whether ``limit`` is certainly broken, all of the interval being beyond it, and the line that says so."""
    cost, rate, *_ = compared(samples[limit.subject], samples[limit.against])
    if limit.most is not None:
        found, broken, beyond = cost, cost.low > limit.most, cost.median > limit.most
    else:
        assert limit.least is not None  # a limit has one of the two
        found, broken, beyond = rate, rate.high < limit.least, rate.median < limit.least
    word = "BROKEN" if broken else "in doubt" if beyond else "holds"
    return broken, f"{word:<9} {limit.says}: {_shown(found)}"


def _parts(samples: Sequence[Sample]) -> tuple[list[float], ...]:
    return (
        [sample.cost for sample in samples],
        [sample.rate for sample in samples],
        [sample.p50 for sample in samples],
        [sample.p99 for sample in samples],
    )


def _shown(found: Estimate) -> str:
    places = 2 if found.median >= _SMALL else 3
    if not math.isfinite(found.low):
        return f"{found.median:.{places}f} [too few]"
    return f"{found.median:.{places}f} [{found.low:.{places}f}, {found.high:.{places}f}]"
