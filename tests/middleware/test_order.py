"""The order of the standard chains, and that no link knows another."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

from servicekit import middleware
from servicekit.call import Side
from servicekit.clock import MovableClock
from servicekit.endpoint import chain, only
from servicekit.errors import Code, Error
from servicekit.middleware import (
    AccessLog,
    AttemptTracing,
    Deadline,
    LoadShedding,
    Recovery,
    RequestId,
    Retry,
    Tracing,
    standard,
    standard_client,
)
from servicekit.telemetry import Telemetry
from servicekit.testing import make_call, run, scripted, waits

from .probes import Log


def test_the_servers_order() -> None:
    """Names first, observers outside recovery, recovery outside whatever refuses."""
    assert [type(link) for link in standard(Log().telemetry)] == [
        RequestId,
        AccessLog,
        Recovery,
        Deadline,
        LoadShedding,
    ]


def test_the_clients_order() -> None:
    """The same without recovery; the deadline is the total."""
    links = standard_client(Log().telemetry)
    assert [type(link) for link in links] == [RequestId, AccessLog, Deadline, Retry]
    assert links[-2] == Deadline(default=None, cap=None)


def test_with_a_tracer_attempts_are_traced() -> None:
    """Inside of retry, each in the span of the call."""
    links = standard_client(Telemetry(log=None, traces="auto"))
    assert [type(link) for link in links] == [RequestId, Tracing, Deadline, Retry, AttemptTracing]


def test_each_channel_has_its_own_budget() -> None:
    """Two lists share nothing: a budget is for one target, and a limit is learned for one server."""
    one, other = (standard_client(Telemetry(log=None))[-1] for _ in range(2))
    assert isinstance(one, Retry)
    assert isinstance(other, Retry)
    assert one.budget is not other.budget


def test_without_a_log_there_is_no_link_for_it() -> None:
    """A link that would do nothing is not there."""
    quiet = Telemetry(log=None)
    assert [type(link) for link in standard(quiet)] == [RequestId, Recovery, Deadline, LoadShedding]
    assert [type(link) for link in standard_client(quiet)] == [RequestId, Deadline, Retry]


FULL = Telemetry(log="json", traces="auto", metrics="prometheus")


@pytest.mark.parametrize("links", [standard(FULL), standard_client(FULL)])
def test_the_order_is_the_one_that_is_written_down(links: list[object]) -> None:
    """The tables in the package's docstring name every link, in the order in which they stand."""
    table = (middleware.__doc__ or "").split("On the client, outermost first:")
    text = table[0] if any(isinstance(link, Recovery) for link in links) else table[1]
    rows = {
        "RequestId": "request id",
        "Tracing": "\ntracing",
        "AccessLog": "access log",
        "Metrics": "\nmetrics",
        "Recovery": "\nrecovery",
        "Deadline": "\ndeadline",
        "LoadShedding": "\nload shedding",
        "Retry": "\nretry",
        "AttemptTracing": "\nattempt tracing",
    }
    places = [text.index(rows[type(link).__name__]) for link in links]
    assert places == sorted(places)


async def test_a_refusal_by_the_deadline_is_logged_with_the_id() -> None:
    """What an inner link refuses is logged by the outer one, under the outermost one's name."""
    log, clock = Log(), MovableClock()
    call = make_call(clock=clock, deadline=clock.time(), metadata=[("x-request-id", "abc")])
    with pytest.raises(Error):
        await run(standard(log.telemetry), scripted("ok"), "hi", call)
    assert (log.line["code"], log.line["request_id"]) == ("DEADLINE_EXCEEDED", "abc")


async def test_observers_see_what_the_client_gets() -> None:
    """A domain exception is logged as the code that it is mapped to."""
    log = Log()
    links = standard(log.telemetry, errors={KeyError: Code.NOT_FOUND})
    with pytest.raises(Error) as caught:
        await run(links, scripted(KeyError("k1")), "hi", make_call())
    assert caught.value.code is Code.NOT_FOUND
    assert log.line["code"] == "NOT_FOUND"
    assert "exception" not in log.line


async def test_the_default_deadline_is_logged_as_one() -> None:
    """The standard chain ends a call that takes for ever, once, and says so."""
    log, clock = Log(), MovableClock()
    running = asyncio.create_task(run(standard(log.telemetry), scripted(waits()), "hi", make_call(clock=clock)))
    await clock.advance(30)
    with pytest.raises(Error) as caught:
        await running
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert (log.line["code"], log.line["level"], log.line["duration_ms"]) == ("DEADLINE_EXCEEDED", "warning", 30000.0)


async def test_on_the_client_the_callers_own_exception_comes_out() -> None:
    """What the caller's request iterator raises reaches the caller as it is."""
    log = Log()
    with pytest.raises(ZeroDivisionError):
        await run(standard_client(log.telemetry), scripted(ZeroDivisionError()), "hi", make_call(side=Side.CLIENT))
    assert log.line["code"] == "INTERNAL"


def test_only_stands_in_a_chain_like_any_link() -> None:
    """A standard chain can be extended and narrowed, and shows what became of it."""
    text = repr(chain(*standard(Telemetry(log=None)), only("/a.B/*", Deadline(default=1.0))))
    assert text == (
        "chain(RequestId(header='x-request-id'), Recovery(ErrorMapping()), Deadline(default=30.0, cap=300.0), "
        "LoadShedding(initial=20, least=4, most=200, lag=0.1, lag_time=1.0, trusted=None, retry_after=1.0), "
        "only('/a.B/*', Deadline(default=1.0, cap=300.0)))"
    )


def test_siblings_never_import_each_other() -> None:
    """A link is one file that knows no other link: only the package's face imports them."""
    folder = Path(middleware.__file__).parent
    siblings = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    for path in folder.glob("*.py"):
        if path.stem == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                assert not (node.module or "").startswith("servicekit.middleware"), path
    assert {"access_log", "deadline", "recovery", "request_id"} <= siblings
