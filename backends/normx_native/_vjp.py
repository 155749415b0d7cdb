"""Gradients from results: what needs neither the scores nor the mask once more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from normx._plan import Plan
from normx.plugins import Library, Pullback, Refusal
from normx_native import _rows
from normx_native._plain import is_plain
from normx_native._results import allocator

Array = Any


def takes(plan: Plan) -> bool:
    """Whether results, scores and cotangents that lie side by side are enough."""
    from normx_native import _core

    ndim = len(plan.shape)
    return (
        _function(plan) in _core.vjps
        # In half precision the result has lost what the gradient is made of.
        and plan.dtype in ("float32", "float64")
        and is_plain(plan)
        # What is left out shows in the weights of others, not in these scores.
        and (plan.record.at_infinity != "pointwise" or plan.where is None)
        and plan.empty == "zero"
        and plan.axis == tuple(range(ndim - len(plan.axis), ndim))
    )


def _function(plan: Plan) -> str:
    """Whose gradient it is: noise moves the scores of a softmax, not how it follows them."""
    return "softmax" if plan.record.random else plan.record.name


def lies_in_order(x: Array) -> bool:
    """Whether rows follow each other, with every element at a multiple of its size."""
    return bool(x.flags.c_contiguous and x.flags.aligned)


def backward(plan: Plan, home: Library) -> Pullback | Refusal:
    """How the gradients of a plan are computed: from the result where that is enough."""
    from normx_native import _core

    from_scores = _rows.backward(plan, home)
    if not takes(plan) or isinstance(from_scores, Refusal):
        return from_scores
    run = _core.vjp
    dtype = plan.library.dtype(plan.dtype)
    empty = allocator(home, plan.shape, dtype)
    rows = (-1, math.prod(plan.shape[i] for i in plan.axis))

    def pullback(
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
        y: Array | None,
        dy: Array,
    ) -> tuple[dict[str, Array], str]:
        if type(x) is int:  # addresses of what lies in order
            dx = empty(plan.shape, dtype)
            return {"x": dx}, run(_function(plan), x, y, dy, dx.reshape(rows))
        given = [x, dy] if y is None else [x, y, dy]
        if y is None or dy.dtype != dtype or not all(lies_in_order(a) for a in given):
            return from_scores(x, where, parameters, y, dy)
        dx = empty(plan.shape, dtype)
        kernel = run(_function(plan), *(a.reshape(rows) for a in (*given, dx)))
        return {"x": dx}, kernel

    return pullback
