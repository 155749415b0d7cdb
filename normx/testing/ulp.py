"""Errors in units in the last place."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

#: Significant bits and smallest normal exponent of each dtype.
_FORMAT = {
    "float16": (11, -14),
    "bfloat16": (8, -126),
    "float32": (24, -126),
    "float64": (53, -1022),
}


def spacing(value: Array, dtype: str) -> Array:
    """Distance between neighbours in `dtype` at the exact `value`, in long double."""
    bits, least = _FORMAT[dtype]
    size = np.abs(np.asarray(value, np.longdouble))
    finite = np.where(np.isfinite(size), size, 1.0)
    _, exponent = np.frexp(finite)
    return np.ldexp(np.longdouble(1), np.maximum(exponent - 1, least) - (bits - 1))


def error_in_ulp(got: Array, want: Array, dtype: str, scale: Array | None = None) -> Array:
    """How far `got` is from the exact `want`, in units in the last place of `dtype`.

    Parameters
    ----------
    got : array
        Results in `dtype`.
    want : array of longdouble
        Exact values.
    dtype : str
    scale : array, optional
        Measure the units at these values instead of at `want`.

    Returns
    -------
    array of float64
        0 where both are the same infinity or NaN, inf where only one is.
    """
    with np.errstate(invalid="ignore"):  # a library's NaN may be a signalling one
        got = np.asarray(got).astype(np.longdouble)
    want = np.asarray(want, np.longdouble)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    # What overflows the dtype is right as an infinity.
    largest = {"float16": 65520.0, "bfloat16": 3.3961775e38, "float32": 3.4028236e38}.get(
        dtype, np.inf
    )
    same |= np.isinf(got) & (np.abs(want) >= largest) & (np.sign(got) == np.sign(want))
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want) / spacing(want if scale is None else scale, dtype)
    error = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
    return np.asarray(error, np.float64)
