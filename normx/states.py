"""Mergeable states of rows.

A row may be cut into blocks, the state of each block found where it lies, and
the states merged in any order: vector lanes, threads, chunks on a cluster and
shards on devices are all the same merge.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from normx import _arithmetic as arithmetic
from normx._arithmetic import Double
from normx._row import Row
from normx.plugins import dtype_name

Array = Any


class Monoid(Protocol):
    """States of blocks of a row, and how two of them become one."""

    def identity(self, xp: Any, like: Array) -> Any:
        """The neutral state, shaped and typed as `like`."""

    def merge(self, xp: Any, a: Any, b: Any) -> Any:
        """The state of two blocks together."""


class MaxSum(NamedTuple):
    """Maximum of the scores, and the sum of ``exp(x - maximum)`` less one.

    The entry that attains the maximum contributes exactly 1 to the sum.  Storing
    the excess over it keeps the last digits of peaked rows, where the whole sum
    would round to 1 and its logarithm to 0.  The neutral state is (-inf, -1): no
    maximum, an empty sum.
    """

    maximum: Array
    excess: Array


class MaxSumMonoid:
    """The state of the softmax family (Milakov and Gimelshein, 2018)."""

    def identity(self, xp: Any, like: Array) -> MaxSum:
        return MaxSum(xp.full_like(like, -xp.inf), xp.full_like(like, -1.0))

    def lift(self, row: Row) -> MaxSum:
        xp, (origin, relative) = row.xp, row.alone.centred
        top = relative.hi == 0
        others = row.sum(xp.where(top, 0.0, arithmetic.exp(xp, relative)))
        excess, slip = others + (row.count(top) - 1.0), row.slip()
        return MaxSum(origin, excess if slip is None else excess + (1.0 + excess) * slip)

    def merge(self, xp: Any, a: MaxSum, b: MaxSum) -> MaxSum:
        maximum = xp.maximum(a.maximum, b.maximum)
        a_wins = a.maximum == maximum
        # Rounded, the difference would cost the excess of a peaked row, and the logarithm
        # that hangs on it, half a last place for every unit of it.
        distance = gap(xp, xp.where(a_wins, b.maximum, a.maximum), maximum)
        lower = (1.0 + xp.where(a_wins, b.excess, a.excess)) * arithmetic.exp(xp, distance)
        return MaxSum(maximum, xp.where(a_wins, a.excess, b.excess) + lower)


class MaxSumMoment(NamedTuple):
    """A `MaxSum`, and the sum of ``(x - maximum) exp(x - maximum)``: enough for the entropy."""

    maximum: Array
    excess: Array
    moment: Array

    def entropy(self, xp: Any, dtype: str) -> Double:
        """Shannon entropy of the weights, in nats, in twice the precision of the sums."""
        one = xp.ones_like(self.excess)
        total = arithmetic.two_sum(one, xp.where(self.excess == -1.0, 0.0, self.excess))
        hi, lo = arithmetic.log(xp, total.hi, dtype)
        moment = Double(-self.moment, xp.zeros_like(one))
        mean = arithmetic.ratio(xp, moment, total, dtype)
        return arithmetic.added(xp, Double(hi, lo + total.lo / total.hi), mean)


class MaxSumMomentMonoid:
    """The state of a softmax and its entropy."""

    def identity(self, xp: Any, like: Array) -> MaxSumMoment:
        return MaxSumMoment(*MAX_SUM.identity(xp, like), xp.zeros_like(like))

    def lift(self, row: Row) -> MaxSumMoment:
        xp, relative = row.xp, row.alone.centred.relative
        finite = xp.where(relative.hi > -xp.inf, relative.hi, 0.0)
        moment = row.sum(finite * arithmetic.exp(xp, relative))
        return MaxSumMoment(*MAX_SUM.lift(row), moment)

    def merge(self, xp: Any, a: MaxSumMoment, b: MaxSumMoment) -> MaxSumMoment:
        whole = MAX_SUM.merge(xp, MaxSum(*a[:2]), MaxSum(*b[:2]))
        moment = xp.zeros_like(whole.excess)
        for part in (a, b):
            distance = gap(xp, part.maximum, whole.maximum)
            near, weight = distance.hi > -xp.inf, arithmetic.exp(xp, distance)
            shift = xp.where(near, distance.hi, 0.0) * (1.0 + part.excess)
            moment = moment + xp.where(near, weight * (part.moment + shift), 0.0)
        return MaxSumMoment(*whole, moment)


class MaxTotal(NamedTuple):
    """Maximum of the scores, and a sum of terms, relative to the exponential of it.

    What merging rounds off the sum is `low`.
    """

    maximum: Array
    total: Array
    low: Array = 0.0


class MaxTotalMonoid:
    """The state of sums of exponentials times something; neutral is (-inf, 0)."""

    def identity(self, xp: Any, like: Array) -> MaxTotal:
        return MaxTotal(xp.full_like(like, -xp.inf), xp.zeros_like(like))

    def merge(self, xp: Any, a: MaxTotal, b: MaxTotal) -> MaxTotal:
        maximum = xp.maximum(a.maximum, b.maximum)
        parts = [(s, arithmetic.exp(xp, gap(xp, s.maximum, maximum))) for s in (a, b)]
        return MaxTotal(maximum, *_total(xp, parts))


class PowerSum(NamedTuple):
    """A scale, and the sum of terms relative to a power of it; `low` is as for `MaxTotal`."""

    scale: Array
    total: Array
    power: int
    low: Array = 0.0


class PowerSumMonoid:
    """The state of sums of powers that must not overflow; neutral is (0, 0)."""

    def identity(self, xp: Any, like: Array) -> PowerSum:
        return PowerSum(xp.zeros_like(like), xp.zeros_like(like), 1)

    def merge(self, xp: Any, a: PowerSum, b: PowerSum) -> PowerSum:
        scale, power = xp.maximum(a.scale, b.scale), max(a.power, b.power)
        total, low = _total(xp, [(s, share(xp, s.scale, scale) ** power) for s in (a, b)])
        return PowerSum(scale, total, power, low)


class SumMonoid:
    """Plain sums; None where nothing need be summed."""

    def identity(self, xp: Any, like: Array) -> Array:
        return xp.zeros_like(like)

    def merge(self, xp: Any, a: Any, b: Any) -> Any:
        return None if a is None else a + b


class MaximumMonoid:
    """Largest scores; neutral is -inf."""

    def identity(self, xp: Any, like: Array) -> Array:
        return xp.full_like(like, -xp.inf)

    def merge(self, xp: Any, a: Array, b: Array) -> Array:
        return xp.maximum(a, b)


class Mean(NamedTuple):
    """How many scores there are, and their mean as a sum of two numbers."""

    count: Array
    mean: Double


class MeanMonoid:
    """Means of blocks and of the whole (Chan, Golub and LeVeque, 1983)."""

    def identity(self, xp: Any, like: Array) -> Mean:
        zero = xp.zeros_like(like)
        return Mean(zero, Double(zero, zero))

    def lift(self, row: Row) -> Mean:
        xp = row.xp
        count = xp.where(row.length == 0, 1.0, row.length)
        origin = xp.where(xp.isfinite(row.maximum), row.maximum, 0.0)
        distance = arithmetic.two_sum(xp.where(row.present, row.scores, origin), -origin)
        first = row.sum(distance.hi) / count
        left = arithmetic.two_sum(distance.hi, -first)
        high = row.sum(xp.where(row.present, left.hi, 0.0))
        low = row.sum(xp.where(row.present, left.lo + distance.lo, 0.0))
        second = (high + low) / count
        whole = arithmetic.two_sum(origin, first)
        return Mean(row.length, arithmetic.two_sum(whole.hi, whole.lo + second))

    def merge(self, xp: Any, a: Mean, b: Mean) -> Mean:
        count = a.count + b.count
        zero, dtype = xp.zeros_like(count), dtype_name(count.dtype)
        length = Double(xp.where(count == 0, 1.0, count), zero)
        share = arithmetic.ratio(xp, Double(b.count, zero), length, dtype)
        step = arithmetic.two_sum(b.mean.hi, -a.mean.hi)
        # In two words, or scores near the mean would lose their digits.
        move = arithmetic.two_product(xp, step.hi, share.hi, dtype)
        low = share.lo * step.hi + share.hi * (step.lo + b.mean.lo - a.mean.lo) + move.lo
        low = a.mean.lo + xp.where(xp.isfinite(low), low, 0.0)
        whole = arithmetic.two_sum(a.mean.hi, move.hi)
        return Mean(count, arithmetic.two_sum(whole.hi, whole.lo + low))


def _total(xp: Any, parts: list[tuple[Any, Array]]) -> Double:
    """The sum of the totals of two states, each times a factor, and what it rounds off."""
    a, b = (Double(state.total * factor, state.low * factor) for state, factor in parts)
    total = arithmetic.added(xp, a, b)
    hi = total.hi + total.lo
    low = total.lo - (hi - total.hi)
    return Double(hi, xp.where(xp.isfinite(low), low, 0.0))


def share(xp: Any, scale: Array, whole: Array) -> Array:
    """``scale / whole`` for ``0 <= scale <= whole``, 1 where they are equal, 0 and inf included."""
    equal = scale == whole
    return xp.where(equal, 1.0, xp.where(equal, 0.0, scale) / xp.where(equal, 1.0, whole))


def gap(xp: Any, level: Array, maximum: Array) -> Double:
    """``level - maximum``, exactly; 0 where they are equal, infinities included."""
    equal = level == maximum
    above, below = xp.where(equal, 0.0, level), -xp.where(equal, 0.0, maximum)
    zero = xp.zeros_like(above)
    return arithmetic.added(xp, Double(above, zero), Double(below, zero))


MAX_SUM = MaxSumMonoid()
MAX_SUM_MOMENT = MaxSumMomentMonoid()
MAX_TOTAL = MaxTotalMonoid()
POWER_SUM = PowerSumMonoid()
SUM = SumMonoid()
MAXIMUM = MaximumMonoid()
MEAN = MeanMonoid()
