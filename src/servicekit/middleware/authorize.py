"""Whether they may: rules for each method, or a policy engine's word. What nobody allows is denied."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Final, Protocol, TypeAlias

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.policy import checked
from servicekit.principal import MISSING, Principal, concealed, denial, principal_of
from servicekit.refreshed import Ages, Refreshed, Unreachable

_LINK: Final = "authorize"
_DOWN: Final = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.CANCELLED})
_RETRY_AFTER: Final = 1.0


class Access(enum.Enum):
    """Rules that ask for no role."""

    PUBLIC = "public"  # everybody, also those who are nobody
    AUTHENTICATED = "authenticated"  # everybody who is somebody


Predicate: TypeAlias = Callable[[Principal, Call], "bool | Awaitable[bool]"]
Rule: TypeAlias = "Access | Iterable[str] | Predicate"
"""Who may call: an Access, roles of which one is enough, or a function that returns True (and nothing that is like it)."""


class Enforcer(Protocol):
    """What a policy engine must do. ``casbin.AsyncEnforcer`` does."""

    def enforce(self, *question: object) -> object:
        """Return True, or what awaits to True, when the policy allows what is asked. Takes no time."""

    async def load_policy(self) -> object:
        """Read the policy anew. When it raises, the one before goes on to hold."""


class Authorize:
    """Lets a call pass if a rule says so. Its place is inside authentication: it asks the call's principal.

    ``rules`` is path -> rule: "/pkg.Service/Method" before "/pkg.Service/*"; there is none for everything. Or
    ``enforcer``, a pycasbin ``AsyncEnforcer``, is asked ``question(principal, call)``: by default (name, service, method),
    in the words of casbin's usual model sub, obj, act. Its policy is loaded with the first call, in the background again
    when it is ``refresh`` (60 s) old, and by ``reload()``, which is for those who learn of a change (a watcher, a signal).
    A policy that cannot be loaded again holds until it is ``expire`` (600 s) old, but not after ``reload()``.

    Denied: PERMISSION_DENIED, also without a rule for the method, for a method that does not exist, and when a rule or the
    enforcer raises anything: then the log gets its type and place under an id that the client has too. Nobody's call:
    UNAUTHENTICATED. A policy that cannot be had, or a rule that raises OSError (time-outs are) or a call's UNAVAILABLE:
    UNAVAILABLE, with the time to come back.

    Default: the server's own methods (health, reflection) pass; ``auxiliary=True`` asks them too. Decisions of
    "authorize": "allowed", "denied", "no_rule", "anonymous", "unavailable", "failed".
    """

    checks_callers: ClassVar[bool] = True

    __slots__ = ("_auxiliary", "_policy", "_question", "_rules")

    def __init__(  # noqa: PLR0913 - keywords with defaults
        self,
        rules: Mapping[str, Rule] | None = None,
        *,
        enforcer: Enforcer | None = None,
        question: Callable[[Principal, Call], Sequence[object]] | None = None,
        refresh: float = 60.0,
        expire: float = 600.0,
        interval: float = 5.0,
        timeout: float = 10.0,
        auxiliary: bool = False,
    ) -> None:
        """Raise ValueError or TypeError for a setting that cannot work, naming it."""
        if (rules is None) == (enforcer is None):
            msg = "give either rules or enforcer"
            raise ValueError(msg)
        if rules is not None and question is not None:
            msg = "question is what an enforcer is asked: rules are not"
            raise ValueError(msg)
        if rules is not None:
            checked.kind("rules", rules, Mapping, "mapping from paths to rules")
        if question is not None:
            checked.function("question", question, "function of (principal, call)")
        for name, value in (("refresh", refresh), ("interval", interval), ("timeout", timeout)):
            checked.seconds(name, value)
        ages = Ages(refresh=refresh, expire=checked.seconds_or_ever("expire", expire))
        self._rules = {path: _rule(path, rule) for path, rule in (rules or {}).items()}
        self._question = question or _question
        self._policy: Refreshed[Enforcer] | None = None
        if enforcer is not None:
            checked.able("enforcer", enforcer, ("enforce", "load_policy"), "casbin.AsyncEnforcer")
            if not inspect.iscoroutinefunction(enforcer.load_policy):
                msg = f"enforcer={enforcer!r} is no casbin.AsyncEnforcer: loading would hold up the loop"
                raise TypeError(msg)
            if interval > refresh:
                msg = f"interval={interval!r} is more than refresh={refresh!r}"
                raise ValueError(msg)
            self._policy = Refreshed(_loading(enforcer), ages=lambda _: ages, interval=interval, timeout=timeout)
        self._auxiliary = checked.flag("auxiliary", auxiliary)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Ask, then run the call."""
        if self._auxiliary or not call.method.auxiliary:
            await self._ask(call)
        return await next(request, call)

    def reload(self) -> None:
        """Load the policy anew with the next call, before that is decided. Does nothing for rules."""
        if self._policy is not None:
            self._policy.forget()

    async def _ask(self, call: Call) -> None:
        """Return when the call is allowed; every other way out raises."""
        failure: Exception | None = None
        allowed: object = False
        try:
            allowed = await (self._by_rule(call) if self._policy is None else self._by_policy(self._policy, call))
        except Unreachable as error:
            raise _unavailable(call, error.retry_after) from error.why
        except OSError as error:
            raise _unavailable(call, _RETRY_AFTER) from error
        except Error as error:
            call.decide(_LINK, "unavailable" if error.code in _DOWN else _decision(error))
            raise
        except Exception as error:
            inner = getattr(error, "error", None)  # a CallError: the rule has asked another service
            if isinstance(inner, Error) and inner.code in _DOWN:
                raise _unavailable(call, inner.retry_after or _RETRY_AFTER) from error
            failure = concealed(error)
        if failure is not None:
            call.decide(_LINK, "failed")
            raise denial(Code.PERMISSION_DENIED, "not allowed", failure) from failure
        if allowed is not True:
            call.decide(_LINK, "denied")
            raise Error(Code.PERMISSION_DENIED, "not allowed", reason="DENIED")
        call.decide(_LINK, "allowed")

    async def _by_rule(self, call: Call) -> object:
        rule = self._rules.get(call.method.path) or self._rules.get(f"/{call.method.service}/*")
        if rule is None or not call.method.known:
            raise Error(Code.PERMISSION_DENIED, "not allowed", reason="NO_RULE")
        if rule is Access.PUBLIC:
            return True
        principal = _somebody(call)
        if isinstance(rule, Access):
            return True
        if isinstance(rule, frozenset):
            return not rule.isdisjoint(principal.roles)
        return await _answer(rule(principal, call))

    async def _by_policy(self, policy: Refreshed[Enforcer], call: Call) -> object:
        principal = _somebody(call)
        enforcer = await policy.get(call.clock)
        return await _answer(enforcer.enforce(*self._question(principal, call)))

    def __repr__(self) -> str:
        """Return the methods that have rules, or that a policy decides."""
        return f"Authorize({'by policy' if self._policy is not None else sorted(self._rules)})"


def _somebody(call: Call) -> Principal:
    principal = principal_of(call)
    if principal is None:
        raise Error(Code.UNAUTHENTICATED, "nobody has said who calls", reason=MISSING)
    return principal


def _question(principal: Principal, call: Call) -> Sequence[object]:
    return principal.name, call.method.service, call.method.name


async def _answer(answer: object) -> object:
    return await answer if inspect.isawaitable(answer) else answer


def _loading(enforcer: Enforcer) -> Callable[[], Awaitable[Enforcer]]:
    async def load() -> Enforcer:
        await enforcer.load_policy()
        return enforcer

    return load


def _unavailable(call: Call, retry_after: float) -> Error:
    call.decide(_LINK, "unavailable")
    return Error(
        Code.UNAVAILABLE,
        "what decides who may call cannot be reached",
        reason="AUTHORIZATION_UNAVAILABLE",
        retry_after=retry_after,
    )


def _decision(error: Error) -> str:
    return {"NO_RULE": "no_rule", MISSING: "anonymous"}.get(error.reason, "denied")


def _rule(path: str, rule: Rule) -> Access | frozenset[str] | Predicate:
    service, _, name = checked.text("rules: a path", path).removeprefix("/").partition("/")
    if not path.startswith("/") or not service or not name or "/" in name or service == "*":
        msg = f"rules: {path!r} is neither '/pkg.Service/Method' nor '/pkg.Service/*'"
        raise ValueError(msg)
    if isinstance(rule, Access) or callable(rule):
        return rule
    if isinstance(rule, str) or not isinstance(rule, Iterable):
        msg = f"rules[{path!r}]={rule!r} is no Access, no list of roles and no function"
        raise TypeError(msg)
    roles = frozenset(checked.texts(f"rules[{path!r}]", rule))
    if not roles:
        msg = f"rules[{path!r}]={rule!r} are no roles: a method that nobody may call has no rule"
        raise ValueError(msg)
    return roles
