"""Arrays of other libraries that lie in host memory: the kernels read them where they are.

Those that come later, which a compiler traces meanwhile, go through the library's `staged`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from normx._libraries import numpy_library
from normx._plan import Plan
from normx.plugins import Call, Library, Pullback, Refusal, TopKCall
from normx_native import _staged

Array = Any
Kernel = TypeVar("Kernel")


def on_host(
    plan: Plan,
    make: Callable[[Plan, Library], Kernel | Refusal],
    wrap: Callable[[Plan, Kernel], Kernel],
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
    return kernel if isinstance(kernel, Refusal) else wrap(plan, kernel)


def forward(plan: Plan, call: Call) -> Call:
    """A call on NumPy's arrays as one on a library's."""
    library = plan.library
    view, adopt, at_hand = library.host_view, library.host_adopt, library.at_hand

    def on_views(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        if not at_hand((x, where, *parameters.values())):
            kernel, operands = _staged.kernel(plan, x, where, parameters)
            return library.staged(kernel, *operands)[0], kernel.label
        place = None if out is None else view(out)
        y, label = call(view(x), _view(library, where), place, _views(library, parameters))
        return adopt(y) if out is None else out, label

    return on_views


def forward_at(plan: Plan, call: Call) -> Call:
    """As `forward`, for a kernel that reads contiguous scores by their address."""
    library = plan.library
    on_views = forward(plan, call)
    address, adopt = library.host_address, library.host_adopt

    def at_address(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        if out is not None or (place := address(x)) is None:
            return on_views(x, where, out, parameters)
        y, kernel = call(place, None, None, parameters)
        return adopt(y), kernel

    return at_address


def backward(plan: Plan, pullback: Pullback) -> Pullback:
    """A pullback on NumPy's arrays as one on a library's."""
    library = plan.library

    def on_views(
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
        y: Array | None,
        dy: Array,
    ) -> tuple[dict[str, Array], str]:
        if not library.at_hand((x, where, *parameters.values(), dy)):
            kernel, operands = _staged.kernel(plan, x, where, parameters)
            wanted = tuple(name for name in kernel.names if name != "where")
            back = kernel.pullback(wanted)
            if y is None:
                (y,) = library.staged(kernel, *operands)
            results = library.staged(back, *operands, y, dy)
            return dict(zip(wanted, results, strict=True)), back.label
        gradients, label = pullback(
            library.host_view(x),
            _view(library, where),
            _views(library, parameters),
            _view(library, y),
            library.host_view(dy),
        )
        return {name: library.host_adopt(of) for name, of in gradients.items()}, label

    return on_views


def backward_at(plan: Plan, pullback: Pullback) -> Pullback:
    """As `backward`, for a kernel that reads contiguous scores, results and cotangents."""
    library = plan.library
    on_views = backward(plan, pullback)
    address, adopt = library.host_address, library.host_adopt

    def at_address(
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
        y: Array | None,
        dy: Array,
    ) -> tuple[dict[str, Array], str]:
        if y is not None and x.dtype == dy.dtype == y.dtype:
            places = address(x), address(y), address(dy)
            if None not in places:
                of_x, of_y, of_dy = places
                gradients, label = pullback(of_x, None, parameters, of_y, of_dy)
                return {"x": adopt(gradients["x"])}, label
        return on_views(x, where, parameters, y, dy)

    return at_address


def topk(plan: Plan, call: TopKCall) -> TopKCall:
    """A search in NumPy's arrays as one in a library's."""
    library = plan.library

    def on_views(x: Array) -> tuple[Array, Array, str] | Refusal:
        found = call(library.host_view(x))
        if isinstance(found, Refusal):
            return found
        values, indices, kernel = found
        return library.host_adopt(values), library.host_adopt(indices), kernel

    return on_views


def _view(library: Library, value: Any) -> Any:
    return library.host_view(value) if hasattr(value, "shape") else value


def _views(library: Library, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _view(library, value) for name, value in parameters.items()}
