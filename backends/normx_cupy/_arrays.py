"""Arrays on a CUDA device: the kernels read and write them where they are.

CuPy's own go to the kernels as they come, those of other libraries through DLPack: as an array of
CuPy's that shares their memory, in the stream in which their library works.  Nothing is copied,
nothing waits for the device, and the memory of a result is its library's where it has some to give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import cupy
from normx_gpu import call

from normx._libraries import numpy_library
from normx._plan import Plan
from normx.plugins import Call, Library, NotOnHost, Pullback, Refusal, TopKCall
from normx_cupy._launch import Launcher

Array = Any


def forward(plan: Plan) -> Call | Refusal:
    """A call on the arrays of the plan's library."""
    kernel = _prepared(plan, call.forward)
    if isinstance(kernel, Refusal):
        return kernel
    home, shape, dtype = plan.library, plan.result_shape, plan.dtype

    def on_device(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        with _around(home, x, where, *parameters.values()) as (view, device):
            if out is None:
                out = home.cuda_empty(shape, dtype, device)
            place = None if out is None else view(out)
            y, name = kernel(view(x), view(where), place, _views(view, parameters))
            return home.cuda_adopt(y) if out is None else out, name

    return on_device


def backward(plan: Plan) -> Pullback | Refusal:
    """A pullback on the arrays of the plan's library."""
    kernel = _prepared(plan, call.backward)
    if isinstance(kernel, Refusal):
        return kernel
    home = plan.library

    def on_device(
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
        y: Array | None,
        dy: Array,
    ) -> tuple[dict[str, Array], str]:
        with _around(home, x, where, dy, *parameters.values()) as (view, _):
            # The kernels start from the scores: the result has lost what they need.
            found, name = kernel(view(x), view(where), _views(view, parameters), None, view(dy))
            return {of: home.cuda_adopt(gradient) for of, gradient in found.items()}, name

    return on_device


def topk(plan: Plan, k: int) -> TopKCall | Refusal:
    """A search in the arrays of the plan's library."""
    kernel = _prepared(plan, lambda plan, _, empty, run: call.topk(plan, k, empty, run))
    if isinstance(kernel, Refusal):
        return kernel
    home = plan.library

    def on_device(x: Array) -> tuple[Array, Array, str]:
        with _around(home, x) as (view, _):
            values, indices, name = kernel(view(x))
            return home.cuda_adopt(values), home.cuda_adopt(indices), name

    return on_device


class _Losses:
    """The cross-entropy of the arrays of the plan's library."""

    def __init__(self, home: Library, kernel: call.Losses) -> None:
        self._home, self._kernel = home, kernel

    def forward(
        self, x: Array, targets: Array, where: Array | None, weight: Array | None
    ) -> tuple[tuple[Array, Array, Array], str]:
        home, given = self._home, (x, targets, where, weight)
        with _around(home, *given) as (view, _):
            (losses, lse, entropy), name = self._kernel.forward(*map(view, given))
            return (home.cuda_adopt(losses), home.cuda_adopt(lse), home.cuda_adopt(entropy)), name

    def pullback(
        self,
        x: Array,
        targets: Array,
        where: Array | None,
        weight: Array | None,
        cotangents: Sequence[Array | None],
    ) -> tuple[Array, str]:
        home, given = self._home, (x, targets, where, weight)
        with _around(home, *given, *cotangents) as (view, _):
            x, targets, where, weight = map(view, given)
            pulled = tuple(map(view, cotangents))
            dx, name = self._kernel.pullback(x, targets, where, weight, pulled)
            return home.cuda_adopt(dx), name


def cross_entropy(plan: Plan, smoothing: float) -> _Losses | Refusal:
    """The cross-entropy of the arrays of the plan's library."""
    kernel = _prepared(plan, lambda plan, *given: call.cross_entropy(plan, smoothing, *given))
    return kernel if isinstance(kernel, Refusal) else _Losses(plan.library, kernel)


def _prepared(plan: Plan, prepare: Any) -> Any:
    try:
        numpy_library.dtype(plan.dtype)
    except ImportError:
        return Refusal(f"reads {plan.dtype} with ml_dtypes, which is not installed")
    return prepare(plan, cupy, partial(_empty, plan.library), Launcher())


def _empty(home: Library, shape: tuple[int, ...], dtype: str) -> Array:
    """Memory for a result, of its library where that has some to give."""
    own = home.cuda_empty(shape, dtype, cupy.cuda.Device().id)
    return cupy.empty(shape, numpy_library.dtype(dtype)) if own is None else _view(home, own)


def _view(home: Library, x: Array) -> Array:
    return x if isinstance(x, cupy.ndarray) else cupy.from_dlpack(home.cuda_view(x))


def _views(view: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: view(value) for name, value in parameters.items()}


@contextmanager
def _around(home: Library, x: Array, *others: Array) -> Iterator[tuple[Any, int]]:
    """The device and the stream of a call, and what makes its arrays CuPy's."""
    if isinstance(x, cupy.ndarray):
        with x.device:
            yield (lambda array: array), x.device.id
        return
    if not home.at_hand((x, *others)):
        raise NotOnHost
    device = x.__dlpack_device__()[1]
    with cupy.cuda.Device(device), _stream(home.cuda_stream(x), device):
        yield (lambda array: _view(home, array) if hasattr(array, "shape") else array), device


def _stream(address: int | None, device: int) -> Any:
    if address is None:
        return cupy.cuda.get_current_stream()
    return cupy.cuda.ExternalStream(address, device)
