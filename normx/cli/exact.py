"""The oracle of the command line, and errors in units in the last place (ULP).

Softmax, its logarithm and logsumexp are written out here in extended precision,
without anything of normx.  Every other function is its record's formula in float64
on the reference backend: that measures rounding, and leaves the formula itself to
the test suite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import normx
from normx._record import Record
from normx.testing.ulp import error_in_ulp

Wide = NDArray[Any]

#: Entries that `some_rows` picks at most.
CHECKED = 1 << 22


def _pieces(x: Wide) -> tuple[Wide, Wide]:
    """Scores less their maximum, and the sum of the exponentials without the maximum's own."""
    away = x - np.max(x, axis=-1, keepdims=True)
    terms = np.exp(away)
    np.put_along_axis(terms, np.argmax(x, axis=-1, keepdims=True), 0.0, axis=-1)
    return away, np.sum(terms, axis=-1, keepdims=True)


def _softmax(x: Wide) -> Wide:
    away, rest = _pieces(x)
    weights: Wide = np.exp(away) / (1.0 + rest)
    return weights


def _log_softmax(x: Wide) -> Wide:
    away, rest = _pieces(x)
    logarithms: Wide = away - np.log1p(rest)
    return logarithms


def _logsumexp(x: Wide) -> Wide:
    _, rest = _pieces(x)
    value: Wide = np.max(x, axis=-1) + np.log1p(rest)[..., 0]
    return value


_INDEPENDENT: dict[str, Callable[[Wide], Wide]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
}


def exact(record: Record, x: NDArray[Any], keywords: dict[str, Any]) -> Wide:
    """What a function should give for the rows along the last axis of `x`."""
    formula = _INDEPENDENT.get(record.name)
    if formula is not None and not keywords:
        return formula(x.astype(np.longdouble))
    given = {name: option.default for name, option in record.keywords.items()} | keywords
    # A number has the precision of the scores, so in float64 it is passed as rounded.
    rounded = {
        parameter.name: float(np.float32(given[parameter.name]))
        for parameter in record.parameters
        if x.dtype.itemsize < 8 and isinstance(given[parameter.name], int | float)
    }
    with normx.use_backend("reference"):
        return np.asarray(record.function(x.astype(np.float64), axis=-1, **keywords | rounded))


def largest_error(got: NDArray[Any], want: Wide) -> float:
    """Largest error in units in the last place; infinite where only one is a number."""
    errors = error_in_ulp(got, want, got.dtype.name)
    return float(errors.max(initial=0.0))


def some_rows(x: NDArray[Any], axis: int, count: int = CHECKED) -> tuple[NDArray[Any], Any]:
    """Whole rows of `x` with at most `count` entries (one row at least), and their places.

    The rows come along the last axis; the places select the same rows of an array
    whose reduced axis was moved to the end and whose others were joined.
    """
    rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) if x.ndim > 1 else x[None, :]
    step = max(1, -(-rows.size // max(count, 1)))
    places = slice(None, None, min(step, rows.shape[0]))
    return rows[places], places
