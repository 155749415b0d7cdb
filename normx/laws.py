"""Laws: what holds for every row, stated once and checked on every library.

A law is an object.  Records name the laws they obey; the conformance suite checks
them, the documentation prints their statements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.floating]
#: A record on NumPy rows: scores of shape (rows, n), reduced along the last axis.
Function = Callable[..., Rows]
Check = Callable[[Function, Rows, float], None]


@dataclass(frozen=True, slots=True)
class Law:
    """A property of a row function.

    Attributes
    ----------
    name : str
    statement : str
        In words, for the documentation.
    check : callable
        ``check(f, x, tolerance)`` raises AssertionError where `f` breaks the law on
        the rows `x`; `tolerance` is relative.
    """

    name: str
    statement: str
    check: Check

    def __str__(self) -> str:
        return self.name


def law(statement: str) -> Callable[[Check], Law]:
    """Make a law of a check."""

    def make(check: Check) -> Law:
        return Law(check.__name__, statement, check)

    return make


def _close(got: Rows, want: Rows, tolerance: float, least: float = 1e-30) -> None:
    """Equal up to `tolerance`, relative to the larger value (to `least` below it)."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shape {got.shape} instead of {want.shape}"
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want) / np.maximum(np.maximum(np.abs(got), np.abs(want)), least)
    worst = np.where(same, 0.0, error)
    assert not np.any(np.isnan(worst)), "NaN where a number was wanted, or a number for NaN"
    assert np.all(worst <= tolerance), f"relative error {worst.max():.3g}, allowed {tolerance:.3g}"


@law("The weights of a row sum to one.")
def sums_to_one(f: Function, x: Rows, tolerance: float) -> None:
    total = np.sum(np.asarray(f(x), np.float64), axis=-1)
    _close(total, np.ones_like(total), tolerance * 4)


@law("The exponentials of a row sum to one.")
def exponentials_sum_to_one(f: Function, x: Rows, tolerance: float) -> None:
    y = np.asarray(f(x), np.float64)
    total = np.sum(np.exp(y), axis=-1)
    # An error of one last place of y is |y| last places of its exponential.
    scale = np.max(np.where(np.exp(y) > 1e-6, np.abs(y), 1.0), axis=-1)
    _close(total, np.ones_like(total), tolerance * 4 * float(np.max(scale)))


@law("No weight is negative or above one.")
def within_unit_interval(f: Function, x: Rows, tolerance: float) -> None:
    y = np.asarray(f(x), np.float64)
    assert np.all(y >= 0.0), f"a weight of {y.min()}"
    assert np.all(y <= 1.0 + tolerance), f"a weight of {y.max()}"


@law("Adding a constant to the scores of a row changes nothing.")
def shift_invariant(f: Function, x: Rows, tolerance: float) -> None:
    x = np.round(x * 16) / 16  # so that the shift itself is exact, in half precision too
    x = np.clip(x, -32, 32)
    _close(f(x + 64.0), f(x), 2 * tolerance)


@law("Adding a constant to the scores of a row adds it to the result.")
def shift_equivariant(f: Function, x: Rows, tolerance: float) -> None:
    x = np.clip(np.round(x * 16) / 16, -32, 32)
    _close(f(x + 64.0), np.asarray(f(x), np.float64) + 64.0, 2 * tolerance)


@law("Permuting the scores of a row permutes its weights.")
def permutation_equivariant(f: Function, x: Rows, tolerance: float) -> None:
    order = np.random.default_rng(7).permutation(x.shape[-1])
    _close(f(x[:, order]), np.asarray(f(x))[:, order], 2 * tolerance)


@law("Permuting the scores of a row changes nothing.")
def permutation_invariant(f: Function, x: Rows, tolerance: float) -> None:
    order = np.random.default_rng(7).permutation(x.shape[-1])
    _close(f(x[:, order]), f(x), 2 * tolerance)


@law("A larger score never gets a smaller weight.")
def monotone(f: Function, x: Rows, tolerance: float) -> None:
    order = np.argsort(x, axis=-1)
    y = np.take_along_axis(np.asarray(f(x), np.float64), order, axis=-1)
    assert np.all(np.diff(y, axis=-1) >= 0.0), "a larger score has a smaller weight"


@law("A larger score never gets a larger weight.")
def antitone(f: Function, x: Rows, tolerance: float) -> None:
    order = np.argsort(-x, axis=-1)
    y = np.take_along_axis(np.asarray(f(x), np.float64), order, axis=-1)
    assert np.all(np.diff(y, axis=-1) >= 0.0), "a larger score has a larger weight"


@law("The weights of a row sum to at most one.")
def sums_to_at_most_one(f: Function, x: Rows, tolerance: float) -> None:
    total = np.sum(np.asarray(f(x), np.float64), axis=-1)
    assert np.all(total <= 1.0 + 4 * tolerance), f"a row sums to {total.max()}"


@law("No weight is negative.")
def non_negative(f: Function, x: Rows, tolerance: float) -> None:
    y = np.asarray(f(x), np.float64)
    assert np.all(y >= 0.0), f"a weight of {y.min()}"


@law("No weight is zero.")
def positive(f: Function, x: Rows, tolerance: float) -> None:
    assert np.all(np.asarray(f(np.clip(x, -8, 8))) > 0.0), "a weight of 0"


@law("Scores below the others' by enough weigh exactly zero.")
def exact_zeros(f: Function, x: Rows, tolerance: float) -> None:
    y = np.asarray(f(np.concatenate([np.abs(x) + 1.0, -np.abs(x) - 9.0], axis=-1)))
    assert np.all(y[:, x.shape[-1] :] == 0.0), "a weight where a zero was wanted"


@law("A score that just meets the threshold weighs exactly zero.")
def nothing_at_the_threshold(f: Function, x: Rows, tolerance: float) -> None:
    # Bases of (4, 3, 0)/7 sum to one, the squares of (4, 3, 0)/5 as well; none of these
    # temperatures has an exact inverse.
    scale = np.array([[1.0], [3.0], [13.0], [40.0]])
    for divisor in (2.5, 5.0, 7.0):
        y = np.asarray(f(scale * [3.0, -2.0, 4.0, 0.0], temperature=scale * divisor), np.float64)
        assert np.all((y == 0.0) | (y > 1e-6)), f"a weight of {y[y > 0.0].min()}"


@law("Multiplying the scores of a row by a positive number changes nothing.")
def scale_invariant(f: Function, x: Rows, tolerance: float) -> None:
    for factor in (8.0, 2.0**-9):  # exact, so the scores lose nothing
        _close(f(x * factor), f(x), 2 * tolerance)


@law("Changing the sign of scores changes nothing.")
def even(f: Function, x: Rows, tolerance: float) -> None:
    signs = np.where(np.arange(x.shape[-1]) % 2 == 0, 1.0, -1.0)
    _close(f(x * signs), f(x), 2 * tolerance)


@law("The entropy is at most that of the softmax.")
def never_flatter(f: Function, x: Rows, tolerance: float) -> None:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    before, after = (
        -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=-1)
        for p in (e / e.sum(axis=-1, keepdims=True), np.asarray(f(x), np.float64))
    )
    assert np.all(after <= before + tolerance * np.log(x.shape[-1] + 1)), "a flatter row"


@law("The largest score has the largest weight.")
def keeps_the_argmax(f: Function, x: Rows, tolerance: float) -> None:
    y = np.asarray(f(x), np.float64)
    top = np.take_along_axis(y, np.argmax(x, axis=-1)[:, None], axis=-1)
    assert np.all(top == y.max(axis=-1, keepdims=True)), "another entry weighs most"


@law("The result has mean zero and variance one, unless all scores are equal.")
def standardizes(f: Function, x: Rows, tolerance: float) -> None:
    y = np.asarray(f(x), np.float64)
    assert np.all(np.abs(np.mean(y, axis=-1)) <= 2 * tolerance), "a mean other than 0"
    _close(np.mean(y * y, axis=-1), np.ones(len(y)), 4 * tolerance)


@law("Leaving entries out equals deleting them, whatever they hold.")
def masking_is_deleting(f: Function, x: Rows, tolerance: float) -> None:
    kept = np.arange(x.shape[-1]) % 3 != 1
    spoiled = np.where(kept, x, np.nan)
    got = np.asarray(f(spoiled, where=kept))
    want = np.asarray(f(x[:, kept]))
    if got.shape == x.shape:
        left_out = got[:, ~kept]
        assert np.all((left_out == 0) | (left_out == -np.inf)), "a left-out entry has a weight"
        got = got[:, kept]
    _close(got, want, 2 * tolerance)


@law("Equal scores in a row get bit-equal weights.")
def equal_scores_equal_bits(f: Function, x: Rows, tolerance: float) -> None:
    doubled = np.concatenate([x, x[:, ::-1]], axis=-1)
    y = np.asarray(f(doubled))
    assert np.array_equal(y, y[:, ::-1]), "equal scores, different bits"


@law("A row's bits do not depend on the rows around it.")
def rows_are_independent(f: Function, x: Rows, tolerance: float) -> None:
    together = np.asarray(f(x))
    for i in (0, x.shape[0] // 2, x.shape[0] - 1):
        assert np.array_equal(together[i : i + 1], np.asarray(f(x[i : i + 1])), equal_nan=True), (
            f"row {i} alone has other bits than among {x.shape[0]}"
        )


@law("At temperature 0 the mass is shared among the maxima, at infinity among all.")
def temperature_limits(f: Function, x: Rows, tolerance: float) -> None:
    top = x == x.max(axis=-1, keepdims=True)
    _close(f(x, temperature=0.0), top / top.sum(axis=-1, keepdims=True), tolerance)
    _close(f(x, temperature=np.inf), np.full(x.shape, 1.0 / x.shape[-1]), tolerance)


@law("A temperature divides the scores.")
def temperature_divides(f: Function, x: Rows, tolerance: float) -> None:
    _close(f(x, temperature=0.5), f(x * 2.0), 2 * tolerance)
    _close(f(x * 2.0, temperature=np.full((x.shape[0], 1), 2.0)), f(x), 2 * tolerance)


@law("With scores within [m, M], every weight lies within exp(±(M - m))/n.")
def disperses(f: Function, x: Rows, tolerance: float) -> None:
    n, spread = x.shape[-1], np.ptp(x, axis=-1, keepdims=True)
    y = np.asarray(f(x), np.float64)
    assert np.all(y <= np.exp(spread) / n * (1 + tolerance)), "a weight above the bound"
    assert np.all(y >= np.exp(-spread) / n * (1 - tolerance)), "a weight below the bound"


@law("The largest score is a lower bound, and log n above it an upper one.")
def bounded_by_maximum(f: Function, x: Rows, tolerance: float) -> None:
    y, top = np.asarray(f(x), np.float64), x.max(axis=-1)
    slack = tolerance * np.maximum(np.abs(top), 1.0)
    assert np.all(y >= top - slack), "below the largest score"
    assert np.all(y <= top + np.log(x.shape[-1]) + slack), "more than log n above the largest score"


#: What all row normalizers have in common that take each row as a set of scores.
OF_EVERY_ROW = (
    permutation_equivariant,
    masking_is_deleting,
    equal_scores_equal_bits,
    rows_are_independent,
    temperature_divides,
)
