"""Calls of the functions that are no records: the same checks, in the same words."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from typing import Any, TypeVar, cast

from normx._dispatch import Ran, _arrive, _explicit, _tracing, backend_names, library_of
from normx._errors import described, wrong
from normx._plan import Prepared, prepare
from normx._record import Record, record_of
from normx.normalizers.softmax import softmax
from normx.plugins import Library

Array = Any
F = TypeVar("F", bound=Callable[..., Any])


def known_keywords(function: F) -> F:
    """Refuse a keyword that `function` does not have, and name those that it has."""
    signature = inspect.signature(function)
    known = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]

    @wraps(function)
    def checked_call(*arguments: Any, **keywords: Any) -> Any:
        for keyword in keywords:
            if keyword not in known:
                name, names = function.__name__, ", ".join(known)
                raise TypeError(f"normx.{name}: unknown keyword `{keyword}`; known are {names}")
        return function(*arguments, **keywords)

    return cast(F, checked_call)


def checked(
    function: str, x: Any, /, *, keep_neutral: bool = False, **keywords: Any
) -> tuple[Library, Array, Prepared]:
    """Check scores and shared options as `softmax` does, in the name of another function."""
    record = _softmax_called(function)
    library, x = _arrive(record, x)
    prepared = prepare(record, library, x, keywords, library_of, keep_neutral=keep_neutral)
    return library, x, prepared


@cache
def _softmax_called(function: str) -> Record:
    return replace(record_of(softmax), name=function)


def single_axis(function: str, axis: Any) -> None:
    """Refuse what is not one axis."""
    if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
        raise wrong(
            TypeError, function, "axis", repr(axis), "an int", "reshape to join several axes"
        )


def part(axis: int, start: int | None, stop: int | None) -> tuple[Any, ...]:
    """The index of a part of one axis."""
    return (*(slice(None),) * axis, slice(start, stop), ...)


def check_backend(function: str, backend: Any, only: str | None = None) -> None:
    """Refuse a backend that does not exist, or that an explicit choice cannot have."""
    name = _explicit({"backend": backend})
    if name is None:
        return
    if name not in backend_names():
        raise wrong(
            ValueError, function, "backend", repr(name), f"one of {', '.join(backend_names())}"
        )
    if only is not None and name != only:
        raise wrong(
            TypeError,
            function,
            "backend",
            repr(name),
            f"{only!r}, which alone has this function",
            "leave `backend` out to let normx choose",
        )


def dense(function: str, library: Library, x: Array) -> None:
    """Refuse arrays that do not store every entry."""
    if library.name == "sparse":
        raise wrong(TypeError, function, "x", described(x), "a dense array", "pass x.todense()")


def note(function: str, kernel: str, library: Library) -> None:
    """Tell the `trace` blocks around a call what ran."""
    for events in _tracing.get():
        events.append(Ran(function, "reference", kernel, library.name))
