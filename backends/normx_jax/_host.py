"""Results of NumPy's as arrays of JAX."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

Array = Any

#: What XLA wants of an address; NumPy's are multiples of 16.
_ALIGNMENT = 64

#: Bytes from which on a result is shared.  Below, a copy costs less: 23 us for 256 KiB, where
#: sharing costs 33; for 4 MiB 290 and 125.
_LARGE = 1 << 20
#: Bytes from which on the memory of results lies as XLA wants it anyway: they have mappings.
_MAPPED = 1 << 25


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray | None:
    """Memory for a result that XLA can share; None where any does as well."""
    size = math.prod(shape) * dtype.itemsize
    if not _LARGE <= size < _MAPPED:
        return None
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def adopt(fresh: np.ndarray) -> Array:
    """A fresh array of NumPy's as one of JAX, in the same memory if it is large."""
    if fresh.nbytes < _LARGE:
        return jnp.asarray(fresh)
    return jax.device_put(fresh, may_alias=True)
