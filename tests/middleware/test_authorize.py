"""Whether they may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, TypeAlias

import casbin
import pytest

from servicekit.clock import MovableClock
from servicekit.endpoint import Middleware
from servicekit.errors import Code, Error
from servicekit.method import Kind, Method
from servicekit.middleware import Access, AccessLog, Authorize, Recovery
from servicekit.principal import PRINCIPAL, Principal
from servicekit.testing import RecordedCall, make_call, run, scripted
from servicekit.transport.call_error import CallError

from .probes import Log

Untyped: TypeAlias = Any
"""What is one of several things, or wrong on purpose."""


ALICE = Principal(name="alice", scheme="bearer", roles=frozenset({"reader"}))
MODEL = """
[request_definition]
r = sub, obj, act
[policy_definition]
p = sub, obj, act
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = g(r.sub, p.sub) && r.obj == p.obj && (p.act == "*" || r.act == p.act)
"""


def asked(
    service: str = "a.B", name: str = "Get", *, who: Principal | None = ALICE, known: bool = True, **settings: Untyped
) -> RecordedCall:
    method = Method(service=service, name=name, kind=Kind.UNARY, known=known, **settings)
    call = make_call(method=method)
    if who is not None:
        call.state[PRINCIPAL] = who
    return call


async def outcome(link: Authorize, call: RecordedCall) -> tuple[Code, str]:
    """How the call ended, and what the link told of it."""
    told: list[str] = []
    call.on_decision(lambda name, decision: told.append(f"{name} {decision}"))
    endpoint = scripted("ok")
    code = Code.OK
    try:
        await run(link, endpoint, "hi", call)
    except Error as error:
        code = error.code
    assert bool(endpoint.calls) == (code is Code.OK)
    (decision,) = told
    return code, decision.removeprefix("authorize ")


ALLOWED, DENIED = (Code.OK, "allowed"), (Code.PERMISSION_DENIED, "denied")
NO_RULE, ANONYMOUS = (Code.PERMISSION_DENIED, "no_rule"), (Code.UNAUTHENTICATED, "anonymous")
FAILED, UNAVAILABLE = (Code.PERMISSION_DENIED, "failed"), (Code.UNAVAILABLE, "unavailable")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (asked("a.B", "Get"), ALLOWED),
        (asked("a.B", "Put"), DENIED),
        (asked("a.B", "Delete"), NO_RULE),
        (asked("a.C", "Get"), ALLOWED),
        (asked("a.C", "Secret"), DENIED),
        (asked("a.D", "Get"), ALLOWED),
        (asked("a.Bb", "Get"), NO_RULE),
        (asked("a.C", "Get", known=False), NO_RULE),
        (asked("a.B", "Get", who=None), ANONYMOUS),
        (asked("a.D", "Get", who=None), ANONYMOUS),
        (asked("a.B", "Ping", who=None), ALLOWED),
    ],
)
async def test_rules_are_asked_per_method(call: RecordedCall, expected: tuple[Code, str]) -> None:
    """The method's own before its service's; where there is none, nobody may."""
    link = Authorize(
        {
            "/a.B/Get": ["reader", "writer"],
            "/a.B/Put": ["writer"],
            "/a.B/Ping": Access.PUBLIC,
            "/a.C/*": ["reader"],
            "/a.C/Secret": ["admin"],
            "/a.D/*": Access.AUTHENTICATED,
        }
    )
    assert await outcome(link, call) == expected


def raises(error: Exception) -> Untyped:
    def rule(*_: object) -> bool:
        raise error

    return rule


async def later(*, answer: object) -> Untyped:
    await asyncio.sleep(0)
    return answer


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (lambda who, _call: who.name == "alice", ALLOWED),
        (lambda who, _call: who.name == "bob", DENIED),
        (lambda *_: later(answer=True), ALLOWED),
        (lambda *_: later(answer=False), DENIED),
        (lambda *_: 1, DENIED),
        (lambda *_: "yes", DENIED),
        (lambda *_: None, DENIED),
        (lambda *_: object(), DENIED),
        (raises(ZeroDivisionError("canary")), FAILED),
        (raises(TimeoutError("canary")), UNAVAILABLE),
        (raises(ConnectionRefusedError("canary")), UNAVAILABLE),
        (raises(Error(Code.UNAVAILABLE)), UNAVAILABLE),
        (raises(Error(Code.NOT_FOUND)), (Code.NOT_FOUND, "denied")),
        (raises(CallError(Error(Code.UNAVAILABLE), inherited=False)), UNAVAILABLE),
        (raises(CallError(Error(Code.NOT_FOUND), inherited=False)), FAILED),
    ],
)
async def test_a_rule_can_be_a_function(rule: Untyped, expected: tuple[Code, str]) -> None:
    """Only True allows; whatever it raises, nobody passes."""
    assert await outcome(Authorize({"/a.B/*": rule}), asked()) == expected


async def test_what_a_rule_raises_is_logged_without_its_text() -> None:
    """The client gets "not allowed" and an id, the log the same id, with type and place."""
    log, call = Log(), asked()
    deciding = Authorize({"/a.B/*": raises(ZeroDivisionError("canary"))})
    links: list[Middleware] = [AccessLog(log.telemetry), Recovery(), deciding]
    with pytest.raises(Error, match="not allowed") as caught:
        await run(links, scripted(), "hi", call)
    assert ("x-error-id", log.line["error_id"]) in caught.value.trailers
    assert "ZeroDivisionError" in str(log.line["exception"])
    assert "canary" not in log.text


async def test_the_servers_own_methods_pass() -> None:
    """Unless the setting says otherwise: then they need rules like any other."""
    assert await run(Authorize({}), scripted("ok"), "hi", asked(who=None, auxiliary=True)) == "ok"
    assert await outcome(Authorize({}, auxiliary=True), asked(who=None, auxiliary=True)) == NO_RULE


# By policy


class Stored(casbin.persist.adapters.asyncio.AsyncFileAdapter):  # type: ignore[misc]
    """A policy that can be changed, be gone, and be slow."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.loads = 0
        self.failure: Exception | None = None
        self.held: asyncio.Event | None = None

    async def load_policy(self, model: Untyped) -> None:
        self.loads += 1
        lines = list(self.lines)
        if self.held is not None:
            await self.held.wait()
        if self.failure is not None:
            raise self.failure
        for line in lines:
            casbin.persist.load_policy_line(line, model)


def enforcer(adapter: Stored) -> Untyped:
    model = casbin.AsyncEnforcer.new_model(text=MODEL)
    return casbin.AsyncEnforcer(model, adapter)


async def test_a_policy_decides() -> None:
    """pycasbin's: loaded once, with users, roles, services and methods."""
    stored = Stored("p, readers, a.B, Get", "p, root, a.B, *", "g, alice, readers")
    link = Authorize(enforcer=enforcer(stored))
    root = Principal(name="root", scheme="basic")
    for call, expected in (
        (asked(), ALLOWED),
        (asked(name="Put"), DENIED),
        (asked(name="Put", who=root), ALLOWED),
        (asked("a.C", who=root), DENIED),
        (asked(who=Principal(name="mallory", scheme="bearer")), DENIED),
        (asked(who=None), ANONYMOUS),
    ):
        assert await outcome(link, call) == expected
    assert stored.loads == 1


async def test_what_is_asked_is_a_setting() -> None:
    """Roles of the token instead of those of the policy, for one."""
    stored = Stored("p, reader, /a.B/Get, call")
    link = Authorize(
        enforcer=enforcer(stored), question=lambda who, call: (next(iter(who.roles)), call.method.path, "call")
    )
    assert await outcome(link, asked()) == ALLOWED


def at(clock: MovableClock, **settings: Untyped) -> RecordedCall:
    call = asked(**settings)
    call.clock = clock
    return call


async def test_a_policy_is_loaded_again() -> None:
    """In the background when it is old, and before the next decision when somebody knows that it has changed."""
    stored, clock = Stored("p, alice, a.B, Get"), MovableClock()
    link = Authorize(enforcer=enforcer(stored))
    assert await outcome(link, at(clock)) == ALLOWED
    stored.lines = []
    await clock.advance(59.0)
    assert (await outcome(link, at(clock)), stored.loads) == (ALLOWED, 1)
    await clock.advance(1.0)
    assert await outcome(link, at(clock)) == ALLOWED  # the old one serves meanwhile
    await clock.advance(0.0)
    assert (await outcome(link, at(clock)), stored.loads) == (DENIED, 2)
    stored.lines = ["p, alice, a.B, Get"]
    link.reload()
    assert (await outcome(link, at(clock)), stored.loads) == (ALLOWED, 3)


async def test_a_change_during_a_load_is_not_missed() -> None:
    """What was being read when ``reload`` was called is read again."""
    stored, clock = Stored("p, alice, a.B, Get"), MovableClock()
    stored.held = asyncio.Event()
    link = Authorize(enforcer=enforcer(stored))
    first = asyncio.create_task(outcome(link, at(clock)))
    await clock.advance(0.0)
    stored.lines = []
    link.reload()
    stored.held.set()
    assert await first == DENIED
    assert stored.loads == 2


async def test_a_policy_that_cannot_be_loaded() -> None:
    """UNAVAILABLE, with the time to come back; one that is there holds until it has expired."""
    stored, clock = Stored("p, alice, a.B, Get"), MovableClock()
    stored.failure = RuntimeError("canary")
    link = Authorize(enforcer=enforcer(stored), refresh=60.0, expire=100.0)
    call = at(clock)
    with pytest.raises(Error) as caught:
        await run(link, scripted(), "hi", call)
    assert (caught.value.code, caught.value.retry_after) == (Code.UNAVAILABLE, 5.0)
    assert "canary" not in repr(caught.value)
    assert (await outcome(link, at(clock)), stored.loads) == (UNAVAILABLE, 1)
    await clock.advance(5.0)
    stored.failure = None
    assert await outcome(link, at(clock)) == ALLOWED
    stored.failure = OSError()
    await clock.advance(99.0)
    assert await outcome(link, at(clock)) == ALLOWED
    await clock.advance(1.0)
    assert await outcome(link, at(clock)) == UNAVAILABLE


async def test_a_store_that_hangs_is_given_up() -> None:
    """After ``timeout`` seconds of the call's clock."""
    stored, clock = Stored(), MovableClock()
    stored.held = asyncio.Event()
    running = asyncio.create_task(outcome(Authorize(enforcer=enforcer(stored), timeout=3.0), at(clock)))
    await clock.advance(3.0)
    assert await running == UNAVAILABLE


async def test_an_enforcer_that_raises_denies() -> None:
    """A policy that cannot be evaluated allows nothing."""

    class Broken:
        async def load_policy(self) -> None:
            pass

        def enforce(self, *_: object) -> bool:
            raise ZeroDivisionError

    assert await outcome(Authorize(enforcer=Broken()), asked()) == FAILED


async def test_a_policy_file_works(tmp_path: Path) -> None:
    """The simplest store there is."""
    (tmp_path / "model.conf").write_text(MODEL)
    (tmp_path / "policy.csv").write_text("p, alice, a.B, Get\n")
    link = Authorize(enforcer=casbin.AsyncEnforcer(str(tmp_path / "model.conf"), str(tmp_path / "policy.csv")))
    assert await outcome(link, asked()) == ALLOWED


@pytest.mark.parametrize(
    ("rules", "settings", "words"),
    [
        (None, {}, "either rules or enforcer"),
        ({}, {"enforcer": object()}, "either rules or enforcer"),
        (None, {"enforcer": object()}, "AsyncEnforcer"),
        ({}, {"question": lambda *_: ()}, "question"),
        ({"*": ["a"]}, {}, "neither"),
        ({"/*": ["a"]}, {}, "neither"),
        ({"/*/*": ["a"]}, {}, "neither"),
        ({"a.B/Get": ["a"]}, {}, "neither"),
        ({"/a.B/Get": "admin"}, {}, "no list of roles"),
        ({"/a.B/Get": True}, {}, "no list of roles"),
        ({"/a.B/Get": None}, {}, "no list of roles"),
        ({"/a.B/Get": []}, {}, "no roles"),
        ({"/a.B/Get": [""]}, {}, "is empty"),
    ],
)
def test_a_wrong_setting_is_named(rules: Untyped, settings: dict[str, Untyped], words: str) -> None:
    """Where it is written."""
    with pytest.raises((TypeError, ValueError), match=words):
        Authorize(rules, **settings)


def test_a_synchronous_enforcer_is_refused() -> None:
    """Loading its policy would hold up the loop."""
    with pytest.raises(TypeError, match=r"enforcer=<casbin\.enforcer\.Enforcer .* is no casbin\.AsyncEnforcer"):
        Authorize(enforcer=casbin.Enforcer(casbin.Enforcer.new_model(text=MODEL)))


def test_the_repr_tells_what_has_rules() -> None:
    """Methods are no secret."""
    assert repr(Authorize({"/a.B/*": ["a"]})) == "Authorize(['/a.B/*'])"
    assert repr(Authorize(enforcer=enforcer(Stored()))) == "Authorize(by policy)"
