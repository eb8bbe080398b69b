"""``python -m tests.bench``: measure, print the table, and fail when a limit is certainly broken."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import platform
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from . import memory
from .measure import Bench, Cores
from .plan import GROUPS, LIMITS, chosen
from .table import LEGEND, rows, ruling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .measure import Samples
    from .plan import Group


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; ends the process with 2 for what is none."""
    uvloop = importlib.util.find_spec("uvloop") is not None
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each group (12)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of load on each subject in each round (1)")
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="a group, a subject or memory; repeatable"
    )
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop" if uvloop else "asyncio")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample there")
    parser.add_argument("--list", action="store_true", help="print the names for --only, and measure nothing")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.seconds <= 0:
        parser.error(f"--rounds {given.rounds} --seconds {given.seconds}: both must be more than 0")
    given.memory = not given.only or "memory" in given.only
    wanted = [name for name in given.only if name != "memory"]
    try:
        given.groups = [] if given.only and not wanted else chosen(wanted, given.loop)
    except ValueError as error:
        parser.error(str(error))
    return given


async def measured(bench: Bench, groups: Sequence[Group]) -> tuple[dict[str, Samples], list[str]]:
    """Return the samples by group, and the lines of the table."""
    results: dict[str, Samples] = {}
    lines: list[str] = []
    for whole in groups:
        absent = {subject.name: reason for subject in whole.subjects if (reason := bench.absent(subject))}
        group = replace(whole, subjects=tuple(subject for subject in whole.subjects if subject.name not in absent))
        left_out = [
            f"{subject.label}: left out, {absent[subject.name]}" for subject in whole.subjects if subject.name in absent
        ]
        if whole.subjects[0].name in absent:
            lines += ["", f"{whole.title}.", *left_out]
            continue
        results[group.name], load = await bench.run(group)
        lines += ["", *rows(group, results[group.name], load), *left_out]
    return results, lines


def rulings(results: dict[str, Samples]) -> tuple[bool, list[str]]:
    """Return whether a limit is broken, and a line for each limit of which both sides were measured."""
    found = [
        ruling(limit, results[limit.group])
        for limit in LIMITS
        if {limit.subject, limit.against} <= results.get(limit.group, {}).keys()
    ]
    return any(broken for broken, _ in found), [line for _, line in found]


def shown_on_stderr(total: float) -> Callable[[str], None]:
    """Return what shows how far it has come: over itself on a terminal, else a line for each round."""
    begin, last = time.monotonic(), [""]

    def show(text: str) -> None:
        left = max(0.0, total - (time.monotonic() - begin))
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}, about {left:.0f} s left", end="", file=sys.stderr, flush=True)
        elif text.rpartition(",")[0] != last[0]:
            last[0] = text.rpartition(",")[0]
            print(f"{text}, about {left:.0f} s left", file=sys.stderr, flush=True)

    return show


def main(arguments: Sequence[str]) -> int:
    """Run it all and return the exit code."""
    given = options(arguments)
    if given.list:
        for group in GROUPS:
            print(f"{group.name}: {', '.join(subject.name for subject in group.subjects)}")
        return 0
    cores = Cores.split()
    count = sum(len(group.subjects) for group in given.groups)
    bench = Bench(
        rounds=given.rounds,
        seconds=given.seconds,
        loop=given.loop,
        cores=cores,
        progress=shown_on_stderr(count * (given.rounds * given.seconds + 1)),
    )
    begin = time.monotonic()
    results, lines = asyncio.run(measured(bench, given.groups))
    broken, verdicts = rulings(results)
    if given.memory:
        too_large, said = asyncio.run(memory.lines(min(given.rounds, 6), given.loop, cores.tested))
        broken |= too_large
        verdicts += ["", *said]
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(
        f"grpcio {grpc.__version__}, Python {platform.python_version()}, {given.loop} on both sides unless a line says"
        f" otherwise, {given.rounds} interleaved rounds of {given.seconds:g} s; {cores}."
    )
    if shutil.which("h2load") is None:
        print("h2load is not installed: the load is a client in Python, which may be what limits the rates.")
    print("\n".join(lines))
    print(f"\n{LEGEND}\n")
    print("\n".join(verdicts))
    print(f"({time.monotonic() - begin:.0f} s)")
    if given.json is not None:
        samples = {
            group: {subject: [asdict(sample) for sample in taken] for subject, taken in subjects.items()}
            for group, subjects in results.items()
        }
        written = {"loop": given.loop, "seconds": given.seconds, "cores": asdict(cores), "groups": samples}
        given.json.write_text(json.dumps(written, indent=1) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
