"""The reference backend: the record's own formula, on any array-API library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import numpy as np

from normx import laws
from normx._plan import FLOATS, Plan
from normx._record import Record
from normx._row import Row
from normx.plugins import Backend, Call, Pullback, Refusal

Array = Any


_LARGEST = {name: float(np.finfo(name).max) for name in ("float32", "float64")}
_SMALLEST = {name: float(np.finfo(name).tiny) for name in ("float32", "float64")}


class ReferenceBackend(Backend):
    """Runs every record wherever there are arrays."""

    name = "reference"

    def unusable(self) -> str | None:
        return None

    def description(self) -> str:
        return "the formula in array-API code, on any library"

    def implementation(self, plan: Plan) -> Call | Refusal:
        reason = plan.library.unsupported(plan)
        if reason is not None:
            return Refusal(reason)
        kernel = f"{plan.record.name}_formula__{plan.library.name}"

        def call(
            x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
        ) -> tuple[Any, str]:
            with plan.library.quiet():
                y = plan.library.computed(compute, plan, x, where, parameters)
            if out is None:
                return y, kernel
            plan.library.assign(out, y)
            return out, kernel

        return call

    def gradient(self, plan: Plan) -> Pullback | Refusal:
        reason = plan.library.unsupported(plan)
        if reason is not None:
            return Refusal(reason)
        if plan.record.vjp is None:
            return Refusal(f"{plan.record.name} has no gradient")
        kernel = f"{plan.record.name}_formula_vjp__{plan.library.name}"

        def pullback(
            x: Array,
            where: Array | None,
            parameters: Mapping[str, Any],
            y: Array | None,
            dy: Array,
        ) -> tuple[dict[str, Array], str]:
            with plan.library.quiet():
                return gradients_of(plan, x, where, parameters, dy), kernel

        return pullback


def row_of(
    plan: Plan, x: Array, where: Array | None, parameters: Mapping[str, Any]
) -> tuple[Row, dict[str, Any]]:
    """The rows as the formula sees them, and the record's own parameters."""
    library, xp = plan.library, plan.library.namespace()
    narrow = plan.dtype in ("float16", "bfloat16", "float32")
    dtype = library.arithmetic if narrow else plan.dtype
    scores = library.cast(x, dtype)
    if plan.record.negated:
        scores = -scores
    arrays = {}
    for name, value in parameters.items():
        if hasattr(value, "shape"):
            arrays[name] = library.cast(value, dtype)
        else:
            # A number has the precision of the scores, however wide the arithmetic is.
            number = float(np.float32(value)) if narrow else value
            arrays[name] = library.asarray(number, dtype, x)
    temperature = arrays.pop("temperature", None)
    uniform = arrays.pop("uniform", None)
    cap = plan.softcap
    if cap is not None and cap < _LARGEST[dtype]:  # beyond, it caps nothing
        cap = max(cap, _SMALLEST[dtype])
        if where is not None:  # what is left out must not reach a gradient either
            scores = xp.where(where, scores, 0.0)
        scores = cap * xp.tanh(scores / cap)
    if plan.record.noise is not None:
        scores = scores + plan.record.noise(xp, uniform)
    if where is not None:
        scores = xp.where(where, scores, -xp.inf)
    row = Row(library, xp, scores, where, plan.axis, temperature, dtype)
    if plan.record.fills and where is not None:
        row = replace(row, scores=xp.where(where, scores, arrays["fill"]))
    if plan.record.massless is not None:
        massless = plan.record.massless(row.tempered.hi, **arrays, **plan.constants)
        row = row.without(massless)
    return row, arrays


def states_of(record: Record, blocks: Sequence[Row], parameters: Mapping[str, Any]) -> Any:
    """The states of rows that are cut into blocks, stage by stage."""
    states: tuple[Any, ...] = ()
    for stage in record.stages or ():
        lifted = [stage.lift(block, *states, **parameters) for block in blocks]
        merge = partial(stage.monoid.merge, blocks[0].xp)
        states += (reduce(merge, lifted),)
    return states


def whole(
    record: Record, row: Row, parameters: Mapping[str, Any]
) -> tuple[Row, Row, tuple[Any, ...]]:
    """Rows that are not cut, and their states."""
    return row, row, states_of(record, (row,), parameters)


def compute(
    plan: Plan,
    x: Array,
    where: Array | None,
    parameters: Mapping[str, Any],
    known: Callable[..., tuple[Row, Row, tuple[Any, ...]]] = whole,
) -> Any:
    """The formula, in float32 or wider, rounded once to the plan's dtype.

    ``known(record, row, parameters)`` gives the rows for the policies and as the formula is applied
    to them, and the states of the whole: `x` may be a part.
    """
    record, library, xp = plan.record, plan.library, plan.library.namespace()
    if 0 in plan.shape:
        fill = -xp.inf if record.log_space else 0.0
        nothing = library.full(plan.result_shape, fill, plan.dtype, x)
        if plan.constants.get("return_sign"):
            return nothing, library.full(plan.result_shape, 0.0, plan.dtype, x)
        return nothing
    row, own = row_of(plan, x, where, parameters)
    own |= plan.constants
    policies, row, states = known(record, row, own)
    y = record.apply(row, *states, **own)
    if record.kind == "normalizer":
        return library.cast(with_policies(plan, policies, y), plan.dtype)
    if isinstance(y, tuple):
        return tuple(_reduced(plan, part) for part in y)
    return _reduced(plan, y)


def _reduced(plan: Plan, y: Array) -> Array:
    """A reduction's result without the axes of size 1; complex sums may have real parts."""
    y = plan.library.namespace().reshape(y, plan.result_shape)
    return plan.library.cast(y, plan.dtype) if plan.dtype in FLOATS else y


def with_policies(plan: Plan, row: Row, y: Array) -> Array:
    """Left-out entries and empty rows, the same for every normalizer."""
    xp = row.xp
    zero = -xp.inf if plan.record.log_space else 0.0
    if plan.record.at_infinity == "pointwise":  # elsewhere NaN has spread by itself
        y = xp.where(row.present, y, zero)
        y = xp.where(xp.isnan(row.maximum), xp.nan, y)
    if row.kept is not None and not plan.record.fills:
        y = xp.where(row.kept, y, zero)
    if plan.empty == "zero":
        return xp.where(row.empty, zero, y)
    receives = row.empty
    if row.kept is not None:
        receives = receives & (row.kept | ~row.some_kept)
    if plan.empty == "nan":
        return xp.where(receives, xp.nan, y)
    share = row.share_of_empty(receives)
    return xp.where(receives, xp.log(share) if plan.record.log_space else share, y)


def gradients_of(
    plan: Plan, x: Array, where: Array | None, parameters: Mapping[str, Any], dy: Array
) -> dict[str, Array]:
    """The gradients of the scores and of the keywords that have one, by the record's formula."""
    record, xp = plan.record, plan.library.namespace()
    assert record.vjp is not None
    row, own = row_of(plan, x, where, parameters)
    kept = tuple(
        1 if i in plan.axis and record.kind == "reduction" else size
        for i, size in enumerate(plan.shape)
    )
    cotangent = plan.library.cast(xp.reshape(dy, kept), row.dtype)
    if record.kind == "normalizer":
        cotangent = xp.where(row.present, cotangent, 0.0)
    cotangent = xp.where(row.empty, 0.0, cotangent)
    gradients = at_rest(record, row, record.vjp(row, cotangent, **own, **plan.constants))
    return gradients | through_options(plan, row, x, gradients["x"])


def at_rest(record: Record, row: Row, gradients: dict[str, Array]) -> dict[str, Array]:
    """The gradients, 0 in rows that nothing moves: empty ones, and those at their limit."""
    still = row.empty
    if record.kind == "normalizer" and record.at_infinity != "pointwise":
        still = still | (row.maximum == row.xp.inf)
    return {name: row.xp.where(still, 0.0, gradient) for name, gradient in gradients.items()}


def through_options(plan: Plan, row: Row, x: Array, gradient: Array) -> dict[str, Array]:
    """The chain from the normalizer's scores back through temperature, softcap and mask."""
    xp = row.xp
    if row.kept is not None:
        gradient = xp.where(row.kept, gradient, 0.0)
    chained: dict[str, Array] = {}
    if row.temperature is not None:
        t = row.temperature
        # At these the row is at its limit too, where it does not hold NaN.
        limit = (t == 0) | (t == xp.inf)
        gradient = xp.where(limit & ~xp.isnan(row.maximum), 0.0, gradient)
        t = xp.where(limit, 1.0, t)
        # Infinite scores do not move with the temperature.  Where a shift changes nothing
        # the sum of the gradient is 0, and the scores may be taken relative to their maximum:
        # their own size would drown the differences.
        invariant = laws.shift_invariant in plan.record.laws and not (
            plan.parameters - {"temperature"}
        )
        origin = xp.where(xp.isfinite(row.maximum), row.maximum, 0.0)
        scores = row.scores - origin if invariant else row.scores
        infinite = xp.isinf(scores)
        moment = row.sum(xp.where(infinite, 0.0, gradient) * xp.where(infinite, 0.0, scores))
        chained["temperature"] = -moment / t / t
        gradient = gradient / t
    if plan.record.negated:
        gradient = -gradient
    if plan.softcap is not None:
        x = row.library.cast(x, row.dtype)
        capped = xp.tanh((x if row.kept is None else xp.where(row.kept, x, 0.0)) / plan.softcap)
        gradient = gradient * (1.0 - capped * capped)
    return {"x": gradient, **chained}


reference_backend = ReferenceBackend()
