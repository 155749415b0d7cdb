"""Exact results: the record's textbook definition, in arithmetic where it is harmless.

Short rows are evaluated with mpmath at 400 digits, long ones in long double.  The
policies on masks, infinities and empty rows are stated here a second time, in the
plainest form there is, so that the suite does not compare the library with itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np

from normx import laws
from normx._record import Record

Array = Any

_DIGITS = 400
#: Rows up to this length are evaluated with mpmath.
_SHORT = 512
#: Beyond, the exponential of a long double, or a sum of them, might overflow.
_FAR = 10_000

_EXACT = SimpleNamespace(
    exp=np.frompyfunc(mpmath.exp, 1, 1),
    log=mpmath.log,
    sum=lambda x: mpmath.fsum(np.ravel(x)),
)


def _long_sum(x: Array) -> Any:
    """Sum of long doubles, rounded once: both halves of each are summed exactly."""
    x = np.ravel(x)
    _, exponent = np.frexp(np.max(np.abs(x), initial=0))  # a double's range is smaller
    x = np.ldexp(x, -exponent)
    high = x.astype(np.float64)
    low = (x - high).astype(np.float64)
    total = math.fsum(high)
    whole = np.longdouble(total) + np.longdouble(math.fsum([*high, *low, -total]))
    return np.ldexp(whole, exponent)


_LONG = SimpleNamespace(exp=np.exp, log=np.log, sum=_long_sum)


#: Constants that say how a result is given, not what it is.
_FORMS = ("keepdims", "return_sign", "hard", "differentiate_temperature")


def _exact_numbers(values: Array) -> Array:
    exact = np.empty(np.shape(values), dtype=object)
    for index, value in enumerate(np.ravel(values).astype(np.longdouble)):
        high = float(value)
        low = float(value - np.longdouble(high)) if math.isfinite(high) else 0.0
        exact.flat[index] = mpmath.mpf(high) + mpmath.mpf(low)
    return exact if exact.ndim else exact.item()


def _defined(record: Record, x: Array, keywords: Mapping[str, Any]) -> Array:
    """The definition on one row of finite scores, as long doubles."""
    names = {parameter.name for parameter in record.parameters} | {"uniform"}
    parameters = {k: v for k, v in keywords.items() if k in names}
    constants = {k: v for k, v in keywords.items() if k not in names}
    if x.size <= _SHORT:
        with mpmath.workdps(_DIGITS):
            exact = {k: _exact_numbers(v) for k, v in parameters.items()}
            y = record.definition(_EXACT, _exact_numbers(x), **exact, **constants)
            return np.array([_long(value) for value in np.ravel(y)], np.longdouble)
    # Where a shift changes nothing, the exponentials are kept in range by one, and the logarithm
    # of their sum near 0, where it has all its digits.
    invariant = laws.shift_invariant in record.laws or record.kind == "reduction"
    far = record.log_space or np.abs(x).max() > _FAR
    top = np.longdouble(x.max()) if invariant and far else np.longdouble(0)
    long = {k: np.asarray(v, np.longdouble) - top * (k == "sink") for k, v in parameters.items()}
    y = record.definition(_LONG, x.astype(np.longdouble) - top, **long, **constants)
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
    receives = kept if kept.any() else np.ones_like(kept)
    if record.fills:
        x, kept = np.where(kept, x, parameters["fill"]), np.ones_like(kept)
    scores = x[kept]
    if record.massless is not None and not np.isnan(scores).any():
        own = {k: v for k, v in parameters.items() if k == "threshold"}
        x = np.where(record.massless(x, **own), -np.inf, x)
        scores = x[kept]
    reduce = record.kind == "reduction"
    if np.isnan(scores).any():
        return np.array([np.nan]) if reduce else np.where(kept, np.nan, y)
    if scores.size == 0 or scores.max() == -np.inf:
        if reduce:
            return np.array([-np.inf])
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
    shares = limit and record.at_infinity == "share"
    takes_part = kept & ((x == np.inf) if shares else (x > -np.inf))
    values = x[takes_part]
    if shares:
        values = np.full(values.shape, 1e4)  # far above any sink
    elif limit and record.at_infinity == "indicator":
        values = np.where(values == np.inf, np.longdouble(1e30), 0)  # far above any eps
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
    # A number is one of the arithmetic's dtype.
    arithmetic = np.float64 if np.asarray(x).dtype.itemsize == 8 else np.float32
    x = np.asarray(x).astype(np.longdouble) / np.longdouble(arithmetic(temperature))
    if record.negated:
        x = -x
    given = {k: p.default for k, p in record.keywords.items()} | dict(record.example) | parameters
    own = {c.name: given[c.name] for c in record.constants if c.name not in _FORMS}
    for parameter in record.parameters:
        if given[parameter.name] is not None:
            value = np.asarray(given[parameter.name])
            own[parameter.name] = value if value.ndim else arithmetic(value)
    kept = np.broadcast_to(True if where is None else where, x.shape)
    rows = [_row(record, row, keep, empty, own) for row, keep in zip(x, kept, strict=True)]
    if record.kind == "reduction":
        return np.concatenate(rows) if rows else np.empty(0, np.longdouble)
    return np.stack(rows)
