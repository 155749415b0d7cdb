"""cosFormer: attention whose weights are products of features, in linear time.

The weight of a pair is ``relu(q).relu(k) cos(a_i - a_j)``, which is the product of two vectors of
twice the size; so sums over keys are taken before any query is looked at, and can be added up.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._plan import is_number
from normx.attention._heads import (
    Heads,
    arrays_of,
    dtypes_of,
    flag_of,
    heads_of,
    same_home,
)
from normx.plugins import Library, dtype_name

Array = Any
ArrayLike = Any

#: Queries and keys that meet in a square of scores; longer squares cost more than the states.
CHUNK = 64
#: What is worked on at a time: its features fit in a second cache.
SEGMENT = 1024


# ---------------------------------------------------------------- formulas


def _features(xp: Any, x: Array, first: Any, max_len: float) -> Array:
    """The positive part of each vector times sine and cosine of its place; the first is 1."""
    places = _constant(np.arange(x.shape[-2])[:, None], x) + first
    angles = places * (math.pi / (2.0 * max_len))
    positive = xp.where(x <= 0, xp.zeros_like(x), x)  # whose slope at 0 is 0; NaN stays
    return xp.concat([positive * xp.sin(angles), positive * xp.cos(angles)], axis=-1)


def _with_one(xp: Any, v: Array) -> Array:
    """The values and a 1, so that the sum of the weights comes with that of the values."""
    return xp.concat([v, xp.ones_like(v[..., :1])], axis=-1)


def _divided(xp: Any, y: Array, eps: float) -> Array:
    """The mean of the values, from their weighted sum and that of the weights."""
    total = y[..., -1:]
    return y[..., :-1] / xp.where(total > eps, total, xp.full_like(total, eps))


def _summed(xp: Any, b: Array, c: Array) -> Array:
    """The state of some keys: the sum of the products of two vectors each."""
    return xp.matmul(xp.matrix_transpose(b), c)


def _causal(xp: Any, a: Array, b: Array, c: Array, state: Any) -> tuple[Array, Array]:
    """``sum over j <= i of (a_i . b_j) c_j``, after what a state holds; and the state after."""
    length, parts = a.shape[-2], []
    whole = length - length % CHUNK
    for start, stop, size in ((0, whole, CHUNK), (whole, length, length - whole)):
        if start == stop:
            continue
        x, y, z = (_in_chunks(xp, part[..., start:stop, :], size) for part in (a, b, c))
        within = xp.matmul(xp.tril(xp.matmul(x, xp.matrix_transpose(y))), z)
        sums = _summed(xp, y, z)
        count, flat = sums.shape[-3], (*sums.shape[:-2], sums.shape[-2] * sums.shape[-1])
        earlier = _constant(np.tril(np.ones((count, count)), -1), sums)
        before = xp.reshape(xp.matmul(earlier, xp.reshape(sums, flat)), sums.shape)
        before = before + state[..., None, :, :]
        y = within + xp.matmul(x, before)
        parts.append(xp.reshape(y, (*y.shape[:-3], stop - start, y.shape[-1])))
        state = before[..., -1, :, :] + sums[..., -1, :, :]
    return (parts[0] if len(parts) == 1 else xp.concat(parts, axis=-2)), state


def _constant(values: np.ndarray, like: Array) -> Array:
    """Numbers that are known beforehand, beside an array and in its dtype."""
    library = library_of(like)
    assert library is not None
    return library.asarray(values, dtype_name(like.dtype), like)


def _in_chunks(xp: Any, x: Array, size: int) -> Array:
    return xp.reshape(x, (*x.shape[:-2], x.shape[-2] // size, size, x.shape[-1]))


def _segments(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, SEGMENT):
        yield start, min(start + SEGMENT, length)


def _all_causal(
    xp: Any, q: Array, k: Array, v: Array, state: Array, first: Any, max_len: float, eps: float
) -> tuple[Array, Array]:
    """The outputs of queries that see the keys up to their own place; the state after them."""
    parts = []
    for start, stop in _segments(q.shape[-2]):
        here = (..., slice(start, stop), slice(None))
        a, b = (_features(xp, x[here], first + start, max_len) for x in (q, k))
        y, state = _causal(xp, a, b, _with_one(xp, v[here]), state)
        parts.append(_divided(xp, y, eps))
    return _joined(xp, parts), state


def _added(xp: Any, k: Array, v: Array, state: Any, first: Any, max_len: float) -> Array:
    """The state after some keys."""
    for start, stop in _segments(k.shape[-2]):
        here = (..., slice(start, stop), slice(None))
        b = _features(xp, k[here], first + start, max_len)
        state = state + _summed(xp, b, _with_one(xp, v[here]))
    return state


def _read(xp: Any, q: Array, state: Array, first: Any, max_len: float, eps: float) -> Array:
    """The outputs of queries that see all keys of a state."""
    parts = []
    for start, stop in _segments(q.shape[-2]):
        a = _features(xp, q[..., start:stop, :], first + start, max_len)
        parts.append(_divided(xp, xp.matmul(a, state), eps))
    return _joined(xp, parts)


def _joined(xp: Any, parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-2)


# ---------------------------------------------------------------- function


def cosformer(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    /,
    *,
    causal: bool = False,
    max_len: int | None = None,
    where: ArrayLike | None = None,
    eps: float = 1e-6,
) -> Any:
    r"""Attention with cosines of distances, in linear time and memory.

    .. math:: O_i = \frac{\sum_j A_{ij} v_j}{\max(\sum_j A_{ij}, \epsilon)}, \qquad
        A_{ij} = \mathrm{relu}(q_i) \cdot \mathrm{relu}(k_j)
        \cos\!\left(\frac{\pi}{2} \frac{i - j}{M}\right)

    Parameters
    ----------
    q : array
        Queries (..., heads, Lq, d), or (Lq, d): an array of any array-API library, or a list
        (taken as NumPy's).
    k : array
        Keys (..., heads, Lk, d); the axes before broadcast, and heads are shared, as for
        `attention`.
    v : array
        Values (..., heads, Lk, dv).
    causal : bool
        Whether a query sees no later key; Lq and Lk are equal then.
    max_len : int, optional
        M, at least Lq and Lk; the longer of the two by default.  With the default an output
        depends on how much comes after it: fix it where sequences grow.
    where : array of bool, optional
        True for the keys that are seen: broadcastable against (..., heads, Lk), or with an axis
        of size 1 for the queries before the last.
    eps : float
        Least denominator, above 0.

    Returns
    -------
    array
        The outputs (..., heads, Lq, dv), in the widest of the dtypes that came.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind or library.
    ValueError
        If an argument has a wrong value, or a shape that does not fit the others.

    See Also
    --------
    CosformerState : The same for keys that come in pieces.
    attention : The normalizers, in quadratic time.

    Notes
    -----
    Scores are not scaled: the size of a query cancels.  A query without positive entries, or
    one that shares no positive entry with a key that it sees, gets zeros and no gradient.  The
    causal form takes squares of 64 queries and keys, and sums for what is before them.
    float16 and bfloat16 are computed in float32 and rounded once.

    References
    ----------
    .. [1] Z. Qin et al., "cosFormer: Rethinking Softmax in Attention", ICLR 2022,
       arXiv:2202.08791.

    Examples
    --------
    >>> from normx.attention import cosformer
    >>> cosformer([[1.0, 0.0]], [[2.0, 0.0], [0.0, 3.0]], [[5.0], [7.0]])
    array([[5.]])
    """
    heads, k, v, span = _prepared("cosformer", (q, k, v), causal, max_len, where, eps)
    xp = heads.xp
    if 0 in (*heads.lengths, *heads.lead):
        shape = (*heads.lead, heads.lengths[0], heads.v.shape[-1])
        nothing = heads.library.full(shape, 0.0, dtype_name(heads.v.dtype), heads.v)
        return heads.finished(nothing)
    empty = _empty_state(heads.library, heads.q, k, v)
    if causal:
        return heads.finished(_all_causal(xp, heads.q, k, v, empty, 1, span, eps)[0])
    return heads.finished(_read(xp, heads.q, _added(xp, k, v, empty, 1, span), 1, span, eps))


def _empty_state(library: Library, q: Array, k: Array, v: Array) -> Array:
    lead = np.broadcast_shapes(tuple(k.shape[:-2]), tuple(v.shape[:-2]))
    shape = (*lead, 2 * k.shape[-1], v.shape[-1] + 1)
    return library.full(shape, 0.0, dtype_name(q.dtype), q)


def _prepared(
    function: str,
    arrays: tuple[Any, Any, Any],
    causal: Any,
    max_len: Any,
    where: Any,
    eps: Any,
) -> tuple[Heads, Array, Array, float]:
    heads = heads_of(function, *arrays)
    queries, keys = heads.lengths
    if flag_of(function, "causal", causal) and queries != keys:
        came, wanted = f"True for {queries} queries and {keys} keys", "False for unequal lengths"
        cure = "keys that come before the queries go into a CosformerState first"
        raise wrong(ValueError, function, "causal", came, wanted, cure)
    check_eps(function, eps)
    span = max(queries, keys) if max_len is None else check_max_len(function, max_len)
    if span < max(queries, keys):
        wanted = f"at least the number of queries and keys, {max(queries, keys)}"
        raise wrong(ValueError, function, "max_len", repr(max_len), wanted)
    k, v = _kept(function, heads.library, where, heads.k, heads.v, heads)
    return heads, k, v, float(span)


def check_max_len(function: str, value: Any) -> int:
    """Refuse what is no length."""
    wanted = "an int above 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise wrong(TypeError, function, "max_len", described(value), wanted)
    if value < 1:
        raise wrong(ValueError, function, "max_len", repr(value), wanted)
    return int(value)


def check_eps(function: str, value: Any) -> None:
    """Refuse what is no small number above 0."""
    if not is_number(value) or isinstance(value, complex):
        raise wrong(TypeError, function, "eps", described(value), "a number above 0")
    if not 0 < value < math.inf:
        raise wrong(ValueError, function, "eps", repr(value), "a finite number above 0")


def _kept(
    function: str, library: Library, where: Any, k: Array, v: Array, heads: Heads | None = None
) -> tuple[Array, Array]:
    """Keys and values, 0 where they are left out: whatever they hold has no effect."""
    if where is None:
        return k, v
    xp, group = library.namespace(), 1 if heads is None else heads.group
    if isinstance(where, bool | np.bool_ | list | tuple) and library.name == "numpy":
        where = np.asarray(where)
    if not hasattr(where, "dtype") or dtype_name(where.dtype) not in ("bool", "bool_"):
        wanted, cure = "an array of bool, True for the keys that are seen", "compare it: mask != 0"
        raise wrong(TypeError, function, "where", described(where), wanted, cure)
    same_home(function, "where", library, k, where)
    lead = tuple(k.shape[:-2]) if group == 1 else tuple(k.shape[:-3])
    shape, seen = (*lead, k.shape[-2]), where
    if len(seen.shape) == len(shape) + 1 and seen.shape[-2] == 1:
        seen = seen[..., 0, :]
    try:
        fits = np.broadcast_shapes(tuple(seen.shape), shape) == shape
    except ValueError:
        fits = False
    if not fits:
        wanted = f"broadcastable against the keys, {shape}"
        cure = "in linear time a key is seen by all queries or by none"
        raise wrong(ValueError, function, "where", f"of shape {where.shape}", wanted, cure)
    if group > 1 and len(seen.shape) > 1:
        seen = xp.expand_dims(seen, axis=-2)
    seen = seen[..., None] if len(seen.shape) else seen
    return tuple(xp.where(seen, x, xp.zeros_like(x)) for x in (k, v))


def cosformer_vjp(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, /, **params: Any
) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
    """Compute `cosformer` and its vector-Jacobian product.

    Parameters
    ----------
    q, k, v, **params
        As for `cosformer`.

    Returns
    -------
    y : array
        ``cosformer(q, k, v, **params)``.
    pullback : callable
        ``pullback(dy)`` gives a dict with the gradients of ``sum(y * dy)`` under ``"q"``,
        ``"k"`` and ``"v"``.

    Raises
    ------
    TypeError, ValueError
        What `cosformer` raises; also for a `dy` that does not fit.

    Notes
    -----
    The gradient of such a sum in each of its three factors is such a sum of the other two, so
    it takes linear time and memory as well.

    Examples
    --------
    >>> import normx
    >>> from normx.attention import cosformer
    >>> y, pullback = normx.vjp(cosformer, [[1.0]], [[1.0], [1.0]], [[0.0], [1.0]])
    >>> pullback([[1.0]])["v"].round(4)
    array([[0.5858],
           [0.4142]])
    """
    function = "cosformer_vjp"
    y = cosformer(q, k, v, **params)
    causal, eps = params.get("causal", False), params.get("eps", 1e-6)
    heads, keys, values, span = _prepared(
        function, (q, k, v), causal, params.get("max_len"), params.get("where"), eps
    )
    library, xp, shape = heads.library, heads.xp, tuple(y.shape)

    def product(a: Array, b: Array, c: Array, *, later: bool = False) -> Array:
        """``sum over j of (a_i . b_j) c_j``: all j, those up to i, or those from i on."""
        if not causal:
            return xp.matmul(a, _summed(xp, b, c))
        if later:
            a, b, c = (xp.flip(x, axis=-2) for x in (a, b, c))
        zero = _summed(xp, b[..., :0, :], c[..., :0, :])
        y, _ = _causal(xp, a, b, c, zero)
        return xp.flip(y, axis=-2) if later else y

    def pullback(dy: Array) -> dict[str, Array]:
        if library.name == "numpy" and not hasattr(dy, "dtype"):
            dy = np.asarray(dy)
        if library_of(dy) is not library or tuple(dy.shape) != shape:
            wanted = f"an array of {library.name} of shape {shape}"
            raise wrong(ValueError, function, "dy", described(dy), wanted)
        dy = heads.entered(dy)
        a, b = (_features(xp, x, 1, span) for x in (heads.q, keys))
        c = _with_one(xp, values)
        sums = product(a, b, c)
        total = sums[..., -1:]
        divisor = xp.where(total > eps, total, xp.full_like(total, eps))
        mean = sums[..., :-1] / divisor
        of_total = -xp.sum(dy * mean, axis=-1, keepdims=True) / divisor
        cotangent = xp.concat(
            [dy / divisor, xp.where(total > eps, of_total, xp.zeros_like(total))], axis=-1
        )
        da = product(cotangent, c, b)
        db = product(c, cotangent, a, later=True)
        dc = product(b, a, cotangent, later=True)
        found = {"q": _unfeatured(xp, heads.q, da, span), "k": _unfeatured(xp, keys, db, span)}
        found["v"] = dc[..., :-1]
        kept = params.get("where")
        if kept is not None:
            _, found["v"] = _kept(function, library, kept, keys, found["v"], heads)
        return {name: heads.returned(name, x) for name, x in found.items()}

    return y, pullback


def _unfeatured(xp: Any, x: Array, gradient: Array, max_len: float) -> Array:
    """The gradient of vectors, from that of their features."""
    half = x.shape[-1]
    ones = _features(xp, xp.ones_like(x), 1, max_len)
    both = gradient * ones
    return xp.where(x > 0, both[..., :half] + both[..., half:], xp.zeros_like(both[..., :half]))


cosformer.vjp = cosformer_vjp  # type: ignore[attr-defined]  # for `normx.vjp`


# ------------------------------------------------------------------- state


@dataclass(frozen=True, eq=False)
class CosformerState:
    """What cosFormer keeps of the keys and values that it has seen: sums, however many they are.

    Parameters
    ----------
    max_len : int
        M of `cosformer`: more keys than that cannot come.
    eps : float
        Least denominator.
    position : int
        How many keys came before; those to come are placed after them.
    sums : array, optional
        (..., 2 d, dv + 1): sums of the products of features and values, and of the features;
        absent while nothing has come.

    Attributes
    ----------
    max_len, eps, position, sums

    See Also
    --------
    cosformer : The outputs of all queries at once.

    Notes
    -----
    States are not changed: `update` and `step` return new ones.  On JAX they can be arguments
    and results of compiled functions.

    Examples
    --------
    >>> from normx.attention import CosformerState
    >>> state = CosformerState(max_len=8)
    >>> for key, value in ([[1.0]], [[0.0]]), ([[1.0]], [[1.0]]):
    ...     output, state = state.step([[1.0]], key, value)
    >>> output.round(4), state.position
    (array([[0.5049]]), 2)
    """

    max_len: int
    eps: float = 1e-6
    position: Any = 0
    sums: Array | None = None

    def __post_init__(self) -> None:
        """Refuse lengths and floors that are none."""
        check_max_len("CosformerState", self.max_len)
        check_eps("CosformerState", self.eps)
        _make_known()

    def update(self, k: ArrayLike, v: ArrayLike, /, *, where: ArrayLike | None = None) -> Any:
        """The state after more keys.

        Parameters
        ----------
        k : array
            Keys (..., L, d).
        v : array
            Values (..., L, dv).
        where : array of bool, optional
            Broadcastable against (..., L); True for the keys that count.  Others keep a place.

        Returns
        -------
        CosformerState

        Raises
        ------
        TypeError, ValueError
            As `cosformer`; also if there are more keys than `max_len`.

        Examples
        --------
        >>> from normx.attention import CosformerState
        >>> CosformerState(max_len=8).update([[1.0], [1.0]], [[0.0], [1.0]]).position
        2
        """
        library, arrays, _ = self._arrays("update", k=k, v=v)
        k, v, sums = self._with_sums("update", library, arrays, where)
        sums = _added(library.namespace(), k, v, sums, self.position + 1, self.max_len)
        return self._after("update", k.shape[-2], sums)

    def attend(self, q: ArrayLike, /, *, start: int | None = None) -> Any:
        """The outputs of queries that see every key so far.

        Parameters
        ----------
        q : array
            Queries (..., L, d).
        start : int, optional
            How many places come before the first of them; by default the last query is
            where the last key is.

        Returns
        -------
        array
            (..., L, dv); zeros if nothing has come.

        Raises
        ------
        TypeError, ValueError
            As `cosformer`; also if nothing has come yet.

        Examples
        --------
        >>> from normx.attention import CosformerState
        >>> state = CosformerState(max_len=8).update([[1.0], [1.0]], [[0.0], [1.0]])
        >>> state.attend([[1.0]]).round(4)
        array([[0.5049]])
        """
        library, arrays, dtype = self._arrays("attend", q=q)
        name, q = "CosformerState.attend", arrays["q"]
        if self.sums is None:
            wanted, cure = "asked after keys have come", "call update or step first"
            raise wrong(ValueError, name, "q", described(q), wanted, cure)
        if q.shape[-1] * 2 != self.sums.shape[-2]:
            wanted = f"with {self.sums.shape[-2] // 2} numbers, as the keys had, in its last axis"
            raise wrong(ValueError, name, "q", f"of shape {tuple(q.shape)}", wanted)
        first = self.position - q.shape[-2] if start is None else start
        self._check_room("attend", first + q.shape[-2])
        y = _read(library.namespace(), q, self.sums, first + 1, self.max_len, self.eps)
        return library.cast(y, dtype)

    def step(
        self, q: ArrayLike, k: ArrayLike, v: ArrayLike, /, *, where: ArrayLike | None = None
    ) -> tuple[Any, CosformerState]:
        """The outputs of queries that come with as many keys, and the state after these.

        Parameters
        ----------
        q : array
            Queries (..., L, d); each sees the keys so far and those up to its own.
        k, v : array
            As for `update`.
        where : array of bool, optional
            As for `update`.

        Returns
        -------
        tuple of array and CosformerState

        Raises
        ------
        TypeError, ValueError
            As `update`; also if the lengths differ.

        Examples
        --------
        >>> from normx.attention import CosformerState
        >>> output, state = CosformerState(max_len=4).step([[1.0]], [[1.0]], [[3.0]])
        >>> output
        array([[3.]])
        """
        library, arrays, dtype = self._arrays("step", q=q, k=k, v=v)
        q = arrays.pop("q")
        k, v, sums = self._with_sums("step", library, arrays, where)
        if q.shape[-2] != k.shape[-2] or q.shape[-1] != k.shape[-1]:
            wanted = f"of the length and size of `k`, {tuple(k.shape)}"
            cure = "for other queries there is attend"
            came = f"of shape {tuple(q.shape)}"
            raise wrong(ValueError, "CosformerState.step", "q", came, wanted, cure)
        xp, first = library.namespace(), self.position + 1
        y, sums = _all_causal(xp, q, k, v, sums, first, self.max_len, self.eps)
        return library.cast(y, dtype), self._after("step", k.shape[-2], sums)

    def _arrays(self, method: str, **given: Any) -> tuple[Library, dict[str, Array], str]:
        name = f"CosformerState.{method}"
        library, arrays = arrays_of(name, given)
        for word, x in arrays.items():
            if len(x.shape) < 2 or 0 in x.shape[-2:]:
                came, wanted = f"of shape {tuple(x.shape)}", "of shape (..., length, size)"
                raise wrong(ValueError, name, word, came, wanted)
            if self.sums is not None:
                same_home(name, word, library, self.sums, x)
        dtype, working = dtypes_of(library, arrays)
        return library, {word: library.cast(x, working) for word, x in arrays.items()}, dtype

    def _with_sums(
        self, method: str, library: Library, arrays: dict[str, Array], where: Any
    ) -> tuple[Array, Array, Array]:
        name, k, v = f"CosformerState.{method}", arrays["k"], arrays["v"]
        if k.shape[-2] != v.shape[-2]:
            wanted = f"with one value for each of the {k.shape[-2]} keys"
            raise wrong(ValueError, name, "v", f"of shape {tuple(v.shape)}", wanted)
        k, v = _kept(name, library, where, k, v)
        sums = _empty_state(library, k, k, v)
        if self.sums is not None:
            if tuple(sums.shape) != tuple(self.sums.shape):
                lead, size = tuple(self.sums.shape[:-2]), self.sums.shape[-2] // 2
                wanted = f"like those before: {(*lead, 'L', size)}, and values of "
                wanted += f"{self.sums.shape[-1] - 1} numbers"
                came = f"of shape {tuple(k.shape)} beside v {tuple(v.shape)}"
                raise wrong(ValueError, name, "k", came, wanted)
            sums = self.sums
        return k, v, sums

    def _check_room(self, method: str, length: Any) -> None:
        if isinstance(length, int) and not 0 <= length <= self.max_len:
            came, wanted = f"{self.max_len} for position {length}", "as long as what comes"
            raise wrong(ValueError, f"CosformerState.{method}", "max_len", came, wanted)

    def _after(self, method: str, length: int, sums: Array) -> CosformerState:
        self._check_room(method, self.position + length)
        return replace(self, position=self.position + length, sums=sums)


#: Libraries whose compiler was told what a state consists of.
_told: set[str] = set()


def _make_known() -> None:
    """Let states cross the border of functions that JAX compiles, where JAX is there."""
    if "jax" in _told or "jax" not in sys.modules:
        return
    from jax.tree_util import register_pytree_node

    _told.add("jax")

    def parts(state: CosformerState) -> tuple[tuple[Any, Any], tuple[int, float]]:
        return (state.position, state.sums), (state.max_len, state.eps)

    def whole(known: tuple[int, float], children: tuple[Any, Any]) -> CosformerState:
        return CosformerState(*known, *children)

    register_pytree_node(CosformerState, parts, whole)
