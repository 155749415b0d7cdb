"""mlx.core, with an exponential that is right to the last place.

MLX reduces the argument of its CPU exponential in float32: at -50 the result is off
by ten units in the last place, and everything below -88 is 0.  Here the argument is
reduced first, in two words, so that its exponential is asked for |t| <= ln2/2 only.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

_LOG2E = 1.4426950408889634
#: ln 2 in two words; the first has 12 bits, so that its product with n is exact.
_LN2_HI, _LN2_LO = 0.693359375, -2.1219444005469058e-4
#: Below, the exponential is 0 in float32.
_LOWEST = -104.0


def exp(x: Any) -> Any:
    """``exp(x)`` for real `x`."""
    if mx.issubdtype(x.dtype, mx.complexfloating):
        return mx.exp(x)
    inside = mx.maximum(mx.minimum(x, 90.0), _LOWEST)
    n = mx.round(inside * _LOG2E)
    t = (inside - n * _LN2_HI) - n * _LN2_LO
    half = mx.floor(n / 2)
    e = mx.exp(t) * mx.power(2.0, half) * mx.power(2.0, n - half)
    e = mx.where(x < _LOWEST, 0.0, e)
    return mx.where((x <= 90.0) | (x < _LOWEST), e, mx.exp(x))  # NaN and overflow are MLX's


def __getattr__(name: str) -> Any:
    return getattr(mx, name)
