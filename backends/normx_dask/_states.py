"""Rows that are cut: states of the chunks, merged in a tree, applied to the chunks.

What a task gets is a chunk, and a `Formula`: small, the same for all chunks, and importable by
another process.  A chunk is worked through in pieces that stay in cache, whose states merge like
those of chunks; so the memory of a task is that of its chunk and its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from normx._dispatch import choose_gradient, library_of
from normx._libraries import numpy_library
from normx._plan import NARROW, Plan
from normx._record import Record, Stage, record_of
from normx._reference import row_of, with_policies
from normx._row import Row, Whole
from normx.normalizers import softmax
from normx.plugins import Library
from normx.states import MAX_SUM, MAXIMUM, SUM, MaxSum, Monoid

Array = Any

#: Entries of a piece: 512 KiB of float64, of which a formula has several at a time.
_PIECE = 1 << 16
#: Pieces of a chunk, at most: each costs some 100 us of Python.
_PIECES = 1 << 10

#: What is found of every row, beside its states: largest score, smallest, how many are kept.
_OF_ROWS: tuple[Monoid, ...] = (MAXIMUM, MAXIMUM, SUM)


@dataclass(frozen=True)
class Formula:
    """A call, as a task needs to know it.

    Attributes
    ----------
    function : callable
        The public function, which is found by name in another process.
    native : bool
        Whether kernels, and one exponential in float64, may take what fits them.
    names : tuple of str
        The keywords of the arrays that come with each chunk.
    numbers : dict
        The other parameters.
    size : int
        Length of the whole rows.
    """

    function: Callable[..., Any]
    native: bool
    axis: tuple[int, ...]
    dtype: str
    empty: str
    softcap: float | None
    constants: tuple[tuple[str, Any], ...]
    names: tuple[str, ...]
    numbers: tuple[tuple[str, Any], ...]
    size: int

    @property
    def record(self) -> Record:
        return record_of(self.function)

    def plan(
        self, x: Array, arrays: Mapping[str, Array]
    ) -> tuple[Plan, Array | None, dict[str, Any]]:
        """The plan of a block, its mask and its parameters."""
        parameters = {**dict(self.numbers), **arrays}
        where = parameters.pop("where", None)
        plan = Plan(
            record=self.record,
            library=_library(x),
            shape=tuple(x.shape),
            axis=self.axis,
            dtype=self.dtype,
            where=None if where is None else tuple(where.shape),
            parameters=frozenset(parameters),
            empty=self.empty,
            softcap=self.softcap,
            constants=dict(self.constants),
            on_host=_library(x).on_host(x),
        )
        return plan, where, parameters

    def row(self, x: Array, arrays: Mapping[str, Array]) -> tuple[Plan, Row, dict[str, Any]]:
        """A block of scores as the formula sees it."""
        plan, where, parameters = self.plan(x, arrays)
        row, own = row_of(plan, x, where, parameters)
        return plan, row, {**own, **plan.constants}

    def pieces(self, x: Array, arrays: Sequence[Array]) -> Iterator[tuple[Any, Array, Any]]:
        """Parts of a block that stay in cache: where they lie, the scores, and the arrays."""
        along = max(self.axis, key=lambda i: x.shape[i])
        length, others = x.shape[along], math.prod(x.shape) // max(x.shape[along], 1)
        step = max(_PIECE // max(others, 1), -(-length // _PIECES), 1)
        for start in range(0, length, step):
            cut = (*(slice(None),) * along, slice(start, start + step))
            # A mask may be as long as the chunk; a parameter never depends on the place in a row.
            parts = {
                name: array[cut] if name == "where" and array.shape[along] != 1 else array
                for name, array in zip(self.names, arrays, strict=True)
            }
            yield cut, x[cut], parts


def _library(x: Array) -> Library:
    library = library_of(x)
    assert library is not None
    return library


def has_states(plan: Plan) -> bool:
    """Whether rows of this plan may be cut."""
    record = plan.record
    plain = not record.random and 0 not in plan.shape and plan.dtype in (*NARROW, *_WIDE)
    if record.kind == "reduction":  # of factors and signs there are states, but no formula for them
        plain = plain and not plan.parameters and not plan.constants.get("return_sign")
    # Kept and filled-in scores have maxima of their own, which in the arithmetic of float64 would
    # have to be known before the states.
    apart = record.fills and plan.dtype == "float64" and "temperature" in plan.parameters
    return record.stages is not None and plain and not apart


_WIDE = ("float32", "float64")


def in_states(
    plan: Plan, x: Array, where: Array | None, parameters: Mapping[str, Any], *, native: bool
) -> Array:
    """The formula on a Dask array whose rows are cut, as a graph of chunks and states."""
    record = plan.record
    assert record.stages is not None
    formula, arrays = _formula(plan, where, parameters, native=native)
    operands = [
        beside(x, value, plan.axis, whole=name != "where") for name, value in arrays.items()
    ]
    # In wider arithmetic the first states need not be relative to the maximum of the whole row.
    early = plan.dtype != "float64" and _library(x._meta).arithmetic == "float64"
    first = (*_OF_ROWS, *(stage.monoid for stage in record.stages[:early]))
    lifted = _blocks(partial(_first, formula, early), x, operands, ())
    states = [_merged(lifted, first, plan.axis)]
    for index in range(early, len(record.stages)):
        lifted = _blocks(partial(_later, formula, index), x, operands, states)
        states.append(_merged(lifted, (record.stages[index].monoid,), plan.axis))
    if record.kind == "normalizer":
        return _blocks(partial(_applied, formula), x, operands, states, dtype=x.dtype)
    rows = states[0].map_blocks(
        partial(_reduced, formula), *states[1:], dtype=x.dtype, meta=_empty(x.ndim, x.dtype)
    )
    return rows.squeeze(axis=plan.axis)


def gradients(
    plan: Plan,
    backend: str,
    x: Array,
    where: Array | None,
    parameters: Mapping[str, Any],
    dy: Array,
) -> dict[str, Array]:
    """The gradients of chunks of whole rows, by a backend."""
    formula, arrays = _formula(plan, where, parameters, native=True)
    operands = [beside(x, value, plan.axis, whole=False) for value in arrays.values()]
    if plan.record.kind == "reduction":  # with the axes of the rows, as everything here
        dy = dy[tuple(None if i in plan.axis else slice(None) for i in range(x.ndim))]
    operands.append(beside(x, dy, plan.axis, whole=False))
    found = _blocks(partial(_pulled, formula, backend), x, operands, ())
    shapes = {"x": x.shape, **{name: np.shape(parameters[name]) for name in plan.parameters}}
    entries = {}
    for name, shape in shapes.items():
        padded = (1,) * (x.ndim - len(shape)) + tuple(shape)
        dtype = x.dtype if name == "x" else np.dtype(np.float64)
        entries[name] = found.map_blocks(
            partial(_entry, name),
            dtype=dtype,
            meta=_empty(x.ndim, dtype),
            chunks=tuple((padded[i],) if i in plan.axis else c for i, c in enumerate(x.chunks)),
        )
    return entries


def _formula(
    plan: Plan, where: Array | None, parameters: Mapping[str, Any], *, native: bool
) -> tuple[Formula, dict[str, Array]]:
    """What the tasks of a call know, and the arrays that come to them in chunks."""
    arrays = {name: value for name, value in parameters.items() if hasattr(value, "map_blocks")}
    numbers = {name: value for name, value in parameters.items() if name not in arrays}
    if where is not None:
        arrays["where"] = where
    formula = Formula(
        function=plan.record.function,
        native=native,
        axis=plan.axis,
        dtype=plan.dtype,
        empty=plan.empty,
        softcap=plan.softcap,
        constants=tuple(plan.constants.items()),
        names=tuple(arrays),
        numbers=tuple(numbers.items()),
        size=math.prod(plan.shape[i] for i in plan.axis),
    )
    return formula, arrays


def beside(x: Array, value: Array, axis: Sequence[int], *, whole: bool) -> tuple[Array, Any]:
    """An array in chunks that fit those of `x`, and its index for blockwise.

    With `whole`, each chunk of `x` gets all that lies along the reduced axes.
    """
    index, chunks = [], []
    for i, size in enumerate(value.shape):
        fits = size == x.shape[i] and not (whole and i in axis)
        chunks.append(x.chunks[i] if fits else (size,))
        # What is neither as long as x nor of size 1 has an index of its own.
        index.append(i if fits or size == 1 else i + x.ndim)
    return value.rechunk(tuple(chunks)), tuple(index)


def _blocks(
    task: Callable[..., Any],
    x: Array,
    operands: Sequence[tuple[Array, Any]],
    states: Sequence[Array],
    dtype: Any = object,
) -> Array:
    """A task for each chunk, with its part of the arrays and the states of its rows."""
    from dask.array import blockwise

    index = tuple(range(x.ndim))
    pairs = [
        part for pair in ((x, index), *operands, *((s, index) for s in states)) for part in pair
    ]
    return blockwise(
        task,
        index,
        *pairs,
        dtype=dtype,
        meta=_empty(x.ndim, dtype),
        concatenate=True,
        align_arrays=False,
    )


def _empty(ndim: int, dtype: Any) -> np.ndarray:
    return np.empty((0,) * ndim, dtype)


def _merged(lifted: Array, monoids: tuple[Monoid, ...], axis: tuple[int, ...]) -> Array:
    """The states of whole rows: one chunk along the reduced axes, merged in a tree."""
    from dask.array import reduction

    merge = partial(_merge, monoids)
    return reduction(
        lifted,
        chunk=_same,
        combine=merge,
        aggregate=merge,
        axis=axis,
        keepdims=True,
        concatenate=False,
        dtype=object,
        meta=_empty(lifted.ndim, object),
    )


def _same(state: Any, axis: Any, keepdims: bool) -> Any:
    return state


def _merge(monoids: tuple[Monoid, ...], states: Any, axis: Any, keepdims: bool) -> Any:
    """One state of those that Dask brings, in lists of lists where several axes are reduced."""
    return reduce(partial(_both, monoids), _flat(states))


def _both(monoids: tuple[Monoid, ...], a: Any, b: Any) -> tuple[Any, ...]:
    array = next(_arrays(a), None)
    if array is None:  # nothing need be found
        return tuple(a)
    library = _library(array)
    with library.quiet():
        xp = library.namespace()
        return tuple(m.merge(xp, s, t) for m, s, t in zip(monoids, a, b, strict=True))


def _paired(merge: Callable[[Any, Any], tuple[Any, ...]], states: Iterator[Any]) -> tuple[Any, ...]:
    """All of them merged in pairs, pairs of pairs, ...: a thousand round like ten in a row."""
    waiting: list[tuple[int, tuple[Any, ...]]] = []  # each with the number of merges above it
    for state in states:
        last, height = state, 0
        while waiting and waiting[-1][0] == height:
            last, height = merge(waiting.pop()[1], last), height + 1
        waiting.append((height, last))
    whole = waiting.pop()[1]
    while waiting:
        whole = merge(waiting.pop()[1], whole)
    return whole


def _arrays(state: Any) -> Iterator[Array]:
    if isinstance(state, tuple):
        for part in state:
            yield from _arrays(part)
    elif hasattr(state, "shape"):
        yield state


def _flat(states: Any) -> Iterator[Any]:
    if isinstance(states, list):
        for state in states:
            yield from _flat(state)
    else:
        yield states


# ------------------------------------------------------------------- tasks


def _first(formula: Formula, early: bool, x: Array, *blocks: Array) -> tuple[Any, ...]:
    """What is found of a chunk before anything is known of its rows."""
    stages = (formula.record.stages or ())[:early]
    monoids = (*_OF_ROWS, *(stage.monoid for stage in stages))
    with _library(x).quiet():
        found = (
            _found(formula, early, part, arrays) for _, part, arrays in formula.pieces(x, blocks)
        )
        return _paired(partial(_both, monoids), found)


def _found(formula: Formula, early: bool, x: Array, arrays: Mapping[str, Array]) -> tuple[Any, ...]:
    plan, row, own = formula.row(x, arrays)
    xp, stages = row.xp, formula.record.stages or ()
    one = xp.ones_like(row.maximum)
    low, kept = -one, one * math.prod(x.shape[i] for i in formula.axis)
    if any(stage.monoid is not MAX_SUM for stage in stages):  # whose order may be reversed, say
        low = xp.max(xp.where(row.present, -row.scores, -xp.inf), axis=row.axis, keepdims=True)
    if row.kept is not None and plan.empty != "zero":
        kept = row.count(row.kept)
    return (
        row.maximum,
        low,
        kept,
        *(_lifted(formula, stage, row, own) for stage in stages[:early]),
    )


def _lifted(formula: Formula, stage: Stage, row: Row, own: Mapping[str, Any]) -> Any:
    """The state of a block, by a kernel where the row is plain and float64 is room enough."""
    plain = stage.lift in (softmax.lift, softmax._lift_sum) and row.temperature is None
    if formula.native and plain and row.library is numpy_library:
        top = row.maximum
        if np.isfinite(top).all():
            scores, axis = row.scores - top, row.axis
            size = softmax.logsumexp(scores, axis=axis, keepdims=True, backend="native")
            return MaxSum(top, np.expm1(size))
    return stage.lift(row, **own)


def _known(formula: Formula, states: Sequence[Any], row: Row) -> tuple[Row, Row, tuple[Any, ...]]:
    """The block in its rows, for the policies and for the formula; the states of the formula."""
    (top, low, kept, *early), *later = states
    part = row.of(Whole(top, -low, kept, formula.size))
    # Scores that no temperature applies to, beside others, have a maximum of their own.
    return part, row if formula.record.fills else part, (*early, *(state for (state,) in later))


def _later(formula: Formula, index: int, x: Array, *blocks: Any) -> tuple[Any]:
    """The state of a chunk for a stage that needs those before it."""
    stage = (formula.record.stages or ())[index]
    arrays, states = blocks[: len(formula.names)], blocks[len(formula.names) :]

    def lifted(x: Array, arrays: Mapping[str, Array]) -> tuple[Any]:
        _, row, own = formula.row(x, arrays)
        _, row, before = _known(formula, states, row)
        return (stage.lift(row, *before, **own),)

    with _library(x).quiet():
        found = (lifted(part, parts) for _, part, parts in formula.pieces(x, arrays))
        return _paired(partial(_both, (stage.monoid,)), found)


def _applied(formula: Formula, x: Array, *blocks: Any) -> Array:
    """The weights of a chunk, given the states of its rows."""
    arrays, states = blocks[: len(formula.names)], blocks[len(formula.names) :]
    library = _library(x)
    y = library.full(tuple(x.shape), 0.0, formula.dtype, x)
    with library.quiet():
        for cut, part, parts in formula.pieces(x, arrays):
            plan, row, own = formula.row(part, parts)
            policies, row, before = _known(formula, states, row)
            weights = _plain_weights(formula, row, before, own)
            if weights is None:
                weights = with_policies(plan, policies, plan.record.apply(row, *before, **own))
            y[cut] = library.cast(weights, formula.dtype)
    return y


def _plain_weights(
    formula: Formula, row: Row, states: Sequence[Any], own: Mapping[str, Any]
) -> Array | None:
    """A softmax where nothing is rare and float64 is room enough: one exponential an entry."""
    plain = formula.record.apply is softmax.weights and row.temperature is None
    roomy = formula.dtype != "float64" and row.library is numpy_library
    if not (formula.native and plain and roomy):
        return None
    state = softmax.with_sink(row, states[0], own.get("sink"))
    total = np.log1p(state.excess)
    if not (np.isfinite(state.maximum).all() and np.isfinite(total).all()):
        return None
    y = row.scores - state.maximum
    y -= total
    return np.exp(y, out=y)


def _reduced(formula: Formula, *states: Any) -> Array:
    """The results of whole rows, given their states; the reduced axes have size 1."""
    top = states[0][0]
    library = _library(top)
    nothing = Row(library, library.namespace(), top, None, formula.axis, None, "float64")
    with library.quiet():
        _, _, before = _known(formula, states, nothing)
        y = formula.record.apply(nothing, *before, **dict(formula.constants))
        return library.cast(y, formula.dtype)


def _pulled(formula: Formula, backend: str, x: Array, *blocks: Array) -> dict[str, Array]:
    """The gradients of a chunk of whole rows, by name."""
    *arrays, dy = blocks
    plan, where, parameters = formula.plan(x, dict(zip(formula.names, arrays, strict=True)))
    _, pullback = choose_gradient(plan, {"backend": backend})
    library = plan.library
    with library.quiet():
        dy = library.namespace().reshape(dy, plan.result_shape)
        found, _ = pullback(x, where, parameters, None, dy)
    for name in set(parameters) - set(found):  # such as a threshold
        shape = np.shape(parameters[name])
        shape = (1,) * (x.ndim - len(shape)) + shape
        kept = tuple(n if i in plan.axis else x.shape[i] for i, n in enumerate(shape))
        found[name] = library.full(kept, 0.0, "float64", x)
    return found


def _entry(name: str, found: Mapping[str, Array]) -> Array:
    return found[name]
