"""Of the weights of one model: how far the likeliest class is from certain."""

from __future__ import annotations

from typing import Any

from normx._options import ArrayLike
from normx.uncertainty._measured import (
    Measure,
    documented,
    finite,
    first_of_largest,
    of_logs,
    picked,
    scores_of,
)

Array = Any


@documented
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
    {x}
    {axis}
    {where}
    temperature : float or array, optional
        The scores are divided by it: `normx.calibration.fit_temperature` finds one.

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; 0 is certain, 1 - 1/K the most that
        K classes allow.  An item of which no class takes part has 1.

    Raises
    ------
    {raises}

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
    given = scores_of("least_confidence", x, axis, where=where, temperature=temperature)
    return given.measured(LEAST_CONFIDENCE)


@documented
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
    {x}
    {axis}
    {where}
    {temperature}

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; 1 where two classes are likeliest, and
        where none takes part.

    Raises
    ------
    {raises}

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
    given = scores_of("margin", x, axis, where=where, temperature=temperature)
    return given.measured(MARGIN)


@documented
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
    {x}
    {axis}
    {where}
    {temperature}

    Returns
    -------
    array
        One value per item, in the floating dtype of `x`; between 0, also where no class takes
        part, and the logarithm of the number of classes.

    Raises
    ------
    {raises}

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
    given = scores_of("entropy", x, axis, where=where, temperature=temperature)
    return given.measured(ENTROPY)


def _least_confidence(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    return 0.0 - xp.expm1(picked(xp, logs, first_of_largest(xp, logs, *axes), *axes))


def _least_confidence_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    return xp.where(first_of_largest(xp, logs, *axes), -xp.exp(logs), 0.0)


def _without_the_largest(xp: Any, logs: Array, axis: int) -> tuple[Array, Array]:
    first = first_of_largest(xp, logs, axis)
    return first, xp.where(first, -xp.inf, logs)


def _margin(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    first, others = _without_the_largest(xp, logs, *axes)
    second = picked(xp, others, first_of_largest(xp, others, *axes), *axes)
    # Both terms are positive: nothing cancels where the first class is nearly certain.
    return xp.exp(second) - xp.expm1(picked(xp, logs, first, *axes))


def _margin_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    first, others = _without_the_largest(xp, logs, *axes)
    second = first_of_largest(xp, others, *axes)
    return xp.where(first, -xp.exp(logs), xp.where(second, xp.exp(others), 0.0))


def _entropy(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    return 0.0 - xp.sum(xp.exp(logs) * finite(xp, logs), axis=axes, keepdims=True)


def _entropy_slope(xp: Any, logs: Array, axes: tuple[int, ...]) -> Array:
    return -xp.exp(logs) * (1.0 + finite(xp, logs))


LEAST_CONFIDENCE = Measure(_least_confidence, _least_confidence_slope)
MARGIN = Measure(_margin, _margin_slope)
ENTROPY = Measure(_entropy, _entropy_slope)

# What `normx.vjp` asks for.
least_confidence.vjp = of_logs(least_confidence, LEAST_CONFIDENCE)  # type: ignore[attr-defined]
margin.vjp = of_logs(margin, MARGIN)  # type: ignore[attr-defined]
entropy.vjp = of_logs(entropy, ENTROPY)  # type: ignore[attr-defined]
