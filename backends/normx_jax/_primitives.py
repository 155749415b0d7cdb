"""Kernels as JAX's primitives: compiled, batched, differentiated like any of its own.

Two primitives.  `kernel` is a function of normx or its gradients: a compiled program for a
CPU calls the kernel through XLA's foreign function interface, one for anything else
has the formula, and outside of compiled programs NumPy's way runs at once.  `linear` is what
`kernel` is to forward-mode differentiation, by the formula, and knows the kernel that
transposes it, so that reverse mode runs that one and not the formula.  (A `jax.custom_vjp`
would refuse forward mode, and `jax.hessian` with it; a `jax.custom_jvp` transposes the formula.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from normx.plugins import Foreign, StagedKernel

Array = Any


def on_host(x: Array) -> bool:
    """Whether an array is, or is likely to be, on the one CPU that arrays come to unasked."""
    if isinstance(x, jax.core.Tracer):
        mesh = jax.typeof(x).sharding.mesh  # XLA must see through what it splits explicitly
        split = jax.sharding.AxisType.Explicit in (mesh.axis_types or ())
        return bool(jax.default_backend() == "cpu" and not split)
    chosen = jax.config.jax_default_device
    return bool(x.devices() == ({chosen} if chosen else _first()) and _is_cpu(x.devices()))


def on_cuda(x: Array) -> bool:
    """Whether an array that has come is on one CUDA device, and nowhere else."""
    devices = x.devices()
    if len(devices) != 1:
        return False
    (device,) = devices
    return device.platform == "gpu" and "cuda" in device.client.platform_version


@cache
def _first() -> set[Any]:
    return {jax.devices()[0]}


def _is_cpu(devices: set[Any]) -> bool:
    return all(device.platform == "cpu" for device in devices)


def staged(kernel: StagedKernel, *operands: Array) -> tuple[Array, ...]:
    """What a kernel makes of its operands, traced or not."""
    return tuple(_kernel.bind(*_alike(operands), kernel=kernel))


def _alike(operands: Sequence[Array]) -> list[Array]:
    """Operands that vary over the same axes of a mesh, inside of `jax.shard_map`."""
    varying = _varying(*operands)
    if not varying:
        return list(operands)
    rest = [tuple(sorted(varying - _varying(operand))) for operand in operands]
    return [
        lax.pcast(operand, axes, to="varying") if axes else operand
        for operand, axes in zip(operands, rest, strict=True)
    ]


def _varying(*operands: Array) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for operand in operands:
        kind = jax.typeof(operand)
        manual = getattr(kind, "manual_axis_type", None)  # JAX 0.10; before, `vma`
        found |= getattr(kind, "vma", frozenset()) if manual is None else manual.varying
    return found


def _kinds(results: Sequence[tuple[tuple[int, ...], Any]], operands: Sequence[Any]) -> list[Any]:
    """The abstract values of results: like the first operand, as to meshes."""
    like = operands[0]
    return [
        like.update(
            shape=shape,
            dtype=jnp.dtype(dtype),
            weak_type=False,
            sharding=like.sharding.update(spec=jax.P(*[None] * len(shape))),
        )
        for shape, dtype in results
    ]


# ----------------------------------------------------------------- kernel

_kernel = Primitive("normx_kernel")
_kernel.multiple_results = True


def _now(*operands: Array, kernel: StagedKernel) -> list[Array]:
    if all(_is_cpu(jnp.asarray(operand).devices()) for operand in operands):
        import numpy as np

        return [jnp.asarray(y) for y in kernel.now(*map(np.asarray, operands))]
    return list(kernel.formula(*operands))


def _abstract(*operands: Any, kernel: StagedKernel) -> list[Any]:
    return _kinds(kernel.results(*operands), operands)


def _compiled(*operands: Array, kernel: StagedKernel) -> list[Array]:
    foreign = kernel.foreign(*operands)
    if foreign is None:
        return list(kernel.formula(*operands))
    raw = _called(foreign)
    return list(kernel.mended(operands, raw, lax.cond))


def _called(foreign: Foreign) -> Sequence[Array]:
    _registered(foreign.name, foreign.handler)
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in foreign.results]
    call = jax.ffi.ffi_call(foreign.name, results)
    operands = _alike(foreign.operands)
    # JAX forgets what results vary over.
    return _alike([*operands, *call(*operands, **foreign.attributes)])[len(operands) :]


_known: set[str] = set()


def _registered(name: str, handler: Any) -> None:
    if name not in _known:
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
        _known.add(name)


def _for_cpu(context: Any, *operands: Any, kernel: StagedKernel) -> Any:
    around = context.module_context.axis_context
    split = isinstance(around, mlir.ShardingContext) and around.num_devices > 1
    partly = isinstance(around, mlir.SPMDAxisContext) and set(around.manual_axes) != set(
        around.mesh.axis_names
    )
    # What XLA is to split over devices by itself, it must see through.
    function = _by_formula if split or partly else _compiled
    lowered = mlir.lower_fun(partial(function, kernel=kernel), multiple_results=True)
    return lowered(context, *operands)


def _by_formula(*operands: Array, kernel: StagedKernel) -> list[Array]:
    return list(kernel.formula(*operands))


_kernel.def_impl(_now)
_kernel.def_abstract_eval(_abstract)
mlir.register_lowering(_kernel, mlir.lower_fun(_by_formula, multiple_results=True))
mlir.register_lowering(_kernel, _for_cpu, platform="cpu")


def _batched(
    operands: Sequence[Array], dims: Sequence[int | None], *, kernel: StagedKernel
) -> tuple[Sequence[Array], Sequence[int]]:
    pairs = list(zip(operands, dims, strict=True))
    size = next(operand.shape[dim] for operand, dim in pairs if dim is not None)
    own = {"x", "y", "dy", *(kernel.wanted or ())}
    stacked = [
        jnp.broadcast_to(operand, (size if name in own else 1, *operand.shape))
        if dim is None
        else jnp.moveaxis(operand, dim, 0)
        for name, (operand, dim) in zip(kernel.names, pairs, strict=True)
    ]
    results = staged(kernel.stacked(size), *stacked)
    return results, [0] * len(results)


batching.primitive_batchers[_kernel] = _batched


def _differentiated(
    primals: Sequence[Array], tangents: Sequence[Any], *, kernel: StagedKernel
) -> tuple[Sequence[Array], Sequence[Array]]:
    moving = [
        i
        for i, (name, tangent) in enumerate(zip(kernel.names, tangents, strict=True))
        if name != "y" and not isinstance(tangent, ad.Zero)
    ]
    moved = [tangents[i] for i in moving]
    pushed = partial(_pushed, kernel, tuple(moving))
    results = staged(kernel, *primals)
    if not kernel.differentiable:
        return results, pushed(*primals, *moved)
    back = kernel.pullback(tuple(kernel.names[i] for i in moving))
    primals = [*primals, *results]
    slopes = _linear.bind(
        *_alike([*primals, *moved]),
        forward=pushed,
        transposed=partial(staged, back),
        count=len(primals),
    )
    return results, slopes


def _pushed(kernel: StagedKernel, moving: Sequence[int], *operands: Array) -> Sequence[Array]:
    """The tangents of the results, given primals, more or less, and the tangents of some."""
    primals, tangents = operands[: len(kernel.names)], operands[-len(moving) :]

    def formula(*chosen: Array) -> tuple[Array, ...]:
        every = list(primals)
        for i, operand in zip(moving, chosen, strict=True):
            every[i] = operand
        return kernel.formula(*every)

    slopes: Sequence[Array] = jax.jvp(formula, [primals[i] for i in moving], list(tangents))[1]
    return slopes


ad.primitive_jvps[_kernel] = _differentiated

# ----------------------------------------------------------------- linear

#: ``forward(*primals, *tangents)``, linear in the tangents, the primals being the first `count`
#: operands; ``transposed(*primals, *cotangents)`` is its transpose.
_linear = Primitive("normx_linear")
_linear.multiple_results = True


def _linear_now(
    *operands: Array, forward: Callable[..., Any], transposed: Callable[..., Any], count: int
) -> list[Array]:
    return list(forward(*operands))


def _linear_abstract(
    *operands: Any, forward: Callable[..., Any], transposed: Callable[..., Any], count: int
) -> list[Any]:
    shapes = jax.eval_shape(forward, *operands)
    return _kinds([(shape.shape, shape.dtype) for shape in shapes], operands)


_linear.def_impl(_linear_now)
_linear.def_abstract_eval(_linear_abstract)
mlir.register_lowering(_linear, mlir.lower_fun(_linear_now, multiple_results=True))


def _linear_batched(
    operands: Sequence[Array],
    dims: Sequence[int | None],
    *,
    forward: Callable[..., Any],
    transposed: Callable[..., Any],
    count: int,
) -> tuple[Sequence[Array], Sequence[int]]:
    size = next(o.shape[d] for o, d in zip(operands, dims, strict=True) if d is not None)

    def back(*operands: Array) -> list[Array]:
        every = (*dims[:count], *[0] * (len(operands) - count))
        results = jax.vmap(transposed, in_axes=every, axis_size=size)(*operands)
        # A tangent that was the same for all gets the sum.
        return [
            jnp.sum(result, 0) if dim is None else jnp.moveaxis(result, 0, dim)
            for result, dim in zip(results, dims[count:], strict=True)
        ]

    ahead = jax.vmap(forward, in_axes=tuple(dims), axis_size=size)
    results = _linear.bind(*operands, forward=ahead, transposed=back, count=count)
    return results, [0] * len(results)


batching.primitive_batchers[_linear] = _linear_batched


def _linear_differentiated(
    primals: Sequence[Array],
    tangents: Sequence[Any],
    *,
    forward: Callable[..., Any],
    transposed: Callable[..., Any],
    count: int,
) -> tuple[Sequence[Array], Sequence[Array]]:
    options = {"forward": forward, "transposed": transposed, "count": count}
    if all(isinstance(tangent, ad.Zero) for tangent in tangents[:count]):
        along = map(ad.instantiate_zeros, tangents[count:])
        return _linear.bind(*primals, **options), _linear.bind(*primals[:count], *along, **options)
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def chosen(*operands: Array) -> Sequence[Array]:
        every = list(primals)
        for i, operand in zip(moving, operands, strict=True):
            every[i] = operand
        return list(forward(*every))

    slopes = jax.jvp(chosen, [primals[i] for i in moving], [tangents[i] for i in moving])[1]
    return _linear.bind(*primals, **options), slopes


ad.primitive_jvps[_linear] = _linear_differentiated


def _linear_transposed(
    cotangents: Sequence[Any],
    *operands: Any,
    forward: Callable[..., Any],
    transposed: Callable[..., Any],
    count: int,
) -> list[Any]:
    back = transposed(*operands[:count], *map(ad.instantiate_zeros, cotangents))
    asked = [ad.is_undefined_primal(operand) for operand in operands[count:]]
    return [None] * count + [
        part if wanted else None for part, wanted in zip(back, asked, strict=True)
    ]


ad.primitive_transposes[_linear] = _linear_transposed
