"""Settings: each is right, or refused where it is written, by name and value. Of a secret only the type is said."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from servicekit.metadata import check

T = TypeVar("T")


def seconds(name: str, value: float) -> float:
    """Return ``value``, a time of more than 0 seconds. Raises TypeError or ValueError otherwise."""
    return _above_zero(name, _finite(name, value, "number of seconds"), "give more than 0 seconds")


def seconds_or_zero(name: str, value: float) -> float:
    """Return ``value``, a time of 0 seconds or more. Raises TypeError or ValueError otherwise."""
    return _zero_or_above(name, _finite(name, value, "number of seconds"), "give 0 seconds or more")


def seconds_or_none(name: str, value: float | None) -> float | None:
    """Return ``value``: None, or a time of more than 0 seconds. Raises TypeError or ValueError otherwise."""
    if value is not None and not 0 < _number(name, value, "number of seconds") <= sys.float_info.max:
        msg = f"{name}={value!r}: give more than 0 seconds, or None for no such rule"
        raise ValueError(msg)
    return value


def seconds_or_ever(name: str, value: float) -> float:
    """Return ``value``, a time of more than 0 seconds, ``math.inf`` too. Raises TypeError or ValueError otherwise."""
    return value if value == math.inf else seconds(name, value)


def rate(name: str, value: float) -> float:
    """Return ``value``, a finite number above 0. Raises TypeError or ValueError otherwise."""
    return _above_zero(name, _finite(name, value, "number"), "give more than 0")


def rate_or_zero(name: str, value: float) -> float:
    """Return ``value``, a finite number of 0 or more. Raises TypeError or ValueError otherwise."""
    return _zero_or_above(name, _finite(name, value, "number"), "give 0 or more")


def share(name: str, value: float) -> float:
    """Return ``value``, a number in 0 … 1. Raises TypeError or ValueError otherwise."""
    _number(name, value, "number")
    if not 0 <= value <= 1:
        msg = f"{name}={value!r} is not in 0 … 1"
        raise ValueError(msg)
    return value


def count(name: str, value: int, *, least: int = 1) -> int:
    """Return ``value``, a whole number of ``least`` or more. Raises TypeError or ValueError otherwise."""
    if whole(name, value) < least:
        msg = f"{name}={value!r}: give {least} or more"
        raise ValueError(msg)
    return value


def whole(name: str, value: int) -> int:
    """Return ``value``, a whole number of either sign. Raises TypeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name}={value!r} is no whole number"
        raise TypeError(msg)
    return value


def flag(name: str, value: bool) -> bool:  # noqa: FBT001 - the setting itself
    """Return ``value``, which is True or False and nothing that is like it. Raises TypeError otherwise."""
    if not isinstance(value, bool):
        msg = f"{name}={value!r} is neither True nor False"
        raise TypeError(msg)
    return value


def text(name: str, value: str) -> str:
    """Return ``value``, a text that is not empty. Raises TypeError or ValueError otherwise."""
    if not kind(name, value, str, "text"):
        msg = f"{name}={value!r} is empty"
        raise ValueError(msg)
    return value


def texts(name: str, value: Iterable[str]) -> list[str]:
    """Return what ``value`` holds: texts, none of them empty. Raises TypeError or ValueError otherwise."""
    if isinstance(value, str | bytes):
        msg = f"{name}={value!r} is one text, not a list"
        raise TypeError(msg)
    found = list(listed(name, value, "list of texts"))
    for place, each in enumerate(found):
        text(f"{name}[{place}]", each)
    return found


def listed(name: str, value: Iterable[T], noun: str) -> Iterable[T]:
    """Return ``value``, which holds several things, and is no text and no mapping. Raises TypeError otherwise."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(_is_no(name, value, noun, secret=False))
    return value


def header(name: str, value: str) -> str:
    """Return ``value``, a key of metadata whose values are texts. Raises TypeError or ValueError otherwise."""
    try:
        check(value, "text")
    except (TypeError, ValueError) as error:
        msg = f"{name}={value!r}: {error}"
        raise type(error)(msg) from None
    return value


def kind(name: str, value: T, kinds: type | tuple[type, ...], noun: str, *, secret: bool = False) -> T:
    """Return ``value``, an instance of one of ``kinds``. Raises TypeError otherwise."""
    if not isinstance(value, kinds):
        raise TypeError(_is_no(name, value, noun, secret=secret))
    return value


def able(name: str, value: T, methods: Iterable[str], noun: str, *, secret: bool = False) -> T:
    """Return ``value``, an object that has ``methods``, whatever its class. Raises TypeError otherwise."""
    # A class has them too, and none of them would know whose it is.
    if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
        raise TypeError(_is_no(name, value, noun, secret=secret))
    return value


def function(name: str, value: T, noun: str, *, secret: bool = False) -> T:
    """Return ``value``, which can be called. Raises TypeError otherwise."""
    if not callable(value):
        raise TypeError(_is_no(name, value, noun, secret=secret))
    return cast("T", value)


def _is_no(name: str, value: object, noun: str, *, secret: bool) -> str:
    return f"{name} is no {noun}, but {type(value).__name__}" if secret else f"{name}={value!r} is no {noun}"


def _number(name: str, value: float, noun: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name}={value!r} is no {noun}"
        raise TypeError(msg)
    return value


def _finite(name: str, value: float, noun: str) -> float:
    # Compared and not converted: a whole number may be larger than any float, and no clock can add it up.
    if not abs(_number(name, value, noun)) <= sys.float_info.max:
        msg = f"{name}={value!r} is no finite {noun}"
        raise ValueError(msg)
    return value


def _above_zero(name: str, value: float, advice: str) -> float:
    if not value > 0:
        msg = f"{name}={value!r}: {advice}"
        raise ValueError(msg)
    return value


def _zero_or_above(name: str, value: float, advice: str) -> float:
    if not value >= 0:
        msg = f"{name}={value!r}: {advice}"
        raise ValueError(msg)
    return value
