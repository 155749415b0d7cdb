"""Arguments that are numbers."""

from __future__ import annotations

import numbers
from typing import Any

from normx._errors import described, wrong


def number(function: str, what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise wrong(TypeError, function, what, described(value), "a number")
    return float(value)


def at_least(function: str, what: str, count: Any, least: int) -> int:
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise wrong(TypeError, function, what, described(count), "an int")
    if count < least:
        raise wrong(ValueError, function, what, repr(int(count)), f"at least {least}")
    return int(count)


def single(function: str, what: str, axis: Any) -> int:
    if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
        raise wrong(TypeError, function, what, repr(axis), "an int")
    return int(axis)
