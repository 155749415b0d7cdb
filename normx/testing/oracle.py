"""Exact results: the record's textbook definition, in arithmetic where it is harmless.

Short rows are evaluated with mpmath at 400 digits, long ones in long double.  The
policies on masks, infinities and empty rows are stated here a second time, in the
plainest form there is, so that the suite does not compare the library with itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np

from normx._record import Record

Array = Any

_DIGITS = 400
#: Rows up to this length are evaluated with mpmath.
_SHORT = 512

_EXACT = SimpleNamespace(
    exp=np.frompyfunc(mpmath.exp, 1, 1),
    log=mpmath.log,
    sum=lambda x: mpmath.fsum(np.ravel(x)),
)
_LONG = SimpleNamespace(exp=np.exp, log=np.log, sum=np.sum)


def _exact_numbers(values: Array) -> Array:
    exact = np.empty(np.shape(values), dtype=object)
    for index, value in enumerate(np.ravel(values).astype(np.longdouble)):
        high = float(value)
        exact.flat[index] = mpmath.mpf(high) + mpmath.mpf(float(value - np.longdouble(high)))
    return exact


def _defined(record: Record, x: Array, parameters: Mapping[str, Any]) -> Array:
    """The definition on one row of finite scores, as long doubles."""
    if x.size <= _SHORT:
        with mpmath.workdps(_DIGITS):
            exact = {k: _exact_numbers(v) for k, v in parameters.items()}
            y = record.definition(_EXACT, _exact_numbers(x), **exact)
            return np.array([_long(value) for value in np.ravel(y)], np.longdouble)
    top = np.longdouble(x.max())
    long = {k: np.asarray(v, np.longdouble) - top for k, v in parameters.items()}
    y = record.definition(_LONG, x.astype(np.longdouble) - top, **long)
    return np.ravel(y) + (top if record.kind == "reduction" else 0)


def _long(value: Any) -> Any:
    """A multiple-precision number as a long double, which has 64 bits or more."""
    high = float(value)
    if not np.isfinite(high):
        return np.longdouble(high)
    return np.longdouble(high) + np.longdouble(float(value - mpmath.mpf(high)))


def _row(record: Record, x: Array, kept: Array, empty: str, parameters: Mapping[str, Any]) -> Array:
    """One row with every policy."""
    zero = -np.inf if record.log_space else 0.0
    y = np.full(x.shape, zero, np.longdouble)
    scores = x[kept]
    reduce = record.kind == "reduction"
    if np.isnan(scores).any():
        return np.array([np.nan]) if reduce else np.where(kept, np.nan, y)
    if scores.size == 0 or scores.max() == -np.inf:
        if reduce:
            return np.array([-np.inf])
        receives = kept if kept.any() else np.ones_like(kept)
        share = 1.0 / receives.sum()
        fill = {
            "zero": zero,
            "nan": np.nan,
            "uniform": np.log(share) if record.log_space else share,
        }
        return np.where(receives, fill[empty], y)
    limit = scores.max() == np.inf
    if limit and reduce:
        return np.array([np.inf])
    takes_part = kept & ((x == np.inf) if limit else (x > -np.inf))
    values = np.zeros(takes_part.sum()) if limit else x[takes_part]
    result = _defined(record, values, parameters)
    if reduce:
        return result
    y[takes_part] = result
    return y


def oracle(
    record: Record,
    x: Array,
    *,
    where: Array | None = None,
    temperature: float = 1.0,
    empty: str = "zero",
    **parameters: Any,
) -> Array:
    """The exact result for rows `x` of shape (rows, n), as long doubles.

    Parameters
    ----------
    record : Record
    x : array of shape (rows, n)
        In the dtype under test: its values are taken as exact.
    where, temperature, empty
        As the public functions take them; temperature above 0.
    **parameters
        The record's own, broadcastable to every row.

    Returns
    -------
    array of longdouble, of shape (rows, n) or (rows,)
    """
    # A temperature is a number of the arithmetic's dtype.
    arithmetic = np.float64 if np.asarray(x).dtype == np.float64 else np.float32
    x = np.asarray(x).astype(np.longdouble) / np.longdouble(arithmetic(temperature))
    kept = np.broadcast_to(True if where is None else where, x.shape)
    rows = [_row(record, row, keep, empty, parameters) for row, keep in zip(x, kept, strict=True)]
    if record.kind == "reduction":
        return np.concatenate(rows) if rows else np.empty(0, np.longdouble)
    return np.stack(rows)
