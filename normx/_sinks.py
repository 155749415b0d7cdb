"""Sinks as kernels take them: side by side, on an axis of their own."""

from __future__ import annotations

from typing import Any

from normx._plan import Plan

Array = Any


def sinks_aside(xp: Any, sinks: Array, plan: Plan) -> Array:
    """Sinks on an axis of their own, after those of the scores."""
    axis = plan.axis
    sinks = sinks.reshape((1,) * (len(plan.shape) - sinks.ndim) + tuple(sinks.shape))
    moved = xp.moveaxis(sinks, axis, _last(axis))
    moved = moved.reshape(*moved.shape[: -len(axis)], -1)
    return xp.expand_dims(moved, axis)


def sinks_along(xp: Any, plan: Plan, gradient: Array, value: Any) -> Array:
    """Gradients side by side per row, in the shape that the sinks have along the axes."""
    ndim, shape = len(plan.shape), tuple(value.shape)
    shape = (1,) * (ndim - len(shape)) + shape
    along = tuple(shape[i] for i in plan.axis)
    flat = gradient.reshape(*(plan.shape[i] for i in range(ndim) if i not in plan.axis), *along)
    return xp.moveaxis(flat, _last(plan.axis), plan.axis)


def _last(axis: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(-len(axis), 0))
