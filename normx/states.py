"""Mergeable states of rows.

A row may be cut into blocks, the state of each block found where it lies, and
the states merged in any order: vector lanes, threads, chunks on a cluster and
shards on devices are all the same merge.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from normx import _arithmetic as arithmetic
from normx._row import Row

Array = Any


class Monoid(Protocol):
    """States of blocks of a row, and how two of them become one."""

    def identity(self, xp: Any, like: Array) -> Any:
        """The neutral state, shaped and typed as `like`."""

    def lift(self, row: Row) -> Any:
        """The state of a block."""

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
        xp, (origin, relative) = row.xp, row.centred
        top = relative.hi == 0
        others = row.sum(xp.where(top, 0.0, arithmetic.exp(xp, relative)))
        return MaxSum(origin, others + (row.count(top) - 1.0))

    def merge(self, xp: Any, a: MaxSum, b: MaxSum) -> MaxSum:
        maximum = xp.maximum(a.maximum, b.maximum)
        a_wins = a.maximum == maximum
        a_weight = xp.exp(gap(xp, a.maximum, maximum))
        b_weight = xp.exp(gap(xp, b.maximum, maximum))
        excess = xp.where(
            a_wins,
            a.excess + (1.0 + b.excess) * b_weight,
            b.excess + (1.0 + a.excess) * a_weight,
        )
        return MaxSum(maximum, excess)


def gap(xp: Any, level: Array, maximum: Array) -> Array:
    """``level - maximum``, 0 where they are equal, infinities included."""
    equal = level == maximum
    return xp.where(equal, 0.0, level - xp.where(equal, 0.0, maximum))


MAX_SUM = MaxSumMonoid()
