"""Arrays of MLX in host memory: views, memory for results, and gradients of what runs there."""

from __future__ import annotations

import ctypes
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from normx import _dispatch as dispatch
from normx._libraries import numpy_library
from normx._plan import Plan
from normx._reference import compute, gradients_of
from normx._vjp import shaped_as
from normx.plugins import Backend, Call, NotOnHost, Pullback, dtype_name

Array = Any

#: Bytes from which on a result has memory of MLX's own from the start.  Below, a copy costs
#: less: 3 us for 256 KiB, 91 us for 4 MiB, where a load costs 28 us and new pages.
_LARGE = 4 << 20

_HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14


def view(x: Array) -> np.ndarray:
    """The memory of an array, evaluated if it is lazy."""
    narrow = x.dtype == mx.bfloat16  # no buffer format stands for it
    try:
        memory = np.asarray(x.view(mx.uint16) if narrow else x)
    except ValueError as error:  # inside compile or vmap
        raise NotOnHost from error
    return memory.view(numpy_library.dtype("bfloat16")) if narrow else memory


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray | None:
    """The memory of a new array, if it is large, as it came from the system."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return None
    stored = np.dtype(np.uint16) if dtype.name == "bfloat16" else dtype
    array = mx.load(_Blank(shape, stored), format="npy")
    mx.eval(array)
    memory = np.asarray(array)
    _prefer_huge_pages(memory)
    return memory if stored == dtype else memory.view(dtype)


def adopt(fresh: np.ndarray) -> Array:
    """A fresh array of NumPy's as one of MLX: itself, where its memory came from `empty`."""
    narrow = fresh.dtype.name == "bfloat16"
    base = fresh.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mx.array) and base.shape == fresh.shape:
        return base.view(mx.bfloat16) if narrow else base
    if narrow:
        return mx.array(fresh.view(np.uint16)).view(mx.bfloat16)
    return mx.array(fresh, dtype=getattr(mx, "bool_" if fresh.dtype == bool else fresh.dtype.name))


class _Blank:
    """A file of an array that was never written: what MLX loads from it is memory as it comes.

    MLX has no array without values: `mlx.core.empty` writes zeros, which for 128 MiB takes four
    times as long as a softmax.
    """

    closed = False

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        header = io.BytesIO()
        form = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, form)
        self._header = io.BytesIO(header.getvalue())
        self._size = len(header.getvalue())
        self.seek, self.tell, self.read = (
            self._header.seek,
            self._header.tell,
            self._header.read,
        )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, memory: Any) -> int:
        if self._header.tell() < self._size:
            return self._header.readinto(memory)
        return len(memory)


def _prefer_huge_pages(memory: np.ndarray) -> None:
    """Ask for pages of 2 MiB, as NumPy does for its own arrays.

    The first write to 128 MiB in small pages takes 45 ms, in these 9 ms.
    """
    if _madvise is None:
        return
    start = memory.__array_interface__["data"][0]
    first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
    last = (start + memory.nbytes) // _HUGE_PAGE * _HUGE_PAGE
    if last > first:  # refused or not, the memory is the same
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_HUGEPAGE)


_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None


def differentiable(plan: Plan, backend: str, call: Call) -> Call:
    """A backend's call as a function with gradients of MLX's own.

    The gradient is the backend's where it has one, and that of the formula where it has not,
    in compiled or mapped functions, and beyond the first.
    """
    pullback = _pullback(plan, backend)
    library = plan.library

    def made(
        where: Array | None, numbers: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[Callable[..., Array], list[str]]:
        """The function of the scores and the arrays among the parameters; what ran in it."""
        ran = [""]

        def all_of(values: Sequence[Array]) -> dict[str, Any]:
            return {**numbers, **dict(zip(names, values, strict=True))}

        def formula(x: Array, *values: Array) -> Array:
            return compute(plan, x, where, all_of(values))

        def by_formula(x: Array, *others: Array) -> list[Array]:
            *values, dy = others
            return finished(gradients_of(plan, x, where, all_of(values), dy), x, values)

        def finished(gradients: dict[str, Array], x: Array, values: Sequence[Array]) -> list[Array]:
            return [
                shaped_as(library, mx, gradients[name], value, dtype_name(value.dtype))
                if name in gradients
                else mx.zeros_like(value)
                for name, value in zip(("x", *names), (x, *values), strict=True)
            ]

        def by_backend(y: Array) -> Callable[..., list[Array]]:
            assert pullback is not None

            @mx.custom_function
            def gradients(x: Array, *others: Array) -> list[Array]:
                *values, dy = others
                found, kernel = pullback(x, where, all_of(values), y, dy)
                dispatch.traced(f"vjp({plan.record.name})", backend, kernel)
                return finished(found, x, values)

            @gradients.vjp
            def second(primals: Any, cotangents: Any, _: Any) -> Any:
                return mx.vjp(by_formula, _several(primals), _several(cotangents))[1]

            @gradients.jvp
            def forward(primals: Any, tangents: Any) -> Any:
                return _pushed(by_formula, primals, tangents)

            return gradients  # type: ignore[no-any-return]

        @mx.custom_function
        def function(x: Array, *values: Array) -> Array:
            y, ran[0] = call(x, where, None, all_of(values))
            return y

        @function.vjp
        def backward(primals: Any, dy: Array, y: Array) -> Any:
            arguments = _several(primals)
            gradients = None
            if pullback is not None:
                try:
                    gradients = by_backend(y)(*arguments, dy)
                except NotOnHost:
                    pass
            if gradients is None:
                gradients = by_formula(*arguments, dy)
            return gradients if names else gradients[0]

        @function.jvp
        def forward(primals: Any, tangents: Any) -> Any:
            return _pushed(formula, primals, tangents)[0]

        return function, ran

    plain, plainly = made(None, {}, ())

    def entered(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        if where is None and not parameters:
            y, ran = plain(x), plainly
        else:
            arrays = {name: value for name, value in parameters.items() if hasattr(value, "shape")}
            numbers = {name: value for name, value in parameters.items() if name not in arrays}
            function, ran = made(where, numbers, tuple(arrays))
            y = function(x, *arrays.values())
        if out is None:
            return y, ran[0]
        # Arrays of MLX are values: the memory of `out` may be that of others too.
        library.assign(out, y)
        return out, ran[0]

    return entered


def _several(arrays: Any) -> list[Array]:
    """What MLX hands over as an array where it is one, as a tuple otherwise."""
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)


def _pushed(function: Callable[..., Any], primals: Any, tangents: Any) -> list[Array]:
    """The tangents of a function; those of what does not move come as None."""
    points = _several(primals)
    moves = [
        mx.zeros_like(point) if move is None else move
        for point, move in zip(points, _several(tangents), strict=True)
    ]
    return list(mx.jvp(function, points, moves)[1])


def _pullback(plan: Plan, backend: str) -> Pullback | None:
    found = dispatch.backend(backend)
    assert isinstance(found, Backend)
    answer = found.gradient(plan)
    return answer if callable(answer) else None
