r"""Softmax with a scale that follows the length or the entropy of the row.

Each is a softmax of ``c * x`` with one factor c per row.  The factor is carried in two
words: an error of half a last place in c would be magnified by the size of ``c * x``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, TypeVar, Unpack

from normx import _arithmetic as arithmetic
from normx import laws
from normx._arithmetic import Double
from normx._options import ArrayLike, Axis, RowOptions
from normx._record import Constant, Paper, Parameter, Stage, flag, normalizer
from normx._row import Row
from normx.normalizers.softmax import (
    BRIDLE,
    SINK,
    STAGES,
    sink_gradient,
    softmax_vjp,
    weights,
    with_sink,
)
from normx.states import MAX_SUM, MAX_SUM_MOMENT, SUM, MaxSum, MaxSumMoment

Array = Any
ArrayT = TypeVar("ArrayT")

_SSMAX = Paper(
    "K. M. Nakanishi", "Scalable-Softmax Is Superior for Attention", 2025, "arXiv:2501.19399"
)
SU = Paper(
    "J. Su",
    "Attention and Softmax go better together",
    2022,
    "Scientific Spaces, kexue.fm/archives/9019",
)
_CHIANG = Paper(
    "D. Chiang and P. Cholak",
    "Overcoming a Theoretical Limitation of Self-Attention",
    2022,
    "ACL 2022, 7654-7664",
)
_SHARP = Paper(
    "P. Veličković, C. Perivolaropoulos, F. Barbero and R. Pascanu",
    "softmax is not enough (for sharp out-of-distribution)",
    2024,
    "arXiv:2410.01104",
)

#: The length of a row, where a record lets it be given.
N = Parameter("n", shape="row", minimum=1.0)


def _lift_length(row: Row, *, n: Array | None = None, **parameters: Any) -> Array | None:
    return row.length if n is None else None


#: Counts the entries that take part, unless `n` was given.
LENGTH = Stage(_lift_length, SUM)


def length_of(row: Row, count: Array | None, n: Array | None) -> Array:
    """The n of the formulas: what was given or counted, in the shape of one value per row."""
    length = count if n is None else n
    return row.xp.maximum(length + row.xp.zeros_like(row.maximum), row.xp.ones_like(row.maximum))


def _lift_by(factor: Callable[..., Double]) -> Callable[..., MaxSum]:
    """The lift of a softmax whose factor comes from the state of the stage before."""

    def lift(row: Row, before: Any, *, sink: Array | None = None, **parameters: Any) -> MaxSum:
        return MAX_SUM.lift(row.scaled(factor(row, before, **parameters)))

    return lift


def _apply_by(factor: Callable[..., Double]) -> Callable[..., Array]:
    """The weights that belong to it."""

    def apply(
        row: Row, before: Any, state: MaxSum, *, sink: Array | None = None, **parameters: Any
    ) -> Array:
        return weights(row.scaled(factor(row, before, **parameters)), state, sink=sink)

    return apply


def scaled_softmax_vjp(
    row: Row, cotangent: Array, factor: Double, sink: Array | None
) -> tuple[Array, dict[str, Array]]:
    """Gradient of ``softmax(c * x)`` in c, and those in the scores and the sinks."""
    xp, scaled = row.xp, row.scaled(factor)
    state = with_sink(scaled, MAX_SUM.lift(scaled), sink)
    y = xp.where(row.empty, 0.0, weights(scaled, state))
    mean = row.sum(y * cotangent)
    inner = y * (cotangent - mean)
    z = row.tempered.hi
    moment = row.sum(inner * xp.where(xp.isfinite(z), z, 0.0))
    gradient = {"x": factor.hi * inner}
    if sink is not None:
        gradient["sink"] = sink_gradient(scaled, state, sink, mean)
    return moment, gradient


@normalizer(
    stages=STAGES,
    apply=weights,
    definition=lambda m, x, sink=(): m.exp(x) / (m.sum(m.exp(x)) + m.sum(m.exp(sink))),
    vjp=softmax_vjp,
    negated=True,
    parameters=(SINK,),
    laws=(
        laws.sums_to_one,
        laws.within_unit_interval,
        laws.shift_invariant,
        laws.antitone,
        laws.disperses,
        *laws.OF_EVERY_ROW,
    ),
    papers=(BRIDLE,),
)
def softmin(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    sink: ArrayLike | None = None,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Turn scores into weights that sum to one, the smallest score weighing most.

    .. math:: y_i = \frac{e^{-x_i}}{\sum_j e^{-x_j}}

    Parameters
    ----------
    {x}
    {axis}
    sink : float or array, optional
        Extra logits of the denominator, as for `softmax`; they are not negated.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    softmax : The same of the negated scores.

    Notes
    -----
    It is the softmax of the negated scores, infinities included: a score of -inf
    takes the mass, and one of +inf is left out.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.softmin([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.1125, 0.0414, 0.0152, 0.831 ])
    """


def _ssmax_factor(
    row: Row, count: Array | None, s: Array, b: Array, n: Array | None = None
) -> Double:
    log_n = arithmetic.log(row.xp, length_of(row, count, n), row.dtype)
    return arithmetic.affine(row.xp, s, log_n, b, row.dtype)


def _ssmax_vjp(
    row: Row,
    cotangent: Array,
    *,
    s: Array,
    b: Array,
    n: Array | None = None,
    sink: Array | None = None,
) -> dict[str, Array]:
    length = length_of(row, row.length, n)
    factor = _ssmax_factor(row, row.length, s, b, n)
    moment, gradient = scaled_softmax_vjp(row, cotangent, factor, sink)
    return gradient | {"s": row.xp.log(length) * moment, "b": moment, "n": s / length * moment}


@normalizer(
    stages=(LENGTH, Stage(_lift_by(_ssmax_factor), MAX_SUM)),
    apply=_apply_by(_ssmax_factor),
    definition=lambda m, x, s, b, n=None, sink=(): (
        (e := m.exp((s * m.log(x.dtype.type(len(x)) if n is None else n) + b) * x))
        / (m.sum(e) + m.sum(m.exp(sink)))
    ),
    vjp=_ssmax_vjp,
    parameters=(Parameter("s", shape="row"), Parameter("b", shape="row"), N, SINK),
    laws=(
        laws.sums_to_one,
        laws.within_unit_interval,
        laws.shift_invariant,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(_SSMAX,),
)
def ssmax(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    s: ArrayLike = 0.43,
    b: ArrayLike = 0.0,
    n: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Softmax whose scale grows with the logarithm of the length: Scalable-Softmax.

    .. math:: y_i = \frac{e^{c x_i}}{\sum_j e^{c x_j}}, \quad c = s \log n + b

    Where the largest score leads the others by more than 1/s its weight tends to one
    as the row grows, while that of a softmax tends to zero.

    Parameters
    ----------
    {x}
    {axis}
    s : float or array
        The scale per unit of log n, of any sign; an array has size 1 along `axis`.
    b : float or array
        A constant part of the scale.
    {n}
    sink : float or array, optional
        Extra logits of the denominator, as for `softmax`; they are not scaled.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    entropy_invariant_softmax : The same with the scale fixed at one length.

    Notes
    -----
    A row of one entry has c = b and the weight 1.  Under a causal mask, n is the number
    of keys that the query sees, because only kept entries are counted.  The factor is
    carried in twice the precision, so the weights are within 4 units in the last place.

    References
    ----------
    {papers}

    Examples
    --------
    The maximum keeps its weight however long the row is:

    >>> import normx
    >>> rows = [[3.0] + [-2.0] * (n - 1) for n in (10, 1000)]
    >>> [float(normx.softmax(row)[0].round(6)) for row in rows]
    [0.942826, 0.129346]
    >>> [float(normx.ssmax(row)[0].round(6)) for row in rows]
    [0.940101, 0.999646]
    """


def _invariant_factor(
    row: Row, count: Array | None, n0: Array, n_min: Array, n: Array | None = None
) -> Double:
    xp, dtype = row.xp, row.dtype
    length = xp.maximum(length_of(row, count, n), n_min + xp.zeros_like(row.maximum))
    base = n0 + xp.zeros_like(row.maximum)
    return arithmetic.ratio(
        xp, arithmetic.log(xp, length, dtype), arithmetic.log(xp, base, dtype), dtype
    )


def _invariant_vjp(
    row: Row,
    cotangent: Array,
    *,
    n0: Array,
    n_min: Array,
    n: Array | None = None,
    sink: Array | None = None,
) -> dict[str, Array]:
    xp = row.xp
    factor = _invariant_factor(row, row.length, n0, n_min, n)
    moment, gradient = scaled_softmax_vjp(row, cotangent, factor, sink)
    length, log_base = length_of(row, row.length, n), xp.log(n0)
    return gradient | {
        "n": xp.where(length < n_min, 0.0, moment / (length * log_base)),
        "n_min": xp.where(length < n_min, moment / (n_min * log_base), 0.0),
        "n0": -factor.hi * moment / (n0 * log_base),
    }


@normalizer(
    stages=(LENGTH, Stage(_lift_by(_invariant_factor), MAX_SUM)),
    apply=_apply_by(_invariant_factor),
    definition=lambda m, x, n0, n_min, n=None, sink=(): (
        (e := m.exp(m.log(max(x.dtype.type(len(x)) if n is None else n, n_min)) / m.log(n0) * x))
        / (m.sum(e) + m.sum(m.exp(sink)))
    ),
    vjp=_invariant_vjp,
    parameters=(
        N,
        Parameter("n0", shape="row", above=1.0),
        Parameter("n_min", shape="row", minimum=1.0),
        SINK,
    ),
    laws=(
        laws.sums_to_one,
        laws.within_unit_interval,
        laws.shift_invariant,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(SU, _CHIANG),
)
def entropy_invariant_softmax(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    n: ArrayLike | None = None,
    n0: ArrayLike = 512,
    n_min: ArrayLike = 1,
    sink: ArrayLike | None = None,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Softmax scaled by log n so that its entropy depends little on the length.

    .. math:: y_i = \frac{e^{c x_i}}{\sum_j e^{c x_j}},
        \quad c = \frac{\log \max(n, n_{min})}{\log n_0}

    Parameters
    ----------
    {x}
    {axis}
    {n}
    n0 : float or array
        The length at which this is softmax itself; above 1.
    n_min : float or array
        Shorter rows are scaled as rows of this length; 16 spares very short ones the
        flattening.
    sink : float or array, optional
        Extra logits of the denominator, as for `softmax`; they are not scaled.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    ssmax : The same with a scale to be learned; here it is ``1/log(n0)``.

    Notes
    -----
    Rows shorter than `n0` are flattened, longer ones sharpened.  Base e instead of `n0`
    is ``n0=numpy.e``.  The factor is carried in twice the precision, so the weights are
    within 4 units in the last place.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.entropy_invariant_softmax([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.2247, 0.2807, 0.3505, 0.1441])
    """


def _polynomial(row: Row, coefficients: tuple[float, ...], x: Double) -> tuple[Double, Array]:
    """The value in twice the precision, of which its terms take much away, and the slope."""
    slope = row.xp.zeros_like(x.hi)
    value = Double(slope, slope)
    for c in coefficients:
        slope = slope * x.hi + value.hi
        value = arithmetic.affine(row.xp, x.hi, value, c, row.dtype)
    return Double(value.hi, value.lo + slope * x.lo), slope


def _adaptive_heat(
    row: Row,
    state: MaxSumMoment,
    coefficients: tuple[float, ...],
    threshold: float,
    differentiate_temperature: bool,
) -> tuple[Double, Array, Double]:
    """What the scores are multiplied by, its slope in the entropy, and the entropy."""
    xp, entropy = row.xp, state.entropy(row.xp, row.dtype)
    value, slope = _polynomial(row, coefficients, entropy)
    # The gradient of the branch not taken must be finite.
    heated = (entropy.hi > threshold) & (value.hi > 1.0)
    factor = Double(xp.where(heated, value.hi, 1.0), xp.where(heated, value.lo, 0.0))
    if not differentiate_temperature:
        factor = Double(*map(row.library.stop_gradient, factor))
    return factor, xp.where(heated, slope, 0.0), entropy


def _adaptive_factor(row: Row, state: MaxSumMoment, **constants: Any) -> Double:
    return _adaptive_heat(row, state, **constants)[0]


def _adaptive_definition(
    m: Any,
    x: Array,
    coefficients: tuple[float, ...],
    threshold: float,
    differentiate_temperature: bool = False,
) -> Array:
    log_p = x - m.log(m.sum(m.exp(x)))
    entropy = -m.sum(m.exp(log_p) * log_p)
    degree = len(coefficients) - 1
    value = sum(c * entropy ** (degree - i) for i, c in enumerate(coefficients))
    e = m.exp(x * (max(value, 1) if entropy > threshold else 1))
    return e / m.sum(e)


def _adaptive_vjp(
    row: Row,
    cotangent: Array,
    *,
    coefficients: tuple[float, ...],
    threshold: float,
    differentiate_temperature: bool,
) -> dict[str, Array]:
    xp, state = row.xp, MAX_SUM_MOMENT.lift(row)
    factor, slope, entropy = _adaptive_heat(
        row, state, coefficients, threshold, differentiate_temperature
    )
    moment, gradient = scaled_softmax_vjp(row, cotangent, factor, None)
    if differentiate_temperature:
        p = xp.where(row.empty, 0.0, weights(row, MaxSum(*state[:2])))
        log_p = xp.log(xp.where(p > 0, p, 1.0))
        gradient["x"] = gradient["x"] - moment * slope * p * (log_p + entropy.hi)
    return gradient


def _numbers(value: Any) -> tuple[float, ...] | None:
    """A sequence of finite numbers as a tuple."""
    entries = tuple(value)
    if not all(not isinstance(c, bool) and isinstance(c, numbers.Real) for c in entries):
        raise TypeError
    return tuple(map(float, entries)) if entries and all(map(math.isfinite, entries)) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    return None if math.isnan(value) else float(value)


@normalizer(
    stages=(
        Stage(lambda row, **constants: MAX_SUM_MOMENT.lift(row), MAX_SUM_MOMENT),
        Stage(_lift_by(_adaptive_factor), MAX_SUM),
    ),
    apply=_apply_by(_adaptive_factor),
    definition=_adaptive_definition,
    vjp=_adaptive_vjp,
    constants=(
        Constant("coefficients", "a sequence of finite numbers, highest power first", _numbers),
        Constant("threshold", "a number", _number),
        flag("differentiate_temperature"),
    ),
    # The entropy is rounded to the precision of the arithmetic, which the logarithm of a weight
    # magnifies: 4 (1 + |log y|) for the smallest y there is, where the arithmetic is no wider.
    ulp={"float16": 1.0, "bfloat16": 1.0, "float32": 412.0, "float64": 2984.0},
    laws=(
        laws.sums_to_one,
        laws.within_unit_interval,
        laws.shift_invariant,
        laws.permutation_equivariant,
        laws.monotone,
        laws.equal_scores_equal_bits,
        laws.rows_are_independent,
        laws.never_flatter,
    ),
    papers=(_SHARP,),
)
def adaptive_softmax(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    coefficients: tuple[float, ...] = (-0.037, 0.481, -2.3, 4.917, -1.791),
    threshold: float = 0.5,
    differentiate_temperature: bool = False,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Softmax sharpened by a temperature that its own entropy chooses.

    .. math:: y = \operatorname{softmax}(\beta x), \quad
        \beta = \begin{cases} \max(P(H), 1) & H > \text{threshold} \\ 1 & \text{else}
        \end{cases}, \quad H = -\sum_i p_i \log p_i, \; p = \operatorname{softmax}(x)

    Parameters
    ----------
    {x}
    {axis}
    coefficients : sequence of float
        Of the polynomial P, highest power first.
    threshold : float
        Entropy, in nats, up to which rows stay as they are.
    differentiate_temperature : bool
        Whether gradients go through the factor; False takes it as a constant, as at
        inference, for which it was made.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    Notes
    -----
    With the published coefficients the factor is above 1 only for entropies between
    0.8486 and 5.9445 nats: near-uniform rows of more than 381 entries come out as they
    are.  The entropy is exact, without the paper's 1e-9 in the logarithm.

    The rounding of the entropy reaches the weights magnified by their logarithm.  Of
    NumPy's float16 and float32 arrays nothing of it remains, because the arithmetic is
    float64; elsewhere the error of a weight y is up to ``4 (1 + |log y|)`` units in the
    last place.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.adaptive_softmax([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.0792, 0.232 , 0.6795, 0.0092])
    """
