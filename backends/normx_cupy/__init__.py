"""CuPy: where cupy.ndarrays live."""

from __future__ import annotations

from typing import Any

from normx._libraries import ArrayAPILibrary, numpy_library
from normx_cupy import _driver

Array = Any


def _namespace() -> Any:
    import array_api_compat.cupy

    return array_api_compat.cupy


class CuPyLibrary(ArrayAPILibrary):
    """cupy.ndarray, on the device where it is and in CuPy's current stream."""

    preference = ("cupy", "reference")
    arithmetic = "float32"
    mutable = True

    def unusable(self) -> str | None:
        return _driver.missing()

    def key(self, x: Any) -> Any:
        return x.shape, x.dtype, x.device.id

    def is_followed(self, x: Any) -> bool:
        return False

    def on_cuda(self, x: Any) -> bool:
        return True

    def cuda_adopt(self, fresh: Any) -> Any:
        return fresh

    def default_float(self) -> str:
        return "float64"

    def dtype(self, name: str) -> Any:
        return numpy_library.dtype(name)

    def has_dtype(self, x: Any, dtype: str) -> bool:
        return bool(x.dtype == self.dtype(dtype))

    def cast(self, x: Any, dtype: str) -> Any:
        return x.astype(self.dtype(dtype), copy=False)

    def asarray(self, value: Any, dtype: str, like: Any) -> Any:
        with like.device:
            return self.namespace().asarray(value, dtype=self.dtype(dtype))

    def full(self, shape: tuple[int, ...], value: float, dtype: str, like: Any) -> Any:
        with like.device:
            return self.namespace().full(shape, value, dtype=self.dtype(dtype))

    def uniform(self, rng: Any, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        # NumPy's generators: those of CuPy cannot be copied, and a pullback needs the same noise.
        with like.device:
            return super().uniform(rng, shape, dtype, like)

    def from_numpy(self, x: Any) -> Any:
        return self.namespace().asarray(x)

    def to_numpy(self, x: Any) -> Any:
        return x.get()

    def check_out(self, out: Any) -> str | None:
        if 0 in (stride for stride, size in zip(out.strides, out.shape, strict=True) if size > 1):
            return "an array whose entries share memory"
        return None

    def overlaps(self, out: Any, x: Any) -> bool:
        if out is x:
            return False
        begin, end = zip(_reach(out), _reach(x), strict=True)
        same = begin[0] == begin[1] and out.strides == x.strides and out.shape == x.shape
        return not same and max(begin) < min(end)


def _reach(x: Any) -> tuple[int, int]:
    """Where the entries of an array begin and end in memory, in bytes."""
    steps = [s * (n - 1) for s, n in zip(x.strides, x.shape, strict=True)]
    if x.size == 0:
        return x.data.ptr, x.data.ptr
    begin = x.data.ptr + sum(step for step in steps if step < 0)
    return begin, x.data.ptr + sum(step for step in steps if step > 0) + x.itemsize


library = CuPyLibrary("cupy", _namespace)
