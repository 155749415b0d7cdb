"""Noisy softmax: the target's logit is made smaller, so that training does not end too early."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from normx._calls import known_keywords
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._plan import FLOATS
from normx._record import record_of
from normx.losses._rows import (
    Batch,
    Pullback,
    Reduction,
    batch_of,
    check_choice,
    documented,
    number,
    with_vjp,
)
from normx.losses.softmax import Entropy
from normx.normalizers.softmax import softmax
from normx.plugins import Library, dtype_name

Array = Any
Noise: TypeAlias = Literal["annealed", "amplitude", "free", "negative", "normal"]

NOISES = ("annealed", "amplitude", "free", "negative", "normal")
_NAME = "noisy_cross_entropy"


def _noisy_cross_entropy(
    features: ArrayLike,
    weights: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    alpha: float,
    rng: Any,
    bias: ArrayLike | None = None,
    noise: Noise = "annealed",
    differentiate_noise: bool = True,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    check_choice(_NAME, "noise", noise, NOISES)
    alpha = number(
        _NAME, "alpha", alpha, "a finite number of at least 0", lambda v: 0 <= v < math.inf
    )
    if not isinstance(differentiate_noise, bool | np.bool_):
        raise wrong(
            TypeError, _NAME, "differentiate_noise", described(differentiate_noise), "True or False"
        )
    library, (features, weights, bias) = _arrays(features, weights, bias)
    wanted = library.check_rng(rng)
    if wanted is not None:
        raise wrong(TypeError, _NAME, "rng", described(rng), wanted)
    xp = library.namespace()
    given = [array for array in (features, weights, bias) if array is not None]
    wide = any(dtype_name(array.dtype) == "float64" for array in given)
    dtype = "float64" if wide else "float32"
    shape = (features.shape[0], weights.shape[0])
    form = xp.broadcast_to(library.full((1, 1), 0.0, dtype, features), shape)
    batch = batch_of(
        _NAME, form, targets, axis=-1, where=None, ignore_index=ignore_index, reduction=reduction
    )
    x, w = library.cast(features, dtype), library.cast(weights, dtype)
    if batch.counted is not None:  # what an ignored row holds must not reach the weights
        x = xp.where(batch.spread(batch.counted), x, 0.0)
    logits = x @ xp.matrix_transpose(w)
    if bias is not None:
        logits = logits + library.cast(bias, dtype)
    own = xp.take(w, batch.targets, axis=0)
    taken_off = _Noise(library, noise, x, own, alpha * _normal(batch, rng))
    less = taken_off.amount()
    if not differentiate_noise:
        less = library.stop_gradient(less)
    hit = batch.is_target()
    logits = xp.where(hit, logits - batch.spread(less), logits)
    entropy = Entropy(replace(batch, logits=logits), record_of(softmax), None, 0.0, None)
    rows = entropy.rows()

    def pullback(dy: Any) -> dict[str, Array]:
        dlogits = entropy.pullback(rows, (batch.to_rows(dy), None, None))
        dx, dw = dlogits @ w, xp.matrix_transpose(dlogits) @ x
        if differentiate_noise:
            of_x, of_w = taken_off.slopes()
            at_target = batch.spread(batch.at_target(dlogits))
            # Summed by class: several rows may have the same target.
            one = library.cast(hit, dtype)
            dx = dx - at_target * of_x
            dw = dw - xp.matrix_transpose(one) @ (at_target * of_w)
        found = {"x": (dx, features), "weights": (dw, weights)}
        if bias is not None:
            found["bias"] = (xp.sum(dlogits, axis=0), bias)
        return {
            name: library.finish(library.cast(d, dtype_name(of.dtype)))
            for name, (d, of) in found.items()
        }

    return batch.reduced(rows[0]), pullback


@dataclass(frozen=True, slots=True)
class _Noise:
    """What is taken off the logit of the target of each row.

    Attributes
    ----------
    library : Library
    kind : str
    x, w : array
        The features of each row, and the weights of its target.
    xi : array
        Normal numbers times alpha, one per row.
    """

    library: Library
    kind: Noise
    x: Array
    w: Array
    xi: Array

    def amount(self) -> Array:
        """The noise of each row."""
        xp = self.library.namespace()
        if self.kind == "normal":
            return self.xi
        size = xp.abs(self.xi)
        if self.kind in ("negative", "free"):
            return size if self.kind == "free" else -size
        norms = self._norm(self.x) * self._norm(self.w)
        if self.kind == "amplitude":
            return size * norms
        # |w| |x| (1 - cos), without a division; rounding must not make it negative.
        gap = norms - xp.sum(self.x * self.w, axis=-1)
        return size * xp.where(gap > 0.0, gap, 0.0)

    def slopes(self) -> tuple[Array, Array]:
        """How it moves with the features, and with the weights of the target."""
        xp = self.library.namespace()
        if self.kind not in ("annealed", "amplitude"):
            return xp.zeros_like(self.x), xp.zeros_like(self.w)
        size = xp.abs(self.xi)[:, None]
        of_x, of_w = self._norm(self.x)[:, None], self._norm(self.w)[:, None]
        dx, dw = of_w * _over(xp, self.x, of_x), of_x * _over(xp, self.w, of_w)
        if self.kind == "annealed":
            dx, dw = dx - self.w, dw - self.x
        return size * dx, size * dw

    def _norm(self, x: Array) -> Array:
        """Euclidean norm of each row; that of zeros has no gradient, rather than NaN."""
        xp = self.library.namespace()
        square = xp.sum(x * x, axis=-1)
        some = square > 0.0
        return xp.where(some, xp.sqrt(xp.where(some, square, 1.0)), 0.0)


def _over(xp: Any, x: Array, norm: Array) -> Array:
    return x / xp.where(norm > 0.0, norm, 1.0)


def _normal(batch: Batch, rng: Any) -> Array:
    """A normal number for each row (Box and Muller, 1958)."""
    xp = batch.xp
    u = batch.library.uniform(rng, (2, *batch.shape), batch.dtype, batch.logits)
    return xp.sqrt(-2.0 * xp.log(u[0, ...])) * xp.cos(2.0 * math.pi * u[1, ...])


def _arrays(features: Any, weights: Any, bias: Any) -> tuple[Library, list[Any]]:
    """The arrays, checked, of one library."""
    library = library_of(features)
    found: list[Any] = []
    for name, value, ndim in (
        ("features", features, 2),
        ("weights", weights, 2),
        ("bias", bias, 1),
    ):
        if value is None and name == "bias":
            found.append(None)
            continue
        array = np.asarray(value, np.float64) if isinstance(value, list | tuple) else value
        wanted = f"a floating array of {ndim} dimension{'s' * (ndim > 1)}"
        if library is None or not hasattr(array, "dtype") or dtype_name(array.dtype) not in FLOATS:
            raise wrong(TypeError, _NAME, name, described(value), wanted)
        if library_of(array) is not library:
            of = f"{wanted} of {library.name}, the library of `features`"
            raise wrong(TypeError, _NAME, name, described(value), of)
        if len(array.shape) != ndim:
            raise wrong(ValueError, _NAME, name, described(value), wanted)
        found.append(array)
    assert library is not None  # or the first array was refused
    x, w, b = found
    if x.shape[1] != w.shape[1]:
        wanted = f"of shape (classes, {x.shape[1]}), a row per class, as wide as the features"
        raise wrong(ValueError, _NAME, "weights", described(w), wanted)
    if b is not None and b.shape[0] != w.shape[0]:
        raise wrong(ValueError, _NAME, "bias", described(b), f"of shape ({w.shape[0]},)")
    return library, found


@with_vjp(_noisy_cross_entropy)
@documented()
@known_keywords
def noisy_cross_entropy(
    features: ArrayLike,
    weights: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    alpha: float,
    rng: Any,
    bias: ArrayLike | None = None,
    noise: Noise = "annealed",
    differentiate_noise: bool = True,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Cross-entropy of a last layer whose target's logit is made smaller by noise.

    .. math:: f'_c = f_c - \alpha\, \lVert w_c \rVert \lVert x \rVert (1 - \cos \theta_c)\, |\xi|,
        \qquad f = W x + b, \quad \xi \sim N(0, 1)

    Parameters
    ----------
    features : array
        x: the input of the last layer, of shape (rows, d).
    weights : array
        W: its weights, of shape (classes, d), of the library of `features`.
    targets : array of int
        The class c of each row.
    alpha : float
        How much noise; at least 0.  The paper's plots are labelled by its square.
    rng : random source
        A `numpy.random.Generator`, `torch.Generator` or key of `jax.random`; it gives a number
        for each row.
    bias : array, optional
        b, of shape (classes,).
    noise : {"annealed", "amplitude", "free", "negative", "normal"}
        The formula above, or the ablations of the paper, which take off
        :math:`\alpha \lVert w_c \rVert \lVert x \rVert |\xi|`, :math:`\alpha |\xi|`,
        :math:`-\alpha |\xi|` or :math:`\alpha \xi`.
    differentiate_noise : bool
        Whether gradients go through the noise, or take it for a constant.
    {ignore_index}
    {reduction}

    Returns
    -------
    array
        The loss: float64 if one of the arrays is, and else float32.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind; targets have to be integers.
    ValueError
        If a target is no class, or an argument has a wrong value or shape.

    See Also
    --------
    cross_entropy : What there is without noise, and for evaluation.

    Notes
    -----
    The annealed noise is ``alpha * |xi| * (|w| |x| - w.x)``: nothing is divided, so features
    and weights of zeros give no noise, and no NaN.  It is never negative, and 0 where they are
    parallel.  The bias has no part in the angle.  `normx.vjp` gives gradients under ``"x"``,
    ``"weights"`` and ``"bias"``.

    References
    ----------
    .. [1] B. Chen, W. Deng and J. Du, "Noisy Softmax: Improving the Generalization Ability of
       DCNN via Postponing the Early Softmax Saturation", CVPR 2017, arXiv:1708.03769, 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from normx.losses import noisy_cross_entropy
    >>> x, w = np.array([[2.0, 1.0]]), np.array([[1.0, 2.0], [0.5, 0.0]])
    >>> noisy_cross_entropy(x, w, [0], alpha=0.0, rng=np.random.default_rng(0)).round(6)
    np.float64(0.048587)
    >>> noisy_cross_entropy(x, w, [0], alpha=0.5, rng=np.random.default_rng(0)) > 0.048587
    np.True_
    """
    return _noisy_cross_entropy(
        features,
        weights,
        targets,
        alpha=alpha,
        rng=rng,
        bias=bias,
        noise=noise,
        differentiate_noise=differentiate_noise,
        ignore_index=ignore_index,
        reduction=reduction,
    )[0]
