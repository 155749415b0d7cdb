r"""Softmax, its logarithm, and the logarithm of its denominator.

All three are maps of one state: the maximum of a row and the sum of
``exp(x - maximum)``.
"""

from __future__ import annotations

from typing import Any, TypeVar, Unpack

from normx import _arithmetic as arithmetic
from normx import laws
from normx._arithmetic import Double
from normx._options import ArrayLike, Axis, RowOptions, SharedOptions
from normx._record import Paper, Parameter, Stage, flag, normalizer, reduction
from normx._row import Centred, Row
from normx.states import MAX_SUM, MaxSum, gap

Array = Any
ArrayT = TypeVar("ArrayT")

BRIDLE = Paper(
    "J. S. Bridle",
    "Probabilistic interpretation of feedforward classification network outputs",
    1990,
    "Neurocomputing, NATO ASI Series F68, 227-236",
)
_ONLINE = Paper(
    "M. Milakov and N. Gimelshein",
    "Online normalizer calculation for softmax",
    2018,
    "arXiv:1805.02867",
)
_BLANCHARD = Paper(
    "P. Blanchard, D. J. Higham and N. J. Higham",
    "Accurately computing the log-sum-exp and softmax functions",
    2021,
    "IMA Journal of Numerical Analysis 41(4), 2311-2330",
)

SINK = Parameter("sink", shape="along")


def lift(row: Row, **parameters: Any) -> MaxSum:
    """The state of a block of scores."""
    return MAX_SUM.lift(row)


#: The one reduction that a softmax needs.
STAGES = (Stage(lift, MAX_SUM),)


def with_sink(row: Row, state: MaxSum, sink: Array | None) -> MaxSum:
    """The state of a row and of its sinks: a block of scores that gets no weights."""
    if sink is None or 0 in sink.shape:
        return state
    scores = row.xp.reshape(sink, (1,) * (row.scores.ndim - sink.ndim) + tuple(sink.shape))
    block = Row(row.library, row.xp, scores, None, row.axis, None, row.dtype)
    return MAX_SUM.merge(row.xp, state, MAX_SUM.lift(block))


def _against(row: Row, state: MaxSum) -> Double:
    """The scores less the maximum of a state that may cover more than this row."""
    centred: Centred = row.centred
    offset = gap(row.xp, centred.origin, state.maximum)
    return arithmetic.added(row.xp, centred.relative, offset)


def weights(row: Row, state: MaxSum, *, sink: Array | None = None) -> Array:
    """The softmax of a block, given the state of its row."""
    xp = row.xp
    state = with_sink(row, state, sink)
    one = xp.ones_like(state.excess)
    total = arithmetic.two_sum(one, xp.where(state.excess == -1.0, 0.0, state.excess))
    distance = _against(row, state)
    # What rounding took off the distance and the total goes into one small correction.
    y = xp.exp(distance.hi) / total.hi
    low = total.lo / total.hi
    return arithmetic.nudged(xp, y, distance.lo - xp.where(xp.isfinite(low), low, 0.0))


def _log_softmax(row: Row, state: MaxSum, *, sink: Array | None = None) -> Array:
    # Two terms that are never positive: nothing cancels, and the log1p keeps the
    # last digits of the top class, which x - logsumexp(x) would lose.
    xp = row.xp
    state = with_sink(row, state, sink)
    distance = _against(row, state)
    excess = xp.where(state.excess == -1.0, 0.0, state.excess)
    return (distance.hi - xp.log1p(excess)) + distance.lo


def sink_gradient(row: Row, state: MaxSum, sink: Array, pull: Array) -> Array:
    """Gradient of the sinks, whose scores enter the denominator alone."""
    xp = row.xp
    scores = xp.reshape(sink, (1,) * (row.scores.ndim - sink.ndim) + tuple(sink.shape))
    share = arithmetic.exp(xp, gap(xp, scores, state.maximum)) / (1.0 + state.excess)
    return -share * pull


def softmax_vjp(row: Row, cotangent: Array, *, sink: Array | None = None) -> dict[str, Array]:
    """Gradients of the scores and the sinks of a softmax."""
    state = with_sink(row, MAX_SUM.lift(row), sink)
    y = row.xp.where(row.empty, 0.0, weights(row, state))
    mean = row.sum(y * cotangent)
    gradient = {"x": y * (cotangent - mean)}
    if sink is not None:
        gradient["sink"] = sink_gradient(row, state, sink, mean)
    return gradient


def _log_softmax_vjp(row: Row, cotangent: Array, *, sink: Array | None = None) -> dict[str, Array]:
    state = with_sink(row, MAX_SUM.lift(row), sink)
    y = row.xp.where(row.empty, 0.0, weights(row, state))
    total = row.sum(cotangent)
    gradient = {"x": cotangent - y * total}
    if sink is not None:
        gradient["sink"] = sink_gradient(row, state, sink, total)
    return gradient


@normalizer(
    stages=STAGES,
    apply=weights,
    definition=lambda m, x, sink=(): m.exp(x) / (m.sum(m.exp(x)) + m.sum(m.exp(sink))),
    vjp=softmax_vjp,
    parameters=(SINK,),
    laws=(
        laws.sums_to_one,
        laws.within_unit_interval,
        laws.shift_invariant,
        laws.monotone,
        laws.temperature_limits,
        laws.disperses,
        *laws.OF_EVERY_ROW,
    ),
    papers=(BRIDLE, _ONLINE, _BLANCHARD),
)
def softmax(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    sink: ArrayLike | None = None,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Turn scores into weights that are positive and sum to one.

    .. math:: y_i = \frac{e^{x_i}}{\sum_j e^{x_j}}

    Parameters
    ----------
    {x}
    {axis}
    sink : float or array, optional
        Extra logits that take part in the denominator only; an array has as many
        entries along `axis` as there are sinks, and broadcasts over the other axes.
        The temperature does not apply to them.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    log_softmax : Its logarithm, exact where the weights round to 0 or 1.
    logsumexp : The logarithm of its denominator.

    Notes
    -----
    The result is within 4 units in the last place of the exact value in float32 and
    float64, at every length, and correctly rounded but for ties in float16 and
    bfloat16.  The difference to the maximum is kept exact and the sum does not lose
    with length.  Entries of +inf share the mass; NaN makes its row NaN, and no other.
    A softcap, and a temperature beside a sink, are rounded once before the
    exponential, which magnifies that by the size of the capped or scaled score.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.softmax([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.0889, 0.2418, 0.6572, 0.012 ])
    >>> normx.softmax([[1.0, 2.0], [3.0, 4.0]], where=[[True, False], [False, False]])
    array([[1., 0.],
           [0., 0.]])
    """


@normalizer(
    stages=STAGES,
    apply=_log_softmax,
    definition=lambda m, x, sink=(): x - m.log(m.sum(m.exp(x)) + m.sum(m.exp(sink))),
    vjp=_log_softmax_vjp,
    log_space=True,
    parameters=(SINK,),
    laws=(
        laws.exponentials_sum_to_one,
        laws.shift_invariant,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(BRIDLE, _BLANCHARD),
)
def log_softmax(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    sink: ArrayLike | None = None,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Logarithm of the softmax.

    .. math:: y_i = x_i - \log \sum_j e^{x_j}

    Parameters
    ----------
    {x}
    {axis}
    sink : float or array, optional
        Extra logits that take part in the denominator only; an array has as many
        entries along `axis` as there are sinks, and broadcasts over the other axes.
        The temperature does not apply to them.
    {options}

    Returns
    -------
    array
        Of the library, shape and floating dtype of `x`; -inf for entries left out.

    Raises
    ------
    {raises}

    See Also
    --------
    softmax : Its exponential.

    Notes
    -----
    Computed as ``(x - m) - log1p(rest)`` with m the maximum and rest the sum of the
    other exponentials, so that the top class of a peaked row keeps its digits: its
    value near 0 is as accurate as any other.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> print(*(f"{y:.9g}" for y in normx.log_softmax([50.0, 0.0])))
    -1.92874985e-22 -50
    """


def _lift_sum(row: Row, *, b: Array | None = None, **constants: bool) -> MaxSum | None:
    plain = b is None and row.dtype in ("float32", "float64")
    state: MaxSum | None = MAX_SUM.lift(row) if plain else None
    return state


def _logsumexp(
    row: Row,
    state: MaxSum | None,
    *,
    b: Array | None = None,
    return_sign: bool = False,
    keepdims: bool = False,
) -> Any:
    xp = row.xp
    if state is not None:
        top = state.maximum
        value = top + xp.log1p(xp.where(state.excess == -1.0, 0.0, state.excess))
        value = xp.where(top == -xp.inf, -xp.inf, value)  # and no gradient
        if not return_sign:
            return value
        return value, xp.where(top == -xp.inf, 0.0, xp.where(xp.isnan(top), top, 1.0))
    is_complex = row.dtype.startswith("complex")
    z = row.scores
    if b is not None:
        b = row.library.cast(b, row.dtype) if is_complex else b
        b = b if row.kept is None else xp.where(row.kept, b, 0.0)
        z = xp.where(b == 0, -xp.inf, z)  # a factor 0 leaves out whatever z holds
    infinite_terms = xp.exp(xp.where(xp.isfinite(z), -xp.inf, z))
    if b is None:
        b = xp.ones_like(z)
    else:
        infinite_terms = xp.where(infinite_terms == 0, 0.0, b * infinite_terms)
    value, sign = (_log_of_complex_sum if is_complex else _log_of_signed_sum)(row, z, b)
    # With an infinite term the sum itself says what its logarithm is.
    total = xp.sum(infinite_terms, axis=row.axis, keepdims=True)
    infinite = ~xp.isfinite(value)
    sign = xp.where(infinite, xp.sign(total), sign)
    if return_sign:
        size = _log(xp, xp.abs(total))
        return xp.where(infinite, size, xp.real(value) if is_complex else value), sign
    if is_complex:
        return xp.where(infinite, xp.log(total), value)
    value = xp.where(infinite, _log(xp, xp.abs(total)), value)
    return xp.where(sign < 0, xp.nan, value)


def _log(xp: Any, x: Array) -> Array:
    """Logarithm of x >= 0; 0 raises no flag on the way to -inf."""
    return xp.where(x == 0, -xp.inf, xp.log(xp.where(x == 0, 1.0, x)))


def _log1p(xp: Any, x: Array) -> Array:
    return xp.log1p(xp.where(x == -1, 0.0, x))


def _log_of_signed_sum(row: Row, z: Array, b: Array) -> tuple[Array, Array]:
    """Logarithm of the modulus, and sign, of ``sum(b * exp(z))`` for real terms."""
    xp = row.xp
    top = xp.max(z, axis=row.axis, keepdims=True)
    is_top = z == top
    pivot = row.sum(xp.where(is_top, b, 0.0))
    rest = row.sum(xp.where(is_top, 0.0, b * xp.exp(z - xp.where(xp.isfinite(top), top, 0.0))))
    cancelled = pivot == 0
    ratio = rest / xp.where(cancelled, 1.0, pivot)
    folded = xp.where(ratio < -1, -ratio - 2.0, ratio)  # |1 + ratio| = 1 + folded
    size = _log(xp, xp.where(cancelled, xp.abs(rest), xp.abs(pivot)))
    size = size + xp.where(cancelled, 0.0, xp.where(folded == -1, -xp.inf, _log1p(xp, folded)))
    return top + size, xp.where(cancelled, xp.sign(rest), xp.sign(pivot) * xp.sign(1.0 + ratio))


def _log_of_complex_sum(row: Row, z: Array, b: Array) -> tuple[Array, Array]:
    """Principal logarithm, and phase, of ``sum(b * exp(z))`` for complex terms."""
    xp = row.xp
    real = xp.real(z)
    size = 1
    for extent in z.shape:
        size *= extent
    index = xp.reshape(xp.arange(size), z.shape)
    is_top = real == xp.max(real, axis=row.axis, keepdims=True)
    first = xp.min(xp.where(is_top, index, size), axis=row.axis, keepdims=True)
    is_pivot = index == first
    pivot_z = xp.sum(xp.where(is_pivot, z, 0.0), axis=row.axis, keepdims=True)
    pivot_b = xp.sum(xp.where(is_pivot, b, 0.0), axis=row.axis, keepdims=True)
    rest = row.sum(xp.where(is_pivot, 0.0, b * xp.exp(z - pivot_z)))
    value = pivot_z + xp.log(pivot_b) + xp.log1p(rest / pivot_b)
    angle = xp.imag(value)
    # The principal value lies in (-pi, pi].
    turns = xp.ceil((angle - xp.pi) / (2 * xp.pi))
    value = value - 2j * xp.pi * row.library.cast(turns, row.dtype)
    return value, xp.exp(1j * row.library.cast(xp.imag(value), row.dtype))


def _logsumexp_vjp(
    row: Row,
    cotangent: Array,
    *,
    b: Array | None = None,
    return_sign: bool = False,
    keepdims: bool = False,
) -> dict[str, Array]:
    xp = row.xp
    if b is None:
        shares = xp.where(row.empty, 0.0, weights(row, MAX_SUM.lift(row)))
        return {"x": shares * cotangent}
    z = row.scores
    top = xp.max(xp.where(b == 0, -xp.inf, z), axis=row.axis, keepdims=True)
    e = arithmetic.exp(xp, gap(xp, z, top))
    total = row.sum(xp.where(b == 0, 0.0, b * e))
    share = xp.where(row.empty, 0.0, e / xp.where(total == 0, 1.0, total)) * cotangent
    return {"x": xp.where(b == 0, 0.0, b * share), "b": share}


@reduction(
    stages=(Stage(_lift_sum, MAX_SUM),),
    apply=_logsumexp,
    definition=lambda m, x, b=1: m.log(m.sum(b * m.exp(x))),
    vjp=_logsumexp_vjp,
    complex=True,
    parameters=(Parameter("b", shape="elements", complex=True),),
    constants=(flag("keepdims"), flag("return_sign")),
    laws=(
        laws.shift_equivariant,
        laws.permutation_invariant,
        laws.masking_is_deleting,
        laws.rows_are_independent,
        laws.bounded_by_maximum,
    ),
    papers=(_BLANCHARD,),
)
def logsumexp(
    x: Any,
    /,
    *,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    **options: Unpack[SharedOptions],
) -> Any:
    r"""Logarithm of a sum of exponentials.

    .. math:: y = \log \sum_j b_j e^{x_j}

    The semantics are those of SciPy's function of that name.

    Parameters
    ----------
    {x}
        Complex scores are allowed here.
    {axis}
    b : float or array, optional
        Factors of the exponentials, broadcast against `x`; of any sign, or complex.
    keepdims : bool
        Whether the reduced axes stay, with size 1.
    return_sign : bool
        Whether to return the logarithm of the modulus of the sum, and its sign (its
        phase, if complex), rather than NaN for a negative sum.
    {options}

    Returns
    -------
    array, or tuple of two arrays
        Without the reduced axes, unless `keepdims`.  -inf where nothing is summed.

    Raises
    ------
    {raises}

    See Also
    --------
    log_softmax : ``x - logsumexp(x)``, without its loss of digits.

    Notes
    -----
    Computed as ``m + log1p(rest)`` with m the maximum, so that a sum that is all but
    one term keeps its digits.  The error is within 4 units in the last place of the
    larger of the maximum and the result.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.logsumexp([1000.0, 1000.0]).round(6)
    np.float64(1000.693147)
    >>> print(f"{normx.logsumexp([0.0, -40.0]):.9g}")
    4.24835426e-18
    """
