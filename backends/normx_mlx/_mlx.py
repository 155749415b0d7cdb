"""mlx.core, with an exponential that is right to the last place.

MLX reduces the argument of its CPU exponential in float32: at -50 the result is off
by 60 units in the last place, everything below -88 is 0, and float64 is computed as
float32.  Here the argument is reduced first, in two words, so that an exponential is
needed for |t| <= ln2/2 only: MLX's own in float32, a series in float64.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

_LOG2E = 1.4426950408889634
#: ln 2 in two words; the first has 12 bits, so that its product with n is exact.
_LN2_HI, _LN2_LO = 0.693359375, -2.1219444005469058e-4
#: Below the first the exponential is 0, above the second it is infinite.
_RANGE = {mx.float32: (-104.0, 89.0), mx.float64: (-746.0, 710.0)}
#: Up to t**14/14!, which is below half a last place of float64 for |t| <= ln2/2.
_SERIES = [1.0 / math.factorial(k) for k in range(14, -1, -1)]


def exp(x: Any) -> Any:
    """``exp(x)``; dtypes without a range of their own here are left to MLX."""
    if x.dtype not in _RANGE:
        return mx.exp(x)
    lowest, highest = _RANGE[x.dtype]
    inside = mx.minimum(mx.maximum(x, lowest), highest)
    n = mx.round(inside * _LOG2E)
    t = (inside - n * _LN2_HI) - n * _LN2_LO
    half = mx.floor(n / 2)  # so that neither power of two overflows, nor underflows early
    e = _near_zero(t) * mx.power(2.0, half) * mx.power(2.0, n - half)
    return mx.where(x < lowest, 0.0, mx.where(x > highest, mx.inf, e))


def _near_zero(t: Any) -> Any:
    if t.dtype == mx.float32:
        return mx.exp(t)
    total = mx.full(t.shape, _SERIES[0], dtype=t.dtype)
    for coefficient in _SERIES[1:]:
        total = total * t + coefficient
    return total


def moveaxis(x: Any, source: tuple[int, ...], destination: tuple[int, ...]) -> Any:
    """Several axes at once, as the array API has it."""
    to = {d % x.ndim: s % x.ndim for s, d in zip(source, destination, strict=True)}
    others = iter(i for i in range(x.ndim) if i not in to.values())
    return x.transpose(*(to[i] if i in to else next(others) for i in range(x.ndim)))


def __getattr__(name: str) -> Any:
    return getattr(mx, name)
