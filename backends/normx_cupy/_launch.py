"""From operands to a launch: text, machine code, arguments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import cupy
import numpy as np
from normx_gpu import call, source
from normx_gpu.abi import NUMBERS, RESULTS, WORDS, Operand
from normx_gpu.launch import VECTOR_BYTES
from normx_gpu.programs import Program
from normx_gpu.source import Kernel

from normx._plan import Plan

Array = Any

#: Launches kept per plan: strides and numbers come in few forms.
_KEPT = 64


@cache
def compiled(kernel: Kernel) -> Any:
    """A kernel, which CuPy compiles for each device when it is first called there.

    CuPy keeps the machine code on disk, and another process finds it there.
    """
    module = cupy.RawModule(code=source.cuda(kernel), options=source.CUDA_OPTIONS)
    return module.get_function(kernel.name)


class Launcher:
    """The launches of one plan: `normx_gpu.call.Run`."""

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[Any, ...]] = {}

    def __call__(
        self,
        plan: Plan,
        program: Program,
        arrays: Mapping[Operand, Array],
        parameters: Mapping[str, Any],
        *,
        backward: bool,
    ) -> str:
        arrays = {o: a if o in RESULTS else _on_boundaries(a) for o, a in arrays.items()}
        lie = tuple((o, a.strides, a.data.ptr % VECTOR_BYTES == 0) for o, a in arrays.items())
        scalars = tuple((k, v) for k, v in parameters.items() if not hasattr(v, "shape"))
        key = cupy.cuda.Device().id, lie, scalars
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            kept = self._kept[key] = _prepared(plan, program, arrays, parameters, backward)
        function, go, words, target = kept
        scratch = cupy.zeros(go.scratch, "u1") if go.scratch else None
        operands = (*(arrays.get(o) for o in Operand if o != Operand.SCRATCH), scratch, words)
        # Blocks of a row wait for each other: a launch of such is refused if they are not resident.
        # (A module with CuPy's cooperative groups would want a whole CUDA to link with.)
        function.kernel((go.grid,), (go.block,), operands, 0, None, go.kernel.geometry.parts > 1)
        return f"{go.kernel.name}__{target}"


def _prepared(
    plan: Plan,
    program: Program,
    arrays: Mapping[Operand, Array],
    parameters: Mapping[str, Any],
    backward: bool,
) -> tuple[Any, ...]:
    device = cupy.cuda.Device()
    resident, target = device.attributes["MultiProcessorCount"], device.compute_capability
    go = call.launch_of(
        plan, program, arrays, parameters, _address, backward=backward, resident=resident
    )
    form = [("words", "i8", WORDS), ("numbers", call.arithmetic_of(plan.dtype), NUMBERS)]
    words = np.array((go.words, go.numbers), form)
    return compiled(go.kernel), go, words, f"sm_{target}"


def _on_boundaries(array: Array) -> Array:
    """An array whose elements are on multiples of their size."""
    size = array.itemsize
    if array.data.ptr % size or any(stride % size for stride in array.strides):
        return array.copy()
    return array


def _address(array: Array) -> int:
    return int(array.data.ptr)
