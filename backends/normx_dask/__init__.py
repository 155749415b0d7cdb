"""Dask: arrays in chunks, computed later.

A row that lies in one chunk is computed there, by one task, which asks for a backend as any
call does.  Of a row that is cut, the states of its parts are merged in a tree; a function that
has none (sparsemax, entmax, ...) gathers the row in one chunk meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from enum import Enum
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from normx._libraries import ArrayAPILibrary, numpy_library
from normx._plan import Plan
from normx._reference import compute
from normx.plugins import Call, NotOnHost, Pullback
from normx_dask import _states

Array = Any


def _namespace() -> Any:
    from array_api_compat.dask import array

    return array


class DaskLibrary(ArrayAPILibrary):
    """dask.array.Array; nothing here computes."""

    preference = ("native", "reference")

    def key(self, x: Any) -> Any:
        return x.shape, x.dtype, type(x._meta)

    def on_host(self, x: Any) -> bool:
        return isinstance(x._meta, np.ndarray)

    def host_view(self, x: Any) -> Any:
        raise NotOnHost  # its chunks are, later

    def entered(self, plan: Plan, backend: str, call: Call) -> Call:
        kernel = f"{plan.record.name}_in_chunks__{self.name}"

        def in_chunks(
            x: Any, where: Any | None, out: Any | None, parameters: Mapping[str, Any]
        ) -> tuple[Any, str]:
            return self._in_chunks(backend, compute, plan, x, where, parameters), kernel

        return in_chunks

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

    def entered_gradient(self, plan: Plan, backend: str, pullback: Pullback) -> Pullback:
        kernel = f"{plan.record.name}_vjp_in_chunks__{self.name}"

        def in_chunks(
            x: Any, where: Any | None, parameters: Mapping[str, Any], y: Any | None, dy: Any
        ) -> tuple[dict[str, Any], str]:
            if self._way(plan, x) is _Way.ROWS:
                return _states.gradients(plan, backend, x, where, parameters, dy), kernel
            if backend == "reference":  # whose sums are Dask's
                return pullback(x, where, parameters, y, dy)
            raise NotOnHost

        return in_chunks

    def computed(
        self,
        formula: Callable[..., Any],
        plan: Plan,
        x: Any,
        where: Any | None,
        parameters: Mapping[str, Any],
    ) -> Any:
        return self._in_chunks("reference", formula, plan, x, where, parameters)

    def _in_chunks(
        self,
        backend: str,
        formula: Callable[..., Any],
        plan: Plan,
        x: Any,
        where: Any | None,
        parameters: Mapping[str, Any],
    ) -> Any:
        record = plan.record
        whole = tuple(
            tuple(filter(None, sizes)) if i in plan.axis and plan.shape[i] else sizes
            for i, sizes in enumerate(x.chunks)
        )
        if whole != x.chunks:  # a selection may leave nothing of a chunk, and so no state
            y = self._in_chunks(backend, formula, plan, x.rechunk(whole), where, parameters)
            return y.rechunk(x.chunks) if record.kind == "normalizer" else y
        way = self._way(plan, x)
        if way is _Way.OPERATIONS:
            return formula(plan, x, where, parameters)
        if way is _Way.STATES:
            native = backend == "native"
            return _states.in_states(plan, x, where, parameters, native=native)
        options = {"empty": plan.empty, "softcap": plan.softcap, **plan.constants}
        options = {word: value for word, value in options.items() if word in record.keywords}
        if "keepdims" in options:  # the axes are put back around the backend
            options["keepdims"] = False
        if where is not None:
            options["where"] = where
        f = partial(record.function, axis=plan.axis, backend=backend)
        keeps = record.kind == "normalizer"
        return self.map_rows(f, x, plan.axis, options | dict(parameters), keeps=keeps)

    def spectral_norm(self, a: Any) -> Any:
        # Dask has it for one matrix; here each is gathered in one chunk.
        return self.map_rows(_spectral_norm, a, (a.ndim - 2, a.ndim - 1), {}, keeps=False)

    def modes(self) -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        """By threads, and by another process that has nothing but what is sent to it."""
        return {**super().modes(), "processes": _in_processes}

    def _way(self, plan: Plan, x: Any) -> _Way:
        record = plan.record
        # A task has one result, and noise is drawn for the whole array.
        if plan.constants.get("return_sign") or record.random or 0 in plan.shape:
            return _Way.OPERATIONS
        if all(x.numblocks[i] == 1 for i in plan.axis):
            return _Way.ROWS
        if record.stages is None:
            return _Way.GATHERED
        return _Way.STATES if _states.has_states(plan) else _Way.OPERATIONS

    def explained(self, plan: Plan, x: Any) -> str:
        return str(self._way(plan, x).value)

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
            pairs += _states.beside(x, value, axis, whole=False)
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


def _in_processes(f: Callable[..., Any]) -> Callable[..., Any]:
    def computed(x: Any) -> Any:
        import dask

        (y,) = dask.persist(f(x), scheduler="processes", pool=_pool())
        return y

    return computed


@cache
def _pool() -> ProcessPoolExecutor:
    # Kept: a process takes a second to start, a call of one that waits 6 ms.
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _spectral_norm(a: Any) -> Any:
    return np.linalg.svd(a, compute_uv=False)[..., 0]


def _quiet_cast(block: Any, dtype: Any) -> Any:
    with np.errstate(over="ignore"):
        return block.astype(dtype)


class _Way(Enum):
    """How a call becomes tasks."""

    ROWS = "one task for each chunk of whole rows"
    STATES = "states of the chunks of a row, merged in a tree and applied to the chunks"
    GATHERED = "the chunks of a row are gathered in one, and the result cut as they were"
    OPERATIONS = "the formula in Dask's operations, which merge what they find in the chunks"


library = DaskLibrary("dask", _namespace)
