"""Row programs: kernels for one row at a time, and what they leave to the formula."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from normx._plan import NARROW, Plan
from normx._reference import compute, gradients_of
from normx._sinks import sinks_along, sinks_aside
from normx.plugins import Call, Library, Pullback, Refusal
from normx_native._results import allocator

Array = Any


@dataclass(frozen=True, slots=True)
class Program:
    """What a compiled row program takes, in its order."""

    name: str
    parameters: tuple[str, ...]
    constants: tuple[str, ...]


@cache
def programs() -> Mapping[str, Program]:
    """Every compiled row program by name."""
    from normx_native import _core

    return {
        name: Program(name, tuple(parameters.split()), tuple(constants.split()))
        for name, parameters, constants in _core.programs()
    }


def forward(plan: Plan, home: Library) -> Call | Refusal:
    """How a row program runs a plan for the arrays of `home`, or why none does."""
    found = program_of(plan)
    if isinstance(found, Refusal):
        return found
    if 0 in plan.shape:
        return _nothing(plan)
    run = _call(plan, found).run
    normalizes = plan.record.kind == "normalizer"
    dtype = plan.library.dtype(plan.dtype)
    empty = allocator(home, plan.result_shape, dtype)

    def call(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        rows = _Rows(plan, x, where, parameters)
        y = empty(plan.result_shape, dtype) if out is None else out
        kernel = run(
            rows.scores,
            y if normalizes else rows.spread(y),
            rows.spread(rows.left),
            parameters=[rows.value(name) for name in found.parameters],
            **rows.operands(),
        )
        if rows.left.any():
            rows.put(y, rows.by(compute))
        return y, kernel

    return call


def compiled(plan: Plan, numbers: Mapping[str, float]) -> Any:
    """The row program of a plan whose parameters are these numbers, or None."""
    found = program_of(plan)
    if isinstance(found, Refusal):
        return None
    names = ("temperature", *found.parameters)
    if not plan.parameters <= set(names):
        return None
    given = [_number(plan, numbers[name]) if name in numbers else None for name in names]
    return _call(plan, found, numbers=given)


def backward(plan: Plan, home: Library) -> Pullback | Refusal:
    """How a row program computes the gradients of a plan for `home`, or why none does."""
    found = program_of(plan)
    if isinstance(found, Refusal):
        return found
    if 0 in plan.shape:
        return Refusal("needs something to differentiate")
    run = _call(plan, found, backward=True).run
    dtype = plan.library.dtype(plan.dtype)
    empty = allocator(home, plan.shape, dtype)
    # In half precision the result has lost what the gradient is made of.
    keeps_digits = plan.record.kind == "normalizer" and plan.dtype not in NARROW

    def pullback(
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
        y: Array | None,
        dy: Array,
    ) -> tuple[dict[str, Array], str]:
        rows = _Rows(plan, x, where, parameters)
        dx = empty(plan.shape, dtype)
        given = [name for name in found.parameters if name in parameters]
        gradients = {name: np.zeros(rows.form) for name in given}
        operands = rows.operands()
        if "temperature" in parameters:
            gradients["temperature"] = np.zeros(rows.form)
            operands["dtemperature"] = rows.spread(gradients["temperature"])
        if (sink := operands["sink"]) is not None:
            dsink = np.zeros((*rows.form, sink.shape[-1]))
            operands["dsink"] = np.broadcast_to(dsink, sink.shape)
        kernel = run(
            rows.scores,
            dx,
            rows.spread(rows.left),
            g=dy if plan.record.kind == "normalizer" else rows.spread(dy),
            result=y if keeps_digits else None,
            parameters=[rows.value(name) for name in found.parameters],
            dparameters=[
                rows.spread(gradients[name]) if name in gradients else None
                for name in found.parameters
            ],
            **operands,
        )
        gradients["x"] = dx
        if "dsink" in operands:
            gradients["sink"] = sinks_along(np, plan, dsink, np.asarray(parameters["sink"]))
        if rows.left.any():
            for name, part in rows.by(gradients_of, dy).items():
                if name in gradients:
                    rows.put(gradients[name], part)
        return gradients, kernel

    return pullback


def _nothing(plan: Plan) -> Call:
    """The call where there is nothing to compute."""
    from normx_native import _core

    def call(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        y = compute(plan, x, where, parameters)
        return y if out is None else out, f"{plan.record.name}_rows__{_core.target()}"

    return call


def program_of(plan: Plan) -> Program | Refusal:
    """The program that has a plan's function and its parameters, or why none does."""
    program = programs().get(plan.record.name)
    if program is None or plan.dtype.startswith("complex"):
        return Refusal(f"has no kernel for {plan.record.name} of {plan.dtype}")
    if plan.record.random and plan.softcap is not None:
        return Refusal(f"its {program.name} caps no scores before they have noise")
    known = {*program.parameters, "temperature", "sink", "uniform"}
    extra = sorted(plan.parameters - known)
    extra += ["return_sign"] * bool(plan.constants.get("return_sign", False))
    if extra:
        return Refusal(f"its {program.name} has no {' and no '.join(extra)}")
    return program


def options(plan: Plan, program: Program, *, backward: bool) -> dict[str, Any]:
    """What a call of a program depends on, besides its shape."""
    values = (plan.constants[name] for name in program.constants)
    return {
        "backward": backward,
        "gives_up_empty": plan.empty != "zero" and not backward,
        "softcap": 0.0 if plan.softcap is None else _softcap(plan),
        "constants": [float(v) for value in values for v in _entries(value)],
    }


def _call(
    plan: Plan,
    program: Program,
    *,
    backward: bool = False,
    numbers: Sequence[float | None] = (),
) -> Any:
    from normx_native import _core

    chosen = options(plan, program, backward=backward)
    return _core.RowsCall(program.name, plan.shape, plan.axis, numbers=list(numbers), **chosen)


def _number(plan: Plan, value: float) -> float:
    """A number has the precision of the scores, as everywhere."""
    narrow = plan.dtype in (*NARROW, "float32")
    return float(np.float32(value) if narrow else value)


def _entries(value: Any) -> Iterable[Any]:
    return value if isinstance(value, tuple) else (value,)


def _softcap(plan: Plan) -> float:
    """The cap, where it caps anything: far enough from 0 for its inverse to be a number."""
    assert plan.softcap is not None
    return 0.0 if plan.softcap > 1e150 else max(plan.softcap, 1e-150)


class _Rows:
    """The arrays of one call in the form that the programs take, and the rows they leave."""

    def __init__(
        self, plan: Plan, x: Array, where: Array | None, parameters: Mapping[str, Any]
    ) -> None:
        self.plan, self.x, self.parameters = plan, x, parameters
        self.scores = x
        if plan.record.noise is not None:
            noise = plan.record.noise(np, self._doubles(parameters["uniform"]))
            self.scores = x.astype(np.float64) + noise
        self.where = None if where is None else np.broadcast_to(where, plan.shape)
        #: The shape of what has one value per row, along all axes.
        self.form = tuple(1 if i in plan.axis else size for i, size in enumerate(plan.shape))
        #: Which rows are left to the formula.
        self.left = np.zeros(self.form, bool)

    def spread(self, array: Array) -> Array:
        """Something with one value per row, in the shape of the scores."""
        return np.broadcast_to(np.reshape(array, self.form), self.plan.shape)

    def value(self, name: str) -> Array | None:
        """A parameter's values, in double."""
        value = self.parameters.get(name)
        return None if value is None else np.broadcast_to(self._doubles(value), self.plan.shape)

    def operands(self) -> dict[str, Array | None]:
        """The keywords that all programs take."""
        return {"where": self.where, "temperature": self.value("temperature"), "sink": self._sink()}

    def _doubles(self, value: Any) -> Array:
        if hasattr(value, "shape"):
            return np.asarray(value, np.float64)
        return np.float64(_number(self.plan, value))

    def _sink(self) -> Array | None:
        """The sinks of each row side by side, on an axis of their own after those of the scores."""
        value = self.parameters.get("sink")
        if value is None or 0 in np.shape(value):
            return None
        moved = sinks_aside(np, self._doubles(value), self.plan)
        return np.broadcast_to(moved, (*self.plan.shape, moved.shape[-1]))

    def by(self, formula: Callable[..., Any], *cotangent: Array) -> Any:
        """What a formula makes of the rows that were left."""
        x = self._picked(self.x)
        where = None if self.where is None else self._picked(self.where)
        plan = replace(
            self.plan,
            shape=tuple(x.shape),
            axis=tuple(range(1, x.ndim)),
            where=None if where is None else tuple(where.shape),
        )
        parameters = {
            name: self._picked(value) if hasattr(value, "shape") else value
            for name, value in self.parameters.items()
        }
        with plan.library.quiet():
            if not cotangent:
                return formula(plan, x, where, parameters)
            form = self.plan.shape if self.plan.record.kind == "normalizer" else self.form
            dy = self._picked(np.reshape(cotangent[0], form))
            return formula(plan, x, where, parameters, dy.reshape(plan.result_shape))

    def put(self, y: Array, part: Array) -> None:
        """Write what came of the rows that were left into their places."""
        rows = self.left.reshape(self._outer)
        if y.ndim == len(self._outer) != len(self.form):
            view = y  # one value per row, without the reduced axes
        else:
            view = np.moveaxis(y, self.plan.axis, _last(self.plan.axis))
        with self.plan.library.quiet():  # what is too large for the dtype is infinite
            view[rows] = part

    @property
    def _outer(self) -> tuple[int, ...]:
        return tuple(size for i, size in enumerate(self.plan.shape) if i not in self.plan.axis)

    def _picked(self, array: Array) -> Array:
        """The rows that were left, of something that broadcasts against the scores."""
        array = np.reshape(array, (1,) * (len(self.form) - np.ndim(array)) + np.shape(array))
        shape = tuple(
            array.shape[i] if i in self.plan.axis else size
            for i, size in enumerate(self.plan.shape)
        )
        rows = np.moveaxis(np.broadcast_to(array, shape), self.plan.axis, _last(self.plan.axis))
        return rows[self.left.reshape(self._outer)]


def _last(axis: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(-len(axis), 0))
