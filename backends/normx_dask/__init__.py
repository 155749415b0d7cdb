"""Dask: arrays in chunks, computed later.

A row that lies in one chunk is computed there, by one task.  Of a row that is cut, the
formula's reductions are Dask's, which merge what they find in the chunks; a formula
without such reductions (sparsemax, entmax, ...) gathers the row in one chunk meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from normx._libraries import ArrayAPILibrary, numpy_library
from normx._plan import Plan

Array = Any


def _namespace() -> Any:
    from array_api_compat.dask import array

    return array


class DaskLibrary(ArrayAPILibrary):
    """dask.array.Array; nothing here computes."""

    def check(self, x: Any, argument: str = "x") -> str | None:
        if any(math.isnan(size) for size in x.shape):
            return "an array with unknown chunk sizes; call its compute_chunk_sizes() first"
        return None

    def dtype(self, name: str) -> Any:
        return numpy_library.dtype(name)

    def cast(self, x: Any, dtype: str) -> Any:
        # In the chunks, later: what overflows the dtype is an infinity, and no warning.
        wanted = self.dtype(dtype)
        return x if x.dtype == wanted else x.map_blocks(_quiet_cast, wanted, dtype=wanted)

    def uniform(self, rng: Any, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        # Drawn now, so that the same source gives the same numbers in any order of chunks.
        noise = numpy_library.uniform(rng, shape, dtype, like)
        return self.namespace().asarray(noise, chunks=like.chunks)

    def is_concrete(self, x: Any) -> bool:
        return False

    def computed(
        self,
        formula: Callable[..., Any],
        plan: Plan,
        x: Any,
        where: Any | None,
        parameters: Mapping[str, Any],
    ) -> Any:
        record = plan.record
        whole = record.stages is None or all(x.numblocks[i] == 1 for i in plan.axis)
        pair = plan.constants.get("return_sign")  # a task has one result
        if not whole or pair or record.random or 0 in plan.shape:
            return formula(plan, x, where, parameters)
        options = {"empty": plan.empty, "softcap": plan.softcap, **plan.constants}
        options = {word: value for word, value in options.items() if word in record.keywords}
        if "keepdims" in options:  # the axes are put back around the backend
            options["keepdims"] = False
        if where is not None:
            options["where"] = where
        f = partial(record.function, axis=plan.axis, backend="reference")
        keeps = record.kind == "normalizer"
        return self.map_rows(f, x, plan.axis, options | dict(parameters), keeps=keeps)

    def map_rows(
        self,
        f: Callable[..., Any],
        x: Any,
        axis: tuple[int, ...],
        keywords: Mapping[str, Any],
        *,
        keeps: bool = True,
    ) -> Any:
        """``f(x, **keywords)``, one task for each chunk of rows; dtype and chunks as `x` has.

        Parameters
        ----------
        f : callable
            Takes NumPy's arrays, or whatever the chunks are; picklable.
        x : dask.array.Array
        axis : tuple of int
            The axes that form a row; chunks are joined along them, and cut again.
        keywords : mapping
            Arrays among them have as many axes as `x`.
        keeps : bool
            Whether the result has the axes of the rows.
        """
        from dask.array import blockwise
        from dask.array.utils import meta_from_array

        given, x = x.chunks, x.rechunk(dict.fromkeys(axis, -1))
        index = tuple(range(x.ndim))
        pairs: list[Any] = [x, index]
        names, others = [], {}
        for name, value in keywords.items():
            if not hasattr(value, "map_blocks"):
                others[name] = value
                continue
            fits = [size == n for size, n in zip(value.shape, x.shape, strict=True)]
            chunks = [x.chunks[i] if fits[i] else (value.shape[i],) for i in index]
            # What is neither as long as x nor of size 1 has an index of its own.
            own = [i if fits[i] or value.shape[i] == 1 else i + x.ndim for i in index]
            pairs += [value.rechunk(tuple(chunks)), tuple(own)]
            names.append(name)
        left = tuple(i for i in index if keeps or i not in axis)
        meta = meta_from_array(x, ndim=len(left), dtype=x.dtype)
        block = partial(_block, f, tuple(names), others)
        y = blockwise(block, left, *pairs, dtype=x.dtype, meta=meta, concatenate=True)
        return y.rechunk(given) if keeps else y


def _block(
    f: Callable[..., Any], names: tuple[str, ...], others: Mapping[str, Any], *blocks: Array
) -> Array:
    return f(blocks[0], **others, **dict(zip(names, blocks[1:], strict=True)))


def _quiet_cast(block: Any, dtype: Any) -> Any:
    with np.errstate(over="ignore"):
        return block.astype(dtype)


library = DaskLibrary("dask", _namespace)
