"""Double-word arithmetic in array-API code.

A `Double` is an unevaluated sum ``hi + lo`` of two arrays.  The exponential of a
difference of float32 numbers near -80 turns half a last place of the difference
into forty of the result; keeping the low word keeps the result.  Nothing here
needs a wider dtype or a fused multiply-add, or is spoilt by one, so it runs the same on
every library, compiled or not.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import factorial
from typing import Any, NamedTuple

import numpy as np

Array = Any

#: Veltkamp's splitting constants: 2**ceil(p/2) + 1 for p significant bits.
_SPLITTERS = {"float32": 2.0**12 + 1.0, "float64": 2.0**27 + 1.0}

#: The exponential of anything below is 0 in every dtype.
_NEGLIGIBLE = -2000.0

#: Temperatures up to here bring scores near whose products do not overflow, in any dtype.
_FAR = 1e30

#: Above, a product with the low word is a normal number in every dtype of the arithmetic.
_SAFE = 1e-25


class Double(NamedTuple):
    """The unevaluated sum of two arrays; `lo` is below half a last place of `hi`."""

    hi: Array
    lo: Array


def two_sum(a: Array, b: Array) -> Double:
    """``a + b`` exactly (Knuth's TwoSum, for finite values)."""
    s = a + b
    t = s - a
    return Double(s, (a - (s - t)) + (b - t))


def added(xp: Any, a: Double, b: Double) -> Double:
    """``a + b`` in twice the precision; where it is not finite there is no low word."""
    finite = xp.isfinite(a.hi) & xp.isfinite(b.hi)
    s = two_sum(xp.where(finite, a.hi, 0.0), xp.where(finite, b.hi, 0.0))
    hi = xp.where(finite, s.hi, a.hi + b.hi)
    return Double(hi, xp.where(xp.isfinite(hi), s.lo + (a.lo + b.lo), 0.0))


def two_product(xp: Any, a: Array, b: Array, dtype: str) -> Double:
    """``a * b`` exactly (Dekker's product, for values far from overflow)."""
    splitter = _SPLITTERS[dtype]
    wide_a, wide_b = a * splitter, b * splitter
    a_hi, b_hi = wide_a - (wide_a - a), wide_b - (wide_b - b)
    a_lo, b_lo = a - a_hi, b - b_hi
    p = a * b
    # A compiler that fuses this product into the sum it goes to would leave the low word
    # of another product; none fuses through a selection.
    p = xp.where(xp.isnan(p), xp.nan, p)
    return Double(p, ((a_hi * b_hi - p) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo)


def exp(xp: Any, x: Double) -> Array:
    """``exp(hi + lo)``, as accurate as the library's own exponential."""
    return nudged(xp, xp.exp(x.hi), x.lo)


def nudged(xp: Any, y: Array, low: Array) -> Array:
    """``y * (1 + low)`` for ``y >= 0`` and a low word, with one rounding."""
    # Far below, y * low underflows and would be lost.
    return xp.where(y > _SAFE, y + y * low, y * (1.0 + low))


def divided(xp: Any, x: Double, t: Array, dtype: str) -> Double:
    """``(hi + lo) / t`` for ``x <= 0`` and ``t >= 0``; the limits at t = 0 and t = inf."""
    inside = (t > 0) & (t < xp.inf)
    divisor = xp.where(inside, t, 1.0)
    quotient = over(xp, x.hi, divisor)
    # Below, the exponential is 0 and the low word no longer matters.
    near = quotient > _NEGLIGIBLE
    product = two_product(xp, xp.where(near, quotient, 0.0), divisor, dtype)
    remainder = (xp.where(near, x.hi, 0.0) - product.hi) - product.lo
    lo = (remainder + x.lo) / divisor
    level = (x.hi == 0) | ((t > 0) & xp.isfinite(x.hi))
    hi = xp.where(inside, quotient, xp.where(level, 0.0, x.hi - xp.inf))
    return Double(hi, xp.where(inside & xp.isfinite(lo), lo, 0.0))


def multiplied(xp: Any, x: Double, factor: Double, t: Array | None, dtype: str) -> Double:
    """``x * factor`` for ``x <= 0`` and ``factor >= 0``; -inf stays, whatever the factor is.

    `t` is what the product will be divided by.
    """
    finite = xp.isfinite(x.hi)
    rough = xp.where(finite, xp.where(finite, x.hi, 0.0) * factor.hi, x.hi)
    # Below, the exponential is 0 and the low word no longer matters.
    near = rough > (_NEGLIGIBLE if t is None else _NEGLIGIBLE * _between(xp, t, 1.0, _FAR))
    hi = xp.where(near, x.hi, 0.0)
    product = two_product(xp, hi, xp.where(near, factor.hi, 0.0), dtype)
    lo = product.lo + (hi * factor.lo + xp.where(near, x.lo, 0.0) * factor.hi)
    exact = near & xp.isfinite(lo)
    return Double(xp.where(exact, product.hi, rough), xp.where(exact, lo, 0.0))


def _between(xp: Any, x: Array, low: float, high: float) -> Array:
    return xp.where(x > low, xp.where(x < high, x, high), low)


def quotient(xp: Any, x: Array, t: Array, dtype: str) -> Double:
    """``x / t`` for ``t >= 0``; the limits at t = 0 and t = inf.  Infinite `x` stay."""
    inside = (t > 0) & (t < xp.inf)
    divisor = xp.where(inside, t, 1.0)
    hi = over(xp, x, divisor)
    product = two_product(xp, xp.where(xp.isfinite(hi), hi, 0.0), divisor, dtype)
    lo = ((xp.where(xp.isinf(x), 0.0, x) - product.hi) - product.lo) / divisor
    side = xp.where(x > 0, xp.full_like(hi, xp.inf), xp.where(x < 0, -xp.inf, x))
    limit = xp.where(xp.isfinite(x) & (t > 0), 0.0, side)
    return Double(xp.where(inside, hi, limit), xp.where(inside & xp.isfinite(lo), lo, 0.0))


def over(xp: Any, x: Array, divisor: Array) -> Array:
    """``x / divisor``, where infinite `x` stay and do not move with the divisor."""
    infinite = xp.isinf(x)
    return xp.where(infinite, x, xp.where(infinite, 0.0, x) / divisor)


def affine(xp: Any, a: Array, x: Double, b: Array, dtype: str) -> Double:
    """``a * x + b`` in twice the precision, for values far from overflow."""
    product = two_product(xp, x.hi, xp.zeros_like(x.hi) + a, dtype)
    total = two_sum(product.hi, xp.zeros_like(x.hi) + b)
    return _renormalized(total.hi, total.lo + (product.lo + a * x.lo))


def ratio(xp: Any, a: Double, b: Double, dtype: str) -> Double:
    """``a / b`` in twice the precision, for values far from overflow."""
    hi = a.hi / b.hi
    product = two_product(xp, hi, b.hi, dtype)
    return _renormalized(hi, (((a.hi - product.hi) - product.lo) + a.lo - hi * b.lo) / b.hi)


_TERMS = 18


@cache
def reciprocal_factorials(dtype: str) -> tuple[tuple[float, float], ...]:
    """1/j! for the first j, each as a sum of two numbers of the dtype."""
    kind = np.dtype(dtype).type
    words = []
    for j in range(_TERMS):
        exact = Fraction(1, factorial(j))
        hi = float(kind(float(exact)))
        words.append((hi, float(kind(float(exact - Fraction(hi))))))
    return tuple(words)


def complement(xp: Any, z: Array) -> Array:
    """``1 - exp(-z)`` for ``z >= 0``, within two last places.

    JAX's own expm1 is off by 4.8 of them in float32 below 1/2, where this is a series.
    """
    small = xp.where(z < 0.5, z, 0.0)
    series = xp.ones_like(z)
    for k in range(_TERMS, 1, -1):
        series = 1.0 - small / k * series
    return xp.where(z < 0.5, small * series, -xp.expm1(-z))


def log(xp: Any, x: Array, dtype: str) -> Double:
    """``log(x)`` in twice the precision, for finite ``x >= 1`` (of which there are few).

    One Newton step from the library's logarithm y: the exponential of y / 128, which
    is exact, is a short series in double words; squared seven times it is that of y.
    """
    y = xp.log(x)
    r = y / 128.0
    e = Double(xp.zeros_like(r), xp.zeros_like(r))
    for hi, lo in reversed(reciprocal_factorials(dtype)):
        p = two_product(xp, e.hi, r, dtype)
        s = two_sum(p.hi, xp.full_like(r, hi))
        e = _renormalized(s.hi, s.lo + (p.lo + e.lo * r) + lo)
    for _ in range(7):
        p = two_product(xp, e.hi, e.hi, dtype)
        e = _renormalized(p.hi, p.lo + 2.0 * e.hi * e.lo)
    return Double(y, ((x - e.hi) - e.lo) / x)


def _renormalized(hi: Array, lo: Array) -> Double:
    s = hi + lo
    return Double(s, lo - (s - hi))


def compensated_sum(xp: Any, x: Array, axis: tuple[int, ...]) -> Array:
    """Sum over `axis`, kept as axes of size 1, right to the last place or two.

    A pairwise tree of TwoSums: the error does not grow with the length, nor
    depend on how the library orders its own sums.  Costs six flops an element.
    """
    order = tuple(i for i in range(x.ndim) if i not in axis) + axis
    outer = tuple(x.shape[i] for i in order[: x.ndim - len(axis)])
    kept = tuple(1 if i in axis else size for i, size in enumerate(x.shape))
    length = 1
    for i in axis:
        length *= x.shape[i]
    s = xp.reshape(xp.permute_dims(x, order), (*outer, length))
    error = xp.zeros_like(s)
    while length > 1:
        half = length // 2
        level = two_sum(s[..., :half], s[..., half : 2 * half])
        lost = error[..., :half] + error[..., half : 2 * half] + level.lo
        if length % 2:
            s = xp.concat([level.hi, s[..., -1:]], axis=-1)
            error = xp.concat([lost, error[..., -1:]], axis=-1)
        else:
            s, error = level.hi, lost
        length = half + length % 2
    # A sum with an infinite or NaN term: the correction is NaN, the sum is right.
    return xp.reshape(xp.where(xp.isfinite(error), s + error, s), kept)
