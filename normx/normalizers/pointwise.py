r"""The logistic function with a bias that follows the length, and the standard score."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, Unpack

from normx import _arithmetic as arithmetic
from normx import laws
from normx._arithmetic import Double
from normx._options import ArrayLike, Axis, RowOptions
from normx._record import Paper, Parameter, Stage, flag, normalizer
from normx._row import Row
from normx.normalizers.scaled import N, length_of
from normx.states import MAXIMUM, MEAN, POWER_SUM, SUM, Mean, PowerSum

Array = Any
ArrayT = TypeVar("ArrayT")

_RAMAPURAM = Paper(
    "J. Ramapuram et al.",
    "Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
    2024,
    "ICLR 2025, arXiv:2409.04431",
)
_ZLOSS = Paper(
    "A. de Brébisson and P. Vincent",
    "The Z-loss: a shift and scale invariant classification loss belonging to the Spherical Family",
    2016,
    "arXiv:1604.08859",
)
_CHAN = Paper(
    "T. F. Chan, G. H. Golub and R. J. LeVeque",
    "Algorithms for Computing the Sample Variance: Analysis and Recommendations",
    1983,
    "The American Statistician 37(3), 242-247",
)


def _logit(row: Row, count: Array | None, bias: Array | None, n: Array | None) -> Double:
    """Scores plus bias, in two words: a large negative logit is exponentiated."""
    xp, z = row.xp, row.tempered
    if bias is None:
        log_n = arithmetic.log(xp, length_of(row, count, n), row.dtype)
        bias = Double(-log_n.hi, -log_n.lo)
    else:
        bias = Double(bias, 0.0 * bias)
    finite = xp.isfinite(z.hi)
    total = arithmetic.two_sum(xp.where(finite, z.hi, 0.0), bias.hi)
    hi = xp.where(finite, total.hi, z.hi)
    return Double(hi, xp.where(xp.isfinite(hi), total.lo + (z.lo + bias.lo), 0.0))


def _logistic(xp: Any, z: Double) -> tuple[Array, Array]:
    """The logistic function and its derivative."""
    low = xp.where(z.hi < 0, z.lo, -z.lo)
    e = arithmetic.exp(xp, Double(-xp.abs(z.hi), low))
    return xp.where(z.hi < 0, e, 1.0) / (1.0 + e), e / ((1.0 + e) * (1.0 + e))


def _sigmoid_lift_length(
    row: Row,
    *,
    normalize: bool,
    bias: Array | None = None,
    n: Array | None = None,
) -> Array | None:
    return row.length if bias is None and n is None else None


def _sigmoid_lift_sum(
    row: Row,
    count: Array | None,
    *,
    normalize: bool,
    bias: Array | None = None,
    n: Array | None = None,
) -> Array | None:
    if not normalize:
        return None
    return row.sum(_logistic(row.xp, _logit(row, count, bias, n))[0])


def _sigmoid(
    row: Row,
    count: Array | None,
    total: Array | None,
    *,
    normalize: bool,
    bias: Array | None = None,
    n: Array | None = None,
) -> Array:
    y = _logistic(row.xp, _logit(row, count, bias, n))[0]
    return y if total is None else y / row.xp.where(total == 0, 1.0, total)


def _sigmoid_vjp(
    row: Row,
    cotangent: Array,
    *,
    normalize: bool,
    bias: Array | None = None,
    n: Array | None = None,
) -> dict[str, Array]:
    xp = row.xp
    y, slope = _logistic(xp, _logit(row, row.length, bias, n))
    if normalize:
        total = row.sum(y)
        total = xp.where(total == 0, 1.0, total)
        cotangent = (cotangent - row.sum(y / total * cotangent)) / total
    gradient = slope * cotangent
    whole = row.sum(gradient)
    return {"x": gradient, "bias": whole, "n": -whole / length_of(row, row.length, n)}


def _sigmoid_definition(
    m: Any, x: Array, bias: Any = None, n: Any = None, normalize: bool = False
) -> Array:
    if bias is None:
        bias = -m.log(x.dtype.type(len(x)) if n is None else n)
    y = 1 / (1 + m.exp(-(x + bias)))
    return y / m.sum(y) if normalize else y


@normalizer(
    stages=(Stage(_sigmoid_lift_length, SUM), Stage(_sigmoid_lift_sum, SUM)),
    apply=_sigmoid,
    definition=_sigmoid_definition,
    vjp=_sigmoid_vjp,
    at_infinity="pointwise",
    parameters=(Parameter("bias", shape="row"), N),
    constants=(flag("normalize"),),
    laws=(
        laws.within_unit_interval,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(_RAMAPURAM,),
)
def sigmoid(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    bias: ArrayLike | None = None,
    n: ArrayLike | None = None,
    normalize: bool = False,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Logistic function of the scores with a bias of minus log n.

    .. math:: y_i = \frac{1}{1 + e^{-(x_i + b)}}, \quad b = -\log n

    Parameters
    ----------
    {x}
    {axis}
    bias : float or array, optional
        Added to the scores, after the temperature; ``-log(n)`` by default.  An array has
        size 1 along `axis`.
    {n}
    normalize : bool
        Whether to divide the weights by their sum.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    Notes
    -----
    The entries of a row do not compete: unless normalized, weights depend on the row only
    through n.  With the default bias, a row of zeros has a mass of n/(n + 1).  The sum of
    score and bias is carried in two words, so small weights have all their digits.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.sigmoid([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.4046, 0.6488, 0.8339, 0.0842])
    """


def _deviation(row: Row, mean: Mean) -> Array:
    """Scores less their mean, 0 where left out, as accurate as the scores allow."""
    xp = row.xp
    finite = xp.where(row.present, row.scores, 0.0)
    difference = arithmetic.two_sum(finite, -mean.mean.hi)
    return xp.where(row.present, difference.hi + (difference.lo - mean.mean.lo), 0.0)


class _Standard(NamedTuple):
    """Deviations and their root mean square relative to a scale: squares do not overflow."""

    flat: Array
    scale: Array
    spread: Array
    divisor: Array
    deviation: Array


def _lift_mean(row: Row, top: Array, *, eps: Array) -> Mean:
    return MEAN.lift(row.indicated(top))


def _lift_squares(row: Row, top: Array, mean: Mean, *, eps: Array) -> PowerSum:
    # Relative to the largest deviation, so that squares neither overflow nor vanish: a constant
    # to differentiation, because it cancels.
    d = _deviation(row.indicated(top), mean)
    scale = row.library.stop_gradient(row.xp.max(row.xp.abs(d), axis=row.axis, keepdims=True))
    ratio = d / row.xp.where(scale == 0, 1.0, scale)
    return PowerSum(scale, row.sum(ratio * ratio), 2)


def _over_spread(row: Row, top: Array, mean: Mean, squares: PowerSum, eps: Array) -> _Standard:
    xp, t = row.xp, row.temperature
    flat = squares.total == 0  # all scores equal: the result is 0 whatever they are
    scale = xp.where(flat, 1.0, squares.scale)
    variance = squares.total / xp.where(mean.count == 0, 1.0, mean.count)
    spread = xp.sqrt(xp.where(flat, 1.0, variance))
    # Beside an infinite spread eps is nothing; it is added after the temperature.
    eps = xp.where((eps == 0) | (top == xp.inf), 0.0, eps * (1.0 if t is None else t))
    deviation = _deviation(row.indicated(top), mean) / scale
    return _Standard(flat, scale, spread, spread + eps / scale, deviation)


def _zscore(row: Row, top: Array, mean: Mean, squares: PowerSum, *, eps: Array) -> Array:
    z = _over_spread(row, top, mean, squares, eps)
    return row.xp.where(z.flat, 0.0, z.deviation / z.divisor)


def _zscore_vjp(row: Row, cotangent: Array, *, eps: Array) -> dict[str, Array]:
    xp, top = row.xp, row.maximum
    mean = _lift_mean(row, top, eps=eps)
    z = _over_spread(row, top, mean, _lift_squares(row, top, mean, eps=eps), eps)
    count = xp.where(mean.count == 0, 1.0, mean.count)
    inner = xp.where(row.present, cotangent - row.sum(cotangent) / count, 0.0)
    along = row.sum(cotangent * z.deviation) / z.divisor
    # Of the scores over the temperature, whose deviations are those of the scores over it.
    slope = (1.0 if row.temperature is None else row.temperature) / z.scale / z.divisor
    gradient = slope * (inner - along * z.deviation / (z.spread * count))
    return {"x": xp.where(z.flat, 0.0, gradient), "eps": xp.where(z.flat, 0.0, -along * slope)}


@normalizer(
    stages=(
        Stage(lambda row, eps: row.maximum, MAXIMUM),
        Stage(_lift_mean, MEAN),
        Stage(_lift_squares, POWER_SUM),
    ),
    apply=_zscore,
    definition=lambda m, x, eps: (
        (d := x - m.sum(x) / len(x)) / ((m.sum(d * d) / len(x)) ** 0.5 + eps)
        if any(x != x[0])
        else 0 * x
    ),
    vjp=_zscore_vjp,
    at_infinity="indicator",
    parameters=(Parameter("eps", shape="row", minimum=0.0),),
    laws=(
        laws.shift_invariant,
        laws.scale_invariant,
        laws.standardizes,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(_ZLOSS, _CHAN),
)
def zscore(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    eps: ArrayLike = 0.0,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Standard scores: mean zero and variance one along a row.

    .. math:: y_i = \frac{x_i - \mu}{\sigma + \epsilon}, \quad
        \mu = \frac1n \sum_j x_j, \quad \sigma^2 = \frac1n \sum_j (x_j - \mu)^2

    Parameters
    ----------
    {x}
    {axis}
    eps : float or array
        Added to the standard deviation, at least 0; an array has size 1 along `axis`.
    {options}

    Returns
    -------
    array
        Of the library, shape and floating dtype of `x`; 0 for entries left out.

    Raises
    ------
    {raises}

    Notes
    -----
    The variance is that of the population.  The mean is carried in two words and the
    deviations are squared, not the scores: a large mean costs no digits.  Of scores narrower
    than float64 the CPU's kernels keep the mean in one float64: a score next to it is right
    to about 1e-15 of the greatest of its row, and not to its own last place.  Where all
    scores are equal the result is 0, and so is the gradient.  A row with scores of +inf takes
    the limit in which these grow together.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.zscore([1.0, 2.0, 3.0, -1.0]).round(4)
    array([-0.169 ,  0.5071,  1.1832, -1.5213])
    """
