"""Gradients by central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any


def differences(f: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """The gradient of a function of a float64 array, entry by entry.

    Parameters
    ----------
    f : callable
        From an array of the shape of `x` to a number.
    x : array
    step : float

    Returns
    -------
    array
        Of the shape of `x`.
    """
    slopes = np.empty(np.shape(x))
    for place in np.ndindex(*slopes.shape):
        moved = [np.array(x, np.float64), np.array(x, np.float64)]
        moved[0][place] += step
        moved[1][place] -= step
        slopes[place] = (float(f(moved[0])) - float(f(moved[1]))) / (2.0 * step)
    return slopes
