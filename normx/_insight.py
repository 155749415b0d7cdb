"""What is there, what it can do, and how many threads it uses."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np

from normx._dispatch import (
    _asked,
    backend,
    backend_names,
    chosen_backend,
    implementation,
    library,
    library_names,
    library_of,
)
from normx._errors import wrong
from normx._plan import FLOATS, prepare
from normx._record import registry
from normx.plugins import Backend, Refusal

_MOST_THREADS = 4096


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend or library can be used here.

    Attributes
    ----------
    name : str
    usable : bool
    reason : str
        What it is, or why it cannot be used.
    """

    name: str
    usable: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {'' if self.usable else 'not usable: '}{self.reason}"


def backends() -> dict[str, Availability]:
    """List the backends: who can compute.

    Returns
    -------
    dict of str to Availability
        By name, in the order in which NumPy arrays try them last to first.

    Examples
    --------
    >>> import normx
    >>> normx.backends()["reference"].usable
    True
    """
    found = {}
    for name in backend_names():
        candidate = backend(name)
        if isinstance(candidate, Refusal):
            found[name] = Availability(name, False, candidate.reason)
        else:
            found[name] = Availability(name, True, candidate.description())
    return found


def libraries() -> dict[str, Availability]:
    """List the array libraries that normx knows by name.

    Arrays of any other library that speaks the array API work too.

    Returns
    -------
    dict of str to Availability
        By the root module of the array type.  Nothing is imported to find out.

    Examples
    --------
    >>> import normx
    >>> normx.libraries()["numpy"].usable
    True
    """
    found = {}
    for name in library_names():
        installed = importlib.util.find_spec(name) is not None
        reason = "installed" if installed else "not installed"
        found[name] = Availability(name, installed, reason)
    return found


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether a backend computes a function for a library's arrays of one dtype."""

    function: str
    library: str
    backend: str
    dtype: str
    supported: bool
    gradient: bool
    reason: str


def capabilities() -> tuple[Capability, ...]:
    """Compute what runs where, by asking every backend.

    Returns
    -------
    tuple of Capability
        One per function, installed library, backend that the library prefers, and
        dtype.  `gradient` says whether the record has a gradient.

    Examples
    --------
    >>> import normx
    >>> rows = [row for row in normx.capabilities() if row.library == "numpy"]
    >>> {row.supported for row in rows if row.backend == "reference"}
    {True}
    """
    chosen_backend()  # a wrong NORMX_BACKEND is told here too
    rows = []
    for name, availability in libraries().items():
        if not availability.usable:
            continue
        home = library(name)
        if home.unusable() is not None:
            continue
        example = home.from_numpy(np.zeros((2, 3), np.float32))
        for dtype in FLOATS:
            try:
                x = home.cast(example, dtype)
            except (AttributeError, ImportError, TypeError, ValueError):
                continue  # a dtype that the library does not have
            for record in registry().values():
                example = record.example_for(home)
                plan = prepare(record, home, x, example, library_of).plan
                for candidate in home.preference:
                    if candidate not in backend_names():
                        continue
                    ((_, answer),) = _asked(plan, candidate, implementation)
                    supported = not isinstance(answer, Refusal)
                    reason = answer.reason if isinstance(answer, Refusal) else ""
                    rows.append(
                        Capability(
                            record.name,
                            name,
                            candidate,
                            dtype,
                            supported,
                            record.vjp is not None,
                            reason,
                        )
                    )
    return tuple(rows)


def get_num_threads() -> int:
    """Say how many threads the CPU backend computes with.

    Returns
    -------
    int
        NORMX_NUM_THREADS, or the number of CPUs this process may use, unless
        `set_num_threads` chose another.  1 where no backend has threads.

    Examples
    --------
    >>> import normx
    >>> normx.get_num_threads() >= 1
    True
    """
    return max(
        found.num_threads() for found in map(backend, backend_names()) if isinstance(found, Backend)
    )


def set_num_threads(count: int, /) -> None:
    """Choose how many threads the CPU backend computes with.

    Parameters
    ----------
    count : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If `count` is no whole number, or below 1.

    Examples
    --------
    >>> import normx
    >>> before = normx.get_num_threads()
    >>> normx.set_num_threads(1)
    >>> normx.set_num_threads(before)
    """
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise wrong(TypeError, "set_num_threads", "count", repr(count), "a whole number")
    if not 1 <= count <= _MOST_THREADS:
        wanted = f"from 1 to {_MOST_THREADS}"
        raise wrong(ValueError, "set_num_threads", "count", repr(count), wanted)
    for found in map(backend, backend_names()):
        if isinstance(found, Backend):
            found.set_num_threads(count)
