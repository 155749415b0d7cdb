"""Kernels of normx_gpu as operations of MLX: lazy like any, on Metal or on CUDA.

MLX hands arrays over side by side, so strides follow from shapes; an axis along which an array is
broadcast has stride 0, and nothing is copied for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from normx_gpu import call, nvrtc, source
from normx_gpu.abi import Operand
from normx_gpu.programs import TOPK, Program
from normx_gpu.source import Kernel

from normx._plan import Plan
from normx._sinks import sinks_along, sinks_aside
from normx.plugins import Call, Pullback, Refusal, TopKCall
from normx_mlx import _gradients, _mlx

Array = Any

#: Inputs with fewer elements come in another address space than the text's.
_FEWEST = 8
#: Launches kept per plan: numbers come in few forms.
_KEPT = 64


class _Result(NamedTuple):
    shape: tuple[int, ...]  # in memory
    along: tuple[int, ...]  # the same with an axis for each one of the plan
    dtype: str


class _Launch(NamedTuple):
    run: Any
    grid: int
    block: int
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    plan: tuple[Array, ...]  # what follows the inputs: words and numbers
    name: str


def forward(plan: Plan) -> Call | Refusal:
    """A call of a plan, or why there is none."""
    program = call.program_of(plan)
    if isinstance(program, Refusal):
        return program
    launcher = _Launcher(plan, program, backward=False)
    along = plan.shape if plan.record.kind == "normalizer" else call.form_of(plan)

    def computed(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        if 0 in plan.shape:
            nothing = -mx.inf if plan.record.log_space else 0.0
            y = mx.full(plan.result_shape, nothing, dtype=plan.library.dtype(plan.dtype))
            return y, f"normx_{program.name}_nothing"
        arrays, parameters = _operands(plan, program, x, where, parameters)
        results = {Operand.Y: _Result(plan.result_shape, along, plan.dtype)}
        found, name = launcher(arrays, parameters, results)
        return found[Operand.Y], name

    return computed


def backward(plan: Plan) -> Pullback | Refusal:
    """The same for gradients."""
    program = call.program_of(plan, backward=True)
    if isinstance(program, Refusal):
        return program
    launcher = _Launcher(plan, program, backward=True)
    form, wide = call.form_of(plan), call.arithmetic_of(plan.dtype)

    def pulled(
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
        y: Array | None,
        dy: Array,
    ) -> tuple[dict[str, Array], str]:
        arrays, parameters = _operands(plan, program, x, where, parameters)
        dy = plan.library.cast(dy, plan.dtype)
        arrays[Operand.G] = dy if dy.shape == plan.shape else dy.reshape(form)
        results = {Operand.Y: _Result(plan.shape, plan.shape, plan.dtype)}
        places = call.places(program, Operand.D0, Operand.DTEMPERATURE)
        wanted = {name: operand for name, operand in places.items() if name in parameters}
        results |= {operand: _Result(form, form, wide) for operand in wanted.values()}
        sink = parameters.get("sink")
        if sink is not None:
            count = arrays[Operand.SINK].shape[-1] if Operand.SINK in arrays else 1
            results[Operand.DSINK] = _Result((*form, count), (*form, count), wide)
        found, name = launcher(arrays, parameters, results)
        gradients = {"x": found[Operand.Y]}
        gradients |= {of: found[operand] for of, operand in wanted.items()}
        if sink is not None:
            value = sink if hasattr(sink, "shape") else mx.array(sink)
            gradients["sink"] = sinks_along(_mlx, plan, found[Operand.DSINK], value)
        return gradients, name

    return pulled


def topk(plan: Plan, k: int) -> TopKCall | Refusal:
    """A search for the largest weights of a plan, or why there is none."""
    found = call.topk_of(plan, k)
    if isinstance(found, Refusal):
        return found
    shape = call.shape_of_topk(found)
    launcher = _Launcher(found, TOPK, backward=False)
    results = {Operand.Y: _Result(shape, shape, plan.dtype)}
    results[Operand.INDEX] = _Result(shape, shape, "int64")

    def search(x: Array) -> tuple[Array, Array, str]:
        made, name = launcher({Operand.X: x}, {}, results)
        # A library without 64-bit numbers has such indices.
        return made[Operand.Y], made[Operand.INDEX].astype(mx.int32), name

    return _gradients.differentiable_search(plan, k, search)


def _operands(
    plan: Plan,
    program: Program,
    x: Array,
    where: Array | None,
    parameters: Mapping[str, Any],
) -> tuple[dict[Operand, Array], Mapping[str, Any]]:
    """The arrays that are read, as they are, and the parameters but for sinks that are none."""
    parameters = call.without_nothing(parameters)
    arrays = {Operand.X: x}
    if where is not None:
        arrays[Operand.WHERE] = where
    if "uniform" in parameters:
        arrays[Operand.NOISE] = parameters["uniform"]
    for name, operand in call.places(program, Operand.P0, Operand.TEMPERATURE).items():
        if hasattr(parameters.get(name), "shape"):
            arrays[operand] = parameters[name]
    if hasattr(parameters.get("sink"), "shape"):
        arrays[Operand.SINK] = sinks_aside(_mlx, parameters["sink"], plan)
    return arrays, parameters


class _Launcher:
    """The launches of one plan."""

    def __init__(self, plan: Plan, program: Program, *, backward: bool) -> None:
        self._plan, self._program, self._backward = plan, program, backward
        self._kept: dict[Any, _Launch] = {}

    def __call__(
        self,
        arrays: Mapping[Operand, Array],
        parameters: Mapping[str, Any],
        results: Mapping[Operand, _Result],
    ) -> tuple[dict[Operand, Array], str]:
        shapes = {operand: tuple(array.shape) for operand, array in arrays.items()}
        shapes |= {operand: result.along for operand, result in results.items()}
        numbers = {k: v for k, v in parameters.items() if not hasattr(v, "shape")}
        key = tuple(shapes.items()), tuple(numbers.items())
        go = self._kept.get(key)
        if go is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            go = self._kept[key] = self._prepared(shapes, parameters)
        library = self._plan.library
        found = go.run(
            inputs=[*(_filled(arrays[operand]) for operand in go.inputs), *go.plan],
            grid=(go.grid * go.block, 1, 1),
            threadgroup=(go.block, 1, 1),
            output_shapes=[results[operand].shape for operand in go.outputs],
            output_dtypes=[library.dtype(results[operand].dtype) for operand in go.outputs],
        )
        return dict(zip(go.outputs, found, strict=True)), go.name

    def _prepared(
        self, shapes: Mapping[Operand, tuple[int, ...]], parameters: Mapping[str, Any]
    ) -> _Launch:
        plan, ndim = self._plan, len(self._plan.shape)
        views = {
            operand: call.View(_steps(shape)[:ndim], aligned=True)
            for operand, shape in shapes.items()
        }
        count = shapes[Operand.SINK][-1] if Operand.SINK in shapes else int("sink" in parameters)
        step = int(count > 1)
        go = call.launch(
            plan,
            self._program,
            views,
            parameters,
            sinks=(count, step, step),
            backward=self._backward,
        )
        words = np.array(go.words, np.int64)
        numbers = np.array(go.numbers, np.float32)
        on_metal = mx.metal.is_available()
        handed = (words, numbers) if on_metal else (np.append(words, numbers.view(np.int64)),)
        run, inputs, outputs = _metal(go.kernel) if on_metal else _cuda(go.kernel)
        name = f"{go.kernel.name}__{'metal' if on_metal else 'cuda'}"
        tables = tuple(map(_array, handed))
        return _Launch(run, go.grid, go.block, inputs, outputs, tables, name)


@cache
def _metal(kernel: Kernel) -> tuple[Any, tuple[Operand, ...], tuple[Operand, ...]]:
    """A kernel of MLX's, and its operands in their order."""
    made = source.metal(kernel)
    # MLX keeps kernels by name, and what is compiled depends on more than ours says.
    same = hashlib.sha256((made.header + made.body).encode()).hexdigest()[:16]
    run = mx.fast.metal_kernel(
        name=f"{kernel.name}_{same}",
        input_names=[*(operand.name.lower() for operand in made.inputs), "words", "numbers"],
        output_names=[operand.name.lower() for operand in made.outputs],
        source=made.body,
        header=made.header,
    )
    return run, made.inputs, made.outputs


@cache
def _cuda(kernel: Kernel) -> tuple[Any, tuple[Operand, ...], tuple[Operand, ...]]:
    """The same for CUDA, compiled here.

    What MLX compiles itself, `mx.fast.cuda_kernel`, has no bound on registers, so that blocks of
    512 threads may not fit, and fuses products into sums, which two words do not survive.
    """
    made = source.cuda_handed(kernel)
    here = mx.device_info()
    number = f"{here['compute_capability_major']}{here['compute_capability_minor']}"
    run = partial(
        _precompiled,
        name=made.name,
        compiled_source=nvrtc.machine_code(made.text, kernel.name, f"sm_{number}"),
        scalars=[],
        ensure_row_contiguous=True,
    )
    return run, made.inputs, made.outputs


def _precompiled(**keywords: Any) -> list[Array]:
    return list(mx.fast.precompiled_cuda_kernel(**keywords))


#: Typed as what is not known, like everything of MLX.
_array: Any = mx.array


def _steps(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of an array that lies side by side, 0 along axes of size 1."""
    return tuple(0 if size == 1 else prod(shape[i + 1 :]) for i, size in enumerate(shape))


def _filled(array: Array) -> Array:
    """An array with as many elements as MLX wants before it calls memory memory."""
    if array.size >= _FEWEST:
        return array
    rest = mx.zeros((_FEWEST - array.size,), dtype=array.dtype)
    return mx.concatenate([array.reshape(-1), rest])
