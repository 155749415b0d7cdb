"""Arrays of other libraries that lie in host memory: the kernels read them where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from normx._libraries import numpy_library
from normx._plan import Plan
from normx.plugins import Call, Library, NotOnHost, Pullback, Refusal, TopKCall

Array = Any
Kernel = TypeVar("Kernel")


def on_host(
    plan: Plan,
    make: Callable[[Plan, Library], Kernel | Refusal],
    wrap: Callable[[Library, Kernel], Kernel],
) -> Kernel | Refusal:
    """What `make` makes of a plan for NumPy's arrays, wrapped for those of the plan's library."""
    library = plan.library
    if library is numpy_library:
        return make(plan, library)
    if not plan.on_host:
        return Refusal(f"reads host memory, and these arrays of {library.name} are not there")
    try:
        numpy_library.dtype(plan.dtype)
    except ImportError:
        return Refusal(f"reads {plan.dtype} with ml_dtypes, which is not installed")
    kernel = make(replace(plan, library=numpy_library), library)
    return kernel if isinstance(kernel, Refusal) else wrap(library, kernel)


def forward(library: Library, call: Call) -> Call:
    """A call on NumPy's arrays as one on a library's."""
    view, adopt = library.host_view, library.host_adopt

    def on_views(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        place = None if out is None else view(out)
        y, kernel = call(view(x), _view(library, where), place, _views(library, parameters))
        return adopt(y) if out is None else out, kernel

    return on_views


def forward_at(library: Library, call: Call) -> Call:
    """As `forward`, for a kernel that reads contiguous scores by their address."""
    on_views = forward(library, call)
    address, adopt = library.host_address, library.host_adopt

    def at_address(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        if out is not None or (place := address(x)) is None:
            return on_views(x, where, out, parameters)
        y, kernel = call(place, None, None, parameters)
        return adopt(y), kernel

    return at_address


def backward(library: Library, pullback: Pullback) -> Pullback:
    """A pullback on NumPy's arrays as one on a library's."""

    def on_views(
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
        y: Array | None,
        dy: Array,
    ) -> tuple[dict[str, Array], str]:
        gradients, kernel = pullback(
            library.host_view(x),
            _view(library, where),
            _views(library, parameters),
            _view(library, y),
            library.host_view(dy),
        )
        return {name: library.host_adopt(of) for name, of in gradients.items()}, kernel

    return on_views


def topk(library: Library, call: TopKCall) -> TopKCall:
    """A search in NumPy's arrays as one in a library's."""

    def on_views(x: Array) -> tuple[Array, Array, str] | Refusal:
        try:
            found = call(library.host_view(x))
        except NotOnHost:
            return Refusal(f"cannot read these arrays of {library.name} now")
        if isinstance(found, Refusal):
            return found
        values, indices, kernel = found
        return library.host_adopt(values), library.host_adopt(indices), kernel

    return on_views


def _view(library: Library, value: Any) -> Any:
    return library.host_view(value) if hasattr(value, "shape") else value


def _views(library: Library, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _view(library, value) for name, value in parameters.items()}
