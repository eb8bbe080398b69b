"""Settings that are numbers: each is right, or refused where it is written, by name and value."""

from __future__ import annotations

import math


def seconds(name: str, value: float) -> float:
    """Return ``value``, a time of more than 0 seconds. Raises TypeError or ValueError otherwise."""
    _check_number(name, value, "number of seconds")
    if not (value > 0 and math.isfinite(value)):
        msg = f"{name}={value!r}: give more than 0 seconds"
        raise ValueError(msg)
    return value


def seconds_or_zero(name: str, value: float) -> float:
    """Return ``value``, a time of 0 seconds or more. Raises TypeError or ValueError otherwise."""
    _check_number(name, value, "number of seconds")
    if not (value >= 0 and math.isfinite(value)):
        msg = f"{name}={value!r}: give 0 seconds or more"
        raise ValueError(msg)
    return value


def rate(name: str, value: float) -> float:
    """Return ``value``, a finite number above 0. Raises TypeError or ValueError otherwise."""
    _check_number(name, value, "number")
    if not (value > 0 and math.isfinite(value)):
        msg = f"{name}={value!r}: give more than 0"
        raise ValueError(msg)
    return value


def share(name: str, value: float) -> float:
    """Return ``value``, a number in 0 … 1. Raises TypeError or ValueError otherwise."""
    _check_number(name, value, "number")
    if not 0 <= value <= 1:
        msg = f"{name}={value!r} is not in 0 … 1"
        raise ValueError(msg)
    return value


def count(name: str, value: int, *, least: int = 1) -> int:
    """Return ``value``, a whole number of ``least`` or more. Raises TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name}={value!r} is no whole number"
        raise TypeError(msg)
    if value < least:
        msg = f"{name}={value!r}: give {least} or more"
        raise ValueError(msg)
    return value


def _check_number(name: str, value: float, noun: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name}={value!r} is no {noun}"
        raise TypeError(msg)
