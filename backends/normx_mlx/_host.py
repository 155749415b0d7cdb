"""Arrays of MLX in host memory: views of them, and memory for results."""

from __future__ import annotations

import ctypes
import io
import math
import sys
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from normx._libraries import numpy_library
from normx.plugins import NotOnHost

Array = Any

#: Bytes from which on a result has memory of MLX's own from the start.  Below, a copy costs
#: less: 3 us for 256 KiB, 91 us for 4 MiB, where a load costs 28 us and new pages.
_LARGE = 4 << 20

#: Typed as what is not known, like everything of MLX.
_load: Any = mx.load

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
    array = _load(_Blank(shape, stored), format="npy")
    mx.eval(array)
    memory = np.asarray(array)
    _prefer_huge_pages(memory)
    return memory if stored == dtype else memory.view(dtype)


def adopt(fresh: np.ndarray) -> Array:
    """A fresh array of NumPy's as one of MLX: itself, where its memory came from `empty`."""
    narrow, dtype = _of_mlx(fresh.dtype)
    base: Any = fresh.base
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mx.array) and base.shape == fresh.shape:
        return base.view(mx.bfloat16) if narrow else base
    if narrow:
        return mx.array(fresh.view(np.uint16)).view(mx.bfloat16)
    return mx.array(fresh, dtype=dtype)


@cache  # a name of NumPy's takes 2 us
def _of_mlx(dtype: np.dtype[Any]) -> tuple[bool, Any]:
    """Whether a dtype of NumPy's is bfloat16, and MLX's own for it."""
    return dtype.name == "bfloat16", getattr(mx, "bool_" if dtype.kind == "b" else dtype.name)


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
            getattr(self._header, word) for word in ("seek", "tell", "read")
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
