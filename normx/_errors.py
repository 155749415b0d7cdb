"""One shape for every message to a user: what function, what argument, what came, what helps."""

from __future__ import annotations

from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)


def wrong(kind: type[E], function: str, argument: str, came: str, wanted: str, cure: str = "") -> E:
    """Make an exception that names function, argument, what came, what was wanted, and the cure."""
    text = f"normx.{function}: `{argument}` must be {wanted}, not {came}"
    return kind(f"{text}; {cure}" if cure else text)


def described(value: Any) -> str:
    """A short description of a value for a message."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        home = type(value).__module__.partition(".")[0]
        return f"an array of {home} of shape {tuple(shape)} and dtype {dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
