r"""Softmax variants in which something besides the scores has its say in the denominator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar, Unpack

from normx import laws
from normx._options import ArrayLike, Axis, FilledOptions, RowOptions
from normx._record import Paper, Parameter, Stage, flag, normalizer
from normx._row import Row
from normx.normalizers.scaled import SU
from normx.normalizers.softmax import STAGES, softmax_vjp, weights
from normx.states import MAX_SUM, MaxSum

Array = Any
ArrayT = TypeVar("ArrayT")

_INHIBITED = Paper(
    "M. Możejko, M. Susik and R. Karczewski",
    "Inhibited Softmax for Uncertainty Estimation in Neural Networks",
    2018,
    "arXiv:1810.01861",
)
_GONSIOR = Paper(
    "J. Gonsior, C. Falkenberg, S. Magino, A. Reusch, M. Thiele and W. Lehner",
    "To Softmax, or not to Softmax: that is the question when applying Active Learning for "
    "Transformer Models",
    2022,
    "arXiv:2210.03005",
)
_KIM = Paper(
    "H. Kim, M. Kwon and K. Kim",
    "Revisiting Softmax Masking: Stop Gradient for Enhancing Stability in Replay-based "
    "Continual Learning",
    2023,
    "arXiv:2309.14808",
)
_JANG = Paper(
    "E. Jang, S. Gu and B. Poole",
    "Categorical Reparameterization with Gumbel-Softmax",
    2017,
    "ICLR 2017, arXiv:1611.01144",
)
_MADDISON = Paper(
    "C. J. Maddison, A. Mnih and Y. W. Teh",
    "The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables",
    2017,
    "ICLR 2017, arXiv:1611.00712",
)


def _inhibited(row: Row, state: MaxSum, *, alpha: Array) -> Array:
    return weights(row, state, sink=alpha)


def _inhibited_vjp(row: Row, cotangent: Array, *, alpha: Array) -> dict[str, Array]:
    gradient = softmax_vjp(row, cotangent, sink=alpha)
    return {"x": gradient["x"], "alpha": gradient["sink"]}


@normalizer(
    stages=STAGES,
    apply=_inhibited,
    definition=lambda m, x, alpha: m.exp(x) / (m.sum(m.exp(x)) + m.exp(alpha)),
    vjp=_inhibited_vjp,
    parameters=(Parameter("alpha", shape="row"),),
    laws=(
        laws.sums_to_at_most_one,
        laws.within_unit_interval,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(_INHIBITED, _GONSIOR),
)
def inhibited_softmax(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    alpha: ArrayLike = 0.0,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Softmax with a constant logit beside the scores: rows may sum to less than one.

    .. math:: y_i = \frac{e^{x_i}}{\sum_j e^{x_j} + e^{\alpha}}

    Parameters
    ----------
    {x}
    {axis}
    alpha : float or array
        The constant logit; 0 makes the "softmax plus one", -inf softmax itself.  An array
        has size 1 along `axis`.  The temperature does not apply to it.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    softmax : With any number of such logits, as its `sink`.

    Notes
    -----
    What a row lacks to one is its uncertainty.  The formula rounds the scores over a
    temperature once, beside the logit, which the exponential magnifies by their size; the
    CPU's kernels do not.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.inhibited_softmax([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.0861, 0.2341, 0.6364, 0.0117])
    """


def _kept_and_filled(row: Row) -> tuple[Row, Row]:
    """The row without what is filled in; and that alone, to which no temperature applies."""
    kept = row.xp.ones_like(row.present) if row.kept is None else row.kept
    return row.without(~kept), replace(row.without(kept), temperature=None)


def _masked_lift(row: Row, *, fill: Array) -> MaxSum:
    kept, filled = _kept_and_filled(row)
    return MAX_SUM.merge(row.xp, MAX_SUM.lift(kept), MAX_SUM.lift(filled))


def _masked(row: Row, state: MaxSum, *, fill: Array) -> Array:
    kept, filled = (weights(part, state) for part in _kept_and_filled(row))
    return kept if row.kept is None else row.xp.where(row.kept, kept, filled)


def _masked_vjp(row: Row, cotangent: Array, *, fill: Array) -> dict[str, Array]:
    y = _masked(row, _masked_lift(row, fill=fill), fill=fill)
    gradient = y * (cotangent - row.sum(y * cotangent))
    filled = gradient * 0.0 if row.kept is None else row.xp.where(row.kept, 0.0, gradient)
    return {"x": gradient, "fill": row.sum(filled)}


@normalizer(
    stages=(Stage(_masked_lift, MAX_SUM),),
    apply=_masked,
    definition=lambda m, x, fill: m.exp(x) / m.sum(m.exp(x)),
    vjp=_masked_vjp,
    fills=True,
    parameters=(Parameter("fill", shape="row"),),
    example={"where": True},
    laws=(
        laws.sums_to_one,
        laws.within_unit_interval,
        laws.shift_invariant,
        laws.monotone,
        *laws.OF_EVERY_ROW,
    ),
    papers=(_KIM,),
)
def masked_softmax(
    x: ArrayT,
    /,
    *,
    where: ArrayLike,
    axis: Axis = -1,
    fill: ArrayLike = -float("inf"),
    **options: Unpack[FilledOptions],
) -> ArrayT:
    r"""Softmax in which left-out entries take a constant logit, and get no gradient.

    .. math:: y_i = \frac{e^{z_i}}{\sum_j e^{z_j}}, \quad
        z_i = \begin{cases} x_i & \text{where} \\ \text{fill} & \text{else} \end{cases}

    Parameters
    ----------
    {x}
    where : array of bool
        Broadcastable against `x`; False for the entries whose score is replaced.
    {axis}
    fill : float or array
        The constant; -inf leaves the entries out altogether, as `softmax` does.  The
        temperature does not apply to it.
    {options}

    Returns
    -------
    array
        Of the library, shape and floating dtype of `x`, with the weights of the
        left-out entries too.

    Raises
    ------
    {raises}

    Notes
    -----
    In continual learning the classes of other tasks are masked, so that their scores
    receive no gradient; the constant sets how strongly the others are pulled.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> current = [False, False, True, True]
    >>> normx.masked_softmax([0.5, -1.0, 2.0, 0.3], where=current, fill=0.0).round(4)
    array([0.0931, 0.0931, 0.6881, 0.1257])
    """


def _nonnegative(row: Row, state: MaxSum, *, threshold: Array) -> Array:
    return weights(row, state)


@normalizer(
    stages=STAGES,
    apply=_nonnegative,
    definition=lambda m, x, threshold: m.exp(x) / m.sum(m.exp(x)),
    vjp=lambda row, cotangent, threshold: softmax_vjp(row, cotangent),
    massless=lambda scores, threshold: scores < threshold,
    parameters=(Parameter("threshold", shape="row"),),
    laws=(
        laws.sums_to_at_most_one,
        laws.within_unit_interval,
        laws.monotone,
        laws.exact_zeros,
        *laws.OF_EVERY_ROW,
    ),
    papers=(SU,),
)
def nonnegative_softmax(
    x: ArrayT,
    /,
    *,
    axis: Axis = -1,
    threshold: ArrayLike = 0.0,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Softmax over the scores that reach a threshold; all others weigh exactly zero.

    .. math:: y_i = \frac{[x_i \ge t]\, e^{x_i}}{\sum_j [x_j \ge t]\, e^{x_j}}

    Parameters
    ----------
    {x}
    {axis}
    threshold : float or array
        The least score that takes part, after softcap and temperature; it has no
        gradient.
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    Notes
    -----
    A row without a score that reaches the threshold is an empty row.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import normx
    >>> normx.nonnegative_softmax([1.0, 2.0, 3.0, -1.0]).round(4)
    array([0.09  , 0.2447, 0.6652, 0.    ])
    """


def _gumbel(row: Row, state: MaxSum, *, hard: bool) -> Array:
    xp, soft = row.xp, weights(row, state)
    if not hard:
        return soft
    # Of several maxima, of which there are hardly ever any, the first.
    size = 1
    for extent in soft.shape:
        size *= extent
    place = xp.reshape(xp.arange(size), soft.shape)
    place = xp.where(row.scores == row.maximum, place, size)
    chosen = place == xp.min(place, axis=row.axis, keepdims=True)
    one = xp.where(chosen & (place < size), xp.ones_like(soft), 0.0 * soft)
    # One-hot forward; to the library's own differentiation, the soft weights.
    return one + (soft - row.library.stop_gradient(soft))


@normalizer(
    stages=(Stage(lambda row, hard: MAX_SUM.lift(row), MAX_SUM),),
    apply=_gumbel,
    definition=lambda m, x, uniform: (e := m.exp(x - m.log(-m.log(uniform)))) / m.sum(e),
    vjp=lambda row, cotangent, hard: softmax_vjp(row, cotangent),
    noise=lambda xp, uniform: -xp.log(-xp.log(uniform)),
    constants=(flag("hard"),),
    laws=(laws.sums_to_one, laws.within_unit_interval),
    papers=(_JANG, _MADDISON),
)
def gumbel_softmax(
    x: ArrayT,
    /,
    *,
    rng: Any,
    axis: Axis = -1,
    hard: bool = False,
    **options: Unpack[RowOptions],
) -> ArrayT:
    r"""Softmax of scores with Gumbel noise: a differentiable draw from their softmax.

    .. math:: y = \operatorname{softmax}\left(\frac{x + g}{\tau}\right),
        \quad g_i = -\log(-\log u_i), \quad u_i \sim U(0, 1)

    Parameters
    ----------
    {x}
    rng : random generator
        A ``numpy.random.Generator``, or what the library of `x` uses: a
        ``torch.Generator``, a key of ``jax.random`` or ``mlx.core.random``.
    {axis}
    hard : bool
        Whether to return the one-hot of the largest noisy score, with the gradient of
        the soft weights (straight through).
    {options}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    Notes
    -----
    The noise is drawn in the precision of the arithmetic from numbers strictly between 0
    and 1, so it is finite.  The index of the largest weight is distributed as the
    softmax of the scores, at any temperature; at temperature 0 the weights are one-hot.

    References
    ----------
    {papers}

    Examples
    --------
    >>> import numpy as np
    >>> import normx
    >>> draws = normx.gumbel_softmax(
    ...     np.zeros((1000, 2)), rng=np.random.default_rng(0), hard=True
    ... )
    >>> int(draws[:, 0].sum())
    532
    """
