"""The spherical family: losses of a logit, the sum of all, and the sum of their squares.

What depends on a row of D outputs through these three alone can be trained at a cost that
does not grow with D (`SphericalHead`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from normx._calls import known_keywords
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import ArrayLike, Option
from normx._plan import FLOATS
from normx._vjp import vjp
from normx.losses._rows import (
    REDUCTIONS,
    Batch,
    Pullback,
    Reduction,
    batch_of,
    by_weights,
    check_choice,
    documented,
    number,
    with_vjp,
)
from normx.normalizers.pointwise import zscore
from normx.normalizers.power import spherical_softmax, taylor_softmax
from normx.plugins import Library, dtype_name

Array = Any


class SphericalSums(NamedTuple):
    """What a loss of the spherical family needs to know of a row of outputs.

    Attributes
    ----------
    target : array
        The output of the target of each row.
    sum : array
        The sum of all outputs.
    squares : array
        The sum of their squares.
    size : int
        How many outputs there are.
    """

    target: Any
    sum: Any
    squares: Any
    size: int


class SphericalPartials(NamedTuple):
    """A loss of the family, and its derivatives by the target's output and by the two sums."""

    loss: Array
    target: Array
    sum: Array
    squares: Array


#: What the docstrings of the family share, besides what those of all losses do.
_OUTPUTS: dict[str, Option | str] = {
    "o": Option(
        None,
        "array or SphericalSums",
        "Outputs of any array-API library; or the output of the target, the sum and the sum of "
        "squares of each row.",
    ),
    "targets": Option(
        None, "array of int", "The class c of each row; absent for a `SphericalSums`."
    ),
    "axis": Option(-1, "int", "Axis of the D classes."),
    "where": Option(None, "array of bool, optional", "Broadcastable against `o`; True takes part."),
    "returns": """array
    The loss: float32 for outputs of at most 32 bits, float64 otherwise.""",
}

#: ``family(xp, sums)`` gives the partials.
Family = Callable[[Any, SphericalSums], SphericalPartials]


def softplus(xp: Any, u: Array) -> Array:
    """``log(1 + exp(u))``, without overflow."""
    return xp.where(u > 0, u, 0.0) + xp.log1p(xp.exp(-xp.abs(u)))


def logistic(xp: Any, u: Array) -> Array:
    """``1 / (1 + exp(-u))``, without overflow."""
    e = xp.exp(-xp.abs(u))
    return xp.where(u >= 0, 1.0, e) / (1.0 + e)


def zloss_of(a: float = 1.0, b: float = 0.0) -> Family:
    """The Z-loss with its two parameters."""
    a = number("zloss", "a", a, "a finite number above 0", lambda v: 0 < v < math.inf)
    b = number("zloss", "b", b, "a finite number", math.isfinite)

    def family(xp: Any, sums: SphericalSums) -> SphericalPartials:
        target, total, squares, size = sums
        mean = total / size
        variance = squares / size - mean * mean
        # Below, the difference is rounding, and may be negative.
        flat = ~(variance > 16.0 * _epsilon(target) * (squares / size))
        deviation = xp.sqrt(xp.where(flat, 1.0, variance))
        z = xp.where(flat, 0.0, (target - mean) / deviation)
        u = a * (b - z)
        slope = xp.where(flat, 0.0, logistic(xp, u) / deviation)
        along = slope * z / (size * deviation)
        return SphericalPartials(
            softplus(xp, u) / a, -slope, slope / size - along * mean, 0.5 * along
        )

    return family


def taylor_of() -> Family:
    """The logarithm of the Taylor softmax of order 2."""

    def family(xp: Any, sums: SphericalSums) -> SphericalPartials:
        target, total, squares, size = sums
        everything = size + total + 0.5 * squares
        own = 0.5 * (target + 1.0) * (target + 1.0) + 0.5
        return SphericalPartials(
            xp.log(everything / own), -(1.0 + target) / own, 1.0 / everything, 0.5 / everything
        )

    return family


def spherical_of(eps: float = 1e-3) -> Family:
    """The logarithm of the spherical softmax."""
    wanted = "a finite number of at least 0"
    eps = number("spherical_cross_entropy", "eps", eps, wanted, lambda v: 0 <= v < math.inf)

    def family(xp: Any, sums: SphericalSums) -> SphericalPartials:
        target, _, squares, size = sums
        everything, own = squares + size * eps, target * target + eps
        some = own > 0.0  # else the loss is infinite, and a constant
        own, everything = xp.where(some, own, 1.0), xp.where(some, everything, 1.0)
        return SphericalPartials(
            xp.where(some, xp.log(everything / own), xp.inf),
            xp.where(some, -2.0 * target / own, 0.0),
            xp.zeros_like(target),
            xp.where(some, 1.0 / everything, 0.0),
        )

    return family


def _epsilon(x: Array) -> float:
    return float(np.finfo(dtype_name(x.dtype)).eps)


# ------------------------------------------------------------------- from logits


def _zloss(
    o: Any,
    targets: Any = None,
    /,
    *,
    a: float = 1.0,
    b: float = 0.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    name = "zloss"
    family = zloss_of(a, b)
    if isinstance(o, SphericalSums):
        return _of_sums(name, family, o, targets, where, ignore_index, reduction)
    batch = _batch(name, o, targets, axis, where, ignore_index, reduction)
    xp = batch.xp
    options: dict[str, Any] = {"axis": batch.axis, "where": batch.where}
    scores = _counted(batch)
    z = batch.at_target(zscore(scores, **options))
    with batch.library.quiet():
        u = a * (b - z)
        losses = batch.mended(softplus(xp, u) / a)

    def pullback(dy: Any) -> dict[str, Array]:
        _, pull = vjp(zscore, scores, **options)
        dz = -logistic(xp, u) * batch.to_rows(dy)
        spread = xp.where(batch.is_target(), batch.spread(dz), xp.zeros_like(scores))
        return batch.gradient(pull(spread)["x"])

    return batch.reduced(losses), pullback


def _taylor(
    o: Any,
    targets: Any = None,
    /,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    name = "taylor_cross_entropy"
    if isinstance(o, SphericalSums):
        return _of_sums(name, taylor_of(), o, targets, where, ignore_index, reduction)
    batch = _batch(name, o, targets, axis, where, ignore_index, reduction)
    return _log_of_weights(batch, taylor_softmax)


def _spherical(
    o: Any,
    targets: Any = None,
    /,
    *,
    eps: float = 1e-3,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    name = "spherical_cross_entropy"
    family = spherical_of(eps)
    if isinstance(o, SphericalSums):
        return _of_sums(name, family, o, targets, where, ignore_index, reduction)
    batch = _batch(name, o, targets, axis, where, ignore_index, reduction)
    return _log_of_weights(batch, spherical_softmax, eps=eps)


def _log_of_weights(
    batch: Batch, function: Callable[..., Any], **keywords: Any
) -> tuple[Array, Pullback]:
    xp = batch.xp
    scores = _counted(batch)
    logs, _, pull = by_weights(batch, scores, function, **keywords)
    losses = batch.mended(-batch.at_target(logs))

    def pullback(dy: Any) -> dict[str, Array]:
        d = batch.spread(xp.where(losses == xp.inf, 0.0, batch.to_rows(dy)))
        dlogs = xp.where(batch.is_target(), -d, xp.zeros_like(scores))
        return batch.gradient(pull(dlogs, None))

    return batch.reduced(losses), pullback


def _batch(
    function: str,
    o: Any,
    targets: Any,
    axis: int,
    where: Any,
    ignore_index: int | None,
    reduction: Reduction,
) -> Batch:
    if targets is None:
        wanted = "the class of each row, unless `o` is a SphericalSums"
        raise wrong(TypeError, function, "targets", "absent", wanted)
    return batch_of(
        function,
        o,
        targets,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def _counted(batch: Batch) -> Array:
    """The outputs in the dtype of the arithmetic, 0 in rows that are ignored."""
    scores = batch.wide()
    if batch.counted is None:
        return scores
    return batch.xp.where(batch.spread(batch.counted), scores, 0.0)


# --------------------------------------------------------------------- from sums


@dataclass(frozen=True, slots=True)
class _Sums:
    """The sums of rows, checked."""

    function: str
    library: Library
    sums: SphericalSums
    dtype: str


def _of_sums(
    function: str,
    family: Family,
    sums: SphericalSums,
    targets: Any,
    where: Any,
    ignore_index: int | None,
    reduction: Reduction,
) -> tuple[Array, Pullback]:
    """A loss of the family from the three numbers of each row."""
    given = {"targets": targets, "where": where, "ignore_index": ignore_index}
    for word, value in given.items():
        if value is not None:
            raise wrong(
                TypeError,
                function,
                word,
                described(value),
                "absent where `o` is a SphericalSums, in which rows and targets are chosen",
            )
    check_choice(function, "reduction", reduction, REDUCTIONS)
    library, sums = _checked_sums(function, sums)
    xp = library.namespace()
    with library.quiet():
        found = family(xp, sums)
    shape = tuple(sums.target.shape)
    count = max(1, math.prod(shape)) if reduction == "mean" else 1
    loss = found.loss if reduction == "none" else xp.sum(found.loss) / count

    def pullback(dy: Any) -> dict[str, Array]:
        d = dy / count if reduction == "mean" else dy
        return {
            name: library.finish(d * slope)
            for name, slope in zip(SphericalSums._fields, found[1:], strict=False)
        }

    return library.finish(loss), pullback


def _checked_sums(function: str, sums: SphericalSums) -> tuple[Library, SphericalSums]:
    library = library_of(sums.target)
    size: Any = sums.size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise wrong(ValueError, function, "o.size", repr(size), "an int of at least 1")
    arrays: list[Array] = []
    for name in SphericalSums._fields[:3]:
        value = getattr(sums, name)
        if isinstance(value, int | float | list | tuple):
            value = np.asarray(value, np.float64)
        floating = hasattr(value, "dtype") and dtype_name(value.dtype) in FLOATS
        if library is None or not floating or library_of(value) is not library:
            wanted = "a floating array of one library, like the other sums"
            raise wrong(TypeError, function, f"o.{name}", described(value), wanted)
        if arrays and tuple(value.shape) != tuple(arrays[0].shape):
            wanted = f"of shape {tuple(arrays[0].shape)}, like o.target"
            raise wrong(ValueError, function, f"o.{name}", described(value), wanted)
        arrays.append(value)
    assert library is not None  # or the first was refused
    wide = "float64" if any(dtype_name(a.dtype) == "float64" for a in arrays) else "float32"
    target, total, squares = (library.cast(array, wide) for array in arrays)
    return library, SphericalSums(target, total, squares, size)


# ------------------------------------------------------------------- the functions


@with_vjp(_zloss)
@documented(**_OUTPUTS)
@known_keywords
def zloss(
    o: ArrayLike | SphericalSums,
    targets: ArrayLike | None = None,
    /,
    *,
    a: float = 1.0,
    b: float = 0.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Loss of the target's standard score: blind to the outputs' mean and spread.

    .. math:: \ell = \frac1a \log\left(1 + e^{a (b - z_c)}\right), \qquad
        z_k = \frac{o_k - \mu}{\sigma}

    Parameters
    ----------
    {o}
    {targets}
    a, b : float
        How sharp the bend is, above 0, and where.  Large `a` is a hinge; larger `b` asks for
        a higher rank.
    {axis}
    {where}
    {ignore_index}
    {reduction}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    SphericalHead : A layer that is trained with it, whatever D is.
    cross_entropy : Whose keyword `z_loss` is something else.
    normx.zscore : The standard scores.

    Notes
    -----
    The deviation is that of the population, of the deviations from the mean: no digits are
    lost to a large mean.  Of a `SphericalSums` they are; where they all are, the row counts as
    one of equal outputs.  Such rows, and those of one output, have z = 0 and gradient 0.  The
    gradient of a row sums to 0 and is orthogonal to the outputs.  There are no probabilities.

    References
    ----------
    .. [1] A. de Brébisson and P. Vincent, "The Z-loss: a shift and scale invariant
       classification loss belonging to the Spherical Family", arXiv:1604.08859, 2016.

    Examples
    --------
    >>> from normx.losses import SphericalSums, zloss
    >>> print(zloss([[1.0, 2.0, 3.0, -1.0]], [2]).round(10))
    0.2671926895
    >>> print(zloss(SphericalSums(3.0, 5.0, 15.0, 4)).round(10))
    0.2671926895
    """
    return _zloss(
        o,
        targets,
        a=a,
        b=b,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        reduction=reduction,
    )[0]


@with_vjp(_taylor)
@documented(**_OUTPUTS)
@known_keywords
def taylor_cross_entropy(
    o: ArrayLike | SphericalSums,
    targets: ArrayLike | None = None,
    /,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Cross-entropy of the Taylor softmax of order 2.

    .. math:: \ell = -\log \frac{1 + o_c + \frac12 o_c^2}{\sum_k (1 + o_k + \frac12 o_k^2)}

    Parameters
    ----------
    {o}
    {targets}
    {axis}
    {where}
    {ignore_index}
    {reduction}

    Returns
    -------
    {returns}

    Raises
    ------
    TypeError, ValueError
        As `zloss`.

    See Also
    --------
    spherical_cross_entropy, zloss : Of the same family.
    normx.taylor_softmax : The weights, which are never 0.

    References
    ----------
    .. [1] A. de Brébisson and P. Vincent, "An Exploration of Softmax Alternatives Belonging to
       the Spherical Loss Family", ICLR 2016, arXiv:1511.05042, 2016.

    Examples
    --------
    >>> from normx.losses import taylor_cross_entropy
    >>> print(taylor_cross_entropy([[1.0, 2.0, 3.0, -1.0]], [2]).round(6))
    0.663294
    """
    return _taylor(
        o, targets, axis=axis, where=where, ignore_index=ignore_index, reduction=reduction
    )[0]


@with_vjp(_spherical)
@documented(**_OUTPUTS)
@known_keywords
def spherical_cross_entropy(
    o: ArrayLike | SphericalSums,
    targets: ArrayLike | None = None,
    /,
    *,
    eps: float = 1e-3,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Cross-entropy of the spherical softmax.

    .. math:: \ell = -\log \frac{o_c^2 + \epsilon}{\sum_k (o_k^2 + \epsilon)}

    Parameters
    ----------
    {o}
    {targets}
    eps : float
        At least 0.  At 0 the gradient has no bound as the target's output goes to 0, where
        the loss is +inf, a constant.
    {axis}
    {where}
    {ignore_index}
    {reduction}

    Returns
    -------
    {returns}

    Raises
    ------
    TypeError, ValueError
        As `zloss`.

    See Also
    --------
    taylor_cross_entropy, zloss : Of the same family.
    normx.spherical_softmax : The weights.

    References
    ----------
    .. [1] A. de Brébisson and P. Vincent, "An Exploration of Softmax Alternatives Belonging to
       the Spherical Loss Family", ICLR 2016, arXiv:1511.05042, 2016.

    Examples
    --------
    >>> from normx.losses import spherical_cross_entropy
    >>> print(spherical_cross_entropy([[1.0, 2.0, 3.0, -1.0]], [2], eps=0.0).round(6))
    0.510826
    """
    return _spherical(
        o, targets, eps=eps, axis=axis, where=where, ignore_index=ignore_index, reduction=reduction
    )[0]
