"""What a backend computes, as functions that MLX differentiates."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import mlx.core as mx

from normx import _dispatch as dispatch
from normx._plan import Plan
from normx._reference import compute, gradients_of
from normx._vjp import shaped_as
from normx.plugins import Backend, Call, NotOnHost, Pullback, TopKCall, dtype_name
from normx.topk import softmax_topk

Array = Any

#: Typed as what is not known, like everything of MLX.
_custom_function: Any = mx.custom_function


def differentiable(plan: Plan, backend: str, call: Call) -> Call:
    """A backend's call with gradients, for arrays that are values.

    The first derivative is the backend's where it has one.  Beyond, forward mode, and what is
    asked for inside compile or vmap are the record's formula.
    """
    pullback = _pullback(plan, backend)
    plain = _Pieces(plan, backend, call, pullback)
    function = _function(plain)

    def entered(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        if not is_followed(x, where, *parameters.values()):
            y, kernel = call(x, where, None, parameters)
            ran = [kernel]
        elif where is None and not parameters:
            y, ran = function(x), plain.ran
        else:
            arrays = {name: value for name, value in parameters.items() if hasattr(value, "shape")}
            numbers = {name: value for name, value in parameters.items() if name not in arrays}
            pieces = _Pieces(plan, backend, call, pullback, where, numbers, tuple(arrays))
            y, ran = _function(pieces)(x, *arrays.values()), pieces.ran
        if out is None:
            return y, ran[0]
        # The memory of `out` may be that of other arrays too, which must stay what they are.
        plan.library.assign(out, y)
        return out, ran[0]

    return entered


def differentiable_search(plan: Plan, k: int, search: TopKCall) -> TopKCall:
    """A search for the largest weights, with the gradients of the weights that it finds."""
    (axis,) = plan.axis
    ran = [""]

    def found(x: Array) -> tuple[Array, Array]:
        values, indices, ran[0] = cast(Any, search(x))
        return values, indices

    def picked(indices: Array) -> Callable[[Array], Array]:
        return lambda x: mx.take_along_axis(compute(plan, x, None, {}), indices, axis)

    function = _custom_function(found)

    def vjp(primals: Any, cotangents: Any, results: Any) -> Array:
        return mx.vjp(picked(results[1]), _several(primals), [cotangents[0]])[1][0]

    def jvp(primals: Any, tangents: Any) -> list[Array]:
        indices = found(_several(primals)[0])[1]
        return [_pushed(picked(indices), primals, tangents)[0], mx.zeros_like(indices)]

    def vmap(inputs: Any, axes: Any) -> tuple[list[Array], list[int]]:
        (x,), (mapped,) = _several(inputs), _several(axes)
        return list(softmax_topk(mx.moveaxis(x, mapped, 0), k, axis=axis + 1)), [0, 0]

    function.vjp(vjp)
    function.jvp(jvp)
    function.vmap(vmap)

    def entered(x: Array) -> tuple[Array, Array, str]:
        values, indices = function(x)
        return values, indices, ran[0]

    return entered


# A custom function is a node of the graph even where nothing differentiates, and to evaluate one
# wakes a thread: 59 of the 87 us that a softmax of (64, 1024) took.  MLX does not say whether an
# array is followed, but leaves what `mx.compile` made of a function aside for those that are.

_seen = threading.local()


def _noted(x: Array) -> Array:
    _seen.followed = True
    return x


_compiled: Any = mx.compile(_noted, shapeless=True)


def is_followed(*arrays: Any) -> bool:
    """Whether a transformation of MLX follows one of these, as far as can be told.

    The first array of a dtype and number of axes in each thread is said to be, followed or not.
    """
    return not _tells() or any(_is_followed(x) for x in arrays if isinstance(x, mx.array))


def _is_followed(x: Array) -> bool:
    _seen.followed = False
    _compiled(x)
    return bool(_seen.followed)


@cache
def _tells() -> bool:
    """Whether this MLX is one that leaves compiled functions aside."""
    found: list[bool] = []

    def loss(x: Array) -> Array:
        found.append(_is_followed(x))
        return x

    _is_followed(mx.array(0.0))
    mx.grad(loss)(mx.array(0.0))
    return found == [True]


def _pullback(plan: Plan, backend: str) -> Pullback | None:
    found = dispatch.backend(backend)
    assert isinstance(found, Backend)
    answer = found.gradient(plan)
    return answer if callable(answer) else None


@dataclass(frozen=True, slots=True)
class _Pieces:
    """A call and its derivatives, of the scores and then the arrays among the parameters."""

    plan: Plan
    backend: str
    call: Call
    pullback: Pullback | None
    where: Array | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    #: The kernel of the last call.
    ran: list[str] = field(default_factory=lambda: [""])

    def forward(self, x: Array, *values: Array) -> Array:
        y, self.ran[0] = self.call(x, self.where, None, self._parameters(values))
        return y

    def formula(self, x: Array, *values: Array) -> Array:
        return compute(self.plan, x, self.where, self._parameters(values))

    def gradients(self, y: Array, x: Array, *others: Array) -> list[Array]:
        """The backend's, of the result and the cotangent that comes last."""
        assert self.pullback is not None
        *values, dy = others
        found, kernel = self.pullback(x, self.where, self._parameters(values), y, dy)
        dispatch.traced(f"vjp({self.plan.record.name})", self.backend, kernel)
        return self._shaped(found, x, values)

    def gradients_by_formula(self, x: Array, *others: Array) -> list[Array]:
        *values, dy = others
        if 0 in self.plan.shape:
            return self._shaped({}, x, values)
        found = gradients_of(self.plan, x, self.where, self._parameters(values), dy)
        return self._shaped(found, x, values)

    def _parameters(self, values: Sequence[Array]) -> dict[str, Any]:
        return {**self.numbers, **dict(zip(self.names, values, strict=True))}

    def _shaped(
        self, gradients: Mapping[str, Array], x: Array, values: Sequence[Array]
    ) -> list[Array]:
        """A gradient for each array that has come; 0 for what has none, such as a threshold."""
        return [
            shaped_as(self.plan.library, mx, gradients[name], value, dtype_name(value.dtype))
            if name in gradients
            else mx.zeros_like(value)
            for name, value in zip(("x", *self.names), (x, *values), strict=True)
        ]


# A function must not be reachable from its own pieces: MLX's objects are no part of Python's
# search for cycles, and would never be freed.


def _function(pieces: _Pieces) -> Any:
    function = _custom_function(pieces.forward)

    def vjp(primals: Any, dy: Array, y: Array) -> Any:
        arguments = _several(primals)
        try:
            if pieces.pullback is None:
                raise NotOnHost
            gradients = _gradients(pieces, y)(*arguments, dy)
        except NotOnHost:
            gradients = pieces.gradients_by_formula(*arguments, dy)
        return gradients if pieces.names else gradients[0]

    def jvp(primals: Any, tangents: Any) -> Array:
        return _pushed(pieces.formula, primals, tangents)[0]

    def vmap(inputs: Any, axes: Any) -> tuple[Array, int]:
        return mx.vmap(pieces.formula, in_axes=tuple(_several(axes)))(*_several(inputs)), 0

    function.vjp(vjp)
    function.jvp(jvp)
    if not pieces.plan.on_host:  # kernels in a graph have no rule of their own
        function.vmap(vmap)
    return function


def _gradients(pieces: _Pieces, y: Array) -> Any:
    def by_backend(*arguments: Array) -> list[Array]:
        return pieces.gradients(y, *arguments)

    function = _custom_function(by_backend)

    def vjp(primals: Any, cotangents: Any, _: Any) -> list[Array]:
        moved = mx.vjp(pieces.gradients_by_formula, _several(primals), _several(cotangents))
        return list(moved[1])

    def jvp(primals: Any, tangents: Any) -> list[Array]:
        return _pushed(pieces.gradients_by_formula, primals, tangents)

    def vmap(inputs: Any, axes: Any) -> tuple[list[Array], list[int]]:
        rule = mx.vmap(pieces.gradients_by_formula, in_axes=tuple(_several(axes)))
        mapped = _several(rule(*_several(inputs)))
        return mapped, [0] * len(mapped)

    function.vjp(vjp)
    function.jvp(jvp)
    if not pieces.plan.on_host:
        function.vmap(vmap)
    return function


def _several(arrays: Any) -> list[Array]:
    """What MLX hands over as an array where it is one, as a tuple otherwise."""
    return list(arrays) if isinstance(arrays, tuple | list) else [arrays]


def _pushed(function: Callable[..., Any], primals: Any, tangents: Any) -> list[Array]:
    """The tangents of a function; those of what does not move come as None."""
    points = _several(primals)
    moves = [
        mx.zeros_like(point) if move is None else move
        for point, move in zip(points, _several(tangents), strict=True)
    ]
    return list(mx.jvp(function, points, moves)[1])
