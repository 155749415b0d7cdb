"""Measures of the log-weights of scores, and their gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from normx._calls import checked, dense, single_axis
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import Option, filled
from normx._plan import NARROW
from normx._vjp import vjp
from normx.normalizers.softmax import log_softmax
from normx.plugins import Library
from normx.uncertainty._checks import single

Array = Any
Pullback = Callable[[Array], dict[str, Array]]
F = TypeVar("F", bound=Callable[..., Any])

#: What the measures' docstrings share: entries of parameters, and a section.
_SHARED: Mapping[str, Option | str] = {
    "x": Option(
        None, "array", "Scores: an array of any array-API library, or a list (taken as NumPy's)."
    ),
    "axis": Option(-1, "int", "Axis of the classes."),
    "where": Option(None, "array of bool, optional", "Broadcastable against `x`; True takes part."),
    "temperature": Option(None, "float or array, optional", "The scores are divided by it."),
    "raises": """TypeError
    If an argument is of the wrong kind.
ValueError
    If an argument has a wrong value or shape.
numpy.exceptions.AxisError
    If an axis does not exist; both a ValueError and an IndexError.""",
}


def documented(function: F) -> F:
    """Fill what measures share into a docstring."""
    function.__doc__ = filled(function.__doc__, _SHARED)
    return function


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of log-weights, and its slope in each of them.

    Both take the namespace, the log-weights and the axes that are reduced: that of the classes,
    and that of the passes or members if there is one.  These stay, with size 1 in the value.
    """

    value: Callable[[Any, Array, tuple[int, ...]], Array]
    slope: Callable[[Any, Array, tuple[int, ...]], Array]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a call, checked, and what is to be done with them."""

    function: str
    library: Library
    x: Array
    axes: tuple[int, ...]
    dtype: str
    options: Mapping[str, Any]

    @property
    def wide(self) -> str:
        """The dtype of the arithmetic."""
        return "float32" if self.dtype in NARROW else self.dtype

    def measured(self, measure: Measure) -> Array:
        library, xp = self.library, self.library.namespace()
        logs = log_softmax(
            self.x, axis=self.axes[0], dtype=library.dtype(self.wide), **self.options
        )
        with library.quiet():
            return self.rounded(measure.value(xp, logs, self.axes))

    def rounded(self, u: Array) -> Array:
        """A value per item, in the dtype of the scores."""
        u = self.library.namespace().squeeze(u, axis=self.axes)
        return self.library.finish(self.library.cast(u, self.dtype))

    def spread(self, du: Any) -> Array:
        """A cotangent, with the axes of the scores."""
        library, xp = self.library, self.library.namespace()
        du = np.asarray(du) if isinstance(du, list | tuple | int | float) else du
        shape = tuple(n for i, n in enumerate(self.x.shape) if i not in self.axes)
        if library_of(du) is not library or tuple(du.shape) != shape:
            wanted = f"an array of {library.name} of shape {shape}"
            raise wrong(ValueError, "vjp", "dy", described(du), wanted)
        kept = tuple(1 if i in self.axes else n for i, n in enumerate(self.x.shape))
        return xp.reshape(library.cast(du, self.wide), kept)

    def pulled_back(self, measure: Measure) -> Pullback:
        library, xp = self.library, self.library.namespace()
        logs, pull = vjp(log_softmax, self.x, axis=self.axes[0], **self.options)

        def pullback(du: Array) -> dict[str, Array]:
            with library.quiet():
                slope = measure.slope(xp, library.cast(logs, self.wide), self.axes)
                of_logs = library.cast(slope * self.spread(du), self.dtype)
            gradients: dict[str, Array] = pull(of_logs)
            return gradients

        return pullback


def scores_of(
    name: str, x: Any, axis: Any, others: Any = None, what: str = "", **options: Any
) -> Scores:
    """Check scores of classes along an axis, and perhaps of passes or members along another."""
    function = f"uncertainty.{name}"
    single_axis(function, axis)
    options = {key: value for key, value in options.items() if value is not None}
    library, x, prepared = checked(function, x, axis=axis, **options)
    dense(function, library, x)
    if not x.shape:
        raise wrong(ValueError, function, "x", "a number", "an array with an axis of classes")
    axes = prepared.plan.axis
    if others is not None:
        (along,) = checked(function, x, axis=single(function, what, others))[2].plan.axis
        if along == axes[0]:
            raise wrong(ValueError, function, what, repr(others), "another axis than `axis`")
        axes = (*axes, along)
    if any(x.shape[i] == 0 for i in axes):
        raise wrong(ValueError, function, "x", described(x), "scores of at least one class")
    return Scores(function, library, x, axes, prepared.plan.dtype, options)


def bound(function: Callable[..., Any], x: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Every keyword of a call, as Python would refuse or complete it."""
    bound = inspect.signature(function).bind(x, **params)
    bound.apply_defaults()
    return bound.kwargs


def of_logs(function: Callable[..., Any], measure: Measure, others: str = "") -> Callable[..., Any]:
    """The vector-Jacobian product of a function that measures log-weights, for `normx.vjp`."""

    def pulled(x: Any, /, **params: Any) -> tuple[Any, Pullback]:
        given = bound(function, x, params)
        options = {word: given[word] for word in ("where", "temperature")}
        along = given[others] if others else None
        scores = scores_of(function.__name__, x, given["axis"], along, others, **options)
        return scores.measured(measure), scores.pulled_back(measure)

    return pulled


def first_of_largest(xp: Any, x: Array, axis: int) -> Array:
    """Where the largest entry is: True once in every row, at the first of equal ones."""
    place = xp.expand_dims(xp.argmax(x, axis=axis), axis=axis)
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return place == xp.reshape(xp.arange(x.shape[axis], dtype=place.dtype), tuple(shape))


def picked(xp: Any, x: Array, chosen: Array, axis: int) -> Array:
    return xp.sum(xp.where(chosen, x, 0.0), axis=axis, keepdims=True)


def finite(xp: Any, logs: Array) -> Array:
    """Log-weights, 0 for those of no weight: times a weight of 0, either is 0."""
    return xp.where(logs == -xp.inf, 0.0, logs)
