"""Attention to keys that come in pieces."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._plan import prepare
from normx._record import Record, record_of
from normx._reference import row_of, states_of
from normx._row import Row, Whole
from normx.attention._heads import Form, Heads, heads_of, mask_of, scale_of
from normx.attention._tiles import (
    Rule,
    keywords_for,
    record_for,
    weights_and_outputs,
    without_unseen,
)
from normx.normalizers.softmax import softmax
from normx.plugins import Library, dtype_name
from normx.states import MaxSum

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


class _Formula(NamedTuple):
    """A record with what it needs besides scores and states.

    Attributes
    ----------
    record : Record
    own : mapping of str to object
        Its keywords, in the dtype of the arithmetic.
    temperature : array or None
    axis : tuple of int
    dtype : str
    """

    record: Record
    own: Mapping[str, Any]
    temperature: Array | None
    axis: tuple[int, ...]
    dtype: str

    def weight_of(self, library: Library, score: Array, seen: _Seen) -> Array:
        """What one entry weighs beside what was seen."""
        xp = library.namespace()
        row = Row(library, xp, score, None, self.axis, self.temperature, self.dtype)
        return self.record.apply(row.of(seen.whole), *seen.states, **self.own)

    def joined(self, library: Library, a: _Seen, b: _Seen) -> _Seen:
        """Of two sets of keys what is kept of both.

        A weight is a term over a denominator that all entries of a row share.  So the weight
        of one entry, before and after, says how the denominator grew, and with it the outputs
        shrink.  The heaviest entry is asked: where its weight is 0, so are all others.
        """
        xp, stages = library.namespace(), self.record.stages or ()
        pairs = zip(stages, a.states, b.states, strict=True)
        states = tuple(stage.monoid.merge(xp, x, y) for stage, x, y in pairs)
        top = xp.maximum(a.whole.top, b.whole.top)
        bottom = xp.minimum(a.whole.bottom, b.whole.bottom)
        whole = Whole(top, bottom, a.whole.kept + b.whole.kept, 0)
        both = _Seen(states, whole, a.heaviest, a.y)
        y, weights = xp.zeros_like(a.y), []
        for part in (a, b):
            before, after = (self.weight_of(library, part.heaviest, seen) for seen in (part, both))
            some = before > 0
            share = xp.where(some, after / xp.where(some, before, 1.0), 0.0)
            y = y + part.y * library.cast(share, dtype_name(part.y.dtype))
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
    few numbers for each query.  Weights are those of `attention`, by the same kernels; what is
    kept beside them is found by the formulas, but for the softmax, where it follows from the
    weights.  On JAX, states can be arguments and results of compiled functions; the first
    `update` of a state, before which there are no outputs, changes its structure.

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

    __slots__ = ("_crossed", "_form", "_formula", "_keywords", "_layout", "_q", "_record", "_scale",
                 "_seen")  # fmt: skip

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
        self._form: Form | None = None
        self._crossed: _Crossed | None = None
        _make_known()

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
                seen = formula.joined(heads.library, self._seen, seen)
        return self._with(heads.form, formula, seen)

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
        if other._record is not self._record or not _same(other._q, self._q):
            wanted, cure = "a state of the same queries", "start both from one empty state"
            raise wrong(ValueError, function, "other", "of other queries", wanted, cure)
        if self._seen is None or other._seen is None:
            return other if self._seen is None else self
        assert self._form is not None and self._formula is not None
        library = _home(self._seen.y)
        with library.quiet():
            seen = self._formula.joined(library, self._seen, other._seen)
        return self._with(self._form, self._formula, seen)

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
        if self._seen is None or self._form is None:
            raise ValueError("normx.AttentionState.output: no keys have come; call update first")
        return self._form.finished(_home(self._seen.y), self._seen.y)

    def _with(self, form: Form, formula: _Formula, seen: _Seen) -> AttentionState:
        after = object.__new__(AttentionState)
        for name in self.__slots__:
            setattr(after, name, getattr(self, name))
        after._form, after._formula, after._seen, after._crossed = form, formula, seen, None
        return after

    def _of_block(self, function: str, heads: Heads, mask: Array | None) -> tuple[_Formula, _Seen]:
        """What is kept of the keys of one piece, by themselves."""
        record, library, xp = self._record, heads.library, heads.xp
        own = keywords_for(function, record, self._keywords, heads)
        rule = Rule(record, own, mask, causal=False, scale=self._scale, backend=None)
        weights, outputs = weights_and_outputs(heads, rule)
        scores = xp.matmul(heads.q * self._scale, xp.matrix_transpose(heads.k))
        with library.quiet():
            most = xp.max(weights, axis=-1, keepdims=True)
            by_weights = record is record_of(softmax) and "sink" not in own
            if by_weights:  # its sum is that of the largest score alone, over the weight of that
                scores = scores if mask is None else xp.where(mask, scores, -xp.inf)
                scores, mask = xp.max(scores, axis=-1, keepdims=True), None
            keywords = {**own, "where": mask}
            prepared_ = prepare(record, library, scores, keywords, library_of)
            plan = prepared_.plan
            row, parameters = row_of(plan, *prepared_.arguments(scores, keywords))
            parameters |= plan.constants
            states = states_of(record, (row,), parameters)
            _check_streams(function, record, states)
            if by_weights:
                states = (_of_sum(xp, states[0], library.cast(most, row.dtype)),)
            states = _filled(states, xp.zeros_like(row.maximum))
            low = xp.max(xp.where(row.present, -row.scores, -xp.inf), axis=-1, keepdims=True)
            kept = row.count(row.present if row.kept is None else row.kept)
            heaviest = row.scores
            if not by_weights:
                heaviest = xp.where(weights == most, row.scores, -xp.inf)
                heaviest = xp.max(heaviest, axis=-1, keepdims=True)
        whole = Whole(row.maximum, -low, kept, 0)
        formula = _Formula(record, parameters, row.temperature, row.axis, row.dtype)
        return formula, _Seen(states, whole, heaviest, outputs)


def _of_sum(xp: Any, top: MaxSum, most: Array) -> MaxSum:
    """The state of a row of which the maximum, and the weight of that, are known."""
    some = most > 0
    excess = xp.where(some, 1.0 / xp.where(some, most, 1.0) - 1.0, xp.where(most == 0, -1.0, most))
    return MaxSum(top.maximum, excess)


def _filled(state: Any, zeros: Array) -> Any:
    """A state with arrays for the numbers that stand for some: what is compiled takes one form."""
    if isinstance(state, float):
        return zeros + state
    if not isinstance(state, tuple):
        return state
    parts = (_filled(part, zeros) for part in state)
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _home(x: Array) -> Library:
    library = library_of(x)
    assert library is not None  # it is of one's own making
    return library


def _same(a: Any, b: Any) -> bool:
    """Whether two states have the same queries, as far as can be known."""
    if a is b:
        return True
    library = library_of(a)
    if library is None or library is not library_of(b) or not hasattr(a, "dtype"):
        return False
    if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
        return False
    if not (library.is_concrete(a) and library.is_concrete(b)):
        return True
    a, b = (library.to_numpy(x).astype("float64") for x in (a, b))
    return np.array_equal(a, b, equal_nan=True)


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


class _Crossed(NamedTuple):
    """A state as JAX takes it apart: arrays, and what a compiled function is compiled for."""

    arrays: tuple[Any, ...]
    known: tuple[Any, ...]


#: Libraries whose compiler was told what a state consists of.
_told: set[str] = set()


def _make_known() -> None:
    """Let states cross the border of functions that JAX compiles, where JAX is there."""
    if "jax" in _told or "jax" not in sys.modules:
        return
    from jax.tree_util import register_pytree_node, tree_flatten, tree_unflatten

    _told.add("jax")
    words = ("_record", "_scale", "_layout", "_form")

    def parts(state: AttentionState) -> tuple[Any, Any]:
        if state._crossed is not None:  # its leaves can be anything: JAX also makes other trees
            return state._crossed
        own = state._formula
        arrays = None if own is None else (own.own, own.temperature)
        fixed = None if own is None else (own.axis, own.dtype)
        leaves, tree = tree_flatten((state._q, state._keywords, arrays, state._seen))
        numbers = tuple(None if hasattr(leaf, "dtype") else leaf for leaf in leaves)
        known = (tree, numbers, fixed, *(getattr(state, word) for word in words))
        return _Crossed(tuple(leaf for leaf in leaves if hasattr(leaf, "dtype")), known)

    def whole(known: Any, arrays: Any) -> AttentionState:
        tree, numbers, fixed, *others = known
        state = object.__new__(AttentionState)
        for word, value in zip(words, others, strict=True):
            setattr(state, word, value)
        children = iter(arrays)
        leaves = [next(children) if number is None else number for number in numbers]
        state._q, state._keywords, own, state._seen = tree_unflatten(tree, leaves)
        state._formula = None if own is None else _Formula(state._record, *own, *fixed)
        state._crossed = _Crossed(tuple(arrays), known)
        return state

    register_pytree_node(AttentionState, parts, whole)
