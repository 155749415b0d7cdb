"""Kernels for arrays that come later: what a library's compiler is told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normx._libraries import numpy_library
from normx._plan import NARROW, Plan
from normx._reference import compute, gradients_of
from normx._sinks import sinks_along, sinks_aside
from normx._vjp import shaped_as
from normx.plugins import Foreign, Refusal, dtype_name
from normx_native import _rows, _vjp

Array = Any


def kernel(
    plan: Plan, x: Array, where: Array | None, parameters: Mapping[str, Any]
) -> tuple[Kernel, tuple[Array, ...]]:
    """The kernel of a call, and its operands."""
    operands = {"x": x}
    if where is not None:
        operands["where"] = where
    operands |= {name: value for name, value in parameters.items() if hasattr(value, "shape")}
    numbers = {name: value for name, value in parameters.items() if name not in operands}
    return Kernel(plan, tuple(operands), numbers), tuple(operands.values())


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A `normx.plugins.StagedKernel`.

    Raw results have an axis for each axis of the scores, of size 1 where one was reduced, and
    gradients of parameters are not summed yet over the axes along which these were broadcast.
    """

    plan: Plan
    names: tuple[str, ...]
    #: The parameters that are numbers.
    numbers: Mapping[str, float]
    wanted: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """What a trace calls it."""
        from normx_native import _core

        return f"{self.plan.record.name}_staged__{_core.target()}"

    @property
    def differentiable(self) -> bool:
        return self.wanted is None and self.plan.record.vjp is not None

    def pullback(self, wanted: tuple[str, ...]) -> Kernel:
        return replace(self, names=(*self.names, "y", "dy"), wanted=wanted)

    def stacked(self, size: int) -> Kernel:
        plan = self.plan
        where = plan.where
        stacked = replace(
            plan,
            shape=(size, *plan.shape),
            axis=tuple(i + 1 for i in plan.axis),
            where=where if where is None else (size, *where),
        )
        return replace(self, plan=stacked)

    def results(self, *operands: Array) -> tuple[tuple[tuple[int, ...], str], ...]:
        if self.wanted is None:
            return ((self.plan.result_shape, self.plan.dtype),)
        named = self._named(operands)
        return tuple((tuple(named[n].shape), dtype_name(named[n].dtype)) for n in self.wanted)

    def now(self, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
        from normx_native._backend import backend

        here = replace(self, plan=replace(self.plan, library=numpy_library))
        x, where, parameters, y, dy = here._arguments(operands)
        if 0 in self.plan.shape:
            return here.formula(*operands)
        if self.wanted is None:
            call = backend.forward(here.plan, numpy_library)
            assert not isinstance(call, Refusal)
            raw = (call(x, where, None, parameters)[0],)
        else:
            pullback = _vjp.backward(here.plan, numpy_library)
            if isinstance(pullback, Refusal):
                return here.formula(*operands)
            gradients, _ = pullback(x, where, parameters, y, dy)
            raw = here._gradients(gradients)
        return here._finished(raw, operands)

    def formula(self, *operands: Array) -> tuple[Array, ...]:
        with self.plan.library.quiet():
            return self._finished(self._raw(operands), operands)

    def foreign(self, *operands: Array) -> Foreign | None:
        from normx_native._backend import backend

        plan = self.plan
        if 0 in plan.shape or any(0 in operand.shape for operand in operands):
            return None  # no scores, or no sinks
        if plan.record.random:
            return None  # the scores get their noise outside of the kernel
        name = plan.record.name
        if self.wanted is None and backend.has_kernel(plan):
            attributes = {"empty": plan.empty, "algorithm": backend.algorithm}
            form = _form(plan) if plan.record.kind == "reduction" else plan.shape
            results = {"y": (form, plan.dtype)}
            return self._described("op", name, attributes, self._named(operands), results)
        if self.wanted and _vjp.takes(plan):
            named = self._named(operands)
            given = {operand: named[operand] for operand in ("x", "y", "dy")}
            return self._described("vjp", name, {}, given, {"dx": (plan.shape, plan.dtype)})
        program = _rows.program_of(plan)
        if isinstance(program, Refusal):
            return None
        return self._of_program(program, operands)

    def mended(
        self, operands: Sequence[Array], raw: Sequence[Array], choose: Callable[..., Any]
    ) -> tuple[Array, ...]:
        from normx_native._backend import backend

        library, xp = self.plan.library, self.plan.library.namespace()
        if _vjp.takes(self.plan) if self.wanted else backend.has_kernel(self.plan):
            return self._finished(raw, operands)
        *values, left = raw
        if self.wanted and "x" not in self.wanted:
            del values[0]
        if self.wanted and "sink" in self.wanted:
            i = self.wanted.index("sink")
            sink = operands[self.names.index("sink")]
            values[i] = sinks_along(xp, self.plan, values[i], sink)

        def by_formula() -> tuple[Array, ...]:
            with library.quiet():
                exact = self._raw(operands)
            return tuple(
                xp.where(left, library.cast(new, dtype_name(old.dtype)), old)
                for new, old in zip(exact, values, strict=True)
            )

        return self._finished(choose(xp.any(left), by_formula, lambda: tuple(values)), operands)

    def _arguments(
        self, operands: Sequence[Array]
    ) -> tuple[Array, Array | None, dict[str, Any], Array | None, Array | None]:
        named = self._named(operands)
        x, where, y, dy = (named.pop(name, None) for name in ("x", "where", "y", "dy"))
        return x, where, {**self.numbers, **named}, y, dy

    def _named(self, operands: Sequence[Array]) -> dict[str, Array]:
        return dict(zip(self.names, operands, strict=True))

    def _raw(self, operands: Sequence[Array]) -> tuple[Array, ...]:
        """Raw results, by the formula."""
        x, where, parameters, _, dy = self._arguments(operands)
        if self.wanted is not None and 0 in self.plan.shape:
            named, xp = self._named(operands), self.plan.library.namespace()
            return tuple(xp.zeros_like(named[name]) for name in self.wanted)
        if self.wanted is None:
            y = compute(self.plan, x, where, parameters)
            form = _form(self.plan) if self.plan.record.kind == "reduction" else self.plan.shape
            return (self.plan.library.namespace().reshape(y, form),)
        return self._gradients(gradients_of(self.plan, x, where, parameters, dy))

    def _gradients(self, gradients: Mapping[str, Array]) -> tuple[Array, ...]:
        """Those that are wanted; a keyword without a gradient has gradient 0."""
        assert self.wanted is not None
        still = self.plan.library.namespace().zeros_like(gradients["x"])
        return tuple(gradients.get(name, still) for name in self.wanted)

    def _finished(self, raw: Sequence[Array], operands: Sequence[Array]) -> tuple[Array, ...]:
        library, xp = self.plan.library, self.plan.library.namespace()
        if self.wanted is None:
            return (library.cast(xp.reshape(raw[0], self.plan.result_shape), self.plan.dtype),)
        named = self._named(operands)
        return tuple(
            shaped_as(library, xp, part, named[name], dtype_name(named[name].dtype))
            for name, part in zip(self.wanted, raw, strict=True)
        )

    def _of_program(self, program: _rows.Program, operands: Sequence[Array]) -> Foreign:
        plan, library = self.plan, self.plan.library
        xp = library.namespace()
        form, wide = _form(plan), _wide(plan)
        places = {name: f"p{i}" for i, name in enumerate(program.parameters)} | {"dy": "g"}
        named = self._named(operands)
        named.pop("y", None)  # what a program needs of it, it computes
        for name, number in self.numbers.items():
            value = library.asarray(number, wide, named["x"])
            named[name] = xp.reshape(value, (1,) * len(plan.shape))
        if "dy" in named and plan.record.kind == "reduction":
            named["dy"] = xp.reshape(named["dy"], form)
        if "sink" in named:
            named["sink"] = sinks_aside(xp, named["sink"], plan)
        y = form if plan.record.kind == "reduction" and self.wanted is None else plan.shape
        results: dict[str, Any] = {"y": (y, plan.dtype)}
        for name in self.wanted or ():
            if name == "sink":
                results["dsink"] = ((*form, named["sink"].shape[-1]), wide)
            elif name != "x":
                results[f"d{places.get(name, name)}"] = (form, wide)
        results["flag"] = (form, "bool")
        options = _rows.options(plan, program, backward=self.wanted is not None)
        numbers = [options.pop("softcap"), *options.pop("constants")]
        flags = {name: np.bool_(value) for name, value in options.items()}
        attributes = {"numbers": np.array(numbers, np.float64), **flags}
        given = {places.get(name, name): operand for name, operand in named.items()}
        return self._described("program", program.name, attributes, given, results)

    def _described(
        self,
        kind: str,
        name: str,
        attributes: Mapping[str, Any],
        operands: Mapping[str, Array],
        results: Mapping[str, tuple[tuple[int, ...], str]],
    ) -> Foreign:
        from normx_native import _core

        return Foreign(
            "normx_native",
            _core.xla_handler(),
            {
                "kind": kind,
                "kernel": name,
                "operands": " ".join(operands),
                "results": " ".join(results),
                "axes": np.array(self.plan.axis, np.int64),
                **attributes,
            },
            tuple(operands.values()),
            tuple(results.values()),
        )


def _form(plan: Plan) -> tuple[int, ...]:
    """The shape of what has one value per row."""
    return tuple(1 if i in plan.axis else size for i, size in enumerate(plan.shape))


def _wide(plan: Plan) -> str:
    """The dtype of values per row."""
    return "float32" if plan.dtype in NARROW else plan.dtype
