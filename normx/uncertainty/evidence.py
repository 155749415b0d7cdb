"""Of the level of scores: how much speaks for any class at all."""

from __future__ import annotations

import numbers
from typing import Any

from normx._calls import checked
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._vjp import shaped_as, vjp
from normx.normalizers.pointwise import sigmoid
from normx.normalizers.softmax import logsumexp
from normx.uncertainty._measured import Pullback, Scores, bound, documented, picked, scores_of

Array = Any


@documented
def inhibited(
    x: ArrayLike,
    /,
    *,
    alpha: ArrayLike = 0.0,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Any:
    r"""The weight that an inhibited softmax gives to none of the classes.

    .. math:: u = \frac{e^\alpha}{\sum_k e^{x_k} + e^\alpha}

    Parameters
    ----------
    {x}
    alpha : float or array
        Score of none of the classes; an array has one value per item, with size 1 along `axis`.
    {axis}
    {where}

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; 1 where no class takes part.

    Raises
    ------
    {raises}

    See Also
    --------
    normx.inhibited_softmax : The weights of the classes; with this they sum to 1.

    Notes
    -----
    It looks at how high the scores are, not at how they differ: the model has to be trained with
    `normx.inhibited_softmax`, or its scores have no level that means anything.

    References
    ----------
    .. [1] M. Możejko, M. Susik and R. Karczewski, "Inhibited softmax for uncertainty estimation
       in neural networks", arXiv:1810.01861, 2018.

    Examples
    --------
    >>> from normx.uncertainty import inhibited
    >>> inhibited([[1.0, 2.0, 3.0, -1.0], [-9.0, -9.0, -9.0, -9.0]]).round(4)
    array([0.0317, 0.9995])
    """
    given, alpha, level = _inhibited(x, alpha, axis, where)
    return given.rounded(sigmoid(alpha - level, bias=0.0))


@documented
def evidential(x: ArrayLike, /, *, axis: int = -1, where: ArrayLike | None = None) -> Any:
    r"""The share of a Dirichlet distribution that is not evidence for any class.

    .. math:: u = \frac{K}{S}, \qquad S = \sum_k (1 + \max(0, x_k))

    Parameters
    ----------
    {x}
    {axis}
    where : array of bool, optional
        Broadcastable against `x`; True takes part, and K is their number.

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; 1 where there is no evidence.

    Raises
    ------
    {raises}

    See Also
    --------
    normx.losses.evidential_loss : What the model has to be trained with.

    References
    ----------
    .. [1] M. Sensoy, L. Kaplan and M. Kandemir, "Evidential deep learning to quantify
       classification uncertainty", NeurIPS, 2018.

    Examples
    --------
    >>> from normx.uncertainty import evidential
    >>> evidential([[1.0, 2.0, -1.0], [-1.0, -1.0, -1.0]])
    array([0.5, 1. ])
    """
    given, _, uncertainty, _ = _evidential(x, axis, where)
    return given.rounded(uncertainty)


def _inhibited(x: Any, alpha: Any, axis: int, where: Any) -> tuple[Scores, Array, Array]:
    """Scores, the score of none, and the level of the others."""
    given = scores_of("inhibited", x, axis, where=where)
    library, xp = given.library, given.library.namespace()
    kept = tuple(1 if i in given.axes else n for i, n in enumerate(given.x.shape))
    if isinstance(alpha, bool) or not (
        isinstance(alpha, numbers.Real) or library_of(alpha) is library
    ):
        wanted = f"a number or an array of {library.name}"
        raise wrong(TypeError, given.function, "alpha", described(alpha), wanted)
    if isinstance(alpha, numbers.Real | list | tuple):
        alpha = library.asarray(alpha, given.wide, given.x)
    try:
        alpha = xp.broadcast_to(library.cast(alpha, given.wide), kept)
    except (ValueError, RuntimeError, TypeError):
        wanted = f"broadcastable to {kept}: one value per item"
        raise wrong(ValueError, given.function, "alpha", described(alpha), wanted) from None
    wide = library.dtype(given.wide)
    level = logsumexp(given.x, axis=axis, keepdims=True, dtype=wide, **given.options)
    return given, alpha, level


def _inhibited_vjp(x: Any, /, **params: Any) -> tuple[Any, Pullback]:
    words = bound(inhibited, x, params)
    given, alpha, level = _inhibited(x, words["alpha"], words["axis"], words["where"])
    library = given.library
    share = sigmoid(alpha - level, bias=0.0)
    _, pull = vjp(logsumexp, given.x, axis=given.axes[0], keepdims=True, **given.options)

    def pullback(du: Array) -> dict[str, Array]:
        slope = given.spread(du) * share * (1.0 - share)
        gradients = {"x": pull(library.cast(-slope, given.dtype))["x"]}
        if "alpha" in params:
            xp = library.namespace()
            gradients["alpha"] = shaped_as(library, xp, slope, params["alpha"], given.dtype)
        return gradients

    return given.rounded(share), pullback


def _evidential(x: Any, axis: int, where: Any) -> tuple[Scores, Array, Array, Array]:
    """Scores, where there is evidence, the uncertainty and the number of classes."""
    given = scores_of("evidential", x, axis, where=where)
    library, xp = given.library, given.library.namespace()
    prepared = checked(given.function, given.x, axis=axis, **given.options)[2]
    scores, kept, _ = prepared.arguments(given.x, {"where": where})
    scores = library.cast(scores, given.wide)
    with library.quiet():
        # `not <=`: NaN is no absence of evidence.
        found = ~(scores <= 0.0) if kept is None else kept & ~(scores <= 0.0)
        taking_part = xp.ones_like(scores)
        if kept is not None:
            taking_part = xp.where(kept, taking_part, 0.0)
        classes = xp.sum(taking_part, axis=given.axes[0], keepdims=True)
        evidence = picked(xp, scores, found, given.axes[0])
        classes = xp.where(classes == 0.0, 1.0, classes)
        return given, found, classes / (classes + evidence), classes


def _evidential_vjp(x: Any, /, *, axis: int = -1, where: Any = None) -> tuple[Any, Pullback]:
    given, found, u, classes = _evidential(x, axis, where)
    library, xp = given.library, given.library.namespace()

    def pullback(du: Array) -> dict[str, Array]:
        gradient = xp.where(found, -(u**2) / classes * given.spread(du), 0.0)
        return {"x": library.finish(library.cast(gradient, given.dtype))}

    return given.rounded(u), pullback


# What `normx.vjp` asks for.
inhibited.vjp = _inhibited_vjp  # type: ignore[attr-defined]
evidential.vjp = _evidential_vjp  # type: ignore[attr-defined]
