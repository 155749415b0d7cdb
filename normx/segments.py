"""Softmax within the segments of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import numpy as np

from normx import _arithmetic as arithmetic
from normx._calls import check_backend, checked, dense, known_keywords, note, part, single_axis
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._plan import INTEGERS, Plan, Prepared
from normx._reference import at_rest, row_of, states_of, through_options, with_policies
from normx._row import Row
from normx._vjp import of_nothing, shaped_as
from normx.plugins import Library, dtype_name

Array = Any

NAME = "segment_softmax"


@dataclass(frozen=True)
class Segments:
    """Where the segments of an axis lie.

    Attributes
    ----------
    offset : array of int
        Of each entry of the axis: its place within its segment.
    last : array of int
        Of each entry of the axis: the index of the last entry of its segment.
    longest : int
        Length of the longest segment, or a bound of it.
    starts, lengths : array of int or None
        Of the segments that are not empty, on NumPy, which reduces them itself.
    """

    offset: Array
    last: Array
    longest: int
    starts: Array | None = None
    lengths: Array | None = None


@dataclass(frozen=True)
class _SegmentedRow(Row):
    """Rows in which every entry sees its own segment only.

    A reduction gives each entry the result of its segment, where that of a row has
    size 1: all formulas hold as they are.
    """

    segments: Segments | None = None

    @cached_property
    def maximum(self) -> Array:
        return self._reduced(self.scores, np.maximum, self._scanned_maximum)

    def sum(self, x: Array) -> Array:
        return self._reduced(x, np.add, self._scanned_sum)

    def _reduced(self, x: Array, ufunc: np.ufunc, scanned: Callable[[Array], Array]) -> Array:
        segments, axis = self.segments, self.axis[0]
        assert segments is not None
        if segments.starts is not None and segments.lengths is not None:
            once = ufunc.reduceat(x, segments.starts, axis=axis)
            return np.repeat(once, segments.lengths, axis=axis)
        return self.xp.take(scanned(x), segments.last, axis=axis)

    def _steps(self, ndim: int) -> Any:
        """Distances 1, 2, 4, ... with the entries whose segment reaches back that far."""
        segments, axis = self.segments, self.axis[0]
        assert segments is not None
        offset = self.xp.reshape(segments.offset, (-1,) + (1,) * (ndim - axis - 1))
        distance = 1
        while distance < segments.longest:
            yield distance, offset >= distance
            distance *= 2

    def _shifted(self, x: Array, distance: int) -> Array:
        """What stands `distance` before each entry; the first ones are not looked at."""
        axis = self.axis[0]
        parts = [x[part(axis, 0, distance)], x[part(axis, 0, -distance)]]
        return self.xp.concat(parts, axis=axis)

    def _scanned_maximum(self, x: Array) -> Array:
        xp = self.xp
        for distance, reaches in self._steps(x.ndim):
            x = xp.where(reaches, xp.maximum(x, self._shifted(x, distance)), x)
        return x

    def _scanned_sum(self, x: Array) -> Array:
        # A pairwise tree of TwoSums that ends at each entry: the error does not grow.
        xp, error = self.xp, self.xp.zeros_like(x)
        for distance, reaches in self._steps(x.ndim):
            level = arithmetic.two_sum(x, self._shifted(x, distance))
            lost = error + self._shifted(error, distance) + level.lo
            x, error = xp.where(reaches, level.hi, x), xp.where(reaches, lost, error)
        # A sum with an infinite or NaN term: the correction is NaN, the sum is right.
        return xp.where(xp.isfinite(error), x + error, x)


@known_keywords
def segment_softmax(
    x: ArrayLike,
    offsets: ArrayLike,
    /,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    softcap: float | None = None,
    dtype: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Softmax within each segment of an axis.

    .. math:: y_i = \frac{e^{x_i}}{\sum_{j = o_s}^{o_{s+1} - 1} e^{x_j}},
        \qquad o_s \le i < o_{s+1}

    Parameters
    ----------
    x : array
        Scores: an array of any array-API library, or a list or number (taken as NumPy's).
    offsets : array of int, list or tuple
        Where the segments begin, and where the last one ends: one more number than there
        are segments, from 0, never falling, to the size of `axis`.  An empty segment is a
        number twice.  Of the library of `x`, or NumPy's.
    axis : int
        Axis that is cut into segments, the same ones at every place of the other axes.
    temperature : float or array
        The scores are divided by it; at least 0, an array has size 1 along `axis`.
    where : array of bool, optional
        Broadcastable against `x`; True takes part.  Entries left out have no effect,
        whatever they hold, and receive gradient exactly 0.
    softcap : float, optional
        The scores become ``c*tanh(x/c)``, before the temperature; positive.
    dtype : dtype, optional
        Floating dtype of the result; that of `x` by default.
    backend : str, optional
        Only ``"reference"`` has this function.

    Returns
    -------
    array
        Of the library, shape and floating dtype of `x`; segments of which nothing takes
        part are 0.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, or another backend is chosen.
    ValueError
        If an argument has a wrong value or shape.  The values of `offsets` are looked at
        where that is possible: not while they are traced.
    numpy.exceptions.AxisError
        If `axis` does not exist; both a ValueError and an IndexError.

    See Also
    --------
    normx.softmax : One segment.

    Notes
    -----
    The result of each segment is as accurate as that of `normx.softmax`: the difference to
    the segment's maximum is exact, and the sum does not lose with the length.  Entries of
    +inf share the mass of their segment; NaN makes its segment NaN, and no other.

    NumPy reduces n entries in a time of O(n).  Elsewhere maxima and sums are found by a
    segmented scan in O(n log m), with m the longest segment: shifts, comparisons and sums
    only, which compile, have gradients and give the same bits on every run.  Dask gathers
    the chunks along `axis` into one.

    References
    ----------
    .. [1] G. E. Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990.
    .. [2] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax",
       arXiv:1805.02867, 2018.

    Examples
    --------
    >>> from normx import segment_softmax
    >>> segment_softmax([1.0, 2.0, 5.0, 0.0, 0.0], [0, 2, 3, 3, 5]).round(4)
    array([0.2689, 0.7311, 1.    , 0.5   , 0.5   ])
    """
    single_axis(NAME, axis)
    keywords = {"temperature": temperature, "where": where, "softcap": softcap, "dtype": dtype}
    library, x, prepared = checked(NAME, x, axis=axis, **keywords)
    dense(NAME, library, x)
    check_backend(NAME, backend, only="reference")
    if not x.shape:
        raise wrong(ValueError, NAME, "x", "a number", "an array of at least one dimension")
    (along,) = prepared.plan.axis
    offsets, numbers = _checked_offsets(library, offsets, x.shape[along])
    call = partial(_computed, prepared.plan, offsets, numbers)
    if hasattr(x, "map_blocks"):
        call = partial(_computed_in_blocks, prepared, numbers)
    result, kernel = prepared.run(call, x, keywords)
    note(NAME, kernel, library)
    return result


def segment_softmax_vjp(
    x: ArrayLike, offsets: ArrayLike, /, **params: Any
) -> tuple[Any, Callable[[Array], dict[str, Array]]]:
    """Compute `segment_softmax` and its vector-Jacobian product.

    Parameters
    ----------
    x, offsets, **params
        As for `segment_softmax`.

    Returns
    -------
    y : array
        ``segment_softmax(x, offsets, **params)``.
    pullback : callable
        ``pullback(dy)`` gives a dict with the gradient of ``sum(y * dy)`` under ``"x"``,
        and under ``"temperature"`` if that was passed.

    Raises
    ------
    TypeError, ValueError
        What `segment_softmax` raises; TypeError for Dask, whose gradients it does not have.

    Examples
    --------
    >>> from normx.segments import segment_softmax_vjp
    >>> y, pullback = segment_softmax_vjp([0.0, 0.0, 5.0], [0, 2, 3])
    >>> pullback([1.0, 0.0, 1.0])["x"]
    array([ 0.25, -0.25,  0.  ])
    """
    y = segment_softmax(x, offsets, **params)
    keywords = {"axis": -1} | {word: params[word] for word in params if word != "backend"}
    library, x, prepared = checked(NAME, x, keep_neutral=True, **keywords)
    if hasattr(x, "map_blocks"):
        raise wrong(TypeError, f"{NAME}_vjp", "x", "a Dask array", "an array in memory")
    plan = prepared.plan
    passed = {name: params[name] for name in plan.parameters}
    (along,) = plan.axis
    offsets, numbers = _checked_offsets(library, offsets, x.shape[along])

    def pullback(dy: Array) -> dict[str, Array]:
        dy = np.asarray(dy) if isinstance(dy, list | tuple) else dy
        if library_of(dy) is not library or tuple(dy.shape) != tuple(x.shape):
            wanted = f"an array of {library.name} of shape {tuple(x.shape)}"
            raise wrong(ValueError, f"{NAME}_vjp", "dy", described(dy), wanted)
        if 0 in plan.shape:
            return of_nothing(plan, x, passed)
        scores, where, parameters = prepared.arguments(x, {"where": None} | keywords)
        with library.quiet():
            row, weights = _weights(plan, offsets, numbers, scores, where, parameters)
            dy = library.cast(dy, row.dtype)
            dy = dy if row.kept is None else row.xp.where(row.kept, dy, 0.0)
            gradients = {"x": weights * (dy - row.sum(weights * dy))}
            gradients = at_rest(plan.record, row, gradients)
            # Summed over all segments of the axis.
            gradients |= through_options(plan, row.within(row.maximum), scores, gradients["x"])
        return {
            name: shaped_as(library, row.xp, gradients[name], value, plan.dtype)
            for name, value in {"x": x, **passed}.items()
        }

    return y, pullback


segment_softmax.vjp = segment_softmax_vjp  # type: ignore[attr-defined]  # for `normx.vjp`


def _weights(
    plan: Plan,
    offsets: Array,
    numbers: Array | None,
    x: Array,
    where: Array | None,
    parameters: Mapping[str, Any],
) -> tuple[Row, Array]:
    """Rows that see one segment at a time, and their weights, in the arithmetic's dtype."""
    record = plan.record
    row, own = row_of(plan, x, where, parameters)
    segments = _segments(plan.library, x, offsets, numbers, plan.shape[plan.axis[0]])
    given = {entry.name: getattr(row, entry.name) for entry in fields(Row)}
    row = _SegmentedRow(**given, segments=segments)
    y = record.apply(row, *states_of(record, (row,), own), **own)
    return row, with_policies(plan, row, y)


def _checked_offsets(library: Library, offsets: Any, size: int) -> tuple[Array, Array | None]:
    """The offsets, and their values as NumPy's where those can be known."""
    wanted = f"a list or one-dimensional array of ints from 0 to {size} in rising order"
    if isinstance(offsets, list | tuple):
        try:
            offsets = np.asarray(offsets)
        except ValueError:
            raise wrong(TypeError, NAME, "offsets", "a ragged list", wanted) from None
    home = library_of(offsets) if hasattr(offsets, "dtype") else None
    if home is None or (home is not library and not isinstance(offsets, np.ndarray)):
        cure = "" if home is None else f"convert it to {library.name} or NumPy first"
        raise wrong(TypeError, NAME, "offsets", described(offsets), wanted, cure)
    if dtype_name(offsets.dtype) not in INTEGERS or "bool" in dtype_name(offsets.dtype):
        raise wrong(TypeError, NAME, "offsets", described(offsets), wanted)
    if len(offsets.shape) != 1 or offsets.shape[0] == 0:
        raise wrong(ValueError, NAME, "offsets", described(offsets), wanted)
    if not home.is_concrete(offsets):
        if hasattr(offsets, "map_blocks"):
            cure = "call its compute() first"
            raise wrong(TypeError, NAME, "offsets", "a Dask array", "known now", cure)
        return offsets, None
    numbers = home.to_numpy(offsets).astype(np.int64)
    if numbers[0] != 0:
        raise wrong(ValueError, NAME, "offsets", f"beginning with {numbers[0]}", wanted)
    if numbers[-1] != size:
        cure = "" if numbers[-1] > size else "append the size of the axis"
        raise wrong(ValueError, NAME, "offsets", f"ending with {numbers[-1]}", wanted, cure)
    falls = np.flatnonzero(numbers[1:] < numbers[:-1])
    if falls.size:
        before, after = numbers[falls[0] : falls[0] + 2]
        came = f"{before} followed by {after} (entry {falls[0] + 1})"
        raise wrong(ValueError, NAME, "offsets", came, wanted)
    return offsets, numbers


def _segments(
    library: Library, x: Array, offsets: Array, numbers: Array | None, n: int
) -> Segments:
    if numbers is None:
        # Under a compiler: the same, from what the compiler knows.
        xp = library.namespace()
        place = library.cast(xp.arange(n), dtype_name(offsets.dtype))
        following = library.cast(xp.searchsorted(offsets, place, side="right"), "int32")
        start = xp.take(offsets, following - 1, axis=0)
        return Segments(place - start, xp.take(offsets, following, axis=0) - 1, n)
    lengths = np.diff(numbers)
    filled = lengths > 0
    starts, lengths = numbers[:-1][filled], lengths[filled]
    longest = int(lengths.max())
    offset = np.arange(n) - np.repeat(starts, lengths)
    last = np.repeat(starts + lengths - 1, lengths)
    if library.namespace() is np:
        return Segments(offset, last, longest, starts, lengths)
    width = "int32" if n < 2**31 else "int64"
    return Segments(library.asarray(offset, width, x), library.asarray(last, width, x), longest)


def _computed(
    plan: Plan,
    offsets: Array,
    numbers: Array | None,
    x: Array,
    where: Array | None,
    out: Array | None,
    parameters: Mapping[str, Any],
) -> tuple[Array, str]:
    """The record's own formula, on rows that see one segment at a time."""
    library = plan.library
    kernel = f"{NAME}_formula__{library.name}"
    if 0 in plan.shape:
        return library.full(plan.shape, 0.0, plan.dtype, x), kernel
    with library.quiet():
        _, y = _weights(plan, offsets, numbers, x, where, parameters)
        return library.cast(y, plan.dtype), kernel


def _computed_in_blocks(
    prepared: Prepared,
    numbers: Array,
    x: Array,
    where: Array | None,
    out: Array | None,
    parameters: Mapping[str, Any],
) -> tuple[Array, str]:
    """The same on Dask, in chunks that hold whole rows."""
    plan, library = prepared.plan, prepared.plan.library
    keywords = {"where": where, "softcap": plan.softcap, **parameters}
    f = partial(_of_rows, axis=plan.axis[0], offsets=numbers)
    y = library.map_rows(f, x, plan.axis, keywords)  # type: ignore[attr-defined]
    return y, f"{NAME}_formula__{library.name}"


def _of_rows(x: Array, *, offsets: Array, **keywords: Any) -> Array:
    return segment_softmax(x, offsets, backend="reference", **keywords)
