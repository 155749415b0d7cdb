"""Of several models, or of several passes of one: how far they agree."""

from __future__ import annotations

import math
from typing import Any

from normx._calls import checked, dense
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._plan import INTEGERS
from normx.normalizers.softmax import logsumexp
from normx.plugins import dtype_name
from normx.uncertainty._checks import at_least, number, single
from normx.uncertainty._measured import (
    Measure,
    Pullback,
    bound,
    documented,
    finite,
    first_of_largest,
    of_logs,
    picked,
    scores_of,
)

Array = Any


@documented
def mc_dropout(
    x: ArrayLike,
    /,
    *,
    axis: int = -1,
    pass_axis: int = 0,
    rng: Any = None,
    passes: int = 50,
    rate: float = 0.1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> Any:
    r"""Least confidence of weights that are averaged over random passes of a model.

    .. math:: u = 1 - \max_k \frac1T \sum_t \operatorname{softmax}(x_t)_k

    Parameters
    ----------
    x : array
        Scores, of passes along `pass_axis`; of one pass without dropout if `rng` is given.
    {axis}
    pass_axis : int
        Axis of the passes; not used with `rng`.
    rng : generator, optional
        Of the library of `x`: a numpy.random.Generator, a torch.Generator, a key of JAX.
        The passes are then drawn here, by dropout of the scores.
    passes : int
        How many are drawn.
    rate : float
        Share of the scores that a drawn pass sets to 0, at least 0 and below 1; the others are
        divided by ``1 - rate``.
    where : array of bool, optional
        Broadcastable against the scores; True takes part.
    {temperature}

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`.

    Raises
    ------
    {raises}

    See Also
    --------
    consensus_kl : How much passes, or members of a committee, differ.

    Notes
    -----
    A model with dropout in it gives better passes than dropout of its scores, which is what the
    code of [2]_ does; with a `rate` of 0 that is `least_confidence`.

    References
    ----------
    .. [1] Y. Gal and Z. Ghahramani, "Dropout as a Bayesian approximation", ICML, 2016.
    .. [2] J. Gonsior et al., "To softmax, or not to softmax", arXiv:2210.03005, 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from normx.uncertainty import mc_dropout
    >>> two_passes = [[[2.0, 0.0]], [[-2.0, 0.0]]]
    >>> mc_dropout(two_passes)
    array([0.5])
    >>> mc_dropout([[2.0, 0.0]], rng=np.random.default_rng(0)).round(2)
    array([0.14])
    """
    options = {"where": where, "temperature": temperature}
    x, axis, pass_axis, _ = _passes(x, axis, pass_axis, rng, passes, rate)
    given = scores_of("mc_dropout", x, axis, pass_axis, "pass_axis", **options)
    return given.measured(MEAN_CONFIDENCE)


@documented
def consensus_kl(
    x: ArrayLike,
    /,
    *,
    axis: int = -1,
    member_axis: int = 0,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> Any:
    r"""Mean divergence of a committee's members from their consensus.

    .. math:: u = \frac1C \sum_c \sum_k p_{ck} \log\frac{p_{ck}}{\bar p_k}, \qquad
        p_c = \operatorname{softmax}(x_c / T), \quad \bar p = \frac1C \sum_c p_c

    Parameters
    ----------
    x : array
        Scores of all members, along `member_axis`.
    {axis}
    member_axis : int
        Axis of the members.
    {where}
    {temperature}

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; between 0, where all agree, and the
        logarithm of the number of members.

    Raises
    ------
    {raises}

    See Also
    --------
    vote_entropy : Of the members' decisions alone.

    References
    ----------
    .. [1] A. McCallum and K. Nigam, "Employing EM and pool-based active learning for text
       classification", ICML, 1998.

    Examples
    --------
    >>> from normx.uncertainty import consensus_kl
    >>> consensus_kl([[[9.0, 0.0], [1.0, 0.0]], [[0.0, 9.0], [1.0, 0.0]]]).round(4)
    array([0.6919, 0.    ])
    """
    options = {"where": where, "temperature": temperature}
    given = scores_of("consensus_kl", x, axis, member_axis, "member_axis", **options)
    return given.measured(DISAGREEMENT)


def vote_entropy(votes: ArrayLike, /, *, member_axis: int = 0) -> Any:
    r"""Entropy of the votes of a committee, in nats.

    .. math:: u = -\sum_k \frac{V_k}{C} \log\frac{V_k}{C}

    Parameters
    ----------
    votes : array of int
        The class that each member chooses, members along `member_axis`.
    member_axis : int
        Axis of the members.

    Returns
    -------
    array
        One value per item, in the library's default floating dtype; between 0, where all
        agree, and the logarithm of the number of members.

    Raises
    ------
    TypeError
        If `votes` are not whole numbers.
    ValueError
        If there is no member.
    numpy.exceptions.AxisError
        If `member_axis` does not exist; both a ValueError and an IndexError.

    See Also
    --------
    consensus_kl : Of the members' weights.

    Notes
    -----
    Votes are compared in pairs, so any numbers do as names of the classes.  There is no gradient.

    References
    ----------
    .. [1] S. Argamon-Engelson and I. Dagan, "Committee-based sample selection for probabilistic
       classifiers", Journal of Artificial Intelligence Research 11, 1999.

    Examples
    --------
    >>> from normx.uncertainty import vote_entropy
    >>> vote_entropy([[0, 2], [0, 2], [0, 2], [1, 2], [1, 2]]).round(4)
    array([0.673, 0.   ])
    """
    function = "uncertainty.vote_entropy"
    member_axis = single(function, "member_axis", member_axis)
    library, votes, prepared = checked(function, votes, axis=member_axis)
    dense(function, library, votes)
    if not votes.shape:
        raise wrong(ValueError, function, "votes", "a number", "an array with an axis of members")
    if dtype_name(votes.dtype) not in INTEGERS:
        cure = "pass the argmax of the members' scores over the classes"
        raise wrong(TypeError, function, "votes", described(votes), "an array of ints", cure)
    xp, (along,) = library.namespace(), prepared.plan.axis
    members = votes.shape[along]
    if members == 0:
        raise wrong(ValueError, function, "votes", described(votes), "votes of at least one member")
    alike = xp.expand_dims(votes, axis=along) == xp.expand_dims(votes, axis=along + 1)
    count = xp.sum(library.cast(alike, prepared.plan.dtype), axis=along)
    return library.finish(xp.abs(xp.mean(xp.log(count / members), axis=along)))


def _passes(
    x: Any, axis: int, pass_axis: int, rng: Any, passes: Any, rate: Any
) -> tuple[Array, int, int, Array | None]:
    """Scores of passes, their axes, and what was drawn to multiply scores of one pass with."""
    if rng is None:
        return x, axis, pass_axis, None
    given = scores_of("mc_dropout", x, axis)
    library, xp = given.library, given.library.namespace()
    wanted = library.check_rng(rng)
    if wanted is not None:
        raise wrong(TypeError, given.function, "rng", described(rng), wanted)
    count = at_least(given.function, "passes", passes, 1)
    rate = number(given.function, "rate", rate)
    if not 0.0 <= rate < 1.0:
        raise wrong(ValueError, given.function, "rate", repr(rate), "at least 0 and below 1")
    scores = library.cast(given.x, given.wide)
    noise = library.uniform(rng, (count, *scores.shape), given.wide, scores)
    factors = xp.where(noise < rate, xp.zeros_like(noise), 1.0 / (1.0 - rate))
    dropped = xp.where(factors == 0.0, 0.0, scores[None, ...] * factors)
    return library.cast(dropped, given.dtype), 1 + given.axes[0], 0, factors


def _mc_dropout_vjp(x: Any, /, **params: Any) -> tuple[Any, Pullback]:
    given = bound(mc_dropout, x, params)
    names = ("axis", "pass_axis", "rng", "passes", "rate")
    drawn, axis, pass_axis, factors = _passes(x, *(given.pop(name) for name in names))
    of_passes = of_logs(mc_dropout, MEAN_CONFIDENCE, "pass_axis")
    u, pull = of_passes(drawn, axis=axis, pass_axis=pass_axis, **given)
    if factors is None:
        return u, pull
    one = scores_of("mc_dropout", x, -1)

    def pullback(du: Array) -> dict[str, Array]:
        gradients: dict[str, Array] = pull(du)
        through = one.library.namespace().sum(gradients["x"] * factors, axis=0)
        return gradients | {"x": one.library.cast(through, one.dtype)}

    return u, pullback


def _mean_weights(xp: Any, logs: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Weights averaged over the passes, and where the largest is not."""
    classes, passes = axes
    mean = xp.mean(xp.exp(logs), axis=passes, keepdims=True)
    return mean, ~first_of_largest(xp, mean, classes)


def _mean_confidence(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    mean, others = _mean_weights(xp, logs, axes)
    return picked(xp, mean, others, axes[0])


def _mean_confidence_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    _, others = _mean_weights(xp, logs, axes)
    return xp.where(others, xp.exp(logs) / logs.shape[axes[1]], 0.0)


def _information(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    """What each member's weights say beyond the mean's, per class; zero in the mean's."""
    members = logs.shape[axes[1]]
    mean = logsumexp(logs, axis=axes[1], keepdims=True) - math.log(members)
    return xp.exp(logs) * (finite(xp, logs) - finite(xp, mean))


def _disagreement(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    found = xp.sum(_information(xp, logs, axes), axis=axes, keepdims=True) / logs.shape[axes[1]]
    return xp.where(found < 0.0, 0.0, found)  # members that agree, but for rounding


def _disagreement_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    # What the members change in the mean cancels when it is summed over them.
    return _information(xp, logs, axes) / logs.shape[axes[1]]


MEAN_CONFIDENCE = Measure(_mean_confidence, _mean_confidence_slope)
DISAGREEMENT = Measure(_disagreement, _disagreement_slope)

# What `normx.vjp` asks for.
mc_dropout.vjp = _mc_dropout_vjp  # type: ignore[attr-defined]
consensus_kl.vjp = of_logs(consensus_kl, DISAGREEMENT, "member_axis")  # type: ignore[attr-defined]
