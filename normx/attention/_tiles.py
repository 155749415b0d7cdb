"""Attention by tiles: the scores of some queries at a time, and never all of them.

A tile is a block of queries against the keys that they see.  It is made by the library's own
matrix product, turned into weights by the record's own function, and spent on the values before
the next one is made; so memory is that of the inputs, the result and one tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from normx._errors import wrong
from normx._libraries import numpy_library
from normx._record import Record, record_of
from normx._vjp import vjp
from normx.attention._heads import Heads, check_broadcast
from normx.plugins import Library, NotOnHost, dtype_name

Array = Any

#: How many scores a tile has: 4 MiB in float32.
TILE = 2**20
#: Fewer queries than this make a slow matrix product, so the tiles of long rows are larger.
LEAST_ROWS = 16

#: How many scores several heads have together in a tile that is made in place: with few queries of
#: all heads, 64 heads of 256 keys take 14.7 ms, with all queries of four 12.7 ms (torch 13.3 ms).
HEADS = 2**18
#: As many queries a causal attention takes at least: with all 256, what is saved is lost, and with
#: 32 the products are slow (64 heads: 9.7 ms with 64, 11.1 ms with 128).
CAUSAL_ROWS = 64

#: What the functions themselves decide.
_OWN = ("axis", "dtype", "out", "where", "backend")


@dataclass(frozen=True)
class Rule:
    """How scores become weights.

    Attributes
    ----------
    record : Record
    keywords : mapping of str to object
        Those that were passed; arrays broadcast against the scores as they are computed.
    where : array of bool or None
    causal : bool
    scale : float
    backend : str or None
    """

    record: Record
    keywords: Mapping[str, Any]
    where: Array | None
    causal: bool
    scale: float
    backend: str | None

    @property
    def trims(self) -> bool:
        """Whether keys that a query does not see are as good as absent."""
        return not self.record.fills and self.keywords.get("empty", "zero") == "zero"

    @property
    def hides(self) -> bool:
        """Whether some queries may not see keys that others see, and must not feel them."""
        return self.trims and (self.causal or self.where is not None)

    def with_keywords(self, **keywords: Any) -> Rule:
        """The same rule with other values of some keywords."""
        return replace(self, keywords={**self.keywords, **keywords})

    @property
    def drops_infinite(self) -> bool:
        """Whether a score of -inf, written into the tile, leaves a key out."""
        return self.trims and not self.record.negated and "softcap" not in self.keywords


def record_for(function: str, normalizer: Any) -> Record:
    """The record of a row normalizer, by name or by function."""
    try:
        record = record_of(normalizer)
    except TypeError as error:
        raise TypeError(f"normx.{function}: `normalizer`: {error}") from None
    if record.kind != "normalizer" or record.log_space:
        wanted = "a row normalizer, whose results are weights"
        raise wrong(TypeError, function, "normalizer", repr(record.name), wanted)
    return record


def keywords_for(
    function: str, record: Record, keywords: Mapping[str, Any], heads: Heads
) -> dict[str, Any]:
    """The normalizer's own keywords, checked for name and shape."""
    known = [name for name in record.keywords if name not in _OWN]
    ready = dict(keywords)
    for name, value in keywords.items():
        if name not in known:
            taken = f"; {record.name} takes {', '.join(known)}"
            raise TypeError(f"normx.{function}: unknown keyword `{name}`{taken}")
        if name != "rng" and len(getattr(value, "shape", ())) > 0:
            along = (*heads.scores[:-1], value.shape[-1])
            check_broadcast(function, name, tuple(value.shape), along)
            ready[name] = heads.aligned(value)
    return ready


# ------------------------------------------------------------------ parts


def _queries(xp: Any, x: Array, start: Any, size: int) -> Array:
    """Some rows; where they begin may be known to a compiler only."""
    if isinstance(start, int):
        return x[..., start : start + size, :]
    return xp.take(x, start + xp.arange(size), axis=-2)


def _piece(heads: Heads, x: Any, start: Any, size: int) -> Any:
    """What belongs to some queries of something that broadcasts against the scores."""
    if len(getattr(x, "shape", ())) < 2 or x.shape[-2] == 1 or size == heads.lengths[0]:
        return x
    return _queries(heads.xp, x, start, size)


def _visible(heads: Heads, rule: Rule, start: Any, size: int) -> int:
    """How many keys, from the first one on, some queries have to look at."""
    everything = heads.lengths[1]
    if not (rule.causal and rule.trims and isinstance(start, int)):
        return everything
    return min(max(start + size + heads.offset, 0), everything)


def _mask(heads: Heads, rule: Rule, start: Any, size: int, keys: int) -> Array | None:
    """Who sees what in a tile; None where everything is seen."""
    mask = None
    if rule.where is not None:
        mask = _piece(heads, rule.where, start, size)
        mask = mask[..., :keys] if len(mask.shape) and mask.shape[-1] > 1 else mask
    if rule.causal:
        places = partial(heads.library.asarray, dtype="int32", like=heads.q)
        last = places(np.arange(size)[:, None]) + (start + heads.offset)
        seen = places(np.arange(keys)[None, :]) <= last
        mask = seen if mask is None else mask & seen
    return mask


def _keywords(heads: Heads, rule: Rule, start: Any, size: int) -> dict[str, Any]:
    """The normalizer's keywords for some queries."""
    own = {name: _piece(heads, value, start, size) for name, value in rule.keywords.items()}
    return {"axis": -1, "backend": rule.backend, **own}


def _scores(heads: Heads, rule: Rule, start: Any, size: int, keys: int) -> Array:
    xp = heads.xp
    q, k = _queries(xp, heads.q, start, size) * rule.scale, heads.k[..., :keys, :]
    if not (rule.hides and heads.library.is_followed(k)):
        return xp.matmul(q, xp.matrix_transpose(k))
    # The gradient of a query is a mean of the keys, and that of `_mean` holds for it.
    finite = xp.isfinite(k)
    fixed_q, fixed_k = (heads.library.stop_gradient(x) for x in (q, k))

    def others() -> Array:
        scores = xp.matmul(fixed_q, xp.matrix_transpose(fixed_k))
        return xp.where(xp.all(finite, axis=-1)[..., None, :], 0.0, scores)

    infinite = heads.library.in_case(~xp.all(finite), others)
    if infinite is None:
        return xp.matmul(q, xp.matrix_transpose(k))
    return xp.matmul(q, xp.matrix_transpose(xp.where(finite, k, 0.0))) + infinite


def _mean(heads: Heads, rule: Rule, weights: Array, mask: Array | None) -> Array:
    """The values of the first keys, by their weights.

    A value that is not finite reaches the queries that see it, and no other: 0 times it is NaN.
    """
    xp, library = heads.xp, heads.library
    values = heads.v[..., : weights.shape[-1], :]
    if mask is None or not rule.hides:
        return xp.matmul(weights, values)
    finite = xp.isfinite(values)
    fixed = library.stop_gradient(weights), library.stop_gradient(values)
    others = library.in_case(~xp.all(finite), lambda: infinite_part(library, *fixed, mask))
    if others is None:
        return xp.matmul(weights, values)
    return xp.matmul(weights, xp.where(finite, values, 0.0)) + others


def infinite_part(library: Library, weights: Array, values: Array, seen: Array) -> Array:
    """What values that are not finite add to the outputs of the queries that see them."""
    xp, dtype = library.namespace(), dtype_name(weights.dtype)
    with library.quiet():
        signs = xp.where(seen, xp.sign(weights), 0.0)
        ends = xp.where(xp.isinf(values), xp.sign(values), 0.0)
    balance, number = xp.matmul(signs, ends), xp.matmul(xp.abs(signs), xp.abs(ends))
    sees = library.cast(xp.broadcast_to(seen, weights.shape), dtype)
    some = xp.matmul(sees, library.cast(~xp.isfinite(values), dtype))
    # NaN is seen, or an infinity of no weight, or there are both infinities.
    lost = (some > number) | (xp.abs(balance) < number)
    found = xp.where(balance > 0, xp.inf, xp.where(balance < 0, -xp.inf, balance))
    return xp.where(lost, xp.nan, found)


def _blocks(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Where each block of queries begins, and how many it has."""
    for start in range(0, length, size):
        yield start, min(size, length - start)


def without_unseen(heads: Heads, where: Array | None) -> Heads:
    """Keys and values that no query sees made 0: NaN in padding times a weight of 0 is NaN."""
    if where is None or len(where.shape) == 0:
        return heads
    xp = heads.xp
    seen = xp.any(where, axis=-2) if len(where.shape) > 1 else where

    def cleaned(x: Array) -> Array:
        spread = range(-len(seen.shape), -1)
        alone = tuple(i for i in spread if x.shape[i - 1] == 1 and seen.shape[i] > 1)
        mine = xp.any(seen, axis=alone, keepdims=True) if alone else seen
        return xp.where(mine[..., None], x, xp.zeros_like(x))

    return replace(heads, k=cleaned(heads.k), v=cleaned(heads.v))


# ------------------------------------------------------------------- ways


def weights_and_outputs(heads: Heads, rule: Rule) -> tuple[Array, Array]:
    """All weights, because they were asked for, and the outputs."""
    queries, keys = heads.lengths
    mask = _mask(heads, rule, 0, queries, keys)
    weights = _weights(heads, rule, mask, 0, queries, keys)
    return weights, _mean(heads, rule, weights, mask)


def outputs(heads: Heads, rule: Rule) -> Array:
    """The outputs alone, tile by tile."""
    library, (queries, keys) = heads.library, heads.lengths
    if 0 in (queries, keys, *heads.lead) or rule.record.random:
        return weights_and_outputs(heads, rule)[1]
    there = _on_host(heads, rule)
    if there is not None:
        return library.host_adopt(_outputs_in_place(*there))
    size = block_size(heads)

    def of_block(start: Any, size: int = size) -> Array:
        seen = _visible(heads, rule, start, size)
        if seen == 0:
            return nothing(heads, size)
        mask = _mask(heads, rule, start, size, seen)
        return _mean(heads, rule, _weights(heads, rule, mask, start, size, seen), mask)

    if size == queries:
        return of_block(0)
    whole = queries - queries % size
    y = library.in_turn(library.recomputed(of_block), range(0, whole, size))
    if whole < queries:
        rest = library.recomputed(partial(of_block, size=queries - whole))(whole)
        y = heads.xp.concat([y, rest], axis=-2)
    return y


def block_size(heads: Heads) -> int:
    """How many queries of all heads make a tile."""
    queries, keys = heads.lengths
    return min(queries, max(TILE // max(math.prod(heads.lead) * keys, 1), LEAST_ROWS))


def nothing(heads: Heads, size: int) -> Array:
    """The outputs of queries that see no keys."""
    shape = (*heads.lead, size, heads.v.shape[-1])
    return heads.library.full(shape, 0.0, dtype_name(heads.v.dtype), heads.v)


def _weights(
    heads: Heads, rule: Rule, mask: Array | None, start: Any, size: int, keys: int
) -> Array:
    scores = _scores(heads, rule, start, size, keys)
    return rule.record.function(scores, where=mask, **_keywords(heads, rule, start, size))


# --------------------------------------------------------------- in place


def _on_host(heads: Heads, rule: Rule) -> tuple[Heads, Rule] | None:
    """The same in NumPy's hands, where the memory can be shared and nobody follows what is done."""
    library, arrays = heads.library, [heads.q, heads.k, heads.v]
    named = {n: x for n, x in rule.keywords.items() if hasattr(x, "dtype") and not _is_scalar(x)}
    arrays += [*named.values(), *(() if rule.where is None else (rule.where,))]
    if library is numpy_library:
        return heads, rule
    plain = (
        all(library.on_host(x) and not library.is_followed(x) for x in arrays)
        and "native" in library.preference
        and library.at_hand(arrays)
    )
    if not plain:
        return None
    view = library.host_view
    try:
        q, k, v = (view(x) for x in (heads.q, heads.k, heads.v))
        keywords = {**rule.keywords, **{name: view(x) for name, x in named.items()}}
        where = None if rule.where is None else view(rule.where)
    except NotOnHost:
        return None
    heads = replace(heads, library=numpy_library, q=q, k=k, v=v)
    return heads, replace(rule, keywords=keywords, where=where)


def _is_scalar(x: Any) -> bool:
    return isinstance(x, np.generic)


def _at(x: Any, index: tuple[int | slice, ...], ndim: int) -> Any:
    """Of what broadcasts against `ndim` axes, the part at an index of the first ones."""
    missing = ndim - len(getattr(x, "shape", ()))
    if missing >= len(index):
        return x
    here = zip(index[missing:], x.shape, strict=False)
    return x[tuple(i if size > 1 else _only(i) for i, size in here)]


def _only(index: int | slice) -> int | slice:
    """The index of what an axis of one entry has, as a number or as a slice."""
    return slice(None) if isinstance(index, slice) else 0


def _outputs_in_place(heads: Heads, rule: Rule) -> np.ndarray:
    """On NumPy: one tile of memory for all, which scores and then weights are written to.

    For 16384 queries and keys of 64 float32 numbers this takes 0.37 s on two AVX-512 cores, and
    torch's fused kernel 0.43 s; tiles of 256 x 1024 scores with merged states take 0.45 s,
    because their maxima are found once more: what fits in the second cache is no gain there.
    """
    lead, (queries, keys), dtype = heads.lead, heads.lengths, heads.q.dtype
    rows = min(queries, max(TILE // keys, LEAST_ROWS))
    if rule.causal:
        rows = min(rows, max(queries // LEAST_ROWS, CAUSAL_ROWS))
    together = min(math.prod(lead), max(HEADS // (rows * keys), 1))
    memory = np.empty(together * rows * keys, dtype)
    y = np.empty((*lead, queries, heads.v.shape[-1]), dtype)
    for index in _parts(lead, together):
        here, local = heads, rule
        if index:
            ndim = len(lead) + 2
            q, k, v = (_at(x, index, ndim) for x in (heads.q, heads.k, heads.v))
            here = replace(heads, q=q, k=k, v=v)
            own = {name: _at(value, index, ndim) for name, value in rule.keywords.items()}
            local = replace(rule, keywords=own, where=_at(rule.where, index, ndim))
        _one_by_one(here, local, memory, rows, y[index])
    return y


def _parts(lead: tuple[int, ...], together: int) -> Iterator[tuple[int | slice, ...]]:
    """Indices of parts of the axes before the queries, of at most so many heads each."""
    inner, outer = 1, len(lead)
    while outer and inner * lead[outer - 1] <= together:
        outer -= 1
        inner *= lead[outer]
    if not outer:
        yield ()
        return
    step = together // inner
    for index in np.ndindex(*lead[: outer - 1]):
        for begin in range(0, lead[outer - 1], step):
            yield (*index, slice(begin, begin + step))


def _one_by_one(heads: Heads, rule: Rule, memory: np.ndarray, size: int, y: np.ndarray) -> None:
    """The outputs of some heads, block by block, written to `y`."""
    inner = y.shape[:-2]
    transposed, scale = np.swapaxes(heads.k, -1, -2), heads.q.dtype.type(rule.scale)
    written = rule.causal and rule.where is None and rule.drops_infinite
    values, finite = heads.v, True
    if rule.hides and not np.isfinite(values).all():
        finite, written = False, False
        values = np.where(np.isfinite(values), values, values.dtype.type(0))
    for start, rows in _blocks(heads.lengths[0], size):
        seen = _visible(heads, rule, start, rows)
        if seen == 0:
            y[..., start : start + rows, :] = 0.0
            continue
        tile = memory[: math.prod(inner) * rows * seen].reshape(*inner, rows, seen)
        q = heads.q[..., start : start + rows, :] * scale
        np.matmul(q, transposed[..., :seen], out=tile)
        mask = None
        if written:
            _drop_future(tile, start + heads.offset)
        else:
            mask = _mask(heads, rule, start, rows, seen)
        rule.record.function(tile, where=mask, out=tile, **_keywords(heads, rule, start, rows))
        part = y[..., start : start + rows, :]
        np.matmul(tile, values[..., :seen, :], out=part)
        if not finite:
            assert mask is not None  # rule.hides
            part += infinite_part(heads.library, tile, heads.v[..., :seen, :], mask)


def _drop_future(tile: np.ndarray, first: int) -> None:
    """Write -inf where a query does not see a key; the first one sees those up to `first`."""
    rows, keys = tile.shape[-2:]
    free = max(first + 1, 0)
    hidden = np.arange(free, keys)[None, :] > np.arange(first, first + rows)[:, None]
    np.copyto(tile[..., free:], -np.inf, where=hidden)


# -------------------------------------------------------------- gradients


def gradients(heads: Heads, rule: Rule, dy: Array) -> dict[str, Array]:
    """Gradients of q, k, v and the keywords, from the cotangent of the outputs.

    The weights of a block are computed again, so nothing larger than a tile is kept.
    """
    xp, library, (queries, _) = heads.xp, heads.library, heads.lengths
    dtype = dtype_name(heads.q.dtype)
    lead, (d, dv) = heads.lead, (heads.q.shape[-1], heads.v.shape[-1])
    keys = heads.lengths[1]
    dk, dvalues = (library.full((*lead, keys, n), 0.0, dtype, heads.q) for n in (d, dv))
    k, v = heads.k, heads.v
    if rule.hides:  # no slope goes through what is not finite, and 0 times it would be NaN
        k, v = (xp.where(xp.isfinite(x), x, 0.0) for x in (k, v))
    blocks: list[Array] = []
    found: dict[str, list[Array]] = {}
    size = queries if rule.record.random else max(block_size(heads) // 2, 1)
    for start, rows in _blocks(queries, size):
        seen = keys
        mask = _mask(heads, rule, start, rows, seen)
        scores = _scores(heads, rule, start, rows, seen)
        own = _keywords(heads, rule, start, rows)
        weights, pullback = vjp(rule.record.function, scores, where=mask, **own)
        cotangent = dy[..., start : start + rows, :]
        pulled = pullback(xp.matmul(cotangent, xp.matrix_transpose(v)))
        slopes = pulled.pop("x") * rule.scale
        blocks.append(xp.matmul(slopes, k))
        q = _queries(xp, heads.q, start, rows)
        dk = dk + xp.matmul(xp.matrix_transpose(slopes), q)
        dvalues = dvalues + xp.matmul(xp.matrix_transpose(weights), cotangent)
        for name, part in pulled.items():
            found.setdefault(name, []).append(part)
    gradient = {"q": xp.concat(blocks, axis=-2), "k": dk, "v": dvalues}
    for name, parts in found.items():
        given = rule.keywords[name]
        cut = len(getattr(given, "shape", ())) > 1 and given.shape[-2] != 1
        gradient[name] = xp.concat(parts, axis=-2) if cut else sum(parts[1:], start=parts[0])
    return gradient
