"""Gradients for libraries without automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from normx import laws
from normx._dispatch import _arrive, library_of
from normx._errors import described, wrong
from normx._plan import FLOATS, INTEGERS, Plan, prepare
from normx._record import Record, record_of
from normx._reference import row_of
from normx._row import Row
from normx.plugins import dtype_name

Array = Any


def vjp(
    f: Callable[..., Any] | str, x: Any, /, *args: Any, **params: Any
) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
    """Compute a function and its vector-Jacobian product.

    Parameters
    ----------
    f : function or str
        A function of normx, or its name.
    x : array
        As for `f`.
    *args, **params
        As for `f`; `out` is refused.

    Returns
    -------
    y : array
        ``f(x, **params)``.
    pullback : callable
        ``pullback(dy)`` takes an array of the shape of `y` and returns a dict with
        the gradient of ``sum(y * dy)`` under the key ``"x"`` and one per numeric
        parameter that was passed, each in the shape of what was passed.  Entries
        left out and empty rows receive exactly 0.  `x` must not change in between.

    Raises
    ------
    TypeError, ValueError
        What `f` itself raises; also for `out`, for complex numbers, and for `dy` of
        another shape or library.

    Examples
    --------
    >>> import normx
    >>> y, pullback = normx.vjp(normx.softmax, [0.0, 0.0])
    >>> pullback(normx.softmax([1.0, 0.0]))["x"].round(4)
    array([ 0.1155, -0.1155])
    """
    own = getattr(f, "vjp", None)
    if own is not None:  # functions that are no records bring their own
        return cast(tuple[Any, Callable[[Any], dict[str, Any]]], own(x, *args, **params))
    record = record_of(f)
    if args:
        raise TypeError(f"normx.vjp: {record.name} takes one array; keywords come by name")
    library, x = _arrive(record, x)
    if params.get("out") is not None:
        raise wrong(TypeError, "vjp", "out", "given", "absent", "the result is returned")
    again = params
    if "rng" in params:  # the pullback is that of the same noise
        again = {**params, "rng": library.copy_of_rng(params["rng"])}
    y = record.function(x, **params)
    shape_of_y = tuple(y.shape) if hasattr(y, "shape") else None
    prepared = prepare(record, library, x, params, library_of, keep_neutral=True)
    plan = prepared.plan
    if plan.dtype.startswith("complex") or record.vjp is None or plan.constants.get("return_sign"):
        raise wrong(
            TypeError,
            "vjp",
            "f",
            f"{record.name} with complex numbers or a sign",
            "a real function",
        )
    gradient_of = record.vjp
    xp = library.namespace()
    passed = {name: params[name] for name in plan.parameters if name in params}

    def pullback(dy: Array) -> dict[str, Array]:
        home, dy = _arrive(record, dy)
        real = dtype_name(dy.dtype) in (*FLOATS, *INTEGERS)
        if home is not library or tuple(dy.shape) != shape_of_y or not real:
            raise wrong(
                ValueError,
                "vjp",
                "dy",
                described(dy),
                f"a real array of {library.name} of shape {shape_of_y}",
            )
        form = tuple(
            1 if i in plan.axis and record.kind == "reduction" else size
            for i, size in enumerate(plan.shape)
        )
        drawn = {"rng": library.copy_of_rng(again["rng"])} if "rng" in again else {}
        scores, where, arrays = prepared.arguments(x, {**again, **drawn})
        with library.quiet():
            if 0 in plan.shape:
                return of_nothing(plan, x, passed)
            row, own = row_of(plan, scores, where, arrays)
            cotangent = library.cast(xp.reshape(dy, form), row.dtype)
            if record.kind == "normalizer":
                cotangent = xp.where(row.present, cotangent, 0.0)
            cotangent = xp.where(row.empty, 0.0, cotangent)
            gradients = gradient_of(row, cotangent, **own, **plan.constants)
            gradients = at_rest(record, row, gradients)
            gradients |= through_options(plan, row, scores, gradients["x"])
            # A keyword without a gradient, such as a threshold, has gradient 0.
            gradients |= {name: 0.0 * gradients["x"] for name in passed if name not in gradients}
        return {
            name: shaped_as(
                library,
                xp,
                gradient[..., 0] if prepared.expand else gradient,
                x if name == "x" else passed[name],
                plan.dtype,
            )
            for name, gradient in gradients.items()
            if name == "x" or name in passed
        }

    return y, pullback


def of_nothing(plan: Plan, x: Array, passed: Mapping[str, Any]) -> dict[str, Array]:
    """The gradients where there are no scores: zeros."""
    return {
        name: plan.library.full(tuple(getattr(value, "shape", ())), 0.0, plan.dtype, x)
        for name, value in {"x": x, **passed}.items()
    }


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


def shaped_as(library: Any, xp: Any, gradient: Array, value: Any, dtype: str) -> Array:
    """The gradient summed back over the axes along which `value` was broadcast."""
    shape = tuple(getattr(value, "shape", ()))
    padded = (1,) * (gradient.ndim - len(shape)) + shape
    spread = tuple(i for i, size in enumerate(padded) if size == 1 and gradient.shape[i] != 1)
    if spread:
        gradient = xp.sum(gradient, axis=spread, keepdims=True)
    return library.finish(library.cast(xp.reshape(gradient, shape), dtype))
