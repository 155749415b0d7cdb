"""The cross-entropy of a softmax by kernels: on NumPy's arrays block by block, or a backend's own.

A block is read, brought into scratch memory that stays in the cache, and goes from there
through the kernels of `normx.softmax` and `normx.logsumexp`; its state, the maximum, the
logarithm of the sum relative to that, and the mean of the logits relative to it, is what is
left.  The parts of a long row merge.  Differences to the maximum are what everything is made
of, so that a loss near 0 has digits of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from normx._dispatch import traced
from normx.normalizers.softmax import logsumexp, softmax
from normx.plugins import Library, Losses

Array = Any

#: Entries of a block.  Two of float32 are a quarter of a second-level cache of 1 MiB; with a
#: fourth of that, the calls of short rows take longer than the work, and with four times as
#: many, the second pass over a block reads memory (AMD EPYC, 1 MiB: 1.0, 1.2 and 1.4).
BLOCK = 1 << 16


class _State(NamedTuple):
    """A part of rows: ``log(sum(exp(x)))`` is ``top + log``, and the mean of x ``top + mean``."""

    top: Array
    log: Array
    mean: Array

    def merge(self, other: _State) -> _State:
        first = self.top >= other.top
        top = np.where(first, self.top, other.top)
        own, theirs = (self.top - top) + self.log, (other.top - top) + other.log
        # Relative to the part with the maximum, whose logarithm has its own digits.
        near, far = np.where(first, own, theirs), np.where(first, theirs, own)
        log = near + np.log1p(np.exp(far - near))
        mean = np.zeros_like(log)
        for part, level in ((self, own), (other, theirs)):
            share = np.exp(level - log)
            mean += np.where(share > 0, share * ((part.top - top) + part.mean), 0.0)
        return _State(top, log, mean)


class _Slopes(NamedTuple):
    """What the gradient of a row is made of.

    Attributes
    ----------
    factor : array
        Of the weights.
    ours, each : array
        What is taken off at the target, and at every class that takes part.
    lse, entropy : array
    dentropy : array or None
    """

    factor: Array
    ours: Array
    each: Array
    lse: Array
    entropy: Array
    dentropy: Array | None

    def of(self, block: Any) -> _Slopes:
        """Those of a block of rows."""
        return _Slopes(*(None if part is None else part[block] for part in self))


@dataclass(frozen=True)
class Kernel:
    """The cross-entropy of rows, the logarithm of their denominators, and their entropies.

    Attributes
    ----------
    axis : int
    targets : array of int
    counted, where, weight : array or None
        As for the loss.
    smoothing : float
    softcap : float or None
    dtype : str
        Of the results, and of what is computed with.
    limits : callable
        ``limits(logits, targets, where)``: the results of rows that hold infinities or nothing,
        by the formula.
    """

    axis: int
    targets: Array
    counted: Array | None
    where: Array | None
    weight: Array | None
    smoothing: float
    softcap: float | None
    dtype: str
    limits: Callable[..., tuple[Array, ...]]

    # ---------------------------------------------------------------- forward

    def forward(self, x: Array) -> tuple[Array, Array, Array]:
        """The three of every row."""
        if x.ndim == 1:
            lifted = self._of_one_row().forward(x[None])
            return tuple(np.reshape(part, ()) for part in lifted)  # type: ignore[return-value]
        rows, where = self._rows(x), self._mask(x)
        wide = min(rows.shape[-1], BLOCK)
        # One for all blocks: fresh memory costs as much as what is done in it.
        scratch = np.empty((2, max(wide, min(rows.size, BLOCK))), self.dtype)
        shape = self.targets.shape
        whole = _State(*(np.zeros(shape) for _ in _State._fields))
        smooth = np.zeros(shape)
        index = self.targets[..., None]
        with np.errstate(all="ignore"):
            for block in blocks(rows.shape):
                kept = None if where is None else where[block]
                state, means = self._state(rows[block], kept, scratch)
                for values, part in zip(whole, state, strict=True):
                    values[block] = part
                if means is not None:
                    smooth[block] = means
            at_target = self._capped(np.take_along_axis(rows, index, -1).astype(self.dtype))
            # Two terms that are never negative: nothing cancels.
            losses = whole.log + (whole.top - at_target[..., 0])
            if self.weight is not None:
                losses *= self.weight[self.targets]
            if self.smoothing:
                losses = (1.0 - self.smoothing) * losses + self.smoothing * smooth
            found = (losses, whole.top + whole.log, whole.log - whole.mean)
            self._mend(rows, where, found)
        results = (np.asarray(values, self.dtype) for values in found)
        return tuple(results)  # type: ignore[return-value]  # three

    def _mend(self, rows: Array, where: Array | None, found: Sequence[Array]) -> None:
        """Rows with infinities or without mass, and rows that are ignored."""
        at_limit = ~np.isfinite(found[2])
        if self.counted is not None:
            at_limit &= self.counted
            for values in found:
                values[~self.counted] = 0.0
        few = max(1, BLOCK // rows.shape[-1])
        places = np.argwhere(at_limit)
        for begin in range(0, len(places), few):
            some = tuple(places[begin : begin + few].T)
            kept = None if where is None else where[some]
            limits = self.limits(rows[some], self.targets[some], kept)
            for values, limit in zip(found, limits, strict=True):
                values[some] = limit

    def _state(self, x: Array, kept: Array | None, scratch: Array) -> tuple[_State, Array | None]:
        """The state of a block of rows, and the mean of the losses of all classes if wanted."""
        classes = x.shape[-1]
        wide = min(classes, BLOCK)
        whole: _State | None = None
        sums = []
        for begin in range(0, classes, wide):
            part = slice(begin, min(begin + wide, classes))
            scores = x[..., part]
            mask = None if kept is None else kept[..., part]
            room = scratch[:, : scores.size].reshape((2, *scores.shape))
            state, moments = self._part(scores, mask, part, *room)
            sums.append((state.top, *moments))
            whole = state if whole is None else whole.merge(state)
        assert whole is not None  # there is at least one class
        if not self.smoothing:
            return whole, None
        level = whole.top + whole.log
        total = sum(
            np.where(weight > 0, (level - top) * weight, 0.0) - moment
            for top, weight, moment in sums
        )
        return whole, total / (classes if kept is None else np.maximum(kept.sum(-1), 1))

    def _part(
        self, x: Array, kept: Array | None, part: slice, scores: Array, weights: Array
    ) -> tuple[_State, tuple[Array, ...]]:
        """The state of a part of rows, and what smoothing needs of it; the last two are scratch."""
        if kept is not None or self.softcap is not None or x.dtype != self.dtype:
            np.copyto(scores, x, casting="same_kind")
            x = self._capped(scores)
            if kept is not None:
                np.copyto(scores, -np.inf, where=~kept)
        top = x.max(-1)
        np.subtract(
            x, np.where(np.isfinite(top), top, 0.0)[..., None], out=scores, dtype=self.dtype
        )
        softmax(scores, out=weights)
        log = _log_of_sum(scores, weights)
        mean = np.asarray(np.vecdot(weights, scores), np.float64)
        moments = self._moments(scores, kept, part) if self.smoothing else ()
        if np.isnan(mean).any():  # -inf has the weight 0, and does not count
            np.maximum(scores, np.finfo(self.dtype).min, out=scores)
            mean = np.asarray(np.vecdot(weights, scores), np.float64)
        return _State(top.astype(np.float64), log, mean), moments

    def _moments(self, scores: Array, kept: Array | None, part: slice) -> tuple[Array, Array]:
        """The weights of the classes that take part, and the weighted scores, summed."""
        weight = np.ones(scores.shape[-1]) if self.weight is None else self.weight[part]
        if kept is not None:
            weight = np.where(kept, weight, 0.0)
            scores = np.where(kept, scores, 0.0)
        return np.sum(weight, -1, dtype=np.float64), np.sum(weight * scores, -1, dtype=np.float64)

    # --------------------------------------------------------------- backward

    def pullback(
        self, x: Array, results: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> Array:
        """The gradient of the logits, in their dtype: the weights, changed where they are."""
        if x.ndim == 1:
            given = [None if part is None else part[None] for part in (*results, *cotangents)]
            return self._of_one_row().pullback(x[None], given[:3], given[3:])[0]
        plain = x.dtype == self.dtype and self.softcap is None
        where = None if self.where is None else np.broadcast_to(self.where, x.shape)
        # The kernel's own result, whose memory may be that of one which was freed.
        dx = np.asarray(softmax(x, axis=self.axis, where=where)) if plain else np.empty_like(x)
        rows, of_rows, mask = self._rows(x), self._rows(dx), self._mask(x)
        losses, lse, entropy = results
        dlosses, dlse, dentropy = cotangents
        with np.errstate(all="ignore"):
            # What is infinite is a constant.
            d = np.where(losses == np.inf, 0.0, 0.0 if dlosses is None else dlosses)
            ours = d * (1.0 - self.smoothing)
            if self.weight is not None:
                ours = ours * self.weight[self.targets]
            each = d * self.smoothing / self._count(rows, mask)
            factor = ours + each * self._total(rows, mask) + (0.0 if dlse is None else dlse)
            slopes = _Slopes(factor, ours, each, lse, entropy, dentropy)
            at_once = plain and dentropy is None and not self.smoothing
            for block in (...,) if at_once else blocks(rows.shape):
                kept = None if mask is None else mask[block]
                here = slopes.of(block)
                if plain:
                    self._turn(rows[block], of_rows[block], self.targets[block], kept, here)
                else:
                    turned = self._from_scores(rows[block], self.targets[block], kept, here)
                    np.copyto(of_rows[block], turned, casting="same_kind")
        self._rest(of_rows, mask, lse)
        return dx

    def _from_scores(self, x: Array, targets: Array, kept: Array | None, slopes: _Slopes) -> Array:
        """The gradient of a block of rows, beside it."""
        scores = self._capped(x.astype(self.dtype))
        weights = np.asarray(softmax(scores, where=kept))
        self._turn(scores, weights, targets, kept, slopes)
        if self.softcap is not None:
            scores /= self.softcap
            weights *= 1.0 - scores * scores
            if kept is not None:  # whatever is left out there
                np.copyto(weights, 0.0, where=~kept)
        return weights

    def _turn(
        self, scores: Array, weights: Array, targets: Array, kept: Array | None, slopes: _Slopes
    ) -> None:
        """Turn the weights of a block of rows into the gradient of their scores."""
        if slopes.dentropy is None:
            weights *= slopes.factor[..., None].astype(self.dtype)
        else:
            self._through_entropy(scores, weights, slopes)
        index = targets[..., None]
        there = np.take_along_axis(weights, index, -1)
        np.put_along_axis(weights, index, there - slopes.ours[..., None], -1)
        if self.smoothing:
            self._subtract(weights, slopes.each, kept)

    def _rest(self, of_rows: Array, mask: Array | None, lse: Array) -> None:
        """Rows at their limits, and those that are ignored, have no gradient."""
        still = np.isinf(lse)
        if self.counted is not None:
            still |= ~self.counted
        if still.any():
            of_rows[still] = 0.0
        if mask is not None:  # nor has what is left out, in a row of NaN either
            for place in map(tuple, np.argwhere(np.isnan(lse))):
                np.copyto(of_rows[place], 0.0, where=~mask[place])

    def _subtract(self, weights: Array, each: Array, kept: Array | None) -> None:
        """Take the part of smoothing off, of the classes that take part."""
        even = np.broadcast_to(each[..., None], weights.shape)
        if self.weight is not None:
            even = even * self.weight
        np.subtract(
            weights, even, out=weights, casting="same_kind", where=True if kept is None else kept
        )

    def _through_entropy(self, scores: Array, weights: Array, slopes: _Slopes) -> None:
        """The entropy moves with a score by ``-p * (log(p) + entropy)``; p are the weights."""
        assert slopes.dentropy is not None
        factor, dentropy = slopes.factor[..., None], slopes.dentropy[..., None]
        wide = min(scores.shape[-1], BLOCK)
        for begin in range(0, scores.shape[-1], wide):
            part = slice(begin, begin + wide)
            here = weights[..., part]
            logs = scores[..., part] - slopes.lse[..., None]
            moved = np.where(here > 0, logs + slopes.entropy[..., None], 0.0)
            here *= (factor - moved * dentropy).astype(self.dtype)

    def _count(self, x: Array, kept: Array | None) -> Any:
        return x.shape[-1] if kept is None else np.maximum(kept.sum(-1), 1)

    def _total(self, x: Array, kept: Array | None) -> Any:
        """The weights of the classes that take part, summed."""
        if self.weight is None:
            return self._count(x, kept)
        return self.weight.sum() if kept is None else np.where(kept, self.weight, 0.0).sum(-1)

    # ------------------------------------------------------------------ views

    def _of_one_row(self) -> Kernel:
        """The kernel of a single row, as one of an array of rows."""
        lifted: dict[str, Any] = {
            name: None if value is None else np.asarray(value)[None]
            for name in ("targets", "counted", "where")
            for value in (getattr(self, name),)
        }
        return replace(self, axis=1, **lifted)

    def _rows(self, x: Array) -> Array:
        return np.moveaxis(x, self.axis, -1)

    def _mask(self, x: Array) -> Array | None:
        return None if self.where is None else self._rows(np.broadcast_to(self.where, x.shape))

    def _capped(self, scores: Array) -> Array:
        """The softcap, in place."""
        if self.softcap is not None:
            scores /= self.softcap
            np.tanh(scores, out=scores)
            scores *= self.softcap
        return scores


@dataclass(frozen=True)
class OnHost:
    """The kernel, of a library's arrays in host memory."""

    library: Library
    kernel: Kernel

    def forward(self, x: Array) -> tuple[Array, ...]:
        results = self.kernel.forward(self.library.host_view(x))
        return tuple(self.library.host_adopt(result) for result in results)

    def pullback(
        self, x: Array, results: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> Array:
        view = self.library.host_view
        given = [None if d is None else view(d) for d in cotangents]
        dx = self.kernel.pullback(view(x), [view(result) for result in results], given)
        return self.library.host_adopt(dx)


@dataclass(frozen=True)
class OnDevice:
    """A backend's kernels, of arrays on its device."""

    backend: str
    losses: Losses
    targets: Array
    where: Array | None
    weight: Array | None

    def forward(self, x: Array) -> tuple[Array, ...]:
        rows, kernel = self.losses.forward(x, self.targets, self.where, self.weight)
        traced("cross_entropy", self.backend, kernel)
        return rows

    def pullback(
        self, x: Array, results: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> Array:
        # They find what they need again: it is in the row, which they read anyway.
        given = (self.targets, self.where, self.weight, cotangents)
        dx, kernel = self.losses.pullback(x, *given)
        traced("vjp(cross_entropy)", self.backend, kernel)
        return dx


def _log_of_sum(scores: Array, weights: Array) -> Array:
    """``log(sum(exp(scores)))`` of rows whose maximum is 0, given their softmax."""
    peak = np.asarray(weights.max(-1), np.float64)
    log = np.asarray(-np.log(peak))
    peaked = peak > 0.5  # the logarithm of what rounds to 1 has lost its digits
    if peaked.any():
        log[peaked] = logsumexp(scores[peaked], axis=-1)
    return log


def blocks(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Indices of blocks of rows of about `BLOCK` entries; the last axis is that of a row."""
    *rows, length = shape
    split, inner = len(rows), length
    while split and inner * rows[split - 1] <= BLOCK:
        split -= 1
        inner *= rows[split]
    if not split:
        if 0 not in rows:
            yield (slice(None),) * len(rows)
        return
    step = max(1, BLOCK // inner)
    for index in np.ndindex(*rows[: split - 1]):
        for begin in range(0, rows[split - 1], step):
            yield (*index, slice(begin, begin + step))
