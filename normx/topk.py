"""The largest weights of a softmax, and where they are."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from normx._calls import check_backend, checked, dense, known_keywords, part, single_axis
from normx._dispatch import choose_topk, library_of, traced
from normx._errors import described, wrong
from normx._options import ArrayLike
from normx._plan import NARROW, Plan
from normx._vjp import vjp
from normx.normalizers.softmax import softmax
from normx.plugins import Library, Refusal, dtype_name

Array = Any

#: Above this share of a row, sorting all of it costs no more than finding the few first.
_FEW = 1 / 8


class TopK(NamedTuple):
    """The largest weights, largest first, and their places along the axis."""

    values: Array
    indices: Array


@known_keywords
def softmax_topk(
    x: ArrayLike,
    k: int,
    /,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    renormalize: bool = False,
    temperature: ArrayLike = 1.0,
    backend: str | None = None,
) -> TopK:
    r"""The k largest weights of a softmax, and their indices.

    .. math::

        z = \operatorname{argtop}_k x, \qquad
        v_j = \frac{e^{x_{z_j}}}{\sum_i e^{x_i}}

    Parameters
    ----------
    x : array
        Scores: an array of any array-API library, or a list or number (taken as NumPy's).
    k : int
        How many; at least 0 and at most the length of a row.
    axis : int
        Axis that forms a row.
    where : array of bool, optional
        Broadcastable against `x`; True takes part.  Entries left out come last, in the
        order of their indices, with weight 0.
    renormalize : bool
        Whether to divide by the sum of the chosen weights.  It is done as a softmax over
        the chosen scores, right even where that sum underflows.
    temperature : float or array
        As for `normx.softmax`.
    backend : str, optional
        Who computes the softmax: a name from `normx.backends()`.

    Returns
    -------
    TopK
        ``(values, indices)``, each of the shape of `x` but with size `k` along `axis`.
        The values have the floating dtype of `x`; the indices are int64, int32 on JAX
        without 64-bit numbers.  Largest score first, equal scores in the order of their
        indices.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, or an explicit `backend` cannot take `x`.
    ValueError
        If `k` is negative or longer than a row, or an argument has a wrong value or shape.
    numpy.exceptions.AxisError
        If `axis` does not exist; both a ValueError and an IndexError.

    See Also
    --------
    normx.softmax : All the weights.

    Notes
    -----
    Without `renormalize`, the values are the bits of ``normx.softmax`` at the indices.
    Every row has k different indices, whatever it holds.  A row with NaN has values NaN,
    and NaN stands in the order as -inf does; the values of an empty row are 0.  No shape
    depends on data.  The gradient of libraries with automatic differentiation reaches all
    scores, through the denominator; with `renormalize`, only the chosen ones.

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax",
       arXiv:1805.02867, 2018.

    Examples
    --------
    >>> from normx import softmax_topk
    >>> values, indices = softmax_topk([1.0, 2.0, 3.0, -1.0], 2)
    >>> print(values.round(4), indices)
    [0.6572 0.2418] [2 1]
    >>> softmax_topk([1.0, 2.0, 3.0, -1.0], 2, renormalize=True).values.round(4)
    array([0.7311, 0.2689])
    """
    name = "softmax_topk"
    single_axis(name, axis)
    if not isinstance(renormalize, bool | np.bool_):
        raise wrong(TypeError, name, "renormalize", described(renormalize), "True or False")
    keywords = {"where": where, "temperature": temperature}
    library, x, prepared = checked(name, x, axis=axis, **keywords)
    check_backend(name, backend)
    dense(name, library, x)
    shape = tuple(x.shape)
    if not shape:
        raise wrong(ValueError, name, "x", "a number", "an array of at least one dimension")
    (along,) = prepared.plan.axis
    k = _count(k, shape[along])
    scores, kept, _ = prepared.arguments(x, keywords)
    if 0 in shape or k == 0:
        chosen = (*shape[:along], k, *shape[along + 1 :])
        values, indices = (library.full(chosen, 0.0, prepared.plan.dtype, x) for _ in "vi")
        return TopK(values, _as_index(library, indices))
    xp = library.namespace()
    if not renormalize and (fused := _fused(prepared.plan, scores, k, backend)) is not None:
        return fused
    if kept is not None:
        kept = xp.broadcast_to(kept, shape)
    with library.quiet():
        indices = _chosen(library, scores, kept, k, along)
    options = {"axis": along, "temperature": temperature, "backend": backend}
    if not renormalize:
        return TopK(taken(library, softmax(x, where=where, **options), indices, along), indices)
    few = None if kept is None else taken(library, kept, indices, along)
    values = softmax(taken(library, scores, indices, along), where=few, **options)
    # NaN poisons its row even where it is not among the chosen.
    poison = xp.isnan(scores) if kept is None else xp.isnan(scores) & kept
    values = xp.where(xp.any(poison, axis=along, keepdims=True), xp.nan, values)
    return TopK(library.cast(values, prepared.plan.dtype), indices)


def softmax_topk_vjp(
    x: ArrayLike, k: int, /, *, renormalize: bool = False, **params: Any
) -> tuple[TopK, Callable[[Array], dict[str, Array]]]:
    """Compute `softmax_topk` and its vector-Jacobian product.

    Parameters
    ----------
    x, k, renormalize, **params
        As for `softmax_topk`.

    Returns
    -------
    result : TopK
        ``softmax_topk(x, k, renormalize=renormalize, **params)``.
    pullback : callable
        ``pullback(dvalues)`` gives a dict with the gradient of ``sum(values * dvalues)``
        under ``"x"``, and under ``"temperature"`` if that was passed, as `normx.vjp`
        does.

    Raises
    ------
    TypeError, ValueError
        What `softmax_topk` raises.

    Notes
    -----
    The cotangent is scattered to the chosen entries, the others get 0, and the pullback
    of the softmax does the rest: over the whole row, or, renormalized, over the chosen.

    Examples
    --------
    >>> from normx.topk import softmax_topk_vjp
    >>> result, pullback = softmax_topk_vjp([0.0, 1.0, -1.0], 1)
    >>> pullback([1.0])["x"].round(4)
    array([-0.1628,  0.2227, -0.0599])
    """
    result = softmax_topk(x, k, renormalize=renormalize, **params)
    axis = params.get("axis", -1)
    shared = {word: params[word] for word in ("where", "temperature") if word in params}
    library, x, prepared = checked("softmax_topk_vjp", x, axis=axis, **shared)
    scores, kept, _ = prepared.arguments(x, {"where": None, "temperature": 1.0} | shared)
    (along,) = prepared.plan.axis
    length = scores.shape[along]
    if renormalize:
        if kept is not None:
            kept = library.namespace().broadcast_to(kept, tuple(scores.shape))
            shared["where"] = taken(library, kept, result.indices, along)
        scores = taken(library, scores, result.indices, along)
    _, softmax_pullback = vjp(softmax, scores, axis=along, **shared)

    def pullback(dvalues: Array) -> dict[str, Array]:
        home = library_of(dvalues)
        if home is library and not hasattr(dvalues, "dtype"):
            dvalues = np.asarray(dvalues)
        shape = tuple(result.values.shape)
        if home is not library or tuple(dvalues.shape) != shape:
            wanted = f"an array of {library.name} of shape {shape}"
            raise wrong(ValueError, "softmax_topk_vjp", "dvalues", described(dvalues), wanted)
        if renormalize:
            gradients = softmax_pullback(dvalues)
            spread = _scattered(library, gradients["x"], result.indices, length, along)
            return gradients | {"x": spread}
        return softmax_pullback(_scattered(library, dvalues, result.indices, length, along))

    return result, pullback


softmax_topk.vjp = softmax_topk_vjp  # type: ignore[attr-defined]  # for `normx.vjp`


def _count(k: Any, length: int) -> int:
    wanted = f"an int between 0 and {length}, the length of a row"
    if isinstance(k, bool) or not isinstance(k, numbers.Integral):
        raise wrong(TypeError, "softmax_topk", "k", described(k), wanted)
    if not 0 <= int(k) <= length:
        raise wrong(ValueError, "softmax_topk", "k", repr(int(k)), wanted)
    return int(k)


def _fused(plan: Plan, scores: Array, k: int, backend: str | None) -> TopK | None:
    """What a backend's kernel finds in one read of the scores, if it has one for them."""
    if plan.library.is_followed(scores):
        return None
    name, call = choose_topk(plan, k, {"backend": backend})
    found = call if isinstance(call, Refusal) else call(scores)
    if isinstance(found, Refusal):
        return None
    values, indices, kernel = found
    traced("softmax_topk", name, kernel)
    return TopK(values, indices)


def _as_index(library: Library, indices: Array) -> Array:
    """The indices as int64, where the library has 64-bit numbers at all."""
    try:
        library.dtype("float64")
    except AttributeError:
        return library.cast(indices, "int32")
    return library.cast(indices, "int64")


def _chosen(library: Library, scores: Array, kept: Array | None, k: int, axis: int) -> Array:
    """Indices of the k largest kept scores: largest first, then by index, left-out ones last."""
    if hasattr(scores, "map_blocks"):  # Dask: rows must lie in one chunk to be sorted
        blocks = [scores.rechunk({axis: -1})]
        if kept is not None:
            blocks.append(kept.rechunk(blocks[0].chunks))
        return _in_blocks(_chosen_in_block, blocks, k, axis, np.int64, k=k)
    xp = library.namespace()
    key = library.cast(scores, "float32") if dtype_name(scores.dtype) in NARROW else scores
    absent = xp.isnan(key) if kept is None else xp.isnan(key) | ~kept
    # Negated, so that rising order is falling order of the scores; -0.0 is 0.0.
    key = xp.where(absent, xp.inf, xp.where(key == 0, xp.zeros_like(key), -key))
    if library.name in _SMALLEST and kept is None and k < _FEW * key.shape[axis]:
        return _first(xp, library, key, k, axis)
    order = rising_order(xp, library, key, axis)
    if kept is not None:  # a kept -inf comes before what is left out
        left_out = library.cast(~taken(library, kept, order, axis), "int8")
        order = xp.take_along_axis(order, rising_order(xp, library, left_out, axis), axis=axis)
    return _as_index(library, order[part(axis, 0, k)])


def _chosen_in_block(*blocks: Array, k: int, axis: int) -> Array:
    library = library_of(blocks[0])
    assert library is not None
    kept = blocks[1] if len(blocks) > 1 else None
    with library.quiet():
        return _chosen(library, blocks[0], kept, k, axis)


def rising_order(xp: Any, library: Library, key: Array, axis: int) -> Array:
    """What puts `key` in rising order, equal ones by their index."""
    try:
        return xp.argsort(key, axis=axis, stable=True)
    except TypeError:
        pass
    # A sort that promises nothing for equal keys (MLX).  Number the groups of equal keys,
    # and sort again by group and index: these are all different.
    order = library.cast(xp.argsort(key, axis=axis), "int64")
    length = key.shape[axis]
    rising = xp.take_along_axis(key, order, axis=axis)
    step = rising[part(axis, 1, None)] != rising[part(axis, 0, -1)]
    first = xp.zeros_like(order[part(axis, 0, 1)])
    group = xp.cumsum(xp.concat([first, library.cast(step, "int64")], axis=axis), axis=axis)
    return xp.sort(group * length + order, axis=axis) % length


def _first(xp: Any, library: Library, key: Array, k: int, axis: int) -> Array:
    """The k first of the order of `key`, without sorting all of it."""
    smallest = _SMALLEST[library.name]
    length = key.shape[axis]
    last = xp.max(smallest(xp, key, k, axis), axis=axis, keepdims=True)
    sure, tied = (_as_index(library, mask) for mask in (key < last, key == last))
    free = k - xp.sum(sure, axis=axis, keepdims=True)
    # Exactly k of every row, and their places in rising order.
    chosen = (sure == 1) | ((tied == 1) & (xp.cumsum(tied, axis=axis) <= free))
    place = xp.arange(length, device=library.device(key))
    place = xp.reshape(place, (length,) + (1,) * (key.ndim - axis - 1))
    place = xp.sort(smallest(xp, xp.where(chosen, place, length), k, axis), axis=axis)
    order = rising_order(xp, library, xp.take_along_axis(key, place, axis=axis), axis)
    return _as_index(library, xp.take_along_axis(place, order, axis=axis))


def _smallest_by_partition(xp: Any, x: Array, k: int, axis: int) -> Array:
    return xp.partition(x, k - 1, axis=axis)[part(axis, 0, k)]


def _smallest_by_topk(xp: Any, x: Array, k: int, axis: int) -> Array:
    return xp.topk(x, k, dim=axis, largest=False, sorted=False).values


#: The k smallest of each row, in any order, where a library has them for less than a sort.
_SMALLEST: dict[str, Callable[[Any, Array, int, int], Array]] = {
    "numpy": _smallest_by_partition,
    "torch": _smallest_by_topk,
}


def taken(library: Library, x: Array, indices: Array, axis: int) -> Array:
    """The entries of `x` at indices along an axis."""
    if hasattr(x, "map_blocks"):
        # In the chunks of the indices, so that the two lie together.
        chunks = (*indices.chunks[:axis], (x.shape[axis],), *indices.chunks[axis + 1 :])
        blocks = [x.rechunk(chunks), indices]
        return _in_blocks(np.take_along_axis, blocks, indices.shape[axis], axis, x.dtype)
    return library.namespace().take_along_axis(x, indices, axis=axis)


def _in_blocks(
    function: Callable[..., Array],
    blocks: list[Array],
    size: int,
    axis: int,
    dtype: Any,
    **keywords: Any,
) -> Array:
    """A function of Dask arrays, chunk by chunk, that gives `size` entries along the axis."""
    first = blocks[0]
    return first.map_blocks(
        function,
        *blocks[1:],
        axis=axis,
        **keywords,
        dtype=dtype,
        meta=np.empty((0,) * first.ndim, dtype),
        chunks=(*first.chunks[:axis], (size,), *first.chunks[axis + 1 :]),
    )


def _scattered(library: Library, values: Array, indices: Array, length: int, axis: int) -> Array:
    """Zeros, but for the values at their (different) indices."""
    xp = library.namespace()
    form = (1,) * axis + (length,) + (1,) * (values.ndim - axis - 1)
    place = _as_index(library, xp.reshape(xp.arange(length), form))
    shape = (*values.shape[:axis], length, *values.shape[axis + 1 :])
    total = library.full(shape, 0.0, dtype_name(values.dtype), values)
    for j in range(values.shape[axis]):
        one = part(axis, j, j + 1)
        total = xp.where(indices[one] == place, values[one], total)
    return total
