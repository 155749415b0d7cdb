r"""Normalizers made of powers: Taylor and spherical softmax, and the squared ReLUs.

Sums of powers are taken relative to a scale, so that nothing overflows whose quotient is
a number.
"""

from __future__ import annotations

from math import factorial
from typing import Any, NamedTuple, TypeVar, Unpack

from normx import _arithmetic as arithmetic
from normx import laws
from normx._arithmetic import Double
from normx._options import ArrayLike, Axis, RowOptions
from normx._record import Constant, Paper, Parameter, Stage, normalizer
from normx._row import Row
from normx.normalizers.scaled import LENGTH, SU, N, length_of
from normx.states import MAX_TOTAL, POWER_SUM, MaxTotal, PowerSum, gap, share

Array = Any
ArrayT = TypeVar("ArrayT")

_VINCENT = Paper(
    "P. Vincent, A. de Brébisson and X. Bouthillier",
    "Efficient Exact Gradient Update for training Deep Networks with Very Large Sparse Targets",
    2015,
    "NeurIPS 2015, arXiv:1412.7091",
)
_BREBISSON = Paper(
    "A. de Brébisson and P. Vincent",
    "An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family",
    2016,
    "ICLR 2016, arXiv:1511.05042",
)
_BANERJEE = Paper(
    "K. Banerjee, Vishak P. C., R. R. Gupta, K. Vyas, Anushree H. and B. Mishra",
    "Exploring Alternatives to Softmax Function",
    2020,
    "arXiv:2011.11538",
)
_HUA = Paper(
    "W. Hua, Z. Dai, H. Liu and Q. V. Le",
    "Transformer Quality in Linear Time",
    2022,
    "ICML 2022, arXiv:2202.10447",
)


def _scale(row: Row, scale: Array) -> Array:
    """The scale of a block: infinite where it has scores of +inf, beside which others are 0."""
    return row.xp.where(row.maximum == row.xp.inf, row.xp.inf, scale)


def _quotient(xp: Any, part: Array, total: Array) -> Array:
    """``part / total``, and 0 where there is nothing to divide."""
    return part / xp.where(total == 0, 1.0, total)


# ------------------------------------------------------------------ taylor


def _taylor(order: int, u: Double, delta: Array, dtype: str, xp: Any) -> Array:
    """The Taylor polynomial of exp, homogeneous in u and delta, by compensated Horner.

    For negative u its terms alternate; in plain arithmetic order 10 would lose two digits.
    """
    constants = arithmetic.reciprocal_factorials(dtype)[: order + 1]
    value = Double(xp.full_like(u.hi, constants[-1][0]), xp.full_like(u.hi, constants[-1][1]))
    power = delta
    for hi, lo in reversed(constants[:-1]):
        product = arithmetic.two_product(xp, value.hi, u.hi, dtype)
        term = arithmetic.two_product(xp, power, xp.full_like(power, hi), dtype)
        total = arithmetic.two_sum(product.hi, xp.zeros_like(u.hi) + term.hi)
        low = product.lo + (value.hi * u.lo + value.lo * u.hi) + (total.lo + term.lo + lo * power)
        value = arithmetic.two_sum(total.hi, low)
        power = power * delta
    return value.hi + value.lo


def _temperature(row: Row) -> Array:
    return row.xp.ones_like(row.maximum) if row.temperature is None else row.temperature


class _Taylor(NamedTuple):
    """A row of scores over a scale; the terms come out relative to a power of it."""

    u: Double
    delta: Array
    scale: Array

    def terms(self, row: Row, order: int) -> Array:
        """The polynomial of each entry, 0 where left out."""
        terms = _taylor(order, self.u, self.delta, row.dtype, row.xp)
        return row.xp.where(row.present, terms, 0.0)


def _over_scale(row: Row, order: int) -> _Taylor:
    """The scale is the temperature, or the largest score where powers would overflow."""
    xp, t, largest = row.xp, _temperature(row), row.largest
    limit = 1e37 ** (1.0 / order) if row.dtype == "float32" else 1e300 ** (1.0 / order)
    far = largest > limit * t
    divisor = xp.where(far, largest, t)
    u = arithmetic.quotient(xp, xp.where(row.present, row.scores, 0.0), divisor, row.dtype)
    delta = xp.where(far, t / xp.where(far, largest, 1.0), 1.0)
    return _Taylor(u, delta, xp.where((divisor > 0) & (divisor < xp.inf), divisor, 1.0))


def _taylor_lift(row: Row, *, order: int) -> PowerSum:
    limit = row.shared()
    scaled = _over_scale(limit, order)
    return PowerSum(_scale(row, scaled.scale), limit.sum(scaled.terms(limit, order)), order)


def _taylor_softmax(row: Row, state: PowerSum, *, order: int) -> Array:
    limit = row.shared()
    scaled = _over_scale(limit, order)
    part = share(row.xp, _scale(row, scaled.scale), state.scale) ** order
    return _quotient(row.xp, scaled.terms(limit, order), state.total) * part


def _taylor_vjp(row: Row, cotangent: Array, *, order: int) -> dict[str, Array]:
    xp, state = row.xp, _taylor_lift(row, order=order)
    y = _taylor_softmax(row, state, order=order)
    inner = cotangent - row.sum(y * cotangent)
    # The derivative is the polynomial of one order less.
    scaled = _over_scale(row.without(xp.isinf(row.scores)), order)
    slope = _taylor(order - 1, scaled.u, scaled.delta, row.dtype, xp) * scaled.delta
    gradient = _quotient(xp, slope, state.total) * inner
    return {"x": xp.where(xp.isinf(row.scores), 0.0, gradient)}


def _even_order(value: Any) -> int | None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError
    order = value.__index__()
    return order if order >= 2 and order % 2 == 0 and order <= 16 else None


def _taylor_definition(m: Any, x: Array, order: int = 2) -> Array:
    terms = sum(x**j / factorial(j) for j in range(order + 1))
    return terms / m.sum(terms)


@normalizer(
    stages=(Stage(_taylor_lift, POWER_SUM),),
    apply=_taylor_softmax,
    definition=_taylor_definition,
    vjp=_taylor_vjp,
    constants=(Constant("order", "an even whole number from 2 to 16", _even_order),),
    laws=(
        laws.sums_to_one,
        laws.within_unit_interval,
        laws.positive,
        *laws.OF_EVERY_ROW,
    ),
    papers=(_BREBISSON, _VINCENT, _BANERJEE),
)
def taylor_softmax(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    order: int = 2,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Softmax with the exponential replaced by its Taylor polynomial.

    .. math:: y_i = \frac{P(x_i)}{\sum_j P(x_j)}, \quad P(x) = \sum_{k=0}^{K} \frac{x^k}{k!}

    Parameters
    ----------
    {x}
    {axis}
    order : int
        Degree K of the polynomial: even, which makes it positive everywhere, and at
        most 16.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    spherical_softmax : Squares alone.

    Notes
    -----
    No weight is zero.  The polynomial falls up to some negative score (-1 for order 2)
    and rises below it again, so larger scores need not have larger weights there.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.taylor_softmax([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.1515, 0.303 , 0.5152, 0.0303])
    """


# --------------------------------------------------------------- spherical


def _spherical_terms(row: Row, eps: Array) -> tuple[Array, Array]:
    """Scale, and ``(x^2 + eps t^2) / scale^2`` at temperature t; 0 where left out."""
    xp, t = row.xp, _temperature(row)
    root = xp.where(eps == 0, 0.0, xp.sqrt(eps) * xp.where(eps == 0, 1.0, t))
    scale = xp.maximum(row.largest, root)
    # Without eps, a row of zeros is at its limit for a vanishing one: all equal.
    flat = (scale == 0) | (t == xp.inf)
    divisor = xp.where(flat, 1.0, scale)
    u, e = xp.where(row.present, row.scores, 0.0) / divisor, xp.where(flat, 0.0, root) / divisor
    terms = xp.where(flat, xp.ones_like(u), u * u + e * e)
    return xp.where(flat, 0.0, scale), xp.where(row.present, terms, 0.0)


def _spherical_lift(row: Row, *, eps: Array) -> PowerSum:
    limit = row.shared()
    scale, terms = _spherical_terms(limit, eps)
    return PowerSum(_scale(row, scale), limit.sum(terms), 2)


def _spherical(row: Row, state: PowerSum, *, eps: Array) -> Array:
    scale, terms = _spherical_terms(row.shared(), eps)
    part = share(row.xp, _scale(row, scale), state.scale) ** 2
    return _quotient(row.xp, terms, state.total) * part


def _spherical_vjp(row: Row, cotangent: Array, *, eps: Array) -> dict[str, Array]:
    xp, state = row.xp, _spherical_lift(row, eps=eps)
    y = _spherical(row, state, eps=eps)
    inner = cotangent - row.sum(y * cotangent)
    scale = xp.where((state.scale > 0) & (state.scale < xp.inf), state.scale, 1.0)
    u, slope = xp.where(xp.isfinite(row.scores), row.scores, 0.0) / scale, _temperature(row) / scale
    inner = _quotient(xp, xp.where(row.present, inner, 0.0), state.total) * slope
    return {"x": 2.0 * u * inner, "eps": row.sum(inner) * slope}


@normalizer(
    stages=(Stage(_spherical_lift, POWER_SUM),),
    apply=_spherical,
    definition=lambda m, x, eps: (
        (x * x + eps) / m.sum(x * x + eps) if m.sum(x * x + eps) else (1 + 0 * x) / len(x)
    ),
    vjp=_spherical_vjp,
    parameters=(Parameter("eps", shape="row", minimum=0.0),),
    laws=(
        laws.sums_to_one,
        laws.within_unit_interval,
        laws.even,
        laws.scale_invariant,
        *laws.OF_EVERY_ROW,
    ),
    papers=(_BREBISSON, _VINCENT),
)
def spherical_softmax(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    eps: ArrayLike = 0.0,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Squares of the scores over their sum.

    .. math:: y_i = \frac{x_i^2 + \epsilon}{\sum_j (x_j^2 + \epsilon)}

    Parameters
    ----------
    {x}
    {axis}
    eps : float or array
        Added to every square, at least 0; an array has size 1 along `axis`.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    taylor_softmax : Which is never zero.

    Notes
    -----
    An even function: the sign of a score does not matter, but -inf leaves its entry out,
    as everywhere.  A row of zeros without `eps` takes the limit for a vanishing `eps`:
    equal weights.  Neither overflows nor underflows where the weights do not.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.spherical_softmax([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.0667, 0.2667, 0.6   , 0.0667])
    """


# ------------------------------------------------------------ squared relu


def _rectified(row: Row) -> Array:
    """The scores over the temperature, 0 where that is negative; NaN stays."""
    z = row.tempered.hi
    return row.xp.where(z < 0, 0.0, z)


def _squared_over(row: Row, divisor: Array) -> Array:
    """The squared ReLU over a divisor, without overflow on the way."""
    u = _rectified(row)
    return u * (u / divisor)


def _moving(row: Row, x: Array) -> Array:
    """The sum without entries of +inf, whose weights are infinite whatever the divisor is."""
    return row.sum(row.xp.where(row.scores == row.xp.inf, 0.0, x))


def _squared_relu(row: Row, count: Array | None, *, scale: Array, n: Array | None = None) -> Array:
    return _squared_over(row, length_of(row, count, n) * scale)


def _squared_relu_vjp(
    row: Row, cotangent: Array, *, scale: Array, n: Array | None = None
) -> dict[str, Array]:
    length = length_of(row, row.length, n)
    u = _rectified(row)
    whole = _moving(row, cotangent * _squared_over(row, length * scale))
    return {
        "x": 2.0 * cotangent * u / (length * scale),
        "n": -whole / length,
        "scale": -whole / scale,
    }


@normalizer(
    stages=(LENGTH,),
    apply=_squared_relu,
    definition=lambda m, x, scale, n=None: (x > 0) * x * x / ((len(x) if n is None else n) * scale),
    vjp=_squared_relu_vjp,
    at_infinity="pointwise",
    parameters=(N, Parameter("scale", shape="row", above=0.0)),
    laws=(
        laws.non_negative,
        laws.exact_zeros,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(_HUA, SU),
)
def squared_relu(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    n: ArrayLike | None = None,
    scale: ArrayLike = 1.0,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Squared ReLU over the length of the row.

    .. math:: y_i = \frac{\max(x_i, 0)^2}{n \cdot \text{scale}}

    Parameters
    ----------
    {x}
    {axis}
    {n}
    scale : float or array
        A further divisor, above 0: the size of a head, say.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    normalized_squared_relu : Over its sum instead.

    Notes
    -----
    The weights do not sum to one, and a score of +inf has an infinite weight.  The paper's
    code divides by n squared; this is the formula of its text.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.squared_relu([1.0, 2.0, 3.0, -1.0])
    array([0.25, 1.  , 2.25, 0.  ])
    """


def _lips_relu(row: Row, count: Array | None, *, n: Array | None = None) -> Array:
    return _squared_over(row, 2.0 * length_of(row, count, n))


def _lips_relu_vjp(row: Row, cotangent: Array, *, n: Array | None = None) -> dict[str, Array]:
    length = length_of(row, row.length, n)
    whole = _moving(row, cotangent * _squared_over(row, 2.0 * length))
    return {"x": cotangent * _rectified(row) / length, "n": -whole / length}


@normalizer(
    stages=(LENGTH,),
    apply=_lips_relu,
    definition=lambda m, x, n=None: (x > 0) * x * x / (2 * (len(x) if n is None else n)),
    vjp=_lips_relu_vjp,
    at_infinity="pointwise",
    parameters=(N,),
    laws=(
        laws.non_negative,
        laws.exact_zeros,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(SU,),
)
def lips_relu(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    n: ArrayLike | None = None,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Half the squared ReLU over the length of the row.

    .. math:: y_i = \frac{x_i \max(x_i, 0)}{2 n}

    Parameters
    ----------
    {x}
    {axis}
    {n}
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    squared_relu : Twice this.

    Notes
    -----
    Before the division by n its slope is the score itself: it is 1-Lipschitz for scores
    up to 1 only.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.lips_relu([1.0, 2.0, 3.0, -1.0])
    array([0.125, 0.5  , 1.125, 0.   ])
    """


def _squares(row: Row) -> tuple[Array, Array]:
    """Scale, and scores relative to it; 0 where left out."""
    xp = row.xp
    scale = xp.where(row.empty, 0.0, row.maximum)
    return scale, xp.where(row.present, row.scores, 0.0) / xp.where(row.empty, 1.0, scale)


def _normalized_lift(row: Row) -> PowerSum:
    limit = row.shared()
    scale, u = _squares(limit)
    return PowerSum(_scale(row, scale), limit.sum(u * u), 2)


def _normalized(row: Row, state: PowerSum) -> Array:
    scale, u = _squares(row.shared())
    return (
        _quotient(row.xp, u * u, state.total) * share(row.xp, _scale(row, scale), state.scale) ** 2
    )


def _normalized_vjp(row: Row, cotangent: Array) -> dict[str, Array]:
    # In the scores over the temperature, of which the weights know nothing.
    xp, state = row.xp, _normalized_lift(row)
    y = _normalized(row, state)
    inner = cotangent - row.sum(y * cotangent)
    z = row.tempered.hi
    z = xp.where(xp.isfinite(z), z, 0.0)
    scale = xp.max(z, axis=row.axis, keepdims=True)
    scale = xp.where(scale == 0, 1.0, scale)
    return {"x": 2.0 * _quotient(xp, z / scale, state.total) * inner / scale}


@normalizer(
    stages=(Stage(_normalized_lift, POWER_SUM),),
    apply=_normalized,
    definition=lambda m, x: x * x / m.sum(x * x),
    vjp=_normalized_vjp,
    massless=lambda scores: scores <= 0,
    laws=(
        laws.sums_to_at_most_one,
        laws.within_unit_interval,
        laws.scale_invariant,
        laws.exact_zeros,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(SU,),
)
def normalized_squared_relu(
    x: ArrayT, /, *, axis: Axis = -1, **options: Unpack[RowOptions]
) -> ArrayT:
    r"""Squared ReLU over its sum.

    .. math:: y_i = \frac{\max(x_i, 0)^2}{\sum_j \max(x_j, 0)^2}

    Parameters
    ----------
    {x}
    {axis}
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    squared_relu : Over the length instead.
    expm1_relu : Which a temperature sharpens.

    Notes
    -----
    A row without positive scores is an empty row.  Multiplying all scores by a positive
    number changes nothing, so a temperature has no effect.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.normalized_squared_relu([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.0714, 0.2857, 0.6429, 0.    ])
    """


# -------------------------------------------------------------- expm1 relu


def _expm1_terms(row: Row) -> Array:
    """``expm1(z)`` relative to ``exp(max z)``: nothing overflows, and nothing cancels."""
    xp, relative = row.xp, row.centred.relative
    z = row.tempered.hi
    near = arithmetic.complement(xp, xp.where(row.present, z, 0.0))
    return arithmetic.exp(xp, relative) * near


def _expm1_lift(row: Row) -> MaxTotal:
    # The maximum is the row's own: beside an infinite one all others are nothing.
    limit = row.shared()
    infinite = row.maximum == row.xp.inf
    level = row.xp.where(infinite, row.xp.inf, limit.centred.origin)
    return MaxTotal(level, limit.sum(_expm1_terms(limit)))


def _expm1(row: Row, state: MaxTotal) -> Array:
    xp, limit = row.xp, row.shared()
    infinite = row.maximum == xp.inf
    level = xp.where(infinite, xp.inf, limit.centred.origin)
    part = arithmetic.exp(xp, gap(xp, level, state.maximum))
    return _quotient(xp, _expm1_terms(limit), state.total) * part


def _expm1_vjp(row: Row, cotangent: Array) -> dict[str, Array]:
    xp, state = row.xp, _expm1_lift(row)
    y = _expm1(row, state)
    inner = cotangent - row.sum(y * cotangent)
    slope = xp.where(xp.isfinite(row.scores), arithmetic.exp(xp, row.centred.relative), 0.0)
    return {"x": _quotient(xp, slope, state.total) * inner}


@normalizer(
    stages=(Stage(_expm1_lift, MAX_TOTAL),),
    apply=_expm1,
    definition=lambda m, x: (m.exp(x) - 1) / m.sum(m.exp(x) - 1),
    vjp=_expm1_vjp,
    massless=lambda scores: scores <= 0,
    laws=(
        laws.sums_to_at_most_one,
        laws.within_unit_interval,
        laws.exact_zeros,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(SU,),
)
def expm1_relu(x: ArrayT, /, *, axis: Axis = -1, **options: Unpack[RowOptions]) -> ArrayT:
    r"""The positive part of ``exp(x) - 1`` over its sum.

    .. math:: y_i = \frac{\max(e^{x_i} - 1, 0)}{\sum_j \max(e^{x_j} - 1, 0)}

    Parameters
    ----------
    {x}
    {axis}
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    normalized_squared_relu : Also zero for negative scores.

    Notes
    -----
    A row without positive scores is an empty row.  Computed relative to the largest
    term as ``exp(x - m) * (1 - exp(-x))``: neither factor overflows, and no digits
    cancel near zero.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.expm1_relu([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.0632, 0.235 , 0.7019, 0.    ])
    """
