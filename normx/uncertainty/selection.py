"""Which items to ask about."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normx._calls import checked, dense
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx.plugins import Library
from normx.topk import rising_order
from normx.uncertainty._checks import at_least, number

Array = Any


def clip_uncertain(u: ArrayLike, keep: float, /) -> Any:
    r"""Take the most uncertain items out: they are outliers more often than they are of use.

    Parameters
    ----------
    u : array, shape (n,)
        Uncertainties of a pool, higher where less is certain.
    keep : float
        Share of the pool that is kept, above 0 and at most 1; the pool is what may be asked
        about, without what is labelled already.

    Returns
    -------
    array, shape (n,)
        `u` in a floating dtype, with -inf for the ``floor((1 - keep) * n)`` most uncertain; of
        equal ones the first.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape, or there is NaN among the uncertainties.

    See Also
    --------
    select : The most uncertain items of what is left.

    Notes
    -----
    It works on any measure of this module, entropies and disagreements included, and not only
    on probabilities: what is clipped comes last, whatever the measure's range.

    References
    ----------
    .. [1] J. Gonsior et al., "To softmax, or not to softmax", arXiv:2210.03005, 2022.

    Examples
    --------
    >>> from normx.uncertainty import clip_uncertain
    >>> clip_uncertain([0.1, 0.9, 0.5, 0.2], 0.75)
    array([ 0.1, -inf,  0.5,  0.2])
    """
    library, u, drop = _pool("clip_uncertain", u, keep)
    order = _least_certain_first(library, u)
    xp = library.namespace()
    rank = rising_order(xp, library, order, 0)  # the place of each item in the order
    return library.finish(xp.where(rank < drop, -np.inf, u))


def select(u: ArrayLike, n: int, /, keep: float = 1.0) -> Any:
    r"""The items to ask about next: the most uncertain ones, outliers left out.

    Parameters
    ----------
    u : array, shape (m,)
        Uncertainties of a pool, higher where less is certain.
    n : int
        How many are chosen, at most m.
    keep : float
        As for `clip_uncertain`.

    Returns
    -------
    array of int, shape (n,)
        Their indices, the most uncertain first, equal ones in their order.  If fewer than `n`
        are left by `keep`, fewer are clipped.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape, or there is NaN among the uncertainties.

    See Also
    --------
    clip_uncertain : What `keep` does.

    References
    ----------
    .. [1] J. Gonsior et al., "To softmax, or not to softmax", arXiv:2210.03005, 2022.

    Examples
    --------
    >>> from normx.uncertainty import select
    >>> select([0.1, 0.9, 0.5, 0.2], 2)
    array([1, 2])
    >>> select([0.1, 0.9, 0.5, 0.2], 2, keep=0.75)
    array([2, 3])
    """
    library, u, drop = _pool("select", u, keep)
    n = at_least("uncertainty.select", "n", n, 0)
    if n > u.shape[0]:
        wanted = f"at most {u.shape[0]}, the number of items"
        raise wrong(ValueError, "uncertainty.select", "n", repr(n), wanted)
    drop = min(drop, u.shape[0] - n)
    return _least_certain_first(library, u)[drop : drop + n]


def _pool(name: str, u: Any, keep: Any) -> tuple[Library, Array, int]:
    """Uncertainties in a floating dtype, and how many of the highest are clipped."""
    function = f"uncertainty.{name}"
    library, u, prepared = checked(function, u)
    dense(function, library, u)
    if len(u.shape) != 1:
        cure = "" if len(u.shape) == 0 else "reshape it"
        raise wrong(ValueError, function, "u", described(u), "of one dimension", cure)
    keep = number(function, "keep", keep)
    if not 0.0 < keep <= 1.0:
        raise wrong(ValueError, function, "keep", repr(keep), "above 0 and at most 1")
    u = library.cast(u, prepared.plan.dtype)
    if library.is_concrete(u) and bool(np.isnan(library.to_numpy(u).astype(np.float64)).any()):
        raise wrong(ValueError, function, "u", "NaN at some items", "a number for every item")
    # (1 - 0.8) * 5 is a little less than 1.
    return library, u, math.floor((1.0 - keep) * u.shape[0] + 1e-9)


def _least_certain_first(library: Library, u: Array) -> Array:
    return rising_order(library.namespace(), library, -u, 0)
