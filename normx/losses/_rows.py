"""Rows of scores that have a target each: the checks and the reductions that all losses share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np

from normx._calls import checked, dense, single_axis
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import Option, filled
from normx._plan import INTEGERS, NARROW
from normx._vjp import vjp
from normx.plugins import Library, dtype_name
from normx.topk import taken

Array = Any
F = TypeVar("F", bound=Callable[..., Any])
Pullback: TypeAlias = Callable[[Any], dict[str, Any]]
Reduction: TypeAlias = Literal["mean", "sum", "none"]

REDUCTIONS = get_args(Reduction)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of scores with their targets, checked.

    Attributes
    ----------
    function : str
        The loss, for messages.
    library : Library
    logits : array
        In their floating dtype, as they came.
    axis : int
        Of the classes; never negative.
    targets : array of int
        One per row; 0 where a row has no class.
    counted : array of bool or None
        The rows that are not ignored; None stands for all.
    valid : array of bool or None
        The rows whose target is a class, where its values cannot be looked at.
    where : array of bool or None
        The classes that take part, with as many axes as the logits.
    reduction : {"mean", "sum", "none"}
    dtype : str
        Of the arithmetic and of the losses: float32 or wider.
    """

    function: str
    library: Library
    logits: Array
    axis: int
    targets: Array
    counted: Array | None
    valid: Array | None
    where: Array | None
    reduction: Reduction
    dtype: str

    @property
    def xp(self) -> Any:
        return self.library.namespace()

    @property
    def classes(self) -> int:
        return int(self.logits.shape[self.axis])

    @property
    def shape(self) -> tuple[int, ...]:
        """One entry per row."""
        return tuple(self.targets.shape)

    def wide(self) -> Array:
        """The logits in the dtype of the arithmetic."""
        return self.library.cast(self.logits, self.dtype)

    def full(self, value: float) -> Array:
        """A value for every row."""
        return self.library.full(self.shape, value, self.dtype, self.logits)

    def spread(self, rows: Array) -> Array:
        """A value per row, to broadcast against the logits."""
        return self.xp.expand_dims(rows, axis=self.axis)

    def at_target(self, x: Array) -> Array:
        """The entry of the target of every row; `x` has the shape of the logits."""
        index = self.spread(self.targets)
        return taken(self.library, x, index, self.axis)[self._first]

    def is_target(self) -> Array:
        """Which entries of the logits are those of the targets."""
        xp, ndim = self.xp, self.logits.ndim
        index = self.library.asarray(np.arange(self.classes), "int32", self.logits)
        index = xp.reshape(index, (-1, *(1,) * (ndim - 1 - self.axis)))
        return index == self.spread(self.targets)

    @property
    def _first(self) -> tuple[Any, ...]:
        return (*(slice(None),) * self.axis, 0, ...)

    def sum(self, x: Array) -> Array:
        """Sum over the classes."""
        return self.library.accurate_sum(x, (self.axis,))[self._first]

    def kept_sum(self, x: Array) -> Array:
        """Sum over the classes that take part."""
        xp = self.xp
        return self.sum(x if self.where is None else xp.where(self.where, x, xp.zeros_like(x)))

    def mended(self, values: Array) -> Array:
        """Values of rows: +inf where the target is no class, 0 where a row is ignored.

        An infinite loss is a constant: there is no way to make it smaller.
        """
        xp = self.xp
        infinite = values == xp.inf
        if self.valid is not None:
            infinite = infinite | ~self.valid
        return self.masked(xp.where(infinite, xp.inf, values))

    def masked(self, values: Array) -> Array:
        """Values of rows, 0 where a row is ignored."""
        if self.counted is None:
            return values
        return self.xp.where(self.counted, values, 0.0)

    def divisor(self, weights: Array | None = None) -> Any:
        """What the sum of the rows is divided by: how many count, or the sum of their weights."""
        if weights is None and self.counted is None:
            return float(max(1, math.prod(self.shape)))
        total = self._total(self.masked(self.full(1.0) if weights is None else weights))
        return self.xp.where(total == 0, 1.0, total)

    def reduced(self, values: Array, weights: Array | None = None) -> Array:
        """The loss of the values of the rows; that of no rows is 0."""
        if self.reduction == "none":
            return self.library.finish(values)
        total = self._total(values)
        if self.reduction == "mean":
            total = total / self.divisor(weights)
        return self.library.finish(self.library.cast(total, self.dtype))

    def _total(self, values: Array) -> Array:
        """Sum over all rows."""
        if 0 in self.shape:
            return self.library.full((), 0.0, self.dtype, self.logits)
        axes = tuple(range(len(self.shape)))
        with self.library.quiet():
            return self.xp.reshape(self.library.accurate_sum(values, axes), ())

    def to_rows(self, cotangent: Any, weights: Array | None = None) -> Array:
        """The cotangents of the values of the rows, given that of the loss."""
        d = self.cotangent("loss", cotangent, self.shape if self.reduction == "none" else ())
        if self.reduction == "mean":
            d = d / self.divisor(weights)
        return self.masked(d + self.full(0.0))

    def cotangent(self, of: str, value: Any, shape: tuple[int, ...]) -> Array:
        """A cotangent of a result of that shape, checked."""
        home = library_of(value)
        if isinstance(value, numbers.Real) or (
            home is self.library and not hasattr(value, "dtype")
        ):
            value = self.library.asarray(value, self.dtype, self.logits)
            home = self.library
        if home is not self.library or tuple(value.shape) != shape:
            wanted = f"an array of {self.library.name} of shape {shape}, that of the {of}"
            raise wrong(ValueError, self.function, "dy", described(value), wanted)
        return self.library.cast(value, self.dtype)

    def gradient(self, dx: Array) -> dict[str, Array]:
        """The gradient of the logits, in their dtype, as a pullback returns it."""
        if self.where is not None:
            dx = self.xp.where(self.where, dx, 0.0)
        if self.counted is not None:  # whatever an ignored row holds
            dx = self.xp.where(self.spread(self.counted), dx, 0.0)
        with self.library.quiet():
            dx = self.library.cast(dx, dtype_name(self.logits.dtype))
        return {"x": self.library.finish(dx)}


def batch_of(
    function: str,
    logits: Any,
    targets: Any,
    *,
    axis: int,
    where: Any,
    ignore_index: int | None,
    reduction: str,
    softcap: float | None = None,
) -> Batch:
    """Check what every loss takes.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        With the function, the argument, what came, what was wanted and the cure.
    """
    single_axis(function, axis)
    check_choice(function, "reduction", reduction, REDUCTIONS)
    keywords = {"where": where, "softcap": softcap}
    with about("logits"):
        library, logits, prepared = checked(function, logits, axis=axis, **keywords)
        dense(function, library, logits)
    shape = tuple(logits.shape)
    if not shape:
        wanted = "an array of at least one dimension"
        raise wrong(ValueError, function, "logits", "a number", wanted)
    (along,) = prepared.plan.axis
    if shape[along] == 0:
        raise wrong(ValueError, function, "logits", described(logits), "of at least one class")
    logits, kept, _ = prepared.arguments(logits, keywords)
    rows = shape[:along] + shape[along + 1 :]
    targets = _targets(function, library, logits, targets, rows)
    counted = valid = None
    if ignore_index is not None:
        _check_index(function, ignore_index)
        counted = targets != ignore_index
        targets = library.namespace().where(counted, targets, 0)
    if library.is_concrete(targets):
        _check_values(function, library, targets, counted, shape[along])
        if kept is not None and library.is_concrete(kept):
            _check_kept(function, library, targets, counted, kept, shape, along)
    else:
        xp = library.namespace()
        valid = (targets >= 0) & (targets < shape[along])
        targets = xp.where(valid, targets, 0)
    if kept is not None and valid is not None:
        index = xp.expand_dims(targets, axis=along)
        hit = taken(library, xp.broadcast_to(kept, shape), index, along)
        valid = valid & xp.squeeze(hit, axis=along)
    working = "float32" if prepared.plan.dtype in NARROW else prepared.plan.dtype
    chosen: Any = reduction  # one of the known words
    return Batch(function, library, logits, along, targets, counted, valid, kept, chosen, working)


@contextmanager
def about(argument: str) -> Iterator[None]:
    """Let the errors of shared checks name the argument that a loss calls so."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (error.args[0].replace("`x`", f"`{argument}`"), *error.args[1:])
        raise


def check_choice(function: str, name: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse a word that is none of the known ones."""
    if value not in known:
        raise wrong(
            ValueError, function, name, repr(value), f"one of {', '.join(map(repr, known))}"
        )


def number(
    function: str, name: str, value: Any, wanted: str, allowed: Callable[[float], bool]
) -> float:
    """A keyword that is one number, checked."""
    real = isinstance(value, numbers.Real | np.number) and not isinstance(value, bool)
    if not real or isinstance(value, np.complexfloating):
        raise wrong(TypeError, function, name, described(value), wanted)
    if not allowed(float(value)):
        raise wrong(ValueError, function, name, repr(value), wanted)
    return float(value)


def _check_index(function: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise wrong(TypeError, function, "ignore_index", described(value), "an int or None")


def _targets(
    function: str, library: Library, logits: Array, targets: Any, rows: tuple[int, ...]
) -> Array:
    wanted = f"integers of {library.name}, the class of each row, of shape {rows}"
    if isinstance(targets, int | list | tuple | np.integer) and not isinstance(targets, bool):
        try:
            values = np.asarray(targets)
        except ValueError:
            raise wrong(TypeError, function, "targets", "a ragged list", wanted) from None
        if values.size == 0:
            values = values.astype(np.int64)
        kind = dtype_name(library.from_numpy(values).dtype)  # what the library makes of integers
        targets = library.asarray(values, kind, logits)
    if library_of(targets) is not library or not hasattr(targets, "dtype"):
        raise wrong(TypeError, function, "targets", described(targets), wanted)
    kind = dtype_name(targets.dtype)
    if kind not in INTEGERS or kind.startswith("bool"):
        raise wrong(
            TypeError,
            function,
            "targets",
            described(targets),
            wanted,
            "of probabilities take the argmax; of numbers that are whole make integers first",
        )
    if tuple(targets.shape) != rows:
        raise wrong(ValueError, function, "targets", described(targets), wanted)
    here, there = library.device(logits), library.device(targets)
    if here is not None and there is not None and here != there:
        raise wrong(
            ValueError, function, "targets", f"on {there}", f"on the device of `logits`, {here}"
        )
    if kind.startswith("uint") or kind in ("int8", "int16"):
        targets = library.cast(targets, "int32" if kind != "uint64" else "int64")
    return targets


def _check_values(
    function: str, library: Library, targets: Array, counted: Array | None, classes: int
) -> None:
    values = library.to_numpy(targets)
    wrong_ones = (values < 0) | (values >= classes)
    if counted is not None:
        wrong_ones &= library.to_numpy(counted)
    if wrong_ones.any():
        place = tuple(map(int, np.argwhere(wrong_ones)[0]))
        raise wrong(
            ValueError,
            function,
            "targets",
            f"{int(values[place])}{_at(place)}, which is out of bounds",
            f"from 0 to {classes - 1} for {classes} classes",
            "rows without a class are left out by ignore_index",
        )


def _check_kept(
    function: str,
    library: Library,
    targets: Array,
    counted: Array | None,
    kept: Array,
    shape: tuple[int, ...],
    axis: int,
) -> None:
    values = np.expand_dims(library.to_numpy(targets), axis)
    there = np.take_along_axis(np.broadcast_to(library.to_numpy(kept), shape), values, axis)
    left_out = ~there.squeeze(axis)
    if counted is not None:
        left_out &= library.to_numpy(counted)
    if left_out.any():
        place = tuple(map(int, np.argwhere(left_out)[0]))
        raise wrong(
            ValueError,
            function,
            "where",
            f"False at class {int(values.squeeze(axis)[place])}, the target{_at(place)}",
            "True at the target of every row",
            "rows whose class is left out are left out by ignore_index",
        )


def _at(place: tuple[int, ...]) -> str:
    """Where a row is, in words."""
    return f" of row {', '.join(map(str, place))}" if place else ""


#: What the losses' docstrings share: entries of parameters, and sections.
_SHARED: Mapping[str, Option | str] = {
    "logits": Option(None, "array", "Of any array-API library, or a list (taken as NumPy's)."),
    "targets": Option(
        None, "array of int", "The class c of each row: the shape of `logits` without `axis`."
    ),
    "axis": Option(-1, "int", "Axis of the K classes."),
    "where": Option(
        None, "array of bool, optional", "Broadcastable against `logits`; True takes part."
    ),
    "ignore_index": Option(
        None, "int, optional", "Rows with this target take no part, whatever they hold."
    ),
    "reduction": Option(
        "mean",
        '{"mean", "sum", "none"}',
        "The mean is that over the rows that are not ignored.",
    ),
    "returns": """array
    The loss: float32 for logits of at most 32 bits, float64 otherwise.""",
    "raises": """TypeError
    If an argument is of the wrong kind; targets have to be integers.
ValueError
    If a target is no class, or one that `where` leaves out; if an argument has a wrong
    value or shape.
numpy.exceptions.AxisError
    If `axis` does not exist; both a ValueError and an IndexError.""",
}


def documented(**own: Option | str) -> Callable[[F], F]:
    """Fill what losses share into a docstring; `own` goes before that."""

    def decorate(function: F) -> F:
        function.__doc__ = filled(function.__doc__, {**_SHARED, **own})
        return function

    return decorate


def with_vjp(pair: Callable[..., tuple[Any, Pullback]]) -> Callable[[F], F]:
    """Give a loss what `normx.vjp` calls: the same arguments, its result and its pullback."""

    def decorate(function: F) -> F:
        function.vjp = pair  # type: ignore[attr-defined]
        return function

    return decorate


def by_weights(
    batch: Batch, logits: Array, function: Callable[..., Any], **keywords: Any
) -> tuple[Array, Array, Callable[[Array, Array | None], Array]]:
    """The logarithm of a normalizer's weights, the weights, and their common pullback.

    The logarithm of 0 is -inf, and a constant.
    """
    xp = batch.xp
    options = {"axis": batch.axis, "where": batch.where, **keywords}
    weights, pull = vjp(function, logits, **options)
    some = weights > 0
    safe = xp.where(some, weights, 1.0)
    with batch.library.quiet():
        nothing = xp.full_like(weights, -xp.inf)
        logs = xp.where(some, xp.log(safe), xp.where(xp.isnan(weights), xp.nan, nothing))

    def pullback(dlogs: Array, dweights: Array | None = None) -> Array:
        d = xp.where(some, dlogs / safe, 0.0)
        dx: Array = pull(d if dweights is None else d + dweights)["x"]
        return dx

    return logs, weights, pullback
