"""MLX: where mlx.core arrays live."""

from __future__ import annotations

from typing import Any

import numpy as np

from normx import _arithmetic as arithmetic
from normx._libraries import ArrayAPILibrary, numpy_library


def _namespace() -> Any:
    from normx_mlx import _mlx

    return _mlx


class MLXLibrary(ArrayAPILibrary):
    """mlx.core.array, on whichever stream is the default."""

    arithmetic = "float32"
    mutable = True
    flushes_subnormals = True

    def is_concrete(self, x: Any) -> bool:
        try:
            self.namespace().eval(x)
        except ValueError:  # inside compile, vmap or grad
            return False
        return True

    def asarray(self, value: Any, dtype: str, like: Any) -> Any:
        return self.namespace().asarray(value, dtype=self.dtype(dtype))

    def full(self, shape: tuple[int, ...], value: float, dtype: str, like: Any) -> Any:
        return self.namespace().full(shape, value, dtype=self.dtype(dtype))

    def from_numpy(self, x: Any) -> Any:
        # Without a dtype, float64 would become float32.
        return self.namespace().array(x, dtype=self.dtype(x.dtype.name))

    def to_numpy(self, x: Any) -> Any:
        if x.dtype == self.namespace().bfloat16:  # no buffer format stands for it
            return numpy_library.cast(np.asarray(self.cast(x, "float32")), "bfloat16")
        return np.asarray(x)

    def device(self, x: Any) -> Any:
        # Memory is unified: an array belongs to no device, an operation does.
        return "mlx"

    def accurate_sum(self, x: Any, axis: tuple[int, ...]) -> Any:
        # float64 exists on CPU streams only; the result must not depend on the stream.
        return arithmetic.compensated_sum(self.namespace(), x, axis)


library = MLXLibrary("mlx", _namespace)
