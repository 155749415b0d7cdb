"""The cross-entropy of a softmax, or of any other weights, with what is read off beside it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from normx._calls import known_keywords
from normx._dispatch import choose_losses, library_of
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._plan import FLOATS, INTEGERS, Plan
from normx._record import Record, record_of
from normx._vjp import vjp
from normx.losses import _fused
from normx.losses._rows import (
    Batch,
    Pullback,
    Reduction,
    batch_of,
    by_weights,
    documented,
    number,
    with_vjp,
)
from normx.normalizers.softmax import log_softmax, logsumexp, softmax
from normx.plugins import RowKernel, dtype_name

Array = Any


class CrossEntropy(NamedTuple):
    """What `cross_entropy` finds in one go over the logits.

    Attributes
    ----------
    loss : array
        The cross-entropy and the Z-loss together, reduced.
    z_loss : array
        The part of the loss that is the Z-loss, reduced.
    logsumexp : array
        Logarithm of the softmax's denominator, one per row.
    entropy : array
        Shannon entropy of the weights in nats, one per row.
    """

    loss: Any
    z_loss: Any
    logsumexp: Any
    entropy: Any


def _cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    axis: int = -1,
    normalizer: str | Callable[..., Any] = "softmax",
    weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[CrossEntropy, Pullback]:
    name = "cross_entropy"
    batch = batch_of(
        name,
        logits,
        targets,
        axis=axis,
        where=where,
        ignore_index=ignore_index,
        reduction=reduction,
        softcap=softcap,
    )
    record = _normalizer(name, normalizer)
    smoothing = number(
        name, "label_smoothing", label_smoothing, "a number from 0 to 1", lambda v: 0.0 <= v <= 1.0
    )
    factor = number(
        name, "z_loss", z_loss, "a finite number of at least 0", lambda v: 0.0 <= v < math.inf
    )
    weights = None if weight is None else _weights(batch, weight)
    entropy = Entropy(batch, record, weights, smoothing, softcap)
    rows = entropy.rows()
    losses, lse, spread = rows
    target_weights = entropy.target_weights()
    loss = batch.reduced(losses, target_weights)
    finish = batch.library.finish
    if factor:
        penalty = batch.reduced(factor * lse * lse)
        loss = loss + penalty
    else:
        penalty = finish(batch.library.full(tuple(loss.shape), 0.0, batch.dtype, batch.logits))
    result = CrossEntropy(loss, penalty, finish(lse), finish(spread))

    def pullback(dy: Any) -> dict[str, Array]:
        given = dy if isinstance(dy, CrossEntropy) else CrossEntropy(dy, None, None, None)
        dloss = 0.0 if given.loss is None else given.loss
        dlosses = batch.to_rows(dloss, target_weights)
        dlse = None
        if given.logsumexp is not None:
            dlse = batch.masked(batch.cotangent("logsumexp", given.logsumexp, batch.shape))
        if factor:
            both = dloss if given.z_loss is None else dloss + given.z_loss
            through = 2.0 * factor * lse * batch.to_rows(both)
            dlse = through if dlse is None else dlse + through
        dentropy = None
        if given.entropy is not None:
            dentropy = batch.masked(batch.cotangent("entropy", given.entropy, batch.shape))
        return {"x": batch.library.finish(entropy.pullback(rows, (dlosses, dlse, dentropy)))}

    return result, pullback


@with_vjp(_cross_entropy)
@documented()
@known_keywords
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    /,
    *,
    axis: int = -1,
    normalizer: str | Callable[..., Any] = "softmax",
    weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> CrossEntropy:
    r"""Cross-entropy of rows of logits and the classes they should have.

    .. math::

        \ell = -\sum_k t_k \log p_k + \zeta (\log \textstyle\sum_k e^{x_k})^2, \qquad
        t_k = (1 - \epsilon)\, w_c [k = c] + \frac{\epsilon}{K} w_k

    Parameters
    ----------
    {logits}
    {targets}
    {axis}
    normalizer : str or function
        Whose weights p are: a row normalizer of normx.
    weight : array, optional
        A weight w for each class, at least 0; 1 by default.
    label_smoothing : float
        The share of the target that goes to all classes that take part.
    z_loss : float
        Factor of the squared logarithm of the softmax's denominator, which keeps it near 1
        (not the loss of the spherical family: `zloss`).
    softcap : float, optional
        The logits become ``c*tanh(x/c)`` first.
    {where}
    {ignore_index}
    reduction : {"mean", "sum", "none"}
        The mean is that over the rows that are not ignored, by the weights of their classes;
        that of the Z-loss is plain.

    Returns
    -------
    CrossEntropy
        ``(loss, z_loss, logsumexp, entropy)``.  The loss has the Z-loss in it.  The last two
        have one entry per row, 0 for rows that are ignored.  float32 for logits of at most 32
        bits, float64 otherwise.

    Raises
    ------
    {raises}

    See Also
    --------
    masked_cross_entropy : Classes that are left out keep a constant logit.
    sparsemax_loss, entmax15_loss : For weights that can be 0.

    Notes
    -----
    No matrix of probabilities is made of NumPy's arrays, or of torch's on a CPU: beyond its
    results, a call needs one block of rows, and the gradient one array of the size of the
    logits, which is the result.  Long rows come in parts whose states are merged.  Other
    libraries, other normalizers and second derivatives use the formula.

    The gradient of each field is right for every cotangent: the library's own, or that of
    ``normx.vjp(cross_entropy, logits, targets)``, whose pullback takes the cotangent of the
    loss, or a `CrossEntropy` of cotangents in which None stands for 0.

    A row whose target has probability 0 has the loss +inf, which is a constant and has no
    gradient; so has a row whose target is no class where that cannot be seen, in a compiled
    function.  The loss of no rows is 0.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
       CVPR 2016, arXiv:1512.00567, 2016.
    .. [2] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways",
       arXiv:2204.02311, 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from normx.losses import cross_entropy
    >>> found = cross_entropy(np.array([[1.0, 2.0, 3.0, -1.0], [0.0, 0.0, 0.0, 0.0]]), [2, 1])
    >>> print(found.loss.round(4), found.logsumexp.round(4))
    0.903 [3.4197 1.3863]
    >>> import normx
    >>> found, pullback = normx.vjp(cross_entropy, np.array([[1.0, 2.0, 3.0, -1.0]]), [2])
    >>> pullback(1.0)["x"].round(4)
    array([[ 0.0889,  0.2418, -0.3428,  0.012 ]])
    """
    return _cross_entropy(
        logits,
        targets,
        axis=axis,
        normalizer=normalizer,
        weight=weight,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        softcap=softcap,
        where=where,
        ignore_index=ignore_index,
        reduction=reduction,
    )[0]


def _normalizer(function: str, normalizer: str | Callable[..., Any]) -> Record:
    """The record of a row normalizer whose weights can be the probabilities."""
    wanted = "a row normalizer of normx, or its name"
    try:
        record = record_of(normalizer)
    except TypeError:
        raise wrong(TypeError, function, "normalizer", described(normalizer), wanted) from None
    needed = [
        word
        for word, parameter in record.keywords.items()
        if parameter.default is inspect.Parameter.empty
    ]
    if record.kind != "normalizer" or record.log_space or needed:
        cure = f"`{needed[0]}` has no default" if needed else ""
        raise wrong(ValueError, function, "normalizer", record.name, wanted, cure)
    return record


def _weights(batch: Batch, weight: Any) -> Array:
    """The weights of the classes, checked, in the dtype of the arithmetic."""
    library = batch.library
    wanted = f"{batch.classes} numbers of {library.name}, one per class"
    if isinstance(weight, list | tuple):
        weight = library.from_numpy(np.asarray(weight))
    if not hasattr(weight, "dtype") or dtype_name(weight.dtype) not in (*FLOATS, *INTEGERS):
        raise wrong(TypeError, batch.function, "weight", described(weight), wanted)
    if library_of(weight) is not library:
        raise wrong(TypeError, batch.function, "weight", described(weight), wanted)
    if tuple(weight.shape) != (batch.classes,):
        raise wrong(ValueError, batch.function, "weight", described(weight), wanted)
    if library.is_concrete(weight):
        values = library.to_numpy(weight).astype(np.float64)
        if not ((values >= 0) & (values < np.inf)).all():
            raise wrong(
                ValueError,
                batch.function,
                "weight",
                "an array with others",
                "finite and at least 0",
            )
    return library.stop_gradient(library.cast(weight, batch.dtype))


@dataclass(frozen=True)
class Entropy:
    """The cross-entropy of each row, the logarithm of its denominator, and its entropy.

    Attributes
    ----------
    batch : Batch
    record : Record
        Whose weights the probabilities are.
    weight : array or None
        One per class.
    smoothing : float
    softcap : float or None
    """

    batch: Batch
    record: Record
    weight: Array | None
    smoothing: float
    softcap: float | None

    def rows(self) -> tuple[Array, Array, Array]:
        """The three of every row; 0 where it is ignored."""
        library = self.batch.library
        fused = library.fused(self, self.batch.logits) if self._has_kernel() else None
        losses, lse, entropy = self.formula(self.batch.logits) if fused is None else fused
        return losses, lse, entropy

    def _has_kernel(self) -> bool:
        """Whether there is a kernel, and what it reads besides the logits can be read now."""
        batch = self.batch
        given = (batch.targets, batch.counted, batch.where, self.weight)
        return (
            self.record is record_of(softmax)
            and batch.valid is None
            and batch.library.at_hand([array for array in given if array is not None])
        )

    def target_weights(self) -> Array | None:
        """The weight of the target of each row; None where all are 1."""
        if self.weight is None:
            return None
        batch = self.batch
        flat = batch.xp.take(self.weight, batch.xp.reshape(batch.targets, (-1,)), axis=0)
        return batch.masked(batch.xp.reshape(flat, batch.shape))

    # ------------------------------------------------------------ by a kernel

    def kernel(self) -> RowKernel | None:
        """The same where the logits are; None where nobody has a kernel for that."""
        library = self.batch.library
        if library.on_host(self.batch.logits):
            return _fused.OnHost(library, self._on_host())
        return self._on_device() if library.on_cuda(self.batch.logits) else None

    def _on_host(self) -> _fused.Kernel:
        """Of NumPy's arrays, by blocks of rows."""
        batch = self.batch
        view = batch.library.host_view
        return _fused.Kernel(
            axis=batch.axis,
            targets=view(batch.targets),
            counted=None if batch.counted is None else view(batch.counted),
            where=None if batch.where is None else view(batch.where),
            weight=None if self.weight is None else view(self.weight),
            smoothing=self.smoothing,
            softcap=self.softcap,
            dtype=batch.dtype,
            limits=self._at_limits,
        )

    def _on_device(self) -> _fused.OnDevice | None:
        """Of arrays on a device, if a backend has that."""
        batch = self.batch
        plan = Plan(
            record=self.record,
            library=batch.library,
            shape=tuple(batch.logits.shape),
            axis=(batch.axis,),
            dtype=dtype_name(batch.logits.dtype),
            where=None if batch.where is None else tuple(batch.where.shape),
            softcap=self.softcap,
            on_cuda=True,
        )
        found = choose_losses(plan, self.smoothing)
        if found is None:
            return None
        targets = batch.targets
        if batch.counted is not None:
            targets = batch.xp.where(batch.counted, targets, -1)
        return _fused.OnDevice(*found, targets, batch.where, self.weight)

    def _at_limits(self, logits: Array, targets: Array, where: Array | None) -> tuple[Array, ...]:
        """Rows with infinities or without mass, of NumPy's arrays, by the formula."""
        from normx._libraries import numpy_library

        batch = replace(
            self.batch,
            library=numpy_library,
            logits=logits,
            axis=1,
            targets=targets,
            counted=None,
            where=where,
            reduction="none",
        )
        weight = None if self.weight is None else self.batch.library.host_view(self.weight)
        return replace(self, batch=batch, weight=weight).formula(logits)

    # --------------------------------------------------------- by the formula

    def formula(self, logits: Array) -> tuple[Array, Array, Array]:
        """The three of every row, in the library's operations."""
        batch, xp = self.batch, self.batch.xp
        logits = self._harmless(logits)
        probabilities, logs = self._weights_of(logits)
        with batch.library.quiet():
            losses = -batch.at_target(logs)
            if self.weight is not None:
                losses = losses * self._or_one(self.target_weights())
            if self.smoothing:
                others = logs if self.weight is None else logs * self._along(self.weight)
                others = -batch.kept_sum(others) / self._kept_count()
                losses = (1.0 - self.smoothing) * losses + self.smoothing * others
            lse = logsumexp(self._capped(logits), axis=batch.axis, where=batch.where)
            some = probabilities > 0
            terms = xp.where(some, probabilities * xp.where(some, logs, 0.0), 0.0)
            entropy = -batch.kept_sum(terms)
        # -0.0 is a sum of nothing.
        return batch.mended(losses), batch.masked(lse), batch.masked(entropy + 0.0)

    def pullback(self, rows: tuple[Array, ...], cotangents: tuple[Array | None, ...]) -> Array:
        """The gradient of the logits, in their dtype, of those of `rows`."""
        batch = self.batch
        if self._has_kernel() and not batch.library.is_followed(batch.logits):
            kernel = self.kernel()
            if kernel is not None:
                return kernel.pullback(batch.logits, rows, cotangents)
        return self.formula_pullback(batch.logits, rows, cotangents)

    def formula_pullback(
        self, logits: Array, rows: tuple[Array, ...], cotangents: tuple[Array | None, ...]
    ) -> Array:
        """The same in the library's operations."""
        batch, xp, library = self.batch, self.batch.xp, self.batch.library
        logits = self._harmless(logits)
        losses, lse, _ = rows
        dlosses, dlse, dentropy = cotangents
        with library.quiet():
            probabilities, logs, pull = self._weights_of(logits, differentiated=True)
            dlogs = xp.zeros_like(logs)
            if dlosses is not None:
                # What is infinite is a constant.
                d = xp.where(losses == xp.inf, 0.0, dlosses)
                share = d * self._or_one(self.target_weights())
                hit = batch.is_target()
                dlogs = xp.where(hit, -(1.0 - self.smoothing) * batch.spread(share), dlogs)
                if self.smoothing:
                    each = batch.spread(d / self._kept_count()) * -self.smoothing
                    dlogs = dlogs + (
                        each if self.weight is None else each * self._along(self.weight)
                    )
                if batch.where is not None:
                    dlogs = xp.where(batch.where, dlogs, 0.0)
            dweights = None
            if dentropy is not None:
                some = probabilities > 0
                slope = -batch.spread(dentropy) * (xp.where(some, logs, 0.0) + 1.0)
                dweights = xp.where(some, slope, 0.0)
            dx = pull(dlogs, dweights)
            if dlse is not None:
                shares = softmax(logits, axis=batch.axis, where=batch.where, softcap=self.softcap)
                finite = xp.isfinite(lse) | xp.isnan(lse)
                through = shares * batch.spread(xp.where(finite, dlse, 0.0))
                if self.softcap is not None:
                    capped = xp.tanh(logits / self.softcap)
                    through = through * (1.0 - capped * capped)
                dx = dx + through
        return batch.gradient(dx)["x"]

    def _harmless(self, logits: Array) -> Array:
        """The logits in the dtype of the arithmetic, 0 where a row is ignored."""
        batch = self.batch
        logits = batch.library.cast(logits, batch.dtype)
        if batch.counted is None:
            return logits
        return batch.xp.where(batch.spread(batch.counted), logits, 0.0)

    def _weights_of(self, logits: Array, *, differentiated: bool = False) -> tuple[Any, ...]:
        """The weights, their logarithms, and, if asked, the pullback of both."""
        batch = self.batch
        options: dict[str, Any] = {
            "axis": batch.axis,
            "where": batch.where,
            "softcap": self.softcap,
        }
        if self.record is not record_of(softmax):
            logs, weights, pull = by_weights(
                batch, logits, self.record.function, softcap=self.softcap
            )
            return (weights, logs, pull) if differentiated else (weights, logs)
        if not differentiated:
            return softmax(logits, **options), log_softmax(logits, **options)
        weights, of_weights = vjp(softmax, logits, **options)
        logs, of_logs = vjp(log_softmax, logits, **options)

        def pullback(dlogs: Array, dweights: Array | None) -> Array:
            dx = of_logs(dlogs)["x"]
            return dx if dweights is None else dx + of_weights(dweights)["x"]

        return weights, logs, pullback

    def _capped(self, logits: Array) -> Array:
        if self.softcap is None:
            return logits
        batch, xp = self.batch, self.batch.xp
        if batch.where is not None:
            logits = xp.where(batch.where, logits, 0.0)
        return self.softcap * xp.tanh(logits / self.softcap)

    def _along(self, weight: Array) -> Array:
        """The weights of the classes, to broadcast against the logits."""
        batch = self.batch
        return batch.xp.reshape(weight, (-1, *(1,) * (batch.logits.ndim - 1 - batch.axis)))

    def _or_one(self, weights: Array | None) -> Any:
        return 1.0 if weights is None else weights

    def _kept_count(self) -> Any:
        """How many classes take part in each row."""
        batch = self.batch
        if batch.where is None:
            return float(batch.classes)
        ones = batch.xp.ones_like(batch.wide())
        count = batch.kept_sum(ones)
        return batch.xp.where(count == 0, 1.0, count)
