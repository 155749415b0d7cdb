"""Memory for results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def allocator(shape: tuple[int, ...], dtype: Any) -> Callable[..., Any]:
    """What makes a result: `numpy.empty`, or the cache of native/memory/ where it is large."""
    from normx_native import _core

    large = math.prod(shape) * dtype.itemsize >= _core.large_result
    return _core.empty if large else np.empty
