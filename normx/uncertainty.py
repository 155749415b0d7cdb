r"""How uncertain a classifier is of each item, and which items to ask about.

Every measure is higher where less is certain, so that one `select` serves all of them.  They take
scores (logits), and compute with their log-weights: an item of which all but 1e-30 is certain has
that uncertainty, and not 0.

Two more of the alternatives that Gonsior et al. (2022) compare are not measures: temperature
scaling has `normx.calibration.fit_temperature` and the keyword `temperature`, label smoothing a
keyword of `normx.losses.cross_entropy`.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from normx._calls import checked, dense, single_axis
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._plan import INTEGERS, NARROW
from normx._vjp import shaped_as, vjp
from normx.normalizers.pointwise import sigmoid
from normx.normalizers.softmax import log_softmax, logsumexp
from normx.plugins import Library, dtype_name
from normx.topk import rising_order

__all__ = [
    "clip_uncertain",
    "consensus_kl",
    "entropy",
    "evidential",
    "inhibited",
    "least_confidence",
    "margin",
    "mc_dropout",
    "select",
    "trust_score",
    "vote_entropy",
]

Array = Any
Pullback = Callable[[Array], dict[str, Array]]

#: Numbers in the differences that `trust_score` keeps at a time: 32 MiB in float64.
_BLOCK = 1 << 22


# ------------------------------------------------------- measures of log-weights


@dataclass(frozen=True, slots=True)
class _Measure:
    """A measure of log-weights, and its slope in each of them.

    Both take the namespace, the log-weights and the axes that are reduced: that of the classes,
    and that of the passes or members if there is one.  These stay, with size 1 in the value.
    """

    value: Callable[[Any, Array, tuple[int, ...]], Array]
    slope: Callable[[Any, Array, tuple[int, ...]], Array]


def _first_of_largest(xp: Any, x: Array, axis: int) -> Array:
    """Where the largest entry is: True once in every row, at the first of equal ones."""
    place = xp.expand_dims(xp.argmax(x, axis=axis), axis=axis)
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return place == xp.reshape(xp.arange(x.shape[axis], dtype=place.dtype), tuple(shape))


def _picked(xp: Any, x: Array, chosen: Array, axis: int) -> Array:
    return xp.sum(xp.where(chosen, x, 0.0), axis=axis, keepdims=True)


def _least_confidence(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    return 0.0 - xp.expm1(_picked(xp, logs, _first_of_largest(xp, logs, *axes), *axes))


def _least_confidence_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    return xp.where(_first_of_largest(xp, logs, *axes), -xp.exp(logs), 0.0)


def _without_the_largest(xp: Any, logs: Array, axis: int) -> tuple[Array, Array]:
    first = _first_of_largest(xp, logs, axis)
    return first, xp.where(first, -xp.inf, logs)


def _margin(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    first, others = _without_the_largest(xp, logs, *axes)
    second = _picked(xp, others, _first_of_largest(xp, others, *axes), *axes)
    # Both terms are positive: nothing cancels where the first class is nearly certain.
    return xp.exp(second) - xp.expm1(_picked(xp, logs, first, *axes))


def _margin_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    first, others = _without_the_largest(xp, logs, *axes)
    second = _first_of_largest(xp, others, *axes)
    return xp.where(first, -xp.exp(logs), xp.where(second, xp.exp(others), 0.0))


def _finite(xp: Any, logs: Array) -> Array:
    """Log-weights, 0 for those of no weight: times a weight of 0, either is 0."""
    return xp.where(logs == -xp.inf, 0.0, logs)


def _entropy(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    return 0.0 - xp.sum(xp.exp(logs) * _finite(xp, logs), axis=axes, keepdims=True)


def _entropy_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    return -xp.exp(logs) * (1.0 + _finite(xp, logs))


def _mean_weights(xp: Any, logs: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Weights averaged over the passes, and where the largest is not."""
    classes, passes = axes
    mean = xp.mean(xp.exp(logs), axis=passes, keepdims=True)
    return mean, ~_first_of_largest(xp, mean, classes)


def _mean_confidence(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    mean, others = _mean_weights(xp, logs, axes)
    return _picked(xp, mean, others, axes[0])


def _mean_confidence_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    _, others = _mean_weights(xp, logs, axes)
    return xp.where(others, xp.exp(logs) / logs.shape[axes[1]], 0.0)


def _information(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    """What each member's weights say beyond the mean's, per class; zero in the mean's."""
    members = logs.shape[axes[1]]
    mean = logsumexp(logs, axis=axes[1], keepdims=True) - math.log(members)
    return xp.exp(logs) * (_finite(xp, logs) - _finite(xp, mean))


def _disagreement(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    found = xp.sum(_information(xp, logs, axes), axis=axes, keepdims=True) / logs.shape[axes[1]]
    return xp.where(found < 0.0, 0.0, found)  # members that agree, but for rounding


def _disagreement_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    # What the members change in the mean cancels when it is summed over them.
    return _information(xp, logs, axes) / logs.shape[axes[1]]


LEAST_CONFIDENCE = _Measure(_least_confidence, _least_confidence_slope)
MARGIN = _Measure(_margin, _margin_slope)
ENTROPY = _Measure(_entropy, _entropy_slope)
MEAN_CONFIDENCE = _Measure(_mean_confidence, _mean_confidence_slope)
DISAGREEMENT = _Measure(_disagreement, _disagreement_slope)


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores of a call, checked, and what is to be done with them."""

    function: str
    library: Library
    x: Array
    axes: tuple[int, ...]
    dtype: str
    options: Mapping[str, Any]

    @property
    def wide(self) -> str:
        """The dtype of the arithmetic."""
        return "float32" if self.dtype in NARROW else self.dtype

    def measured(self, measure: _Measure) -> Array:
        library, xp = self.library, self.library.namespace()
        logs = log_softmax(
            self.x, axis=self.axes[0], dtype=library.dtype(self.wide), **self.options
        )
        with library.quiet():
            return self.rounded(measure.value(xp, logs, self.axes))

    def rounded(self, u: Array) -> Array:
        """A value per item, in the dtype of the scores."""
        u = self.library.namespace().squeeze(u, axis=self.axes)
        return self.library.finish(self.library.cast(u, self.dtype))

    def spread(self, du: Any) -> Array:
        """A cotangent, with the axes of the scores."""
        library, xp = self.library, self.library.namespace()
        du = np.asarray(du) if isinstance(du, list | tuple | int | float) else du
        shape = tuple(n for i, n in enumerate(self.x.shape) if i not in self.axes)
        if library_of(du) is not library or tuple(du.shape) != shape:
            wanted = f"an array of {library.name} of shape {shape}"
            raise wrong(ValueError, "vjp", "dy", described(du), wanted)
        kept = tuple(1 if i in self.axes else n for i, n in enumerate(self.x.shape))
        return xp.reshape(library.cast(du, self.wide), kept)

    def pulled_back(self, measure: _Measure) -> Pullback:
        library, xp = self.library, self.library.namespace()
        logs, pull = vjp(log_softmax, self.x, axis=self.axes[0], **self.options)

        def pullback(du: Array) -> dict[str, Array]:
            with library.quiet():
                slope = measure.slope(xp, library.cast(logs, self.wide), self.axes)
                of_logs = library.cast(slope * self.spread(du), self.dtype)
            gradients: dict[str, Array] = pull(of_logs)
            return gradients

        return pullback


def _scores(
    name: str, x: Any, axis: Any, others: Any = None, what: str = "", **options: Any
) -> _Scores:
    """Check scores of classes along an axis, and perhaps of passes or members along another."""
    function = f"uncertainty.{name}"
    single_axis(function, axis)
    options = {key: value for key, value in options.items() if value is not None}
    library, x, prepared = checked(function, x, axis=axis, **options)
    dense(function, library, x)
    if not x.shape:
        raise wrong(ValueError, function, "x", "a number", "an array with an axis of classes")
    axes = prepared.plan.axis
    if others is not None:
        (along,) = checked(function, x, axis=_single(function, what, others))[2].plan.axis
        if along == axes[0]:
            raise wrong(ValueError, function, what, repr(others), "another axis than `axis`")
        axes = (*axes, along)
    if any(x.shape[i] == 0 for i in axes):
        raise wrong(ValueError, function, "x", described(x), "scores of at least one class")
    return _Scores(function, library, x, axes, prepared.plan.dtype, options)


def _single(function: str, what: str, axis: Any) -> int:
    if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
        raise wrong(TypeError, function, what, repr(axis), "an int")
    return int(axis)


def least_confidence(
    x: ArrayLike,
    /,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> Any:
    r"""One minus the weight of the likeliest class.

    .. math:: u = 1 - \max_k p_k, \qquad p = \operatorname{softmax}(x / T)

    Parameters
    ----------
    x : array
        Scores: an array of any array-API library, or a list (taken as NumPy's).
    axis : int
        Axis of the classes.
    where : array of bool, optional
        Broadcastable against `x`; True takes part.
    temperature : float or array, optional
        The scores are divided by it: `normx.calibration.fit_temperature` finds one.

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; 0 is certain, 1 - 1/K the most that
        K classes allow.  An item of which no class takes part has 1.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape.
    numpy.exceptions.AxisError
        If `axis` does not exist; both a ValueError and an IndexError.

    See Also
    --------
    select : The items that are least certain.

    Notes
    -----
    For two classes the order of items does not depend on the temperature; for more it does.
    `normx.vjp` takes this function, and libraries that differentiate go through it; at a tie the
    gradient is that of the first of the likeliest classes.

    References
    ----------
    .. [1] D. D. Lewis and W. A. Gale, "A sequential algorithm for training text classifiers",
       SIGIR, 1994.

    Examples
    --------
    >>> from normx.uncertainty import least_confidence
    >>> least_confidence([[0.0, 0.0], [3.0, 0.0], [99.0, 0.0]])
    array([5.00000000e-01, 4.74258732e-02, 1.01122149e-43])
    """
    given = _scores("least_confidence", x, axis, where=where, temperature=temperature)
    return given.measured(LEAST_CONFIDENCE)


def margin(
    x: ArrayLike,
    /,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> Any:
    r"""One minus the lead of the likeliest class over the next: breaking ties.

    .. math:: u = 1 - (p_{(1)} - p_{(2)}), \qquad p = \operatorname{softmax}(x / T)

    Parameters
    ----------
    x : array
        Scores: an array of any array-API library, or a list (taken as NumPy's).
    axis : int
        Axis of the classes.
    where : array of bool, optional
        Broadcastable against `x`; True takes part.
    temperature : float or array, optional
        The scores are divided by it.

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; 1 where two classes are likeliest, and
        where none takes part.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape.
    numpy.exceptions.AxisError
        If `axis` does not exist; both a ValueError and an IndexError.

    See Also
    --------
    least_confidence : The same, but for what the next class has.

    References
    ----------
    .. [1] T. Scheffer, C. Decomain and S. Wrobel, "Active hidden Markov models for information
       extraction", IDA, 2001.

    Examples
    --------
    >>> from normx.uncertainty import margin
    >>> margin([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).round(4)
    array([1.    , 0.6358])
    """
    given = _scores("margin", x, axis, where=where, temperature=temperature)
    return given.measured(MARGIN)


def entropy(
    x: ArrayLike,
    /,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> Any:
    r"""Shannon entropy of the weights, in nats.

    .. math:: u = -\sum_k p_k \log p_k, \qquad p = \operatorname{softmax}(x / T)

    Parameters
    ----------
    x : array
        Scores: an array of any array-API library, or a list (taken as NumPy's).
    axis : int
        Axis of the classes.
    where : array of bool, optional
        Broadcastable against `x`; True takes part.
    temperature : float or array, optional
        The scores are divided by it.

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; between 0, also where no class takes
        part, and the logarithm of the number of classes.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape.
    numpy.exceptions.AxisError
        If `axis` does not exist; both a ValueError and an IndexError.

    See Also
    --------
    least_confidence : A measure of the likeliest class alone.

    References
    ----------
    .. [1] C. E. Shannon, "A mathematical theory of communication", Bell System Technical
       Journal 27, 1948.

    Examples
    --------
    >>> from normx.uncertainty import entropy
    >>> entropy([[0.0, 0.0], [1.0, 0.0]]).round(4)
    array([0.6931, 0.5822])
    """
    given = _scores("entropy", x, axis, where=where, temperature=temperature)
    return given.measured(ENTROPY)


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
    axis : int
        Axis of the classes.
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
    temperature : float or array, optional
        The scores are divided by it.

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape.
    numpy.exceptions.AxisError
        If an axis does not exist; both a ValueError and an IndexError.

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
    given = _scores("mc_dropout", x, axis, pass_axis, "pass_axis", **options)
    return given.measured(MEAN_CONFIDENCE)


def _passes(
    x: Any, axis: int, pass_axis: int, rng: Any, passes: Any, rate: Any
) -> tuple[Array, int, int, Array | None]:
    """Scores of passes, their axes, and what was drawn to multiply scores of one pass with."""
    if rng is None:
        return x, axis, pass_axis, None
    given = _scores("mc_dropout", x, axis)
    library, xp = given.library, given.library.namespace()
    wanted = library.check_rng(rng)
    if wanted is not None:
        raise wrong(TypeError, given.function, "rng", described(rng), wanted)
    count = _at_least(given.function, "passes", passes, 1)
    rate = _number(given.function, "rate", rate)
    if not 0.0 <= rate < 1.0:
        raise wrong(ValueError, given.function, "rate", repr(rate), "at least 0 and below 1")
    scores = library.cast(given.x, given.wide)
    noise = library.uniform(rng, (count, *scores.shape), given.wide, scores)
    factors = xp.where(noise < rate, xp.zeros_like(noise), 1.0 / (1.0 - rate))
    dropped = xp.where(factors == 0.0, 0.0, scores[None, ...] * factors)
    return library.cast(dropped, given.dtype), 1 + given.axes[0], 0, factors


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
    axis : int
        Axis of the classes.
    member_axis : int
        Axis of the members.
    where : array of bool, optional
        Broadcastable against `x`; True takes part.
    temperature : float or array, optional
        The scores are divided by it.

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; between 0, where all agree, and the
        logarithm of the number of members.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape.
    numpy.exceptions.AxisError
        If an axis does not exist; both a ValueError and an IndexError.

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
    given = _scores("consensus_kl", x, axis, member_axis, "member_axis", **options)
    return given.measured(DISAGREEMENT)


# --------------------------------------------------------------- measures of scores


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
    x : array
        Scores: an array of any array-API library, or a list (taken as NumPy's).
    alpha : float or array
        Score of none of the classes; an array has one value per item, with size 1 along `axis`.
    axis : int
        Axis of the classes.
    where : array of bool, optional
        Broadcastable against `x`; True takes part.

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; 1 where no class takes part.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape.
    numpy.exceptions.AxisError
        If `axis` does not exist; both a ValueError and an IndexError.

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


def _inhibited(x: Any, alpha: Any, axis: int, where: Any) -> tuple[_Scores, Array, Array]:
    """Scores, the score of none, and the level of the others."""
    given = _scores("inhibited", x, axis, where=where)
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


def evidential(x: ArrayLike, /, *, axis: int = -1, where: ArrayLike | None = None) -> Any:
    r"""The share of a Dirichlet distribution that is not evidence for any class.

    .. math:: u = \frac{K}{S}, \qquad S = \sum_k (1 + \max(0, x_k))

    Parameters
    ----------
    x : array
        Scores: an array of any array-API library, or a list (taken as NumPy's).
    axis : int
        Axis of the classes.
    where : array of bool, optional
        Broadcastable against `x`; True takes part, and K is their number.

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; 1 where there is no evidence.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape.
    numpy.exceptions.AxisError
        If `axis` does not exist; both a ValueError and an IndexError.

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


def _evidential(x: Any, axis: int, where: Any) -> tuple[_Scores, Array, Array, Array]:
    """Scores, where there is evidence, the uncertainty and the number of classes."""
    given = _scores("evidential", x, axis, where=where)
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
        evidence = _picked(xp, scores, found, given.axes[0])
        classes = xp.where(classes == 0.0, 1.0, classes)
        return given, found, classes / (classes + evidence), classes


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
    member_axis = _single(function, "member_axis", member_axis)
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
    k = _at_least(function, "k", k, 1)
    alpha = _number(function, "alpha", alpha)
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


def _number(function: str, what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise wrong(TypeError, function, what, described(value), "a number")
    return float(value)


def _at_least(function: str, what: str, count: Any, least: int) -> int:
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise wrong(TypeError, function, what, described(count), "an int")
    if count < least:
        raise wrong(ValueError, function, what, repr(int(count)), f"at least {least}")
    return int(count)


# ----------------------------------------------------------------- what to ask about


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
    n = _at_least("uncertainty.select", "n", n, 0)
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
    keep = _number(function, "keep", keep)
    if not 0.0 < keep <= 1.0:
        raise wrong(ValueError, function, "keep", repr(keep), "above 0 and at most 1")
    u = library.cast(u, prepared.plan.dtype)
    if library.is_concrete(u) and bool(np.isnan(library.to_numpy(u).astype(np.float64)).any()):
        raise wrong(ValueError, function, "u", "NaN at some items", "a number for every item")
    # (1 - 0.8) * 5 is a little less than 1.
    return library, u, math.floor((1.0 - keep) * u.shape[0] + 1e-9)


def _least_certain_first(library: Library, u: Array) -> Array:
    return rising_order(library.namespace(), library, -u, 0)


# ------------------------------------------------------------------------ gradients


def _bound(function: Callable[..., Any], x: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Every keyword of a call, as Python would refuse or complete it."""
    bound = inspect.signature(function).bind(x, **params)
    bound.apply_defaults()
    return bound.kwargs


def _of_logs(
    function: Callable[..., Any], measure: _Measure, others: str = ""
) -> Callable[..., Any]:
    """The vector-Jacobian product of a function that measures log-weights, for `normx.vjp`."""

    def pulled(x: Any, /, **params: Any) -> tuple[Any, Pullback]:
        given = _bound(function, x, params)
        options = {word: given[word] for word in ("where", "temperature")}
        along = given[others] if others else None
        scores = _scores(function.__name__, x, given["axis"], along, others, **options)
        return scores.measured(measure), scores.pulled_back(measure)

    return pulled


def _mc_dropout_vjp(x: Any, /, **params: Any) -> tuple[Any, Pullback]:
    given = _bound(mc_dropout, x, params)
    names = ("axis", "pass_axis", "rng", "passes", "rate")
    drawn, axis, pass_axis, factors = _passes(x, *(given.pop(name) for name in names))
    of_passes = _of_logs(mc_dropout, MEAN_CONFIDENCE, "pass_axis")
    u, pull = of_passes(drawn, axis=axis, pass_axis=pass_axis, **given)
    if factors is None:
        return u, pull
    one = _scores("mc_dropout", x, -1)

    def pullback(du: Array) -> dict[str, Array]:
        gradients: dict[str, Array] = pull(du)
        through = one.library.namespace().sum(gradients["x"] * factors, axis=0)
        return gradients | {"x": one.library.cast(through, one.dtype)}

    return u, pullback


def _inhibited_vjp(x: Any, /, **params: Any) -> tuple[Any, Pullback]:
    words = _bound(inhibited, x, params)
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


def _evidential_vjp(x: Any, /, *, axis: int = -1, where: Any = None) -> tuple[Any, Pullback]:
    given, found, u, classes = _evidential(x, axis, where)
    library, xp = given.library, given.library.namespace()

    def pullback(du: Array) -> dict[str, Array]:
        gradient = xp.where(found, -(u**2) / classes * given.spread(du), 0.0)
        return {"x": library.finish(library.cast(gradient, given.dtype))}

    return given.rounded(u), pullback


for _function, _vjp in (
    (least_confidence, _of_logs(least_confidence, LEAST_CONFIDENCE)),
    (margin, _of_logs(margin, MARGIN)),
    (entropy, _of_logs(entropy, ENTROPY)),
    (consensus_kl, _of_logs(consensus_kl, DISAGREEMENT, "member_axis")),
    (mc_dropout, _mc_dropout_vjp),
    (inhibited, _inhibited_vjp),
    (evidential, _evidential_vjp),
):
    _function.vjp = _vjp  # type: ignore[attr-defined]  # for `normx.vjp`
