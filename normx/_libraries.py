"""The array libraries that need no plugin of their own: NumPy and the generic one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import array_api_compat
import numpy as np

from normx import _arithmetic as arithmetic
from normx.plugins import Exchange, Library, dtype_name

Array = Any


class ArrayAPILibrary(Library):
    """Any library with ``__array_namespace__`` or known to array-api-compat."""

    arithmetic = "float64"

    def __init__(self, name: str, namespace: Callable[[], Any]) -> None:
        self.name = name  # type: ignore[misc]  # one class, many libraries
        self._namespace = namespace

    def namespace(self) -> Any:
        return self._namespace()

    def check(self, x: Array, argument: str = "x") -> str | None:
        if None in x.shape:
            return "an array with sizes that are not known; give it a shape of numbers"
        return None

    def device(self, x: Array) -> Any:
        return array_api_compat.device(x)

    def dtype(self, name: str) -> Any:
        return getattr(
            self.namespace(),
            "bool_" if name == "bool" and not hasattr(self.namespace(), "bool") else name,
        )

    def default_float(self) -> str:
        return dtype_name(self.namespace().asarray(1.0).dtype)

    def asarray(self, value: Any, dtype: str, like: Array) -> Array:
        return self.namespace().asarray(value, dtype=self.dtype(dtype), device=self.device(like))

    def full(self, shape: tuple[int, ...], value: float, dtype: str, like: Array) -> Array:
        return self.namespace().full(
            shape, value, dtype=self.dtype(dtype), device=self.device(like)
        )

    def quiet(self) -> AbstractContextManager[Any]:
        # Many a library computes with NumPy, and with its warnings.
        return np.errstate(all="ignore")

    def from_numpy(self, x: Array) -> Array:
        return self.namespace().asarray(x)

    def to_numpy(self, x: Array) -> Array:
        return np.asarray(x)

    def cast(self, x: Array, dtype: str) -> Array:
        if dtype_name(x.dtype) == dtype:
            return x
        return self.namespace().astype(x, self.dtype(dtype))

    def accurate_sum(self, x: Array, axis: tuple[int, ...]) -> Array:
        xp = self.namespace()
        if dtype_name(x.dtype) in ("float32", "complex64") and self._has_float64(x):
            wide = "float64" if dtype_name(x.dtype) == "float32" else "complex128"
            total = xp.sum(x, axis=axis, keepdims=True, dtype=self.dtype(wide))
            return self.cast(total, dtype_name(x.dtype))
        return arithmetic.compensated_sum(xp, x, axis)

    def _has_float64(self, x: Array) -> bool:
        info = getattr(self.namespace(), "__array_namespace_info__", None)
        return info is not None and "float64" in info().dtypes(
            device=self.device(x), kind="real floating"
        )


def folds(shape: Sequence[int], strides: Sequence[int], item: int) -> bool:
    """Whether entries of an array may share memory; strides in units in which one takes `item`."""
    reach = 0  # of the axes with smaller strides
    for stride, size in sorted(zip(map(abs, strides), shape, strict=True)):
        if size > 1 and stride < reach + item:
            return True
        reach += stride * (size - 1)
    return False


class NumPyLibrary(ArrayAPILibrary):
    """NumPy arrays, and the lists and numbers that become them."""

    preference = ("native", "reference")
    mutable = True

    def __init__(self) -> None:
        super().__init__("numpy", lambda: np)

    def check(self, x: Array, argument: str = "x") -> str | None:
        kind = type(x)
        if kind in (np.ndarray, np.memmap) or isinstance(x, np.generic):
            return None
        if issubclass(kind, np.ma.MaskedArray):
            return "a masked array; pass x.data with where=~numpy.ma.getmaskarray(x)"
        return f"a {kind.__name__}, a subclass of numpy.ndarray; pass numpy.asarray(x)"

    def key(self, x: Array) -> Any:
        return x.shape, x.dtype

    def is_followed(self, x: Array) -> bool:
        return False

    def on_host(self, x: Array) -> bool:
        return True

    def host_view(self, x: Array) -> Array:
        return x

    def host_adopt(self, fresh: Array) -> Array:
        return fresh

    def exchange(self) -> Exchange:
        return Exchange(kinds=frozenset({np.ndarray}))

    def device(self, x: Array) -> Any:
        return "cpu"

    def default_float(self) -> str:
        return "float64"

    def dtype(self, name: str) -> Any:
        if name == "bfloat16":
            import ml_dtypes  # NumPy knows bfloat16 only through this package

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(name)

    def asarray(self, value: Any, dtype: str, like: Array) -> Array:
        return np.asarray(value, dtype=self.dtype(dtype))

    def full(self, shape: tuple[int, ...], value: float, dtype: str, like: Array) -> Array:
        return np.full(shape, value, dtype=self.dtype(dtype))

    def from_numpy(self, x: Array) -> Array:
        return x

    def has_dtype(self, x: Array, dtype: str) -> bool:
        return bool(x.dtype == self.dtype(dtype))  # another byte order is another dtype

    def cast(self, x: Array, dtype: str) -> Array:
        return x.astype(self.dtype(dtype), copy=False)

    def check_out(self, out: Array) -> str | None:
        flags = out.flags
        if not flags.writeable:
            return "a read-only array"
        if not flags.c_contiguous and folds(out.shape, out.strides, out.itemsize):
            return "an array whose entries share memory"
        return None

    def overlaps(self, out: Array, x: Array) -> bool:
        if out is x or not np.may_share_memory(out, x):
            return False
        same = (
            out.__array_interface__["data"] == x.__array_interface__["data"]
            and out.strides == x.strides
            and out.shape == x.shape
        )
        return not same

    def finish(self, y: Array) -> Array:
        # As NumPy's own functions: zero dimensions make a scalar.
        return y[()] if y.ndim == 0 else y


numpy_library = NumPyLibrary()
