"""Attention to keys that come in pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._plan import prepare
from normx._record import Record
from normx._reference import row_of, states_of, with_policies
from normx._row import Row, Whole
from normx.attention._heads import Heads, heads_of, mask_of, scale_of
from normx.attention._tiles import keywords_for, record_for, without_unseen
from normx.plugins import dtype_name

Array = Any
ArrayLike = Any


class _Seen(NamedTuple):
    """What is kept of the keys so far: for each query a few numbers and its output.

    Attributes
    ----------
    states : tuple
        Of the record's stages.
    whole : Whole
    heaviest : array
        The score of the entry that weighs most.
    y : array
        The outputs.
    """

    states: tuple[Any, ...]
    whole: Whole
    heaviest: Array
    y: Array


@dataclass(frozen=True)
class _Formula:
    """A record with what it needs besides scores and states."""

    record: Record
    own: Mapping[str, Any]
    row: Row

    def weight_of(self, score: Array, seen: _Seen) -> Array:
        """What one entry weighs beside what was seen."""
        given = {name: getattr(self.row, name) for name in ("library", "xp", "axis", "dtype")}
        row = Row(**given, scores=score, kept=None, temperature=self.row.temperature)
        return self.record.apply(row.of(seen.whole), *seen.states, **self.own)

    def joined(self, a: _Seen, b: _Seen) -> _Seen:
        """Of two sets of keys what is kept of both.

        A weight is a term over a denominator that all entries of a row share.  So the weight
        of one entry, before and after, says how the denominator grew, and with it the outputs
        shrink.  The heaviest entry is asked: where its weight is 0, so are all others.
        """
        xp, stages = self.row.xp, self.record.stages or ()
        pairs = zip(stages, a.states, b.states, strict=True)
        states = tuple(stage.monoid.merge(xp, x, y) for stage, x, y in pairs)
        top, bottom = (
            xp.maximum(a.whole.top, b.whole.top),
            xp.minimum(a.whole.bottom, b.whole.bottom),
        )
        whole = Whole(top, bottom, a.whole.kept + b.whole.kept, a.whole.size + b.whole.size)
        both = _Seen(states, whole, a.heaviest, a.y)
        y, weights = xp.zeros_like(a.y), []
        for part in (a, b):
            before, after = (self.weight_of(part.heaviest, seen) for seen in (part, both))
            some = before > 0
            share = xp.where(some, after / xp.where(some, before, 1.0), 0.0)
            y = y + part.y * self.row.library.cast(share, dtype_name(part.y.dtype))
            weights.append(xp.where(after > 0, after, 0.0))
        heaviest = xp.where(weights[0] >= weights[1], a.heaviest, b.heaviest)
        return _Seen(states, whole, heaviest, y)


class AttentionState:
    r"""Attention of some queries to the keys and values seen so far.

    Parameters
    ----------
    q : array
        Queries, as for `attention`.
    normalizer : str or function
        A row normalizer whose weights are terms over a sum, or over nothing: the softmaxes,
        the power normalizers, `sigmoid`, the squared ReLUs.
    scale : float, optional
        As for `attention`.
    layout : {"bhld", "blhd"}
        As for `attention`.
    **normalizer_keywords
        The keywords of the normalizer.  Those that count the keys need ``n``, which is the
        number that there will be.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, or the normalizer needs all keys at once.
    ValueError
        If an argument has a wrong value.

    See Also
    --------
    attention : For keys that are all there.
    CosformerState : Whose size depends neither on the queries nor on the keys.

    Notes
    -----
    States are not changed: `update` and `merge` return new ones.  Pieces may come in any order,
    and be seen in different places and merged.  In memory are the queries, the outputs, and a
    few numbers for each query.  Scores become weights by the reference formulas.

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax",
       arXiv:1805.02867, 2018.

    Examples
    --------
    >>> from normx.attention import AttentionState
    >>> state = AttentionState([[1.0, 0.0]])
    >>> for key, value in ([[4.0, 0.0]], [[1.0]]), ([[0.0, 4.0]], [[0.0]]):
    ...     state = state.update(key, value)
    >>> state.output().round(4)
    array([[0.9442]])
    """

    __slots__ = ("_formula", "_heads", "_keywords", "_layout", "_q", "_record", "_scale", "_seen")

    def __init__(
        self,
        q: ArrayLike,
        /,
        *,
        normalizer: str | Callable[..., Any] = "softmax",
        scale: float | None = None,
        layout: str = "bhld",
        **normalizer_keywords: Any,
    ) -> None:
        function = "AttentionState"
        record = record_for(function, normalizer)
        if record.stages is None or record.random or record.fills:
            _needs_all(record)
        if normalizer_keywords.get("empty", "zero") != "zero":
            came, wanted = repr(normalizer_keywords["empty"]), '"zero"'
            raise wrong(ValueError, function, "empty", came, wanted)
        heads = heads_of(function, q, q, q, layout)
        keywords_for(function, record, normalizer_keywords, heads)
        self._q, self._layout, self._record = q, layout, record
        self._scale = scale_of(function, scale, heads.q.shape[-1])
        self._keywords = normalizer_keywords
        self._seen: _Seen | None = None
        self._formula: _Formula | None = None
        self._heads: Heads | None = None

    def update(
        self, k: ArrayLike, v: ArrayLike, /, *, where: ArrayLike | None = None
    ) -> AttentionState:
        """The state after more keys.

        Parameters
        ----------
        k, v : array
            Keys and values, as for `attention`.
        where : array of bool, optional
            Broadcastable against the scores of these keys; True for what is seen.

        Returns
        -------
        AttentionState

        Raises
        ------
        TypeError, ValueError
            As `attention`; also if the normalizer counts keys, and ``n`` is not given.

        Examples
        --------
        >>> from normx.attention import AttentionState
        >>> AttentionState([[1.0]]).update([[1.0], [2.0]], [[3.0], [3.0]]).output()
        array([[3.]])
        """
        function = "AttentionState.update"
        heads = heads_of(function, self._q, k, v, self._layout)
        mask = mask_of(function, heads, where)
        if heads.lengths[1] == 0:
            return self
        formula, seen = self._of_block(function, without_unseen(heads, mask), mask)
        if self._seen is not None:
            if tuple(seen.y.shape) != tuple(self._seen.y.shape):
                wanted = f"such that the outputs have shape {tuple(self._seen.y.shape)} as before"
                raise wrong(ValueError, function, "v", f"of shape {heads.shapes['v']}", wanted)
            with heads.library.quiet():
                seen = formula.joined(self._seen, seen)
        return self._with(heads, formula, seen)

    def merge(self, other: AttentionState) -> AttentionState:
        """The state after the keys that two have seen.

        Parameters
        ----------
        other : AttentionState
            Of the same queries, normalizer and keywords.

        Returns
        -------
        AttentionState

        Raises
        ------
        TypeError, ValueError
            If `other` is no such state.

        Examples
        --------
        >>> from normx.attention import AttentionState
        >>> empty = AttentionState([[1.0]])
        >>> a, b = (empty.update([[1.0]], [[value]]) for value in (2.0, 4.0))
        >>> a.merge(b).output()
        array([[3.]])
        """
        function = "AttentionState.merge"
        if not isinstance(other, AttentionState):
            raise wrong(TypeError, function, "other", described(other), "an AttentionState")
        if other._record is not self._record or other._q is not self._q:
            wanted, cure = "a state of the same queries", "start both from one empty state"
            raise wrong(ValueError, function, "other", "of other queries", wanted, cure)
        if self._seen is None or other._seen is None:
            return other if self._seen is None else self
        assert self._heads is not None and self._formula is not None
        with self._heads.library.quiet():
            seen = self._formula.joined(self._seen, other._seen)
        return self._with(self._heads, self._formula, seen)

    def output(self) -> Any:
        """The outputs for the keys so far.

        Returns
        -------
        array
            As of `attention`.

        Raises
        ------
        ValueError
            If no keys have come: the size of a value is not known then.

        Examples
        --------
        >>> from normx.attention import AttentionState
        >>> AttentionState([[0.0]]).update([[1.0], [2.0]], [[3.0], [5.0]]).output()
        array([[4.]])
        """
        if self._seen is None or self._heads is None:
            raise ValueError("normx.AttentionState.output: no keys have come; call update first")
        return self._heads.finished(self._seen.y)

    def _with(self, heads: Heads, formula: _Formula, seen: _Seen) -> AttentionState:
        after = object.__new__(AttentionState)
        for name in self.__slots__:
            setattr(after, name, getattr(self, name))
        after._heads, after._formula, after._seen = heads, formula, seen
        return after

    def _of_block(self, function: str, heads: Heads, mask: Array | None) -> tuple[_Formula, _Seen]:
        """What is kept of the keys of one piece, by themselves."""
        record, library, xp = self._record, heads.library, heads.xp
        scores = xp.matmul(heads.q * self._scale, xp.matrix_transpose(heads.k))
        keywords = {**keywords_for(function, record, self._keywords, heads), "where": mask}
        prepared_ = prepare(record, library, scores, keywords, library_of)
        plan = prepared_.plan
        scores, kept, parameters = prepared_.arguments(scores, keywords)
        with library.quiet():
            row, own = row_of(plan, scores, kept, parameters)
            own |= plan.constants
            states = states_of(record, (row,), own)
            _check_streams(function, record, states)
            y = with_policies(plan, row, record.apply(row, *states, **own))
            low = xp.max(xp.where(row.present, -row.scores, -xp.inf), axis=-1, keepdims=True)
            ones = xp.ones_like(row.maximum)
            kept_count = ones * scores.shape[-1] if row.kept is None else row.count(row.kept)
            whole = Whole(row.maximum, -low, kept_count, scores.shape[-1])
            most = xp.max(y, axis=-1, keepdims=True)
            heaviest = xp.max(xp.where(y == most, row.scores, -xp.inf), axis=-1, keepdims=True)
            outputs = xp.matmul(library.cast(y, plan.dtype), heads.v)
        return _Formula(record, own, row), _Seen(states, whole, heaviest, outputs)


def _needs_all(record: Record) -> None:
    wanted = "one whose weights are terms over a sum"
    cure = "keep the keys, and call attention"
    came = f"{record.name}, which needs all keys at once"
    raise wrong(TypeError, "AttentionState", "normalizer", came, wanted, cure)


def _check_streams(function: str, record: Record, states: tuple[Any, ...]) -> None:
    """Refuse weights that depend on the rest by more than what divides them."""
    if states and states[0] is not None and "n" in record.keywords:
        wanted, cure = "given", "the keys still to come cannot be counted"
        raise wrong(ValueError, function, "n", "absent", wanted, cure)
    if sum(state is not None for state in states) > 1:
        _needs_all(record)
