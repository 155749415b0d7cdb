"""Dask: arrays in chunks, computed later."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normx._libraries import ArrayAPILibrary, numpy_library


def _namespace() -> Any:
    from array_api_compat.dask import array

    return array


class DaskLibrary(ArrayAPILibrary):
    """dask.array.Array; nothing here computes or rechunks."""

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


def _quiet_cast(block: Any, dtype: Any) -> Any:
    with np.errstate(over="ignore"):
        return block.astype(dtype)


library = DaskLibrary("dask", _namespace)
