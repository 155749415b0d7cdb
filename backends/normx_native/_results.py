"""Memory for results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from normx.plugins import Library


def allocator(home: Library, shape: tuple[int, ...], dtype: Any) -> Callable[..., Any]:
    """What makes a result for a library.

    `numpy.empty`, or the cache of native/memory/ where it is large; before these the memory
    of an array of the library's own, for a library that adopts no other.
    """
    from normx_native import _core

    large = math.prod(shape) * dtype.itemsize >= _core.large_result
    empty: Callable[..., Any] = _core.empty if large else np.empty
    if type(home).host_empty is Library.host_empty:
        return empty

    def at_home(shape: tuple[int, ...], dtype: Any) -> Any:
        memory = home.host_empty(shape, dtype)
        return empty(shape, dtype) if memory is None else memory

    return at_home
