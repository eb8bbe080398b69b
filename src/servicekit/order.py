"""Orders of links that are always a mistake: each a pair that must not stand so, why, and what to do instead.

A link says what it is by attributes that are true, each of them optional, so that a chain can judge links that it does
not know:

====================  =================================================================================================
answers_by_itself     it may answer in the place of what is further in: a cache, a fallback
checks_callers        it lets pass only who may: authentication, authorization
recovers              it turns exceptions into what the client gets
observes              it writes down how calls ended: spans, log lines, metrics
tries_again           it may run what is further in more than once
one_attempt           it is there for one attempt at one instance: it picks it, judges it, or makes itself known to it
====================  =================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from .method import Kind, Method


@dataclass(frozen=True, slots=True)
class Rule:
    """What is ``outer`` must not stand outside of what is ``inner``, for the reason that ``why`` tells with a remedy."""

    outer: str
    inner: str
    why: str


RULES: Final = (
    Rule(
        "answers_by_itself",
        "checks_callers",
        "{outer} can answer by itself and stands outside of {inner}, so that callers whom nobody has checked would get "
        "its answers: put it after {inner}",
    ),
    Rule(
        "recovers",
        "observes",
        "{outer} stands outside of {inner}, which would not see what the client gets: put it after all that observe "
        "(tracing, access log, metrics)",
    ),
    Rule(
        "one_attempt",
        "tries_again",
        "{inner} stands inside of {outer}, which is there for one attempt at one instance, so that no other attempt "
        "could go elsewhere: put {inner} before it",
    ),
    Rule(
        "tries_again",
        "tries_again",
        "{outer} and {inner} would both try the same call again, and their attempts multiply: keep one of them, or "
        "give each the methods that are its own with only(...)",
    ),
)


def mistake(outer: object, inner: object) -> str | None:
    """Return what is wrong with ``outer`` outside of ``inner``, and what to do about it; None when nothing is."""
    for rule in RULES:
        if getattr(outer, rule.outer, False) and getattr(inner, rule.inner, False):
            return rule.why.format(outer=_word(outer), inner=_word(inner))
    return None


class Condition(Protocol):
    """A choice of methods that stands around a link."""

    pattern: str | None
    """The path that it was written as, "/pkg.Service/Name" or "/pkg.Service/*"; None for a predicate."""

    def applied(self, method: Method) -> object | None:
        """Return None for a method that is not chosen."""


M_co = TypeVar("M_co", covariant=True)


class Link(NamedTuple, Generic[M_co]):
    """A link, and what chooses the methods that it is for: all of ``conditions``."""

    conditions: tuple[Condition, ...]
    middleware: M_co


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is a mistake for the methods that all of ``conditions`` choose, if there are any."""

    conditions: tuple[Condition, ...]
    wrong: str

    def check(self, method: Method) -> None:
        """Raise ValueError when ``method`` is one of them."""
        if all(condition.applied(method) is not None for condition in self.conditions):
            msg = f"the chain of {method.path} is in a wrong order: {self.wrong}"
            raise ValueError(msg)


def doubts(links: Sequence[Link[object]]) -> Iterator[Doubt]:
    """Yield what may be a mistake for some methods. Raises ValueError for what is one for sure."""
    for place, inner in enumerate(links):
        for outer in links[:place]:
            wrong = mistake(outer.middleware, inner.middleware)
            if wrong is None:
                continue
            if _meet(outer.conditions, inner.conditions):
                msg = f"this chain is in a wrong order: {wrong}"
                raise ValueError(msg)
            yield Doubt((*outer.conditions, *inner.conditions), wrong)


def _meet(one: tuple[Condition, ...], other: tuple[Condition, ...]) -> bool:
    """Return whether there are methods that both choose, as far as that can be seen without one.

    Where one chooses all that the other does there are, for no link is written down for the sake of no method.
    """
    if set(one) <= set(other) or set(other) <= set(one):
        return True
    conditions = (*one, *other)
    patterns = [condition.pattern for condition in conditions if condition.pattern is not None]
    if len(patterns) < len(conditions):
        return False  # what a predicate chooses only it can tell
    _, service, name = min(patterns, key=lambda path: path.endswith("/*")).split("/")
    narrowest = Method(service=service, name=name, kind=Kind.UNARY)
    return all(condition.applied(narrowest) is not None for condition in conditions)


def _word(link: object) -> str:
    # Not its repr: settings are no part of the mistake.
    return getattr(link, "__qualname__", None) or type(link).__name__
