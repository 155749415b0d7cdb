"""Dask: arrays in chunks, computed later."""

from __future__ import annotations

from typing import Any

from normx._libraries import ArrayAPILibrary, numpy_library


def _namespace() -> Any:
    from array_api_compat.dask import array

    return array


class DaskLibrary(ArrayAPILibrary):
    """dask.array.Array; nothing here computes or rechunks."""

    def dtype(self, name: str) -> Any:
        return numpy_library.dtype(name)

    def is_concrete(self, x: Any) -> bool:
        return False


library = DaskLibrary("dask", _namespace)
