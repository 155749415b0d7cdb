"""Whether the weights of a classifier are frequencies, and how to make them so."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from normx._calls import checked, dense, single_axis
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._extras import needed
from normx._options import ArrayLike
from normx._plan import INTEGERS, NARROW
from normx.normalizers.softmax import logsumexp, softmax
from normx.plugins import Library, dtype_name

__all__ = ["expected_calibration_error", "fit_temperature"]

Array = Any

#: The slope of the loss at the minimum, relative to that at temperature 1: far below what any
#: number of items can tell.
_FLAT = 1e-9


def fit_temperature(x: ArrayLike, targets: ArrayLike, /, *, axis: int = -1) -> float:
    r"""The temperature at which the weights fit the targets best.

    .. math:: T = \arg\min_T -\frac1N \sum_i \log \operatorname{softmax}(x_i / T)_{y_i}

    Parameters
    ----------
    x : array
        Scores of items that the model was not trained with: an array of any array-API library,
        or a list (taken as NumPy's).  -inf leaves a class out.
    targets : array of int
        The true class of each item: the shape of `x` without `axis`.
    axis : int
        Axis of the classes.

    Returns
    -------
    float
        For the keyword `temperature` of the normalizers and measures.  0 if every target has
        the highest score, inf if the scores say no more, or less, than nothing.

    Raises
    ------
    ImportError
        If SciPy is missing.
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape: a target that is no class, or one whose
        score is -inf; scores of NaN or +inf.
    RuntimeError
        If the search does not end at a minimum.

    See Also
    --------
    expected_calibration_error : What it is meant to lower.

    Notes
    -----
    The loss is convex in 1/T, and has one minimum.  SciPy's Newton method with a trust region
    comes near it, plain Newton steps on the slope go to the last digits; the slope is
    :math:`\frac1N \sum_i (\langle p_i, x_i\rangle - x_{i, y_i})`, the curvature
    :math:`\frac1N \sum_i \operatorname{Var}_{p_i} x_i`.  All of it is in float64 on the host,
    whatever library the scores are of.

    References
    ----------
    .. [1] C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern neural
       networks", ICML, 2017.

    Examples
    --------
    >>> from normx.calibration import fit_temperature
    >>> scores = [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]
    >>> round(fit_temperature(scores, [0, 0, 0, 1]), 6)  # 3 of 4: a ratio of 3, log 3 apart
    1.820478
    """
    name = "calibration.fit_temperature"
    library, x, along, targets, _ = _items(name, "x", x, targets, axis)
    for what, array in (("x", x), ("targets", targets)):
        if not library.is_concrete(array):
            raise wrong(TypeError, name, what, described(array), "an array with values")
    rows = np.moveaxis(np.asarray(library.to_numpy(x)), along, -1).astype(np.float64)
    rows = rows.reshape(-1, rows.shape[-1])
    chosen = np.asarray(library.to_numpy(targets)).reshape(-1).astype(np.int64)
    if np.isnan(rows).any() or (rows == np.inf).any():
        raise wrong(ValueError, name, "x", "NaN or +inf somewhere", "finite, or -inf")
    given = np.take_along_axis(rows, chosen[:, None], axis=1)
    if np.isinf(given).any():
        item = int(np.argmax(np.isinf(given)))
        came = f"the class with score -inf of item {item}"
        raise wrong(ValueError, name, "targets", came, "a class that takes part")
    # Relative to the target's score, the loss is the mean of a logsumexp, and exact near 0.
    return _best_temperature(rows - given)


def _best_temperature(relative: Array) -> float:
    """The temperature for scores less that of the target."""
    present = relative > -np.inf
    relative = np.where(present, relative, 0.0)
    scale = np.abs(relative).max()
    if (relative <= 0.0).all() and scale > 0.0:
        return 0.0
    share = present / present.sum(axis=1, keepdims=True)
    if scale == 0.0 or (share * relative).sum() >= 0.0:
        return float("inf")
    relative = relative / scale

    def loss(beta: Array) -> float:
        return float(np.mean(logsumexp(beta[0] * relative, axis=1, where=present)))

    def slope_and_curvature(beta: float) -> tuple[float, float]:
        p = softmax(beta * relative, where=present)
        mean = (p * relative).sum(axis=1, keepdims=True)
        return float(mean.mean()), float((p * (relative - mean) ** 2).sum(axis=1).mean())

    optimize = needed("calibration.fit_temperature", "scipy.optimize", "learn")
    near = optimize.minimize(
        loss,
        np.ones(1),
        method="trust-exact",
        jac=lambda beta: np.array(slope_and_curvature(beta[0])[:1]),
        hess=lambda beta: np.array([slope_and_curvature(beta[0])[1:]]),
    )
    # The loss is flat there, to rounding; its slope is not.
    found = optimize.root_scalar(slope_and_curvature, fprime=True, x0=near.x[0], method="newton")
    beta, steps = float(found.root), near.nit + found.iterations
    if not beta > 0.0 or abs(slope_and_curvature(beta)[0]) > _FLAT * abs(
        slope_and_curvature(0.0)[0]
    ):
        raise RuntimeError(f"normx.calibration.fit_temperature: no minimum in {steps} steps")
    return float(scale / beta)


def expected_calibration_error(
    probabilities: ArrayLike, targets: ArrayLike, /, *, axis: int = -1, bins: Any = 10
) -> Any:
    r"""How far confidence is from accuracy, on average over bins of equal width.

    .. math:: \sum_b \frac{n_b}{N} \left| \operatorname{acc}_b - \operatorname{conf}_b \right|

    Parameters
    ----------
    probabilities : array
        Of the classes along `axis`, between 0 and 1: what a normalizer returns, such as
        ``normx.softmax(x, temperature=T)``.
    targets : array of int
        The true class of each item: the shape of `probabilities` without `axis`.
    axis : int
        Axis of the classes.
    bins : int
        How many; bin b has the items whose highest probability is above b/bins and at most
        (b + 1)/bins.

    Returns
    -------
    array
        A number of the library and floating dtype of `probabilities`; 0 if, in each bin, the
        mean of the highest probability is the share of items for which it is the target's.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument has a wrong value or shape.

    See Also
    --------
    fit_temperature : The temperature for `normx.softmax` that makes it small.

    Notes
    -----
    Bins that hold no item add nothing.  Of equally probable classes the first is the predicted
    one.  Libraries that differentiate go through it; its gradient is that of the probabilities
    in their bins.

    References
    ----------
    .. [1] M. P. Naeini, G. F. Cooper and M. Hauskrecht, "Obtaining well calibrated probabilities
       using Bayesian binning", AAAI, 2015.

    Examples
    --------
    >>> from normx.calibration import expected_calibration_error
    >>> sure = [[0.75, 0.25]] * 4
    >>> expected_calibration_error(sure, [0, 0, 0, 1])
    np.float64(0.0)
    >>> expected_calibration_error(sure, [0, 1, 1, 1])
    np.float64(0.5)
    """
    name = "calibration.expected_calibration_error"
    library, p, along, targets, dtype = _items(name, "probabilities", probabilities, targets, axis)
    if isinstance(bins, bool) or not isinstance(bins, numbers.Integral):
        raise wrong(TypeError, name, "bins", described(bins), "an int")
    if bins < 1:
        raise wrong(ValueError, name, "bins", repr(int(bins)), "at least 1")
    xp, count = library.namespace(), int(bins)
    if library.is_concrete(p):
        values = np.asarray(library.to_numpy(p)).astype(np.float64)
        if not ((values >= 0.0) & (values <= 1.0 + 1e-2)).all():
            cure = "pass normx.softmax of the scores"
            raise wrong(ValueError, name, "probabilities", "others", "between 0 and 1", cure)
    p = library.cast(p, "float32" if dtype in NARROW else dtype)
    confidence = xp.reshape(xp.max(p, axis=along), (-1, 1))
    right = xp.reshape(xp.argmax(p, axis=along), (-1,)) == xp.reshape(targets, (-1,))
    excess = library.cast(right, dtype_name(p.dtype))[:, None] - confidence
    bin_of = xp.ceil(confidence * count) - 1.0
    bin_of = xp.where(bin_of < 0.0, 0.0, xp.where(bin_of > count - 1.0, count - 1.0, bin_of))
    places = library.cast(xp.arange(count), dtype_name(p.dtype))[None, :]
    per_bin = xp.sum(xp.where(bin_of == places, excess, 0.0), axis=0)
    error = xp.sum(xp.abs(per_bin)) / excess.shape[0]
    return library.finish(library.cast(error, dtype))


def _items(
    name: str, what: str, x: Any, targets: Any, axis: Any
) -> tuple[Library, Array, int, Array, str]:
    """Rows of classes and the target of each, checked."""
    single_axis(name, axis)
    library, x, prepared = checked(name, x, axis=axis)
    dense(name, library, x)
    (along,) = prepared.plan.axis
    if not x.shape or 0 in x.shape:
        raise wrong(ValueError, name, what, described(x), "an array with items and classes")
    if isinstance(targets, list | tuple | int):
        targets = np.asarray(targets)
    shape = (*x.shape[:along], *x.shape[along + 1 :])
    wanted = f"an array of ints of shape {shape}: the class of each item"
    home = library_of(targets)
    if home is None or dtype_name(targets.dtype) not in INTEGERS:
        raise wrong(TypeError, name, "targets", described(targets), wanted)
    if home is not library:
        if not isinstance(targets, np.ndarray):
            cure = f"convert it to {library.name} or NumPy first"
            raise wrong(TypeError, name, "targets", described(targets), wanted, cure)
        targets = library.from_numpy(targets)
    if tuple(targets.shape) != shape:
        raise wrong(ValueError, name, "targets", described(targets), wanted)
    if library.is_concrete(targets):
        values = np.asarray(library.to_numpy(targets))
        bad = values[(values < 0) | (values >= x.shape[along])]
        if bad.size:
            wanted = f"between 0 and {x.shape[along] - 1}, the classes of `{what}`"
            raise wrong(ValueError, name, "targets", repr(int(bad[0])), wanted)
    return library, x, along, targets, prepared.plan.dtype
