"""Continual learning: the cross-entropy of a part of the classes, and what is measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normx._calls import known_keywords
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._vjp import vjp
from normx.losses._rows import Batch, Pullback, Reduction, batch_of, documented, number, with_vjp
from normx.normalizers.softmax import log_softmax

Array = Any


def _masked_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    where: ArrayLike,
    fill: float = -math.inf,
    axis: int = -1,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    name = "masked_cross_entropy"
    batch = batch_of(
        name,
        logits,
        targets,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    fill = number(name, "fill", fill, "a number below +inf", lambda v: v < math.inf)
    options = {"axis": batch.axis, "where": batch.where, **_sink(batch, fill)}
    scores = batch.wide()
    losses = batch.mended(-batch.at_target(log_softmax(scores, **options)))

    def pullback(dy: Any) -> dict[str, Array]:
        xp = batch.xp
        d = xp.where(losses == xp.inf, 0.0, batch.to_rows(dy))
        _, pull = vjp(log_softmax, scores, **options)
        dlogs = xp.where(batch.is_target(), -batch.spread(d), xp.zeros_like(scores))
        return batch.gradient(pull(dlogs)["x"])

    return batch.reduced(losses), pullback


@with_vjp(_masked_cross_entropy)
@documented()
@known_keywords
def masked_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    where: ArrayLike,
    fill: float = -math.inf,
    axis: int = -1,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> Any:
    r"""Cross-entropy in which classes that are left out keep a constant logit.

    .. math::

        \ell = -\log \frac{e^{x_c}}{\sum_{k \in C} e^{x_k} + (K - |C|)\, e^{m}}

    Parameters
    ----------
    {logits}
    {targets}
    where : array of bool
        Broadcastable against `logits`; True for the classes C of the task.
    fill : float
        The logit m of each of the others.  The larger it is, the stronger is the pull on the
        target and the weaker the push on the other classes of the task.
    {axis}
    {ignore_index}
    {reduction}

    Returns
    -------
    {returns}

    Raises
    ------
    {raises}

    See Also
    --------
    normx.masked_softmax : The weights.
    task_incremental_accuracy, class_incremental_accuracy, forgetting : What it is for.

    Notes
    -----
    What is left out receives gradient exactly 0, so the classes of other tasks stay as they
    are, to the bit.  With `fill` -inf it is the cross-entropy of the part of the row.
    The constant takes part in the logarithm of the sum: nothing overflows, however large it is.

    References
    ----------
    .. [1] H. Kim, M. Kwon and K. Kim, "Revisiting Softmax Masking: Stop Gradient for Enhancing
       Stability in Replay-based Continual Learning", arXiv:2309.14808, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from normx.losses import masked_cross_entropy
    >>> logits, task = np.array([[0.5, -1.0, 2.0, 0.3]]), [False, False, True, True]
    >>> masked_cross_entropy(logits, [2], where=task).round(6)
    np.float64(0.167786)
    >>> masked_cross_entropy(logits, [2], where=task, fill=0.0).round(6)
    np.float64(0.373874)
    """
    return _masked_cross_entropy(
        logits,
        targets,
        where=where,
        fill=fill,
        axis=axis,
        ignore_index=ignore_index,
        reduction=reduction,
    )[0]


def _sink(batch: Batch, fill: float) -> dict[str, Array]:
    """What is left out, as one logit more in each denominator."""
    if batch.where is None or fill == -math.inf:
        return {}
    xp, library = batch.xp, batch.library
    out = xp.where(
        xp.broadcast_to(batch.where, batch.logits.shape), 0.0, xp.ones_like(batch.wide())
    )
    count = xp.sum(out, axis=batch.axis, keepdims=True)
    with library.quiet():
        logs = xp.where(count > 0, xp.log(xp.where(count > 0, count, 1.0)), -xp.inf)
        return {"sink": fill + logs}


# ---------------------------------------------------------------- what is measured


@documented()
@known_keywords
def class_incremental_accuracy(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    seen: ArrayLike | None = None,
    axis: int = -1,
    ignore_index: int | None = None,
) -> Any:
    """Share of rows whose largest logit, among all classes seen so far, is that of the target.

    Parameters
    ----------
    {logits}
    {targets}
    seen : array of bool, optional
        Broadcastable against `logits`; True for the classes that were in any task so far.
    {axis}
    ignore_index : int, optional
        Rows with this target are not counted.

    Returns
    -------
    array
        A number from 0 to 1; 0 if there are no rows.

    Raises
    ------
    TypeError, ValueError
        As `masked_cross_entropy`.

    See Also
    --------
    task_incremental_accuracy : Among the classes of the task alone.

    Examples
    --------
    >>> from normx.losses import class_incremental_accuracy
    >>> class_incremental_accuracy([[0.5, -1.0, 2.0], [3.0, 0.0, 1.0]], [2, 1])
    np.float64(0.5)
    """
    return _accuracy("class_incremental_accuracy", logits, targets, seen, axis, ignore_index)


@documented()
@known_keywords
def task_incremental_accuracy(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    where: ArrayLike,
    axis: int = -1,
    ignore_index: int | None = None,
) -> Any:
    """Share of rows whose largest logit, among the classes of their task, is that of the target.

    Parameters
    ----------
    {logits}
    {targets}
    where : array of bool
        Broadcastable against `logits`; True for the classes of the row's task.
    {axis}
    ignore_index : int, optional
        Rows with this target are not counted.

    Returns
    -------
    array
        A number from 0 to 1; 0 if there are no rows.

    Raises
    ------
    TypeError, ValueError
        As `masked_cross_entropy`.

    See Also
    --------
    class_incremental_accuracy : Among all classes.

    Examples
    --------
    >>> from normx.losses import task_incremental_accuracy
    >>> logits = [[0.5, -1.0, 2.0], [3.0, 0.0, 1.0]]
    >>> task_incremental_accuracy(logits, [2, 1], where=[[True, True, True], [False, True, False]])
    np.float64(1.0)
    """
    return _accuracy("task_incremental_accuracy", logits, targets, where, axis, ignore_index)


def _accuracy(
    function: str, logits: Any, targets: Any, kept: Any, axis: int, ignore_index: int | None
) -> Array:
    batch = batch_of(
        function,
        logits,
        targets,
        axis=axis,
        where=kept,
        ignore_index=ignore_index,
        reduction="mean",
    )
    xp = batch.xp
    scores = batch.wide()
    if batch.where is not None:
        scores = xp.where(batch.where, scores, -xp.inf)
    right = xp.argmax(scores, axis=batch.axis) == batch.targets
    if batch.valid is not None:
        right = right & batch.valid
    return batch.reduced(batch.masked(xp.where(right, batch.full(1.0), 0.0)))


def average_accuracy(accuracies: ArrayLike, /) -> float:
    r"""Mean accuracy of all tasks, after the last one.

    .. math:: A_T = \frac1T \sum_i a_{T,i}

    Parameters
    ----------
    accuracies : array
        a, of shape (T, T): a row per task learnt, and in it the accuracy on each task.  NaN for
        tasks that were not learnt yet is as good as any number.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If `accuracies` is not square, or the last row has NaN.

    See Also
    --------
    forgetting : What was lost on the way.

    Examples
    --------
    >>> from normx.losses import average_accuracy
    >>> average_accuracy([[0.9, 0.0], [0.7, 0.8]])
    0.75
    """
    return float(_learnt("average_accuracy", accuracies)[-1].mean())


def forgetting(accuracies: ArrayLike, /) -> float:
    r"""Mean loss of accuracy on a task since it was best.

    .. math:: F_T = \frac1{T-1} \sum_{i<T} \max_{i \le l < T} (a_{l,i} - a_{T,i})

    Parameters
    ----------
    accuracies : array
        As for `average_accuracy`.

    Returns
    -------
    float
        0 for a single task; negative if later tasks have helped.

    Raises
    ------
    ValueError
        As `average_accuracy`.

    Notes
    -----
    What a task had before it was learnt is chance, and does not count.

    References
    ----------
    .. [1] A. Chaudhry, P. K. Dokania, T. Ajanthan and P. H. S. Torr, "Riemannian Walk for
       Incremental Learning: Understanding Forgetting and Intransigence", ECCV 2018,
       arXiv:1801.10112, 2018.

    Examples
    --------
    >>> from normx.losses import forgetting
    >>> round(forgetting([[0.9, 0.0], [0.7, 0.8]]), 12)
    0.2
    """
    learnt = _learnt("forgetting", accuracies)
    tasks = len(learnt)
    if tasks == 1:
        return 0.0
    best = [learnt[i : tasks - 1, i].max() for i in range(tasks - 1)]
    return float(np.mean(np.asarray(best) - learnt[-1, :-1]))


def _learnt(function: str, accuracies: Any) -> Array:
    wanted = "a square array of numbers, a row per task learnt and a column per task"
    try:
        learnt = np.asarray(accuracies, np.float64)
    except (TypeError, ValueError):
        raise wrong(TypeError, function, "accuracies", described(accuracies), wanted) from None
    if learnt.ndim != 2 or learnt.shape[0] != learnt.shape[1] or not learnt.size:
        raise wrong(ValueError, function, "accuracies", f"of shape {learnt.shape}", wanted)
    if np.isnan(np.tril(learnt)).any():
        raise wrong(
            ValueError, function, "accuracies", "NaN for a task that was learnt already", wanted
        )
    return learnt
