"""The state of a softmax, for rows that come in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from normx._calls import check_backend, checked, dense, known_keywords, note
from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._options import ArrayLike, Axis
from normx._record import record_of
from normx._reference import row_of
from normx.normalizers.softmax import log_softmax, softmax
from normx.plugins import Library, dtype_name
from normx.states import MAX_SUM, MaxSum

Array = Any
ArrayT = TypeVar("ArrayT")


@dataclass(frozen=True, eq=False)
class SoftmaxState:
    r"""Maximum of a row of scores, and the sum of ``exp(x - maximum)``.

    States of blocks of a row merge, in any order, to the state of the row; that turns
    each block into its part of the row's softmax.  The neutral state is (-inf, 0).

    Parameters
    ----------
    maximum : array
        Largest score of each row, -inf where there is none.
    sum : array
        Sum of ``exp(x - maximum)``, of the same library, shape and dtype.

    Attributes
    ----------
    maximum, sum : array
        The reduced axes are kept with size 1, so that a state broadcasts against the
        scores.  float32 for scores of at most 32 bits, float64 otherwise.

    Raises
    ------
    TypeError
        If the two are not floating arrays of one library.
    ValueError
        If their shapes differ.

    See Also
    --------
    softmax_state : The state of scores.

    Notes
    -----
    ``maximum, sum = state`` unpacks the two.  Beside them a state holds the excess of
    the sum over 1, which is what the row's largest entry adds to it: a peaked row,
    whose sum rounds to 1, keeps the digits of its logarithms that way.  A state made
    from `maximum` and `sum` alone has only the digits of the sum.

    Logarithms are natural.  Scores of +inf are counted in the sum, and share; NaN stays.

    Examples
    --------
    >>> import numpy as np
    >>> from normx import SoftmaxState, softmax_state
    >>> neutral = SoftmaxState(np.array([-np.inf]), np.array([0.0]))
    >>> maximum, sum_ = neutral.merge(softmax_state([1.0, 1.0]))
    >>> print(maximum, sum_)
    [1.] [2.]
    """

    maximum: Array
    sum: Array
    _excess: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the excess of a state that is made from its two numbers."""
        arrays = {}
        for name in ("maximum", "sum"):
            value = getattr(self, name)
            library = library_of(value)
            if library is not None and not hasattr(value, "dtype"):
                value = np.asarray(value, np.float64)
            if library is None or dtype_name(value.dtype) not in ("float32", "float64"):
                raise wrong(
                    TypeError,
                    "SoftmaxState",
                    name,
                    described(value),
                    "an array of dtype float32 or float64",
                )
            arrays[name] = value
        top, total = arrays["maximum"], arrays["sum"]
        _alike("SoftmaxState", "sum", top, total, "`maximum`")
        object.__setattr__(self, "maximum", top)
        object.__setattr__(self, "sum", total)
        object.__setattr__(self, "_excess", total - 1.0)
        _make_known(_home(top))

    def __iter__(self) -> Iterator[Array]:
        return iter((self.maximum, self.sum))

    def merge(self, other: SoftmaxState) -> SoftmaxState:
        """The state of two blocks together.

        Parameters
        ----------
        other : SoftmaxState
            The state of other blocks of the same rows: of the same library and shape.

        Returns
        -------
        SoftmaxState
            In the wider of the two dtypes.  Merging is associative and commutative but
            for the last place of the sum, and exact with the neutral state.

        Raises
        ------
        TypeError
            If `other` is no state, or of another library.
        ValueError
            If its shape differs.

        Examples
        --------
        >>> from normx import softmax_state
        >>> state = softmax_state([0.0, 0.0]).merge(softmax_state([0.0]))
        >>> state.softmax([0.0, 0.0, 0.0]).round(4)
        array([0.3333, 0.3333, 0.3333])
        """
        function = "SoftmaxState.merge"
        if not isinstance(other, SoftmaxState):
            raise wrong(TypeError, function, "other", described(other), "a SoftmaxState")
        _alike(function, "other", self.maximum, other.maximum, "this state")
        library = _home(self.maximum)
        dtype = max(dtype_name(s.maximum.dtype) for s in (self, other))
        wide = max(dtype_name(s._excess.dtype) for s in (self, other))
        with library.quiet():
            merged = MAX_SUM.merge(library.namespace(), self._words(wide), other._words(wide))
        return _state(library, merged, dtype)

    def logsumexp(self) -> Array:
        """Logarithm of the sum of the exponentials of the scores seen so far.

        Returns
        -------
        array
            Of the shape and dtype of `maximum`; -inf where nothing was seen.

        Examples
        --------
        >>> from normx import softmax_state
        >>> print(softmax_state([1000.0, 1000.0]).logsumexp().round(4))
        [1000.6931]
        """
        library = _home(self.maximum)
        xp = library.namespace()
        with library.quiet():
            top, excess = self._words(dtype_name(self._excess.dtype))
            value = top + xp.log1p(xp.where(excess == -1.0, 0.0, excess))
            value = xp.where(top == -xp.inf, -xp.inf, value)
        return library.finish(library.cast(value, dtype_name(self.maximum.dtype)))

    def softmax(self, x: ArrayT, /, *, where: ArrayLike | None = None) -> ArrayT:
        """The part of the softmax that belongs to a block.

        Parameters
        ----------
        x : array
            Scores of a block that the state covers; the state broadcasts against them.
        where : array of bool, optional
            As for `softmax_state`.

        Returns
        -------
        array
            Of the library, shape and floating dtype of `x`; 0 for entries left out and
            rows that are empty.

        Raises
        ------
        TypeError
            If an argument is of the wrong kind or library.
        ValueError
            If the shapes do not fit.

        Examples
        --------
        >>> from normx import softmax_state
        >>> softmax_state([0.0, 0.0, 0.0, 0.0]).softmax([0.0, 0.0])
        array([0.25, 0.25])
        """
        weights: ArrayT = self._applied(softmax, x, where)
        return weights

    def log_softmax(self, x: ArrayT, /, *, where: ArrayLike | None = None) -> ArrayT:
        """The logarithm of `softmax`, with its own digits; -inf where that is 0.

        Parameters
        ----------
        x : array
            As for `softmax`.
        where : array of bool, optional
            As for `softmax`.

        Returns
        -------
        array
            Of the library, shape and floating dtype of `x`.

        Raises
        ------
        TypeError, ValueError
            As `softmax`.

        Examples
        --------
        >>> from normx import softmax_state
        >>> state = softmax_state([50.0]).merge(softmax_state([0.0]))
        >>> print(*(f"{y:.9g}" for y in state.log_softmax([50.0, 0.0])))
        -1.92874985e-22 -50
        """
        logarithms: ArrayT = self._applied(log_softmax, x, where)
        return logarithms

    def _words(self, dtype: str) -> MaxSum:
        """Maximum and excess in the dtype of the arithmetic."""
        cast = _home(self.maximum).cast
        return MaxSum(cast(self.maximum, dtype), cast(self._excess, dtype))

    def _applied(self, function: Any, x: Any, where: Any) -> Any:
        record = record_of(function)
        name = f"SoftmaxState.{record.name}"
        library, x, prepared = checked(name, x, where=where)
        if library is not _home(self.maximum):
            wanted = f"an array of {_home(self.maximum).name}, the library of the state"
            raise wrong(TypeError, name, "x", described(x), wanted)
        fits = len(x.shape) == len(self.maximum.shape) and all(
            here in (1, there) for here, there in zip(self.maximum.shape, x.shape, strict=True)
        )
        if not fits:
            wanted = f"scores that a state of shape {tuple(self.maximum.shape)} broadcasts against"
            raise wrong(ValueError, name, "x", described(x), wanted)
        plan = prepared.plan
        if 0 in plan.shape:
            return library.full(tuple(x.shape), 0.0, plan.dtype, x)
        scores, kept, parameters = prepared.arguments(x, {"where": where})
        with library.quiet():
            row, _ = row_of(plan, scores, kept, parameters)
            words = self._words(row.dtype)
            if prepared.expand:
                words = MaxSum(*(word[..., None] for word in words))
            # Against the maximum of the whole: the difference is exact, and rounded once.
            y = record.apply(row.within(words.maximum), words)
            zero = -row.xp.inf if record.log_space else 0.0
            y = y if kept is None else row.xp.where(kept, y, zero)
            y = library.cast(row.xp.where(words.maximum == -row.xp.inf, zero, y), plan.dtype)
        return library.finish(y[..., 0] if prepared.expand else y)


@known_keywords
def softmax_state(
    x: ArrayLike, /, *, axis: Axis = -1, where: ArrayLike | None = None
) -> SoftmaxState:
    r"""Maximum of each row, and the sum of its exponentials relative to that.

    .. math:: m = \max_j x_j, \qquad d = \sum_j e^{x_j - m}

    Parameters
    ----------
    x : array
        Scores: an array of any array-API library, or a list or number (taken as NumPy's).
    axis : int, tuple of int, or None
        Axis or axes that form a row; None stands for all of them.
    where : array of bool, optional
        Broadcastable against `x`; True takes part.

    Returns
    -------
    SoftmaxState
        With the reduced axes kept at size 1; (-inf, 0) for rows that are empty.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, or `use_backend` asks for another backend
        than the reference.
    ValueError
        If an argument has a wrong value or shape.
    numpy.exceptions.AxisError
        If `axis` does not exist or is repeated; both a ValueError and an IndexError.

    See Also
    --------
    SoftmaxState : What can be done with it.

    Notes
    -----
    The sum does not lose with the length of the row, and the maximum is exact.  On
    JAX, states can be arguments and results of compiled functions.

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax",
       arXiv:1805.02867, 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from normx import softmax_state
    >>> x = np.array([1.0, 2.0, 3.0, -1.0])
    >>> state = softmax_state(x[:2]).merge(softmax_state(x[2:]))
    >>> state.softmax(x[:2]).round(4)
    array([0.0889, 0.2418])
    """
    name = "softmax_state"
    library, x, prepared = checked(name, x, axis=axis, where=where)
    dense(name, library, x)
    check_backend(name, None, only="reference")
    plan = prepared.plan
    dtype = "float64" if plan.dtype == "float64" else "float32"
    shape = tuple(1 if i in plan.axis else size for i, size in enumerate(plan.shape))
    if 0 in plan.shape:
        words = MaxSum(*(library.full(shape, v, dtype, x) for v in (-np.inf, -1.0)))
    else:
        scores, kept, parameters = prepared.arguments(x, {"where": where})
        with library.quiet():
            row, _ = row_of(plan, scores, kept, parameters)
            words = MAX_SUM.lift(row)
    if prepared.expand:
        words = MaxSum(*(word[..., 0] for word in words))
    note(name, "softmax_state_formula", library)
    _make_known(library)
    return _state(library, words, dtype)


def _state(library: Library, words: MaxSum, dtype: str) -> SoftmaxState:
    """A state whose numbers are rounded, and whose excess is as it was computed."""
    maximum, sum_ = (library.cast(word, dtype) for word in (words.maximum, 1.0 + words.excess))
    return _whole(library.finish(maximum), library.finish(sum_), words.excess)


def _whole(*parts: Any) -> SoftmaxState:
    """A state of its parts, which are not looked at: JAX also makes trees of other things."""
    state = object.__new__(SoftmaxState)
    for entry, part in zip(fields(SoftmaxState), parts, strict=True):
        object.__setattr__(state, entry.name, part)
    return state


def _home(x: Array) -> Library:
    library = library_of(x)
    assert library is not None  # a state's arrays were checked when it was made
    return library


def _alike(function: str, name: str, ours: Array, theirs: Array, whose: str) -> None:
    """Refuse an array of another library or shape than ours."""
    library = _home(ours)
    if _home(theirs) is not library:
        wanted = f"of {library.name}, the library of {whose}"
        raise wrong(TypeError, function, name, described(theirs), wanted)
    if tuple(theirs.shape) != tuple(ours.shape):
        wanted = f"of shape {tuple(ours.shape)}, that of {whose}"
        raise wrong(ValueError, function, name, described(theirs), wanted)


#: Libraries whose compiler was told what a state consists of.
_told: set[str] = set()


def _make_known(library: Library) -> None:
    """Let states cross the border of functions that JAX compiles, whole."""
    if library.name != "jax" or "jax" in _told:
        return
    from jax.tree_util import register_pytree_node

    _told.add("jax")

    def parts(state: SoftmaxState) -> tuple[tuple[Array, ...], None]:
        return (state.maximum, state.sum, state._excess), None

    register_pytree_node(SoftmaxState, parts, lambda _, children: _whole(*children))
