"""Evidential learning: outputs are evidence for classes, and lack of it is uncertainty."""

from __future__ import annotations

import math
from typing import Any

from normx._calls import known_keywords
from normx._options import ArrayLike
from normx.losses._rows import Pullback, Reduction, batch_of, documented, number, with_vjp

Array = Any

#: Log-gamma and its derivatives are series from here on, whose first term left out is below
#: 1e-16; before, they are stepped there.
_FAR = 12
#: Bernoulli's numbers B_2, B_4, ...
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)
#: More evidence than that counts as that: its limit, and no infinity less another.
_MOST = 1e15


def _log_gamma(xp: Any, x: Array) -> Array:
    """Logarithm of the gamma function, for x of at least 1 (Stirling's series)."""
    near = x < _FAR
    low, y = xp.where(near, x, 1.0), xp.where(near, x + _FAR, x)
    product = low
    for k in range(1, _FAR):
        product = product * (low + k)
    series = sum(b / (2 * k * (2 * k - 1) * y ** (2 * k - 1)) for k, b in enumerate(_BERNOULLI, 1))
    log = (y - 0.5) * xp.log(y) - y + 0.5 * math.log(2 * math.pi) + series
    return log - xp.where(near, xp.log(product), 0.0)


def _digamma(xp: Any, x: Array) -> Array:
    """The derivative of the logarithm of the gamma function, for x of at least 1."""
    near = x < _FAR
    low, y = xp.where(near, x, 1.0), xp.where(near, x + _FAR, x)
    step = sum(1.0 / (low + k) for k in range(_FAR))
    series = sum(b / (2 * k * y ** (2 * k)) for k, b in enumerate(_BERNOULLI, 1))
    return xp.log(y) - 0.5 / y - series - xp.where(near, step, 0.0)


def _trigamma(xp: Any, x: Array) -> Array:
    """The second derivative."""
    near = x < _FAR
    low, y = xp.where(near, x, 1.0), xp.where(near, x + _FAR, x)
    step = sum(1.0 / (low + k) ** 2 for k in range(_FAR))
    series = sum(b / y ** (2 * k + 1) for k, b in enumerate(_BERNOULLI, 1))
    return 1.0 / y + 0.5 / (y * y) + series + xp.where(near, step, 0.0)


def _evidential_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    annealing: float = 1.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    name = "evidential_loss"
    wanted = "a finite number of at least 0"
    factor = number(name, "annealing", annealing, wanted, lambda v: 0 <= v < math.inf)
    batch = batch_of(
        name,
        logits,
        targets,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    xp, library = batch.xp, batch.library
    scores = library.cast(batch.logits, _widest(library))
    if batch.counted is not None:
        scores = xp.where(batch.spread(batch.counted), scores, 0.0)
    hit = batch.is_target()
    supported = (scores > 0.0) & (scores < _MOST)
    nothing = xp.where(xp.isnan(scores), scores, 0.0)
    evidence = xp.where(supported, scores, xp.where(scores > 0.0, _MOST, nothing))
    one = xp.where(hit, xp.ones_like(scores), 0.0)
    kept = xp.ones_like(scores)
    if batch.where is not None:
        kept = xp.where(batch.where, kept, 0.0)
        evidence = xp.where(batch.where, evidence, 0.0)

    def total(x: Array) -> Array:
        return xp.sum(x, axis=batch.axis, keepdims=True)

    strength = total(evidence) + total(kept)
    share = kept * (evidence + 1.0) / strength
    # Evidence for other classes than the target, which ought to be none.
    others = xp.where(hit, 0.0, evidence)
    all_others = total(others)
    alone = total(kept)  # the strength without evidence
    squares = total(kept * (one - share) ** 2 + share * (1.0 - share) / (strength + 1.0))
    divergence = (
        _log_gamma(xp, all_others + alone)
        - _log_gamma(xp, alone)
        - total(_log_gamma(xp, others + 1.0))
        + total(others * (_digamma(xp, others + 1.0) - _digamma(xp, all_others + alone)))
    )
    values = xp.squeeze(squares + factor * divergence, axis=batch.axis)
    losses = batch.mended(library.cast(values, batch.dtype))

    def pullback(dy: Any) -> dict[str, Array]:
        d = batch.spread(
            library.cast(xp.where(losses == xp.inf, 0.0, batch.to_rows(dy)), _widest(library))
        )
        by_share = -2.0 * (one - share) + (1.0 - 2.0 * share) / (strength + 1.0)
        slope = (by_share - total(by_share * share)) / strength
        slope = slope - total(share * (1.0 - share)) / (strength + 1.0) ** 2
        against = others * _trigamma(xp, others + 1.0) - all_others * _trigamma(
            xp, all_others + alone
        )
        slope = slope + factor * xp.where(hit, 0.0, against)
        return batch.gradient(xp.where(supported, d * slope, 0.0))

    return batch.reduced(losses), pullback


def _widest(library: Any) -> str:
    """The dtype of the arithmetic: differences of log-gammas are small, and these are not."""
    try:
        library.dtype("float64")
    except AttributeError:
        return "float32"
    return "float64"


@with_vjp(_evidential_loss)
@documented()
@known_keywords
def evidential_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    annealing: float = 1.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Expected squared error under a Dirichlet distribution, and evidence against the target.

    .. math::

        \ell = \sum_k \left( (t_k - \hat p_k)^2 + \frac{\hat p_k (1 - \hat p_k)}{S + 1} \right)
            + \lambda \operatorname{KL}(
                \operatorname{Dir}(\tilde\alpha) \,\|\, \operatorname{Dir}(1)),

        \alpha_k = \max(x_k, 0) + 1, \quad S = \sum_k \alpha_k, \quad \hat p_k = \alpha_k / S, \quad
        \tilde\alpha_k = t_k + (1 - t_k)\, \alpha_k

    Parameters
    ----------
    {logits}
    targets : array of int
        The class of each row, 1 in t: the shape of `logits` without `axis`.
    annealing : float
        The factor of the divergence, at least 0; the paper raises it over the first ten epochs:
        ``min(1, epoch / 10)``.
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

    Notes
    -----
    The prediction that goes with it is :math:`\hat p`, and the uncertainty ``K / S``; not the
    softmax of the logits.  Computed in float64 where the library has it.  Evidence above 1e15
    counts as 1e15.

    References
    ----------
    .. [1] M. Sensoy, L. Kaplan and M. Kandemir, "Evidential Deep Learning to Quantify
       Classification Uncertainty", NeurIPS 2018, arXiv:1806.01768, 2018.

    Examples
    --------
    >>> from normx.losses import evidential_loss
    >>> print(evidential_loss([[1.0, 2.0, -1.0]], [1], annealing=0.0).round(8))
    0.47619048
    >>> print(evidential_loss([[1.0, 2.0, -1.0]], [1]).round(8))
    0.74146943
    """
    return _evidential_loss(
        logits,
        targets,
        annealing=annealing,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        reduction=reduction,
    )[0]
