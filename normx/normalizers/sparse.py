r"""Normalizers that give exact zeros: sparsemax, entmax, normmax, and the budgeted one.

Each has one unknown per row, a threshold.  It is found in two moves: so many halvings
of an interval that the support, the entries with a weight, is known; then steps of
Newton's method on that support, with sums that lose nothing and a threshold in two
words, since a weight is a difference that may be far smaller than its terms.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, Unpack

import numpy as np

from normx import _arithmetic as arithmetic
from normx import laws
from normx._arithmetic import Double
from normx._options import ArrayLike, Axis, RowOptions
from normx._record import Paper, Parameter, normalizer
from normx._row import Row

Array = Any
ArrayT = TypeVar("ArrayT")

_MARTINS = Paper(
    "A. F. T. Martins and R. F. Astudillo",
    "From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification",
    2016,
    "ICML 2016, arXiv:1602.02068",
)
_PETERS = Paper(
    "B. Peters, V. Niculae and A. F. T. Martins",
    "Sparse Sequence-to-Sequence Models",
    2019,
    "ACL 2019, arXiv:1905.05702",
)
_CORREIA = Paper(
    "G. M. Correia, V. Niculae and A. F. T. Martins",
    "Adaptively Sparse Transformers",
    2019,
    "EMNLP 2019, arXiv:1909.00015",
)
_BLONDEL = Paper(
    "M. Blondel, A. F. T. Martins and V. Niculae",
    "Learning with Fenchel-Young Losses",
    2020,
    "Journal of Machine Learning Research 21(35), 1-69",
)
_MALAVIYA = Paper(
    "C. Malaviya, P. Ferreira and A. F. T. Martins",
    "Sparse and Constrained Attention for Neural Machine Translation",
    2018,
    "ACL 2018, arXiv:1805.08241",
)

#: Halvings that leave of an interval no more than rounding does.
_HALVINGS = {"float32": 30, "float64": 60}
#: Halvings for the scale of a budget's threshold, whose fraction has halvings of its own.
_COARSE = {"float32": 30, "float64": 48}
#: Some roundings of a sum of powers.
_ROUNDING = {"float32": 2.0**-18, "float64": 2.0**-47}
#: Half a last place, squared and doubled twice: differences below are rounding.
_NOISE = {"float32": 2.0**-46, "float64": 2.0**-104}
#: Thresholds stay above exp of minus this, so that their inverses are finite.
_DEPTH = {"float32": 40.0, "float64": 300.0}
#: Distances that no weight can bridge, at any scale below.
_FAR = 1e10
#: Any greater exponent gives the same weights.
_STEEPEST = 1e8


class _Curve(NamedTuple):
    """Which threshold is wanted: that with ``sum((scale * z + threshold)**power) = 1``.

    The z are the scores less their maximum, so that the threshold is the base of the
    largest weight, between 0 and 1.  Bases below 0 do not count.
    """

    scale: Array
    power: Double | int
    inverse: Array


_SPARSEMAX = _Curve(1.0, 1, 1.0)
_ENTMAX15 = _Curve(0.5, 2, 0.5)


class _Solved(NamedTuple):
    """Bases and their powers; 0 outside of the support."""

    support: Array
    base: Double
    power: Double


def _excess(row: Row, x: Double, among: Array, total: Double) -> Array:
    """Sum of some entries less `total`, which is dealt out before: nothing large cancels."""
    xp = row.xp
    count = xp.maximum(row.count(among), xp.ones_like(total.hi))
    share = arithmetic.ratio(xp, total, Double(count, xp.zeros_like(count)), row.dtype)
    d = arithmetic.two_sum(x.hi, -share.hi)
    lost = d.lo + (x.lo - share.lo)
    return row.sum(xp.where(among, d.hi, 0.0)) + row.sum(xp.where(among, lost, 0.0))


def _square(xp: Any, x: Double, dtype: str) -> Double:
    square = arithmetic.two_product(xp, x.hi, x.hi, dtype)
    return Double(square.hi, square.lo + 2.0 * x.hi * x.lo)


def _raised(row: Row, base: Double, support: Array, power: Double | int) -> Double:
    """A power of the bases of the support, 0 elsewhere; exact if it is the first or second."""
    xp = row.xp
    if power == 1:
        return base
    square = _square(xp, base, row.dtype)
    if not isinstance(power, Double):
        return square
    # The low words of base and power count where the power is large or the base is small.
    hi = xp.where(support, base.hi, 1.0)
    whole = xp.zeros_like(hi) + power.hi
    log = xp.log(hi)
    rest = whole * (base.lo / hi) + power.lo * log
    general = xp.where(support, hi**whole * xp.exp(rest), 0.0)
    first, second = whole == 1.0, whole == 2.0
    # 1, and as a function of the power what the exact powers are short of.
    drift = xp.exp((whole - row.library.stop_gradient(whole)) * log)
    return Double(
        xp.where(first, base.hi * drift, xp.where(second, square.hi * drift, general)),
        xp.where(first, base.lo * drift, xp.where(second, square.lo * drift, 0.0)),
    )


def _roughly(xp: Any, y: Array, power: Double | int) -> Array:
    """``(1 + y)**power`` for y above -1."""
    if isinstance(power, Double):
        return xp.exp(power.hi * xp.log1p(y))
    return 1.0 + y if power == 1 else (1.0 + y) * (1.0 + y)


def _threshold(row: Row, curve: _Curve) -> tuple[Array, Array, Array]:
    """The threshold in two words, short of rounding, and how far off it can be.

    Halved is the interval of -log(threshold**power), which is that between 0 and log n.
    In it the limits of all powers are harmless: a power without end makes it the
    logarithm of the softmax's sum.
    """
    xp, dtype = row.xp, row.dtype
    z = xp.maximum(row.centred.relative.hi, -_FAR)
    high = xp.log(xp.maximum(row.length, xp.ones_like(row.length)))
    low = xp.zeros_like(high)
    for _ in range(_HALVINGS[dtype]):
        middle = 0.5 * (low + high)
        y = z * (
            curve.scale * xp.exp(xp.minimum(middle * curve.inverse, 0.0 * high + _DEPTH[dtype]))
        )
        inside = y > -1.0
        total = xp.where(inside, _roughly(xp, xp.where(inside, y, 0.0), curve.power), 0.0)
        more = xp.sum(total, axis=row.axis, keepdims=True) > xp.exp(middle)
        low, high = xp.where(more, middle, low), xp.where(more, high, middle)
    depth = xp.minimum(high * curve.inverse, 0.0 * high + _DEPTH[dtype])
    near_one = arithmetic.two_sum(xp.ones_like(high), xp.expm1(-depth))
    shallow = depth < 0.5
    threshold = xp.where(shallow, near_one.hi, xp.exp(-depth))
    # An error of the sum is as large in the logarithm that was halved, at most.
    off = 4.0 * (high - low) + _ROUNDING[dtype] * (1.0 + high)
    most = threshold * xp.minimum(off * curve.inverse, 0.0 * high + 0.25)
    return threshold, xp.where(shallow, near_one.lo, 0.0), most


def _solved(row: Row, curve: _Curve) -> _Solved:
    """The support, and its bases to their last place."""
    xp, dtype = row.xp, row.dtype
    # Its derivatives come with the steps below, an order with each.  Those of the halvings are
    # nothing but work: XLA ran a program with the second ones for minutes.
    hi, lo, most = map(row.library.stop_gradient, _threshold(row, curve))
    threshold = Double(hi, lo)
    z = row.centred.relative
    # Below, no threshold lifts a base above 0.
    near = xp.maximum(z.hi, -_FAR) * curve.scale > -2.0
    z = Double(xp.where(near, z.hi, 0.0), xp.where(near, z.lo, 0.0))
    one = Double(xp.ones_like(row.maximum), xp.zeros_like(row.maximum))
    steps = 2
    for step in range(steps + 1):
        base = arithmetic.affine(xp, curve.scale, z, threshold.hi, dtype)
        base = arithmetic.two_sum(base.hi, base.lo + threshold.lo)
        support = near & (base.hi > _NOISE[dtype] * threshold.hi)
        base = Double(xp.where(support, base.hi, 0.0), xp.where(support, base.lo, 0.0))
        power = _raised(row, base, support, curve.power)
        if step < steps:
            slope = row.sum(power.hi / xp.where(support, base.hi, 1.0))
            slope = xp.where(slope > 0.0, slope, 1.0)
            correction = _excess(row, power, support, one) * curve.inverse / slope
            # A step that is longer has no eyes for an entry that it brings into the support.
            correction = xp.maximum(xp.minimum(correction, most), -most)
            threshold = arithmetic.two_sum(threshold.hi, threshold.lo - correction)
    return _Solved(support, base, power)


def _or_nan(row: Row, y: Array) -> Array:
    """The result; NaN in rows that hold one."""
    return row.xp.where(row.xp.isnan(row.maximum), row.xp.nan, y)


def _projected(row: Row, cotangent: Array, weight: Array) -> Array:
    """The gradient where the weights move by `weight` each, their sum staying as it is."""
    total = row.sum(weight)
    mean = row.sum(weight * cotangent) / row.xp.where(total > 0.0, total, 1.0)
    return weight * (cotangent - mean)


# -------------------------------------------------- sparsemax and 1.5-entmax


def _sparsemax(row: Row) -> Array:
    return _or_nan(row, _solved(row, _SPARSEMAX).base.hi)


def _sparsemax_vjp(row: Row, cotangent: Array) -> dict[str, Array]:
    support = _solved(row, _SPARSEMAX).support
    weight = row.xp.where(support, row.xp.ones_like(cotangent), 0.0)
    return {"x": _projected(row, cotangent, weight)}


def _entmax15(row: Row) -> Array:
    square = _solved(row, _ENTMAX15).power
    return _or_nan(row, square.hi + square.lo)


def _entmax15_vjp(row: Row, cotangent: Array) -> dict[str, Array]:
    return {"x": _projected(row, cotangent, _solved(row, _ENTMAX15).base.hi)}


# --------------------------------------------------------- any other power


def _entmax_curve(row: Row, alpha: Array) -> _Curve:
    """For alpha above 1; at 1 any."""
    xp = row.xp
    scale = xp.where(alpha == 1.0, 1.0, alpha - 1.0) + xp.zeros_like(row.maximum)
    scale = xp.minimum(scale, xp.full_like(scale, _STEEPEST))
    one = Double(xp.ones_like(scale), xp.zeros_like(scale))
    return _Curve(scale, arithmetic.ratio(xp, one, Double(scale, one.lo), row.dtype), scale)


def _softmax(row: Row) -> Array:
    e = arithmetic.exp(row.xp, row.centred.relative)
    total = row.sum(e)
    return e / row.xp.where(total > 0.0, total, 1.0)


def _entmax(row: Row, *, alpha: Array) -> Array:
    xp = row.xp
    power = _solved(row, _entmax_curve(row, alpha)).power
    y = power.hi + power.lo
    # 1 but for the rounding of the powers.  First and second powers round nothing: what they are
    # divided by is 1, with the total's derivative.
    total = row.sum(y)
    total = xp.where(total == 0.0, 1.0, total)
    exact = (alpha == 2.0) | (alpha == 1.5)
    unit = total / row.library.stop_gradient(total)
    y = y / xp.where(exact, unit, total)
    return _or_nan(row, xp.where(alpha == 1.0, _entmax_at_one(row, alpha), y))


def _entmax_at_one(row: Row, alpha: Array) -> Array:
    """The limit, and beside it something that is 0 and has the limit's slope in alpha."""
    xp, p = row.xp, _softmax(row)
    log = xp.log(xp.where(p > 0.0, p, 1.0))
    direct = -0.5 * p * log * log
    step = xp.where(alpha == 1.0, alpha - row.library.stop_gradient(alpha), 0.0)
    return p + step * (direct - p * row.sum(direct))


#: Beyond, its exponential is about to overflow.
_HIGHEST = {"float32": 80.0, "float64": 700.0}


def _curvature(xp: Any, y: Array) -> Array:
    """``(exp(y) - 1 - y) / y**2`` for ``y >= 0``, 1/2 at 0."""
    small = xp.where(y < 1.0, y, 0.0)
    series = xp.zeros_like(y) + 1.0
    for k in range(20, 2, -1):
        series = 1.0 + small / k * series
    large = xp.where(y < 1.0, 1.0, y)
    return xp.where(y < 1.0, 0.5 * series, (xp.expm1(large) - large) / (large * large))


def _entmax_vjp(row: Row, cotangent: Array, *, alpha: Array | None = None) -> dict[str, Array]:
    # With L = log p and a = alpha - 1: a weight moves by p**(1 - a) with its score, and
    # by -p * L**2 * (exp(-a*L) - 1 + a*L) / (a*L)**2 with alpha, less the sum's part.
    xp = row.xp
    alpha = xp.ones_like(row.maximum) * (1.5 if alpha is None else alpha)
    p = _entmax(row, alpha=alpha)
    inside = p > 0.0
    log = xp.log(xp.where(inside, p, 1.0))
    y = -(xp.minimum(alpha, xp.full_like(alpha, _STEEPEST)) - 1.0) * log
    y = xp.minimum(y, xp.full_like(y, _HIGHEST[row.dtype]))
    weight = xp.where(inside, xp.where(inside, p, 0.0) * xp.exp(y), 0.0)
    direct = xp.where(inside, -p * log * log * _curvature(xp, y), 0.0)
    gradient = _projected(row, cotangent, weight)
    total = row.sum(weight)
    mean = row.sum(weight * cotangent) / xp.where(total > 0.0, total, 1.0)
    return {
        "x": _or_nan(row, gradient),
        "alpha": _or_nan(row, row.sum(direct * (cotangent - mean))),
    }


def _normmax_parts(row: Row, alpha: Array) -> tuple[_Solved, Array, Double]:
    """The solution, the weights before their sum is 1, and their power."""
    xp = row.xp
    a = alpha - 1.0 + xp.zeros_like(row.maximum)
    a = xp.minimum(a, xp.full_like(a, _STEEPEST))
    one = Double(xp.ones_like(a), xp.zeros_like(a))
    power = arithmetic.ratio(xp, one, Double(a, one.lo), row.dtype)
    whole = arithmetic.two_sum(power.hi, one.hi)
    curve = _Curve(1.0, Double(whole.hi, whole.lo + power.lo), a / (1.0 + a))
    solved = _solved(row, curve)
    raised = _raised(row, solved.base, solved.support, power)
    return solved, raised.hi + raised.lo, power


def _normmax(row: Row, *, alpha: Array) -> Array:
    xp = row.xp
    _, raised, _ = _normmax_parts(row, alpha)
    total = row.sum(raised)
    return _or_nan(row, raised / xp.where(total > 0.0, total, 1.0))


def _normmax_vjp(row: Row, cotangent: Array, *, alpha: Array | None = None) -> dict[str, Array]:
    # p = b**q / sum(b**q) with q = 1/(alpha - 1), and b = z + t with sum(b**(q + 1)) = 1.
    xp = row.xp
    alpha = xp.ones_like(row.maximum) * (2.0 if alpha is None else alpha)
    solved, raised, power = _normmax_parts(row, alpha)
    total = row.sum(raised)
    total = xp.where(total > 0.0, total, 1.0)
    p = raised / total
    centred = cotangent - row.sum(p * cotangent)
    base = xp.where(solved.support, solved.base.hi, 1.0)
    log = xp.log(base) + solved.base.lo / base
    q = power.hi
    pull = xp.where(solved.support, q * p / base * centred, 0.0)
    shift = row.sum(pull)
    by_power = row.sum(p * log * centred) - shift * row.sum(p * base * log) / (q + 1.0)
    return {"x": _or_nan(row, pull - p * shift), "alpha": _or_nan(row, -q * q * by_power)}


# ------------------------------------------------------------------ budget


def _distances(row: Row) -> Double:
    """Scores over the temperature, less their maximum, in two words however far they are."""
    xp = row.xp
    z = replace(row, temperature=None).centred.relative
    # A difference that overflowed is -inf; it is as far as a number can be.
    farthest = xp.full_like(z.hi, -0.25 * float(np.finfo(row.dtype).max))
    lo = xp.where(row.present & (z.hi > farthest), z.lo, 0.0)
    z = Double(xp.where(row.present, xp.maximum(z.hi, farthest), 0.0), lo)
    if row.temperature is not None:
        # At the lowest temperature that matters distinct scores are far apart: the limit at 0.
        spread = -xp.min(z.hi, axis=row.axis, keepdims=True)
        lowest = spread * 2.0 ** -_HALVINGS[row.dtype]
        t = xp.maximum(row.temperature + xp.zeros_like(spread), lowest)
        t = xp.where(t > 0.0, xp.minimum(t, xp.full_like(t, 1e30)), 1.0)
        z = arithmetic.ratio(xp, z, Double(t, xp.zeros_like(t)), row.dtype)
    # So far away that a last place is a whole weight, what shares a last place is a tie.
    near = xp.abs(z.hi) * float(np.finfo(row.dtype).eps) < 1.0
    return Double(z.hi, xp.where(near, z.lo, 0.0))


def _filled(row: Row, budget: Array) -> Array:
    """The weights of rows of finite scores, for a budget between 0 and their number."""
    xp, dtype, present = row.xp, row.dtype, row.present
    z = _distances(row)

    def clipped(x: Array) -> Array:
        x = xp.minimum(xp.maximum(x, xp.zeros_like(x)), xp.ones_like(x))
        return xp.where(present, x, 0.0)

    def enough(x: Array) -> Array:
        return xp.sum(clipped(x), axis=row.axis, keepdims=True) >= budget

    # The scale first: the threshold may be as far below the maximum as any score is.
    low = xp.zeros_like(row.maximum)
    high = 1.001 * xp.log1p(1.0 - xp.min(z.hi, axis=row.axis, keepdims=True))
    for _ in range(_COARSE[dtype]):
        middle = 0.5 * (low + high)
        yes = enough(z.hi + xp.expm1(middle))
        low, high = xp.where(yes, low, middle), xp.where(yes, middle, high)
    # Then its distance to the lowest score that it lifts above 0, from which all differences
    # are exact; a score just below may have been taken for that one.
    reached = present & (z.hi + xp.expm1(high) >= 0.0)
    anchor = xp.min(xp.where(reached, z.hi, 0.0), axis=row.axis, keepdims=True)
    for _ in range(3):
        above = xp.min(xp.where(z.hi > anchor, z.hi, 0.0), axis=row.axis, keepdims=True)
        anchor = xp.where(enough(z.hi - anchor), above, anchor)
    d = arithmetic.two_sum(z.hi, -anchor)
    d = arithmetic.two_sum(d.hi, d.lo + z.lo)
    low, high = xp.full_like(anchor, -1.0), xp.full_like(anchor, 2.0)
    for _ in range(_HALVINGS[dtype]):
        middle = 0.5 * (low + high)
        yes = enough(d.hi + middle)
        low, high = xp.where(yes, low, middle), xp.where(yes, middle, high)
    level = Double(high, xp.zeros_like(high))
    one = xp.ones_like(budget)
    steps = 2
    for step in range(steps + 1):
        y = arithmetic.two_sum(d.hi, level.hi)
        y = arithmetic.two_sum(y.hi, y.lo + (d.lo + level.lo))
        whole = present & ((y.hi > 1.0) | ((y.hi == 1.0) & (y.lo >= 0.0)))
        part = present & ~whole & (y.hi > _NOISE[dtype])
        if step < steps:
            rest = arithmetic.two_sum(budget, -row.count(whole))
            correction = _excess(row, y, part, rest) / xp.maximum(row.count(part), one)
            correction = xp.where(xp.any(part, axis=row.axis, keepdims=True), correction, 0.0)
            level = arithmetic.two_sum(level.hi, level.lo - correction)
    return xp.where(whole, 1.0, xp.where(part, y.hi, 0.0))


def _budget(row: Row, *, budget: Array) -> Array:
    xp = row.xp
    infinite = row.scores == xp.inf
    count = row.count(infinite)
    finite = row.without(infinite)
    # What is left when every entry of +inf has had its share.
    budget = budget + xp.zeros_like(count)
    left = xp.maximum(budget - count, xp.zeros_like(count))
    y = _filled(finite, xp.minimum(left, finite.length))
    y = xp.where(finite.present & (left >= finite.length), 1.0, y)
    one = xp.ones_like(count)
    share = xp.minimum(xp.minimum(budget, count) / xp.maximum(count, one), one)
    return _or_nan(row, xp.where(infinite, share, y))


def _budget_vjp(row: Row, cotangent: Array, *, budget: Array) -> dict[str, Array]:
    xp = row.xp
    y = _budget(row, budget=budget)
    part = xp.where((y > 0.0) & (y < 1.0), xp.ones_like(y), 0.0)
    mean = row.sum(part * cotangent) / xp.maximum(row.sum(part), xp.ones_like(row.maximum))
    # Entries of +inf share what there is, wherever the others are.
    moving = xp.where(xp.isinf(row.scores), 0.0, part)
    return {
        "x": _or_nan(row, _projected(row, cotangent, moving)),
        "budget": _or_nan(row, mean),
    }


# ------------------------------------------------------------- definitions


def _lifted(m: Any, x: Array, scale: Any, power: Any) -> Array:
    """The bases whose powers sum to 1: Newton's method, kept between bounds."""
    z = scale * (x - np.max(x))
    low, high = z[0] * 0, z[0] * 0 + 1
    t = high
    for _ in range(2000):
        b = (z + t)[z + t > 0]
        excess = m.sum(b**power) - 1
        low, high = (low, t) if excess > 0 else (t, high)
        new = t - excess / (power * m.sum(b ** (power - 1)))
        if t + (new - t) / 1024 == t:  # down to rounding, which may point anywhere
            break
        t = new if low < new < high else (low + high) / 2
    return np.maximum(z + t, 0)


def _entmax_definition(m: Any, x: Array, alpha: Any = 1.5) -> Array:
    if alpha == 1:
        return m.exp(x - np.max(x)) / m.sum(m.exp(x - np.max(x)))
    a = x[0] * 0 + alpha - 1
    b = _lifted(m, x, a, 1 / a)
    return np.where(b > 0, np.where(b > 0, b, 1) ** (1 / a), 0)


def _normmax_definition(m: Any, x: Array, alpha: Any = 2.0) -> Array:
    a = x[0] * 0 + alpha - 1
    b = _lifted(m, x, 1, 1 + 1 / a)
    y = np.where(b > 0, np.where(b > 0, b, 1) ** (1 / a), 0)
    return y / m.sum(y)


def _budget_definition(m: Any, x: Array, budget: Any) -> Array:
    if budget >= x.size:
        return np.ones(x.shape)
    infinite = x == np.inf
    if np.any(infinite):
        y = np.where(infinite, min(budget / np.sum(infinite), 1), 0 * budget)
        if np.sum(infinite) < budget:
            y[~infinite] = _budget_definition(m, x[~infinite], budget - np.sum(infinite))
        return y
    z = x - np.max(x)

    def weights(t: Any) -> Array:
        return np.minimum(np.maximum(z + t, 0), 1)

    # The sum of the weights is linear between the thresholds where one becomes 0 or 1.
    knots = np.sort(np.concatenate([-z, 1 - z]))
    low, high = 0, knots.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if m.sum(weights(knots[middle])) < budget else (low, middle)
    at, after = m.sum(weights(knots[low])), m.sum(weights(knots[high]))
    share = (budget - at) / (after - at) if after > at else 0
    return weights(knots[low] + share * (knots[high] - knots[low]))


# ----------------------------------------------------------------- records

_LAWS = (
    laws.sums_to_one,
    laws.within_unit_interval,
    laws.shift_invariant,
    laws.permutation_equivariant,
    laws.monotone,
    laws.masking_is_deleting,
    laws.equal_scores_equal_bits,
    laws.rows_are_independent,
    laws.temperature_limits,
    laws.temperature_divides,
    laws.exact_zeros,
    laws.nothing_at_the_threshold,
    laws.keeps_the_argmax,
)


@normalizer(
    stages=None,
    apply=_sparsemax,
    definition=lambda m, x: _lifted(m, x, 1, 1),
    vjp=_sparsemax_vjp,
    laws=_LAWS,
    papers=(_MARTINS,),
)
def sparsemax(x: ArrayT, /, *, axis: Axis = -1, **options: Unpack[RowOptions]) -> ArrayT:
    r"""Project scores onto the simplex: the closest weights, many of them zero.

    .. math:: y_i = \max(0, x_i - \tau), \quad \tau \text{ such that } \sum_j y_j = 1

    Parameters
    ----------
    {x}
    {axis}
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    entmax : The family from softmax over sparsemax to the maximum.
    budget : The same with another sum, and weights of at most 1.

    Notes
    -----
    The threshold is found by halving an interval, without sorting, and then computed
    from the support in two words: a weight is right to its last place even where it is
    a small difference of large scores.  Entries of +inf share the mass; NaN makes its
    row NaN, and no other.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.sparsemax([-2.0, 0.0, 0.5])
    array([0.  , 0.25, 0.75])
    """


@normalizer(
    stages=None,
    apply=_entmax15,
    definition=lambda m, x: _lifted(m, x, x[0] * 0 + 0.5, 2) ** 2,
    vjp=_entmax15_vjp,
    laws=_LAWS,
    papers=(_PETERS,),
)
def entmax15(x: ArrayT, /, *, axis: Axis = -1, **options: Unpack[RowOptions]) -> ArrayT:
    r"""Turn scores into weights half way between softmax and sparsemax.

    .. math:: y_i = \max(0, x_i/2 - \tau)^2, \quad \tau \text{ such that } \sum_j y_j = 1

    Parameters
    ----------
    {x}
    {axis}
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    entmax : The same for any alpha; this is alpha = 1.5.

    Notes
    -----
    The threshold is found by halving an interval, without sorting, and then computed
    from the support in two words: a weight is right to its last places even where its
    root is a small difference of large scores.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.entmax15([-2.0, 0.0, 0.5]).round(8)
    array([0.        , 0.32600736, 0.67399264])
    """


@normalizer(
    stages=None,
    apply=_entmax,
    definition=_entmax_definition,
    vjp=_entmax_vjp,
    parameters=(Parameter("alpha", shape="row", minimum=1.0),),
    laws=_LAWS,
    papers=(_PETERS, _CORREIA),
)
def entmax(
    x: ArrayT, /, *, axis: Axis = -1, alpha: ArrayLike = 1.5, **options: Unpack[RowOptions]
) -> ArrayT:
    r"""Turn scores into weights that are the sparser, the larger alpha is.

    .. math::
        y_i = \max(0, (\alpha - 1) x_i - \tau)^{1/(\alpha - 1)},
        \quad \tau \text{ such that } \sum_j y_j = 1

    Parameters
    ----------
    {x}
    {axis}
    alpha : float or array
        At least 1; an array has size 1 along `axis`.  1 is softmax, 2 is sparsemax.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    softmax : The limit at alpha = 1.
    sparsemax : alpha = 2.
    entmax15 : alpha = 1.5.

    Notes
    -----
    The limit at alpha = 1 is taken without cancellation, by the weights and by their
    gradients.  At 1, 1.5 and 2 every weight is right to its last places; at any other
    alpha the powers are rounded, which moves the threshold, and with it the smallest
    weights, by units in the last place of the largest.  Beyond 3, a weight whose
    score all but meets the threshold is known to ``2**(-44 / (alpha - 1))`` only.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.entmax([[-1.0, 0.0, 0.5], [1.0, 2.0, 3.5]], alpha=1.33).round(4)
    array([[0.046 , 0.3276, 0.6264],
           [0.0026, 0.1012, 0.8963]])
    """


@normalizer(
    stages=None,
    apply=_normmax,
    definition=_normmax_definition,
    vjp=_normmax_vjp,
    parameters=(Parameter("alpha", shape="row", above=1.0),),
    laws=_LAWS,
    papers=(_BLONDEL,),
)
def normmax(
    x: ArrayT, /, *, axis: Axis = -1, alpha: ArrayLike = 2.0, **options: Unpack[RowOptions]
) -> ArrayT:
    r"""Turn scores into weights by a norm as the regularizer: the larger alpha, the flatter.

    .. math::
        y = \operatorname*{argmax}_{p \ge 0, \sum_j p_j = 1} \langle p, x \rangle - \|p\|_\alpha

    Parameters
    ----------
    {x}
    {axis}
    alpha : float or array
        Order of the norm, above 1; an array has size 1 along `axis`.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    sparsemax : Half the square of the norm of order 2 as the regularizer.

    Notes
    -----
    The weights are proportional to :math:`\max(0, x_i - \tau)^{1/(\alpha - 1)}`, with
    a threshold for which the powers :math:`\alpha/(\alpha - 1)` of these bases sum to 1.
    At alpha = 2 every weight is right to its last places; at any other the smallest
    ones to units in the last place of the largest.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.normmax([0.0, 0.25, 0.5, 0.75, 1.0]).round(4)
    array([0.    , 0.0239, 0.1746, 0.3254, 0.4761])
    """


@normalizer(
    stages=None,
    apply=_budget,
    definition=_budget_definition,
    vjp=_budget_vjp,
    at_infinity="pointwise",
    parameters=(Parameter("budget", shape="row", minimum=0.0),),
    example={"budget": 1.5},
    laws=(
        laws.within_unit_interval,
        laws.shift_invariant,
        laws.monotone,
        laws.keeps_the_argmax,
        *laws.OF_EVERY_ROW,
    ),
    papers=(_MALAVIYA, _BLONDEL),
)
def budget(
    x: ArrayT, /, *, budget: ArrayLike, axis: Axis = -1, **options: Unpack[RowOptions]
) -> ArrayT:
    r"""Choose entries: weights between 0 and 1 whose sum is the budget.

    .. math::
        y = \operatorname*{argmax}_{0 \le p \le 1, \sum_j p_j = b}
            \langle p, x \rangle - \tfrac{1}{2} \|p\|^2
          = \min(1, \max(0, x - \tau))

    Parameters
    ----------
    {x}
    budget : float or array
        The sum of the weights, at least 0; an array has size 1 along `axis`.  Where it
        exceeds the number of entries that take part, each of them gets 1.
    {axis}
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    sparsemax : A budget of 1.

    Notes
    -----
    The threshold is found by halving an interval around a score, without sorting, and
    then computed from the entries between 0 and 1 in two words.  Entries of +inf get
    equal weights, and the others what they leave.  At temperature 0 the largest
    entries get 1, and ties share what is left.  Scores so far below the maximum that
    their distance to it has a last place of 1 or more count as equal where they share
    that distance.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.budget([2.0, 0.5, 0.25, -3.0], budget=1.5)
    array([1.   , 0.375, 0.125, 0.   ])
    """
