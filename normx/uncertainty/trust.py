"""Of distances to samples: how near an item is to the class predicted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from normx._calls import checked, dense
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._plan import INTEGERS, NARROW
from normx.plugins import Library, dtype_name
from normx.uncertainty._checks import at_least, number

Array = Any

#: Numbers in the differences that are kept at a time: 32 MiB in float64.
_BLOCK = 1 << 22


def trust_score(
    x: ArrayLike,
    predicted: ArrayLike,
    samples: ArrayLike,
    labels: ArrayLike,
    /,
    *,
    k: int = 10,
    alpha: float = 0.1,
) -> Any:
    r"""How much nearer an item is to the class that is predicted than to any other.

    .. math:: u = \frac{d(x, \text{the class predicted})}{d(x, \text{the nearest other class})}

    Parameters
    ----------
    x : array, shape (m, d)
        Items, in a space where distance means something: the input of the last layer.
    predicted : array of int, shape (m,)
        The class that the model gives to each.
    samples : array, shape (n, d)
        Samples of all classes, in the same space.
    labels : array of int, shape (n,)
        Their classes.
    k : int
        The samples of a class whose distance to the k-th nearest of its own (itself the first)
        is largest are outliers,
    alpha : float
        this share of them, which is left out; at least 0 and below 1.

    Returns
    -------
    array, shape (m,)
        In the floating dtype of `x`; inf on a sample of another class, 1 on samples of both.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind or library.
    ValueError
        If an argument has a wrong value or shape, or a class that is predicted has no samples.

    See Also
    --------
    least_confidence : What the model itself says.

    Notes
    -----
    The trust score of [1]_ is 1/u: high where the model can be trusted.  Time is that of m·n + n²
    distances; memory that of a block of them.

    References
    ----------
    .. [1] H. Jiang, B. Kim, M. Guan and M. Gupta, "To trust or not to trust a classifier",
       NeurIPS, 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from normx.uncertainty import trust_score
    >>> samples, labels = np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1])
    >>> x, predicted = np.array([[0.5], [2.0], [3.5]]), np.array([0, 0, 0])
    >>> trust_score(x, predicted, samples, labels)
    array([0.14285714, 0.5       , 5.        ])
    """
    function = "uncertainty.trust_score"
    library, x, dtype = _points(function, "x", x)
    home, samples, _ = _points(function, "samples", samples)
    if home is not library or samples.shape[1] != x.shape[1] or samples.shape[0] == 0:
        wanted = f"an array of {library.name} of shape (n, {x.shape[1]})"
        raise wrong(ValueError, function, "samples", described(samples), wanted)
    predicted = _classes(function, "predicted", predicted, library, x.shape[0])
    labels = _classes(function, "labels", labels, library, samples.shape[0])
    k = at_least(function, "k", k, 1)
    alpha = number(function, "alpha", alpha)
    if not 0.0 <= alpha < 1.0:
        raise wrong(ValueError, function, "alpha", repr(alpha), "at least 0 and below 1")
    xp = library.namespace()
    if library.is_concrete(predicted) and library.is_concrete(labels):
        missing = set(library.to_numpy(predicted).tolist()) - set(library.to_numpy(labels).tolist())
        if missing:
            came = f"with class {min(missing)}, of which there is no sample"
            raise wrong(ValueError, function, "predicted", came, "classes that `labels` has")
    wide = "float32" if dtype in NARROW else dtype
    x, samples = library.cast(x, wide), library.cast(samples, wide)
    with library.quiet():
        kept = xp.ones_like(labels, dtype=library.dtype("bool"))
        if alpha > 0.0:
            kept = _not_outlying(library, samples, labels, k, alpha)
        own, other = [], []
        for rows, distances in _distances(xp, x, samples):
            same = predicted[rows][:, None] == labels[None, :]
            own.append(xp.min(xp.where(same & kept, distances, xp.inf), axis=1))
            other.append(xp.min(xp.where(same | ~kept, xp.inf, distances), axis=1))
        near, far = (_root(xp, xp.concat(parts)) for parts in (own, other))
        level = near == far
        ratio = xp.where(level, 1.0, near / xp.where(level, 1.0, far))
    return library.finish(library.cast(ratio, dtype))


def _points(function: str, what: str, points: Any) -> tuple[Library, Array, str]:
    """Points in rows, and the dtype to compute with."""
    library, points, prepared = checked(function, points)
    dense(function, library, points)
    if len(points.shape) != 2 or points.shape[0] == 0:
        raise wrong(ValueError, function, what, described(points), "of shape (items, features)")
    return library, points, prepared.plan.dtype


def _classes(function: str, what: str, classes: Any, library: Library, count: int) -> Array:
    """One class for each of so many points."""
    if isinstance(classes, list | tuple):
        classes = np.asarray(classes)
    wanted = f"an array of ints of {library.name} of shape ({count},)"
    if library_of(classes) is not library or dtype_name(classes.dtype) not in INTEGERS:
        raise wrong(TypeError, function, what, described(classes), wanted)
    if tuple(classes.shape) != (count,):
        raise wrong(ValueError, function, what, described(classes), wanted)
    return classes


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Parts of so many rows, each of that size."""
    rows = max(1, _BLOCK // size)
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def _distances(xp: Any, a: Array, b: Array) -> Iterator[tuple[slice, Array]]:
    """Squared distances between all of `a` and all of `b`, a block of rows at a time."""
    for block in _blocks(a.shape[0], b.shape[0] * max(1, b.shape[1])):
        # Differences first: a product of the two would lose what is small.
        yield block, xp.sum((a[block, :][:, None, :] - b[None, :, :]) ** 2, axis=2)


def _root(xp: Any, squares: Array) -> Array:
    """Square roots, with a slope of 0 at 0."""
    return xp.where(squares == 0.0, 0.0, xp.sqrt(xp.where(squares == 0.0, 1.0, squares)))


def _not_outlying(library: Library, samples: Array, labels: Array, k: int, alpha: float) -> Array:
    """Which samples are left when a share of each class, the least densely placed, is left out."""
    xp, n = library.namespace(), samples.shape[0]
    radii, sizes = [], []
    place = xp.arange(n)
    for rows, distances in _distances(xp, samples, samples):
        same = labels[rows][:, None] == labels[None, :]
        size = xp.sum(library.cast(same, "int32"), axis=1, keepdims=True)
        ordered = xp.sort(xp.where(same, distances, xp.inf), axis=1)
        last = xp.where(size < k, size, k) - 1
        radii.append(xp.sum(xp.where(place[None, :] == last, ordered, 0.0), axis=1))
        sizes.append(size[:, 0])
    radius, size = xp.concat(radii), xp.concat(sizes)
    further = []
    for rows in _blocks(n, n):
        mine, theirs = radius[rows][:, None], radius[None, :]
        later = place[None, :] > place[rows][:, None]
        beyond = (theirs > mine) | ((theirs == mine) & later)
        beyond = beyond & (labels[rows][:, None] == labels[None, :])
        further.append(xp.sum(library.cast(beyond, "int32"), axis=1))
    share = library.cast(size, dtype_name(samples.dtype)) * alpha
    # What is a whole number but for rounding is that number.
    return xp.concat(further) >= library.cast(xp.floor(share + 1e-4), "int32")
