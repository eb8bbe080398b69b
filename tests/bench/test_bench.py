"""The bench itself: its statistics, and one tiny round of everything."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING

import pytest

from .__main__ import main
from .echo import many_path
from .load import Shape, h2load
from .measure import Bench, Cores, Sample
from .plan import GROUPS, LIMITS, Group, Limit, Subject, chosen
from .stats import estimate, interval, quantile, ratios, spread
from .table import ruling

if TYPE_CHECKING:
    from pathlib import Path


def samples(*costs: float) -> list[Sample]:
    return [Sample(cost=cost, rate=1 / cost, p50=1.0, p99=1.0) for cost in costs]


def test_the_interval_of_ten_values_is_from_the_second_to_the_ninth() -> None:
    """Conover's table: the ranks 2 and 9 hold the median of ten draws with 97.9 %, 3 and 8 only with 89.1 %."""
    assert interval([10.0, 1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0]) == (2.0, 9.0)


def test_the_interval_of_six_values_is_all_of_them() -> None:
    """Six are the fewest that say anything with 95 %: 1 - 2/64."""
    assert interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)


def test_fewer_than_six_values_have_an_endless_interval() -> None:
    """Nobody may fail for what five rounds seem to say."""
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) == (-math.inf, math.inf)


def test_no_values_have_no_interval() -> None:
    """What was not measured is not certain, and not uncertain either."""
    with pytest.raises(ValueError, match="no values"):
        interval([])


@pytest.mark.parametrize("count", [6, 12, 25])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    """At least 95 of 100 intervals of a skewed distribution hold its true median (here: 93, for the draw's own sake)."""
    draw = random.Random(7)
    held = 0
    for _ in range(1000):
        low, high = interval([draw.lognormvariate(0.0, 1.0) for _ in range(count)])
        held += low <= 1.0 <= high
    assert held >= 930


def test_an_estimate_is_the_median_in_its_interval() -> None:
    """The median lies in the interval."""
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])
    assert (found.low, found.median, found.high) == (1.0, 4.0, 100.0)


def test_ratios_are_taken_round_by_round() -> None:
    """A slow minute slows both, and leaves no trace in the ratio."""
    assert ratios([2.0, 20.0], [1.0, 10.0]) == [2.0, 2.0]


def test_rounds_without_a_partner_are_refused() -> None:
    """A ratio needs both sides of the same round."""
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0, 2.0], [1.0])


def test_spread_is_relative() -> None:
    """Half of the rounds are nearer to the median than this part of it."""
    assert spread([90.0, 100.0, 110.0]) == pytest.approx(0.1)


def test_quantiles() -> None:
    """The last quantile is the last value, whatever the rounding."""
    ordered = [float(value) for value in range(100)]
    assert (quantile(ordered, 0.5), quantile(ordered, 0.99), quantile(ordered, 1.0)) == (50.0, 99.0, 99.0)


@pytest.mark.parametrize(
    ("costs", "word", "broken"),
    [
        ([1.0] * 10, "holds", False),
        ([1.0] * 4 + [1.2] * 6, "in doubt", False),
        ([1.2] * 10, "BROKEN", True),
    ],
)
def test_a_limit_is_broken_only_when_all_of_the_interval_is_beyond(
    costs: list[float], word: str, *, broken: bool
) -> None:
    """The median alone may be noise."""
    limit = Limit(says="costs little", group="g", subject="a", against="b", most=1.05)
    found, line = ruling(limit, {"a": samples(*costs), "b": samples(*[1.0] * 10)})
    assert (found, line.startswith(word)) == (broken, True)


def test_a_limit_on_rates_is_a_least() -> None:
    """What brings too few messages a second is broken."""
    limit = Limit(says="brings much", group="g", subject="a", against="b", least=0.95)
    assert ruling(limit, {"a": samples(*[1.2] * 10), "b": samples(*[1.0] * 10)})[0]


def test_limits_name_what_is_measured() -> None:
    """A limit on something that nobody measures would hold for ever."""
    for limit in LIMITS:
        names = {subject.name for group in GROUPS if group.name == limit.group for subject in group.subjects}
        assert {limit.subject, limit.against} <= names


def test_one_subject_is_measured_with_its_base() -> None:
    """A ratio to nothing cannot be had."""
    assert [(group.name, [subject.name for subject in group.subjects]) for group in chosen(["kit-1"], "asyncio")] == [
        ("unary", ["bare", "kit-1"])
    ]


def test_a_strange_name_is_refused() -> None:
    """It is named, with those there are."""
    with pytest.raises(ValueError, match=r"nothing is called nonsense: there is .*unary"):
        chosen(["nonsense"], "asyncio")


@pytest.mark.system
@pytest.mark.timeout(300)
def test_a_tiny_round_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every subject starts, is measured and ends; too few rounds break no limit."""
    file = tmp_path / "samples.json"
    assert main(["--rounds", "1", "--seconds", "0.01", "--loop", "asyncio", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(file.read_text())["groups"]
    for group in chosen([], "asyncio"):
        assert group.title in printed
        for subject in group.subjects:
            if f"{subject.label}: left out, " in printed:  # others' work, which nobody has to have
                continue
            (sample,) = written[group.name][subject.name]
            assert all(value > 0 for value in sample.values() if subject.server != "grpc-go")  # known to 10 ms only


@pytest.mark.system
async def test_where_there_is_no_h2load_a_client_process_makes_the_load() -> None:
    """The bench runs everywhere, and says what made the load."""
    bench = Bench(rounds=1, seconds=0.01, loop="asyncio", cores=Cores(tested=None, other=None), h2load=False)
    (group,) = chosen(["kit-1"], "asyncio")
    samples, load = await bench.run(group)
    assert load == "a grpc.aio client process, 64 at once"
    assert samples["kit-1"][0].cost > 0


@pytest.mark.system
@pytest.mark.skipif(h2load() is None, reason="h2load is not installed")
async def test_answers_that_are_no_answers_are_noticed() -> None:
    """h2load counts an HTTP status as success; a server that answers UNIMPLEMENTED would look very fast."""
    load = h2load()
    assert load is not None
    bench = Bench(rounds=1, seconds=0.01, loop="asyncio", cores=Cores(tested=None, other=None))
    strange = Subject(name="strange", label="", server="bare-4", shape=Shape(many_path(200)))
    group = Group(name="strange", title="", unit="call", subjects=(strange,))
    with pytest.raises(RuntimeError, match="bytes of answers"):
        await bench.run(group)
