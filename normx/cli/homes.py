"""The array libraries of this machine as places to put a NumPy array, and to get it back.

Which libraries there are, is `normx.libraries`'s to say; besides, libraries that
speak the array API need no plugin, and those of them worth showing are named here.
A framework is imported when its first array is made.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import normx
from normx._libraries import numpy_library
from normx.plugins import Library

#: Speak the array API themselves, so that normx has no plugin for them.
_WITHOUT_PLUGIN = ("array_api_strict",)
#: Compile at the first call for a shape.
_COMPILING = frozenset({"jax"})


@dataclass(frozen=True, slots=True)
class Home:
    """One array library.

    Attributes
    ----------
    name : str
    root : str
        Root module of its arrays, as in `normx.libraries`.
    make : callable
        A NumPy array as one of its own.
    compiles : bool
        Whether the first call for a shape takes long because it compiles.
    """

    name: str
    root: str
    make: Callable[[NDArray[Any]], Any]
    compiles: bool = False


def _in_chunks(x: NDArray[Any]) -> Any:
    import dask.array

    # Two chunks along the rows: their states have to be merged.
    half = (x.shape[-1] + 1) // 2 if x.ndim else 1
    return dask.array.from_array(x, chunks=(*x.shape[:-1], half))


def _stored(x: NDArray[Any]) -> Any:
    import sparse

    # What is not stored is left out of a row, which is what -inf means.
    return sparse.COO.from_numpy(x, fill_value=x.dtype.type(-np.inf))


def _tensor(x: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(np.require(x, requirements="W"))


#: Libraries where a plain ``asarray`` is not the array that a user would have.
_MAKERS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "numpy": lambda x: x,
    "dask": _in_chunks,
    "sparse": _stored,
    "torch": _tensor,
}


def plugin(root: str) -> Library:
    """The library whose arrays come from the root module of that name."""
    if root == "numpy":
        return numpy_library
    (entry,) = importlib.metadata.entry_points(group="normx.libraries", name=root)
    library: Library = entry.load()
    return library


def _from_namespace(namespace: Callable[[], Any]) -> Callable[[NDArray[Any]], Any]:
    return lambda x: namespace().asarray(x)


def homes() -> tuple[Home, ...]:
    """Every installed array library, NumPy first, each once."""
    found: dict[str, Home] = {}
    for root, there in normx.libraries().items():
        if there.usable:
            library = plugin(root)  # one library may own several root modules
            if library.unusable() is not None:
                continue
            make = _MAKERS.get(library.name, _from_namespace(library.namespace))
            compiles = library.name in _COMPILING
            found.setdefault(library.name, Home(library.name, root, make, compiles))
    for name in _WITHOUT_PLUGIN:
        if importlib.util.find_spec(name) is not None:
            make = _from_namespace(lambda name=name: importlib.import_module(name))  # type: ignore[misc]
            found.setdefault(name, Home(name, name, make))
    return tuple(found.values())


def to_numpy(y: Any) -> NDArray[Any]:
    """An array of any library as NumPy's, computed if it was lazy."""
    if isinstance(y, np.ndarray):
        return y
    if hasattr(y, "todense"):
        y = y.todense()
    try:
        return np.asarray(y)
    except (TypeError, ValueError, RuntimeError):
        return np.from_dlpack(y)


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))
