"""Fenchel-Young losses: what sparse weights are trained with."""

from __future__ import annotations

import math
from typing import Any

from normx._calls import known_keywords
from normx._options import ArrayLike
from normx.losses._rows import Batch, Pullback, Reduction, batch_of, documented, number, with_vjp
from normx.normalizers.softmax import softmax
from normx.normalizers.sparse import entmax, entmax15, sparsemax

Array = Any


def _fenchel_young(
    function: str,
    alpha: float,
    logits: Any,
    targets: Any,
    **keywords: Any,
) -> tuple[Array, Pullback]:
    """The loss of the entmax of a fixed alpha: ``<p - e, x> + H(p)``, whose gradient is p - e."""
    batch = batch_of(function, logits, targets, **keywords)
    xp = batch.xp
    scores = batch.wide()
    if batch.counted is not None:
        scores = xp.where(batch.spread(batch.counted), scores, 0.0)
    if batch.where is not None:
        scores = xp.where(batch.where, scores, -xp.inf)
    top = xp.max(scores, axis=batch.axis)
    # Scores of +inf are taken as growing together: they share, and the others have no weight.
    limit = xp.where(scores == xp.inf, 0.0, xp.full_like(scores, -xp.inf))
    scores = xp.where(batch.spread(top) == xp.inf, limit, scores)
    weights = _weights(batch, scores, alpha)
    with batch.library.quiet():
        some = weights > 0
        at_target = batch.at_target(scores)
        reachable = at_target > -xp.inf
        origin = xp.where(reachable, at_target, 0.0)
        distance = xp.where(some, scores - batch.spread(origin), 0.0)
        entropy = _surprise(xp, xp.where(some, weights, 1.0), alpha)
        losses = batch.sum(xp.where(some, weights, 0.0) * (distance + entropy))
        losses = xp.where(reachable, losses, xp.inf)
        losses = batch.mended(xp.where(xp.isnan(top), xp.nan, losses))

    def pullback(dy: Any) -> dict[str, Array]:
        still = (losses == xp.inf) | (top == xp.inf)
        d = batch.spread(xp.where(still, 0.0, batch.to_rows(dy)))
        one = xp.where(batch.is_target(), xp.ones_like(weights), 0.0)
        return batch.gradient(xp.where(d == 0.0, 0.0, d * (weights - one)))

    return batch.reduced(losses), pullback


def _weights(batch: Batch, scores: Array, alpha: float) -> Array:
    if alpha == 1.0:
        return softmax(scores, axis=batch.axis)
    if alpha == 1.5:
        return entmax15(scores, axis=batch.axis)
    if alpha == 2.0:
        return sparsemax(scores, axis=batch.axis)
    return entmax(scores, axis=batch.axis, alpha=alpha)


def _surprise(xp: Any, weights: Array, alpha: float) -> Array:
    """What a weight adds to Tsallis's entropy of order alpha, over itself; 0 at 1."""
    power = alpha - 1.0
    if power == 1.0:
        return 0.5 * (1.0 - weights)
    logs = xp.log(weights)
    return -logs if power == 0.0 else -xp.expm1(power * logs) / (alpha * power)


def _sparsemax_loss(logits: Any, targets: Any, /, **keywords: Any) -> tuple[Array, Pullback]:
    return _fenchel_young("sparsemax_loss", 2.0, logits, targets, **_DEFAULTS | keywords)


def _entmax15_loss(logits: Any, targets: Any, /, **keywords: Any) -> tuple[Array, Pullback]:
    return _fenchel_young("entmax15_loss", 1.5, logits, targets, **_DEFAULTS | keywords)


def _entmax_loss(
    logits: Any, targets: Any, /, *, alpha: float = 1.5, **keywords: Any
) -> tuple[Array, Pullback]:
    name = "entmax_loss"
    alpha = number(
        name, "alpha", alpha, "a finite number of at least 1", lambda v: 1 <= v < math.inf
    )
    return _fenchel_young(name, alpha, logits, targets, **_DEFAULTS | keywords)


_DEFAULTS: dict[str, Any] = {"axis": -1, "where": None, "ignore_index": None, "reduction": "mean"}


@with_vjp(_sparsemax_loss)
@documented()
@known_keywords
def sparsemax_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Loss of a sparsemax: convex, and 0 as soon as the target leads by 1.

    .. math:: \ell = \langle p - e_c, x \rangle + \tfrac12 \sum_k p_k (1 - p_k),
        \qquad p = \operatorname{sparsemax}(x)

    Parameters
    ----------
    {logits}
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
    {raises}

    See Also
    --------
    entmax15_loss, entmax_loss : Between this one and the cross-entropy.
    normx.sparsemax : The weights.

    Notes
    -----
    The gradient is p - e, and exactly 0 where the loss is.

    References
    ----------
    .. [1] A. F. T. Martins and R. F. Astudillo, "From Softmax to Sparsemax: A Sparse Model of
       Attention and Multi-Label Classification", ICML 2016, arXiv:1602.02068, 2016.
    .. [2] M. Blondel, A. F. T. Martins and V. Niculae, "Learning with Fenchel-Young Losses",
       Journal of Machine Learning Research 21(35), 1-69, 2020.

    Examples
    --------
    >>> from normx.losses import sparsemax_loss
    >>> print(sparsemax_loss([[2.0, 1.0, 0.0]], [0]), sparsemax_loss([[2.0, 1.5, 0.0]], [0]))
    0.0 0.0625
    """
    return _sparsemax_loss(
        logits, targets, axis=axis, where=where, ignore_index=ignore_index, reduction=reduction
    )[0]


@with_vjp(_entmax15_loss)
@documented()
@known_keywords
def entmax15_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Loss of the 1.5-entmax: convex, and 0 as soon as the target leads by 2.

    .. math:: \ell = \langle p - e_c, x \rangle + \tfrac43 \sum_k p_k (1 - \sqrt{p_k}),
        \qquad p = \operatorname{entmax15}(x)

    Parameters
    ----------
    {logits}
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
        As `sparsemax_loss`.

    See Also
    --------
    sparsemax_loss, entmax_loss : The same for other powers.
    normx.entmax15 : The weights.

    References
    ----------
    .. [1] B. Peters, V. Niculae and A. F. T. Martins, "Sparse Sequence-to-Sequence Models",
       ACL 2019, arXiv:1905.05702, 2019.

    Examples
    --------
    >>> from normx.losses import entmax15_loss
    >>> entmax15_loss([[2.0, 1.0, 0.0]], [0]).round(6)
    np.float64(0.061656)
    """
    return _entmax15_loss(
        logits, targets, axis=axis, where=where, ignore_index=ignore_index, reduction=reduction
    )[0]


@with_vjp(_entmax_loss)
@documented()
@known_keywords
def entmax_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    alpha: float = 1.5,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Loss of an entmax: the cross-entropy at alpha 1, `sparsemax_loss` at 2.

    .. math::

        \ell = \langle p - e_c, x \rangle + \frac{\sum_k (p_k - p_k^\alpha)}{\alpha(\alpha - 1)},
        \qquad p = \operatorname{entmax}_\alpha(x)

    Parameters
    ----------
    {logits}
    {targets}
    alpha : float
        At least 1.  The loss is 0 as soon as the target leads by ``1/(alpha - 1)``.
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
        As `sparsemax_loss`.

    See Also
    --------
    sparsemax_loss, entmax15_loss : With alpha 2 and 1.5.
    normx.entmax : The weights.

    References
    ----------
    .. [1] M. Blondel, A. F. T. Martins and V. Niculae, "Learning with Fenchel-Young Losses",
       Journal of Machine Learning Research 21(35), 1-69, 2020.

    Examples
    --------
    >>> from normx.losses import entmax_loss
    >>> print(entmax_loss([[1.0, 2.0, 3.0, -1.0]], [2], alpha=1.0).round(6))
    0.419717
    """
    return _entmax_loss(
        logits,
        targets,
        alpha=alpha,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        reduction=reduction,
    )[0]
