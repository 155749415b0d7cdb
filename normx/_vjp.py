"""Gradients for libraries without automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from normx._dispatch import _arrive, choose_gradient, library_of, traced
from normx._errors import described, wrong
from normx._plan import FLOATS, INTEGERS, TEMPERATURE, Plan, Prepared, prepare
from normx._record import Record, record_of
from normx.plugins import Library, NotOnHost, dtype_name

Array = Any


def vjp(
    f: Callable[..., Any] | str, x: Any, /, *args: Any, **params: Any
) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
    """Compute a function and its vector-Jacobian product.

    Parameters
    ----------
    f : function or str
        A function of normx, or its name.
    x : array
        As for `f`.
    *args, **params
        As for `f`; `out` is refused.

    Returns
    -------
    y : array
        ``f(x, **params)``.
    pullback : callable
        ``pullback(dy)`` takes an array of the shape of `y` and returns a dict with
        the gradient of ``sum(y * dy)`` under the key ``"x"`` and one per numeric
        parameter that was passed, each in the shape of what was passed.  Entries
        left out and empty rows receive exactly 0.  Neither `x` nor `y` may
        change in between.

    Raises
    ------
    TypeError, ValueError
        What `f` itself raises; also for `out`, for complex numbers, and for `dy` of
        another shape or library.

    Examples
    --------
    >>> import normx
    >>> y, pullback = normx.vjp(normx.softmax, [0.0, 0.0])
    >>> pullback(normx.softmax([1.0, 0.0]))["x"].round(4)
    array([ 0.1155, -0.1155])
    """
    own = getattr(f, "vjp", None)
    if own is not None:  # functions that are no records bring their own
        return cast(tuple[Any, Callable[[Any], dict[str, Any]]], own(x, *args, **params))
    record = record_of(f)
    check(record, args, params)
    library, x = _arrive(record, x)
    again = params
    if "rng" in params:  # the pullback is that of the same noise
        again = {**params, "rng": library.copy_of_rng(params["rng"])}
    y = record.function(x, **params)
    return y, pullback_of(record, x, y, again)


def check(record: Record, args: tuple[Any, ...], params: Mapping[str, Any]) -> None:
    """Refuse what a function takes and its gradients do not."""
    if args:
        raise TypeError(f"normx.vjp: {record.name} takes one array; keywords come by name")
    if params.get("out") is not None:
        raise wrong(TypeError, "vjp", "out", "given", "absent", "the result is returned")


def names_of(record: Record, params: Mapping[str, Any]) -> tuple[str, ...]:
    """What has a gradient: the scores, and the numeric keywords that were passed."""
    named = (parameter.name for parameter in (*record.parameters, TEMPERATURE))
    return ("x", *(name for name in named if params.get(name) is not None))


def pullback_of(
    record: Record, x: Array, y: Any, params: Mapping[str, Any]
) -> Callable[[Any], dict[str, Any]]:
    """The vector-Jacobian product of a call with the result `y`; a source of noise is copied."""
    library = cast(Library, library_of(x))
    shape_of_y = tuple(y.shape) if hasattr(y, "shape") else None
    prepared = prepare(record, library, x, params, library_of, keep_neutral=True)
    plan = prepared.plan
    if plan.dtype.startswith("complex") or record.vjp is None or plan.constants.get("return_sign"):
        raise wrong(
            TypeError,
            "vjp",
            "f",
            f"{record.name} with complex numbers or a sign",
            "a real function",
        )
    passed = {name: params[name] for name in names_of(record, params) if name != "x"}
    # The result as the backend returned it, if nothing was done to it afterwards.
    same = y is not None and not prepared.expand and library.has_dtype(y, plan.dtype)
    result = y if same and shape_of_y == plan.result_shape else None
    if 0 not in plan.shape:
        by, gradient_of = choose_gradient(plan, params)

    def pullback(dy: Array) -> dict[str, Array]:
        home, dy = _arrive(record, dy)
        name = dtype_name(dy.dtype)
        real = name in (*FLOATS, *INTEGERS)
        if home is not library or tuple(dy.shape) != shape_of_y or not real:
            raise wrong(
                ValueError,
                "vjp",
                "dy",
                described(dy),
                f"a real array of {library.name} of shape {shape_of_y}",
            )
        scores, where, arrays = _arguments(prepared, x, params)
        if 0 in plan.shape:
            return of_nothing(plan, x, passed)
        xp = library.namespace()
        dy = xp.reshape(dy, plan.result_shape)
        name = name if name in FLOATS else plan.dtype
        if not library.has_dtype(dy, name):  # integers, or another order of bytes
            dy = library.cast(dy, name)
        who = by
        try:
            gradients, kernel = gradient_of(scores, where, arrays, result, dy)
        except NotOnHost:
            who, other = choose_gradient(plan.away(), params)
            gradients, kernel = other(scores, where, arrays, result, dy)
        for name in passed.keys() - gradients.keys():  # a threshold, say, has gradient 0
            gradients[name] = xp.zeros_like(gradients["x"])
        if kernel:
            traced(f"vjp({record.name})", who, kernel)
        return {
            name: shaped_as(
                library,
                xp,
                gradient[..., 0] if prepared.expand else gradient,
                x if name == "x" else passed[name],
                plan.dtype,
            )
            for name, gradient in gradients.items()
            if name == "x" or name in passed
        }

    return pullback


def _arguments(
    prepared: Prepared, x: Array, keywords: Mapping[str, Any]
) -> tuple[Array, Array | None, Mapping[str, Array]]:
    """What a pullback takes besides the result, with noise that may be drawn twice."""
    scores, where, parameters = prepared.arguments(x, keywords, draws=False)
    if not prepared.plan.record.random:
        return scores, where, parameters
    copied = prepared.plan.library.copy_of_rng
    return scores, where, _Drawn(parameters, lambda: prepared.uniform(x, copied(keywords["rng"])))


class _Drawn(Mapping[str, Array]):
    """Parameters whose noise is drawn when somebody looks at it.

    A gradient that starts from the result needs none.  Expected: that of softmax itself.
    Measured, (1024, 4096) floats: 1.4 ms instead of 34, softmax's 1.6.
    """

    def __init__(self, given: dict[str, Array], draw: Callable[[], Array]) -> None:
        self._given, self._draw = given, draw

    def __getitem__(self, name: str) -> Array:
        if name == "uniform" and name not in self._given:
            self._given[name] = self._draw()
        return self._given[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._given, "uniform": None})

    def __len__(self) -> int:
        return len({*self._given, "uniform"})


def of_nothing(plan: Plan, x: Array, passed: Mapping[str, Any]) -> dict[str, Array]:
    """The gradients where there are no scores: zeros."""
    return {
        name: plan.library.full(tuple(getattr(value, "shape", ())), 0.0, plan.dtype, x)
        for name, value in {"x": x, **passed}.items()
    }


def shaped_as(library: Any, xp: Any, gradient: Array, value: Any, dtype: str) -> Array:
    """The gradient summed back over the axes along which `value` was broadcast."""
    shape = tuple(getattr(value, "shape", ()))
    if shape == tuple(gradient.shape) and library.has_dtype(gradient, dtype):
        return library.finish(gradient)
    padded = (1,) * (gradient.ndim - len(shape)) + shape
    spread = tuple(i for i, size in enumerate(padded) if size == 1 and gradient.shape[i] != 1)
    with library.quiet():  # infinities may meet; what is too large for the dtype is one
        if spread:
            gradient = xp.sum(gradient, axis=spread, keepdims=True)
        return library.finish(library.cast(xp.reshape(gradient, shape), dtype))
