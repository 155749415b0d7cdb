"""Arguments, validated and normalised once, as a frozen plan.

Everything a user can get wrong is refused here, before anything is computed or
written.  A plan depends on types, shapes, dtypes and constants only, so the
dispatcher keeps it for the next call of the same form.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

from normx._errors import described, wrong
from normx._record import Constant, Parameter, Record
from normx.plugins import Call, Library, dtype_name

Array = Any

FLOATS = ("float16", "bfloat16", "float32", "float64")
COMPLEX = ("complex64", "complex128")
NARROW = ("float16", "bfloat16")
INTEGERS = (
    "bool", "bool_",
    "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
EMPTY = ("zero", "nan", "uniform")

TEMPERATURE = Parameter("temperature", shape="row", minimum=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a backend needs to know of a call, besides the arrays.

    Attributes
    ----------
    record : Record
    library : Library
        Whose arrays come in, and go out.
    shape : tuple of int
        Of the scores as the backend gets them.
    axis : tuple of int
        Reduced axes: never negative, in rising order, at least one.
    dtype : str
        Working dtype: the scores come in it and results go out in it.
    where : tuple of int or None
        Shape of the mask as the backend gets it: one entry per axis of `shape`.
    parameters : frozenset of str
        The numeric keywords that were passed and matter.
    empty : {"zero", "nan", "uniform"}
    softcap : float or None
    constants : mapping of str to object
        The keywords that shape the formula.
    out : bool
        Whether the result goes into a given array.
    on_host : bool
        Whether the arrays can be read in host memory.
    on_cuda : bool
        Whether they are in the memory of a CUDA device.
    """

    record: Record
    library: Library
    shape: tuple[int, ...]
    axis: tuple[int, ...]
    dtype: str
    where: tuple[int, ...] | None = None
    parameters: frozenset[str] = frozenset()
    empty: str = "zero"
    softcap: float | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    out: bool = False
    on_host: bool = False
    on_cuda: bool = False

    def away(self) -> Plan:
        """The same for arrays whose values cannot be had now."""
        return replace(self, on_host=False, on_cuda=False)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of what a backend returns."""
        if self.record.kind == "normalizer":
            return self.shape
        return tuple(size for i, size in enumerate(self.shape) if i not in self.axis)


class Prepared:
    """A plan with what surrounds the backend: casts, reshapes, checks of values."""

    __slots__ = (
        "_checks",
        "_constants",
        "_keepdims",
        "_parameter_dtype",
        "_result_dtype",
        "_shape",
        "direct",
        "expand",
        "numbers",
        "plan",
    )

    def __init__(
        self,
        plan: Plan,
        *,
        expand: bool,
        cast: bool,
        result_dtype: str,
        keepdims: tuple[int, ...] | None,
        checks: tuple[Callable[[Mapping[str, Any]], None], ...],
        constants: Mapping[str, Any],
    ) -> None:
        self.plan = plan
        self.expand = expand
        self._result_dtype = result_dtype
        self._keepdims = keepdims
        self._checks = checks
        self._constants = constants
        self._shape = plan.shape[:-1] if expand else plan.shape
        self._parameter_dtype = "float32" if plan.dtype in NARROW else plan.dtype
        bare = not (
            expand or cast or checks or keepdims
            or plan.where is not None or result_dtype != plan.dtype or plan.dtype in COMPLEX
            or plan.record.random or plan.constants.get("return_sign")
            or not plan.result_shape
        )  # fmt: skip
        #: The parameters where they are numbers, and nothing else surrounds the backend.
        self.numbers = constants if bare and plan.parameters <= constants.keys() else None
        #: Nothing surrounds the backend: hand over x (and `out`), return what comes back.
        self.direct = bare and not (constants or plan.parameters)

    def arguments(
        self, x: Array, keywords: Mapping[str, Any], *, draws: bool = True
    ) -> tuple[Array, Array | None, dict[str, Any]]:
        """Scores, mask and parameters in the plan's form, their values checked."""
        plan, library = self.plan, self.plan.library
        for check in self._checks:
            check(keywords)
        xp = library.namespace()
        scores = library.cast(x, plan.dtype)
        if tuple(scores.shape) != self._shape:
            scores = xp.broadcast_to(scores, self._shape)
        if self.expand:
            scores = xp.expand_dims(scores, axis=-1)
        parameters = {
            name: self._constants[name]
            if name in self._constants
            else self._aligned(library.cast(keywords[name], self._parameter_dtype))
            for name in plan.parameters
        }
        if plan.record.random and draws:
            parameters["uniform"] = self.uniform(x, keywords["rng"])
        where = None
        if plan.where is not None:
            where = keywords["where"]
            if isinstance(where, np.bool_) or not hasattr(where, "ndim"):
                where = library.asarray(where, "bool", x)
            where = self._aligned(where)
        return scores, where, parameters

    def uniform(self, x: Array, rng: Any) -> Array:
        """What a random record makes its noise of."""
        drawn = self.plan.library.uniform(rng, self._shape, self._parameter_dtype, x)
        return self._aligned(drawn)

    def run(self, call: Call, x: Array, keywords: Mapping[str, Any]) -> tuple[Any, str]:
        """Bring the arrays into the plan's form, compute, and undo that."""
        plan, library = self.plan, self.plan.library
        scores, where, parameters = (x, None, {}) if self.direct else self.arguments(x, keywords)
        xp = library.namespace()
        out = keywords.get("out")
        place = out
        if out is not None:
            # What a cached plan cannot know: flags may change.
            _check_writable(plan.record.name, library, out)
            # Reshaped or rounded at the end, or written to where something is still to be read.
            read = [a for a in (x, where, *parameters.values()) if hasattr(a, "shape")]
            if (
                self.expand
                or not library.has_dtype(out, plan.dtype)
                or any(library.overlaps(out, array) for array in read)
            ):
                place = None
        result, kernel = call(scores, where, place, parameters)
        if out is not None:
            if place is None:
                library.assign(out, self._finished(xp, result))
            return out, kernel
        if isinstance(result, tuple):
            return tuple(self._finished(xp, part) for part in result), kernel
        return self._finished(xp, result), kernel

    def _finished(self, xp: Any, y: Array) -> Array:
        library = self.plan.library
        if self.expand and self.plan.record.kind == "normalizer":
            y = y[..., 0]
        if self._keepdims is not None:
            y = xp.reshape(y, self._keepdims)
        if self._result_dtype in FLOATS and not library.has_dtype(y, self._result_dtype):
            with library.quiet():  # what is too large for it is infinite
                y = library.cast(y, self._result_dtype)
        return library.finish(y)

    def _aligned(self, array: Array) -> Array:
        """An array keyword with one axis per axis of the scores the backend gets."""
        shape = (1,) * (len(self._shape) - array.ndim) + tuple(array.shape)
        if self.expand:
            shape = (*shape, 1)
        if shape == tuple(array.shape):
            return array
        return self.plan.library.namespace().reshape(array, shape)


def prepare(
    record: Record,
    library: Library,
    x: Array,
    keywords: Mapping[str, Any],
    library_of: Callable[[Any], Library | None],
    *,
    keep_neutral: bool = False,
) -> Prepared:
    """Validate the arguments of a call and make its plan.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        With the function, the argument, what came, what was wanted and the cure.
    """
    name = record.name
    get = _keywords(record, keywords)
    _check_arrays(record, library, x, get)
    dtype, result_dtype = _dtypes(record, library, x, get)
    specs = {p.name: p for p in (*record.parameters, TEMPERATURE) if p.name in get}
    constants: dict[str, Any] = {}
    checks: list[Callable[[Mapping[str, Any]], None]] = []
    present: dict[str, tuple[int, ...]] = {}
    shape = tuple(x.shape)
    for key, spec in specs.items():
        value = get[key]
        if value is None or (_is_neutral(key, value) and not (keep_neutral and key in keywords)):
            continue
        present[key] = _parameter(record, spec, library, x, value, constants, checks, library_of)
        if spec.shape == "elements":
            shape = _broadcast(name, key, shape, present[key], grow=True)
            wider = _with_factors(dtype, value, fixed=get["dtype"] is not None)
            if wider != dtype:
                dtype = result_dtype = wider
    axis = _axes(name, get["axis"], len(shape))
    for key, parameter_shape in present.items():
        _check_parameter_shape(name, specs[key], parameter_shape, shape, axis)
    where_shape = None
    if get["where"] is not None:
        where_shape = _where(name, library, x, get["where"], shape, library_of)
    out = get.get("out")
    if out is not None:
        _check_out(name, library, x, out, shape, result_dtype, library_of)
    constants_of_plan = {c.name: _constant(name, c, get[c.name]) for c in record.constants}
    expand = not axis
    plan = Plan(
        record=record,
        library=library,
        shape=(*shape, 1) if expand else shape,
        axis=(len(shape),) if expand else axis,
        dtype=dtype,
        where=where_shape if where_shape is None or not expand else (*where_shape, 1),
        parameters=frozenset(present),
        empty=_choice(name, "empty", get.get("empty", "zero"), EMPTY),
        softcap=_softcap(name, get.get("softcap")),
        constants=constants_of_plan,
        out=out is not None,
        on_host=library.on_host(x),
        on_cuda=library.on_cuda(x),
    )
    keepdims = None
    if get.get("keepdims"):
        keepdims = tuple(1 if i in axis else size for i, size in enumerate(shape))
    return Prepared(
        plan,
        expand=expand,
        cast=not library.has_dtype(x, dtype) or shape != tuple(x.shape),
        result_dtype=result_dtype,
        keepdims=keepdims,
        checks=tuple(checks),
        constants=constants,
    )


def _keywords(record: Record, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Every keyword of the record, with its default where none was given."""
    own = record.keywords
    for keyword in keywords:
        if keyword not in own:
            known = ", ".join(own)
            raise TypeError(f"normx.{record.name}: unknown keyword `{keyword}`; known are {known}")
    get = {key: p.default for key, p in own.items()} | dict(keywords)
    for key, value in get.items():
        if value is inspect.Parameter.empty:
            raise TypeError(
                f"normx.{record.name}: the keyword `{key}` is missing; it has no default"
            )
    return get


def _check_arrays(record: Record, library: Library, x: Array, get: Mapping[str, Any]) -> None:
    """Refuse scores, and sources of noise, that the library does not take."""
    reason = library.check(x)
    if reason is not None:
        raise wrong(TypeError, record.name, "x", reason, "a plain array of its library")
    if record.random:
        wanted = library.check_rng(get["rng"])
        if wanted is not None:
            raise wrong(TypeError, record.name, "rng", described(get["rng"]), wanted)


def _dtypes(record: Record, library: Library, x: Array, get: Mapping[str, Any]) -> tuple[str, str]:
    """The dtype that is computed with, and that of the result."""
    came = dtype_name(x.dtype)
    if came in INTEGERS:
        working = library.default_float()
    elif came in FLOATS or (record.complex and came in COMPLEX):
        working = came
    else:
        kinds = "real or complex" if record.complex else "real"
        cure = (
            "take its real part or its modulus" if came in COMPLEX else "cast it to float64 first"
        )
        raise wrong(TypeError, record.name, "x", described(x), f"an array of {kinds} numbers", cure)
    if get["dtype"] is None:
        return working, working
    wanted = dtype_name(get["dtype"])
    if wanted not in FLOATS:
        raise wrong(
            TypeError,
            record.name,
            "dtype",
            repr(get["dtype"]),
            f"a floating dtype ({', '.join(FLOATS)})",
        )
    if working in COMPLEX:
        raise wrong(TypeError, record.name, "dtype", repr(get["dtype"]), "None for complex scores")
    try:
        library.dtype(wanted)
    except AttributeError:
        raise wrong(
            TypeError, record.name, "dtype", repr(get["dtype"]), f"a dtype that {library.name} has"
        ) from None
    # A wider result is computed wide; a narrower one is rounded at the end.
    return promoted(working, wanted), wanted


def _is_neutral(key: str, value: Any) -> bool:
    return key == "temperature" and is_number(value) and bool(value == 1)


def _with_factors(dtype: str, factors: Any, *, fixed: bool) -> str:
    """The working dtype for scores of `dtype` and factors of the terms, as SciPy promotes them."""
    if _is_complex(factors):
        return "complex128" if dtype in ("float64", "complex128") else "complex64"
    came = dtype if is_number(factors) or fixed else dtype_name(factors.dtype)
    return promoted(dtype, came) if {dtype, came} <= set(FLOATS) else dtype


def promoted(a: str, b: str) -> str:
    """The narrowest floating dtype that holds both."""
    return "float32" if {a, b} == set(NARROW) else max(a, b, key=FLOATS.index)


def _axes(function: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """Normalise `axis`: rising, not negative; () where every entry is a row of its own."""
    if axis is None:
        return tuple(range(ndim))
    entries = axis if isinstance(axis, tuple) else (axis,)
    normal = []
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int | np.integer):
            raise wrong(TypeError, function, "axis", repr(axis), "an int, a tuple of ints or None")
        if ndim == 0 and entry in (0, -1):
            continue  # a number is a row of one entry
        if not -ndim <= entry < ndim:
            raise AxisError(
                f"normx.{function}: `axis` must be between {-max(ndim, 1)} and "
                f"{max(ndim, 1) - 1} for an array of "
                f"{ndim} dimensions, not {axis!r}"
            )
        normal.append(int(entry) % ndim)
    if len(set(normal)) != len(normal):
        raise AxisError(
            f"normx.{function}: `axis` must name each axis once, not {axis!r} for an array of "
            f"{ndim} dimensions"
        )
    return tuple(sorted(normal))


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Number | np.number) and not isinstance(value, bool)


def _python_number(value: Any) -> Any:
    """A number as Python's own, which every library takes."""
    return complex(value) if isinstance(value, complex | np.complexfloating) else float(value)


def _is_complex(value: Any) -> bool:
    if is_number(value):
        return isinstance(value, complex | np.complexfloating)
    return dtype_name(value.dtype) in COMPLEX


def _parameter(
    record: Record,
    spec: Parameter,
    library: Library,
    x: Array,
    value: Any,
    constants: dict[str, Any],
    checks: list[Callable[[Mapping[str, Any]], None]],
    library_of: Callable[[Any], Library | None],
) -> tuple[int, ...]:
    """Check one numeric keyword; its shape."""
    function, name = record.name, spec.name
    wanted = "a number or an array of numbers"
    if spec.range:
        wanted += f" that are {spec.range}"
    if is_number(value):
        if isinstance(value, complex | np.complexfloating) and not spec.complex:
            raise wrong(TypeError, function, name, repr(value), wanted)
        if spec.range and not spec.allows(value):
            raise wrong(ValueError, function, name, repr(value), wanted, _cure(name))
        try:
            constants[name] = _python_number(value)
        except OverflowError:
            raise wrong(ValueError, function, name, "too large a number", wanted) from None
        return ()
    _same_home(function, name, library, x, value, wanted, library_of)
    came = dtype_name(value.dtype)
    if came not in FLOATS and came not in INTEGERS and not (spec.complex and came in COMPLEX):
        raise wrong(TypeError, function, name, described(value), wanted)
    if spec.range:

        def check(keywords: Mapping[str, Any]) -> None:
            array = keywords[name]
            if library.is_concrete(array) and not np.all(spec.allows(library.to_numpy(array))):
                raise wrong(
                    ValueError,
                    function,
                    name,
                    "an array with other values",
                    wanted,
                    _cure(name),
                )

        checks.append(check)
    return tuple(value.shape)


def _cure(name: str) -> str:
    return "to reverse the order, negate the scores" if name == "temperature" else ""


def _same_home(
    function: str,
    name: str,
    library: Library,
    x: Array,
    value: Any,
    wanted: str,
    library_of: Callable[[Any], Library | None],
) -> None:
    """Refuse an array of another library or device than that of `x`."""
    home = library_of(value)
    if home is None or not hasattr(value, "dtype"):
        raise wrong(TypeError, function, name, described(value), wanted)
    if home is not library:
        raise wrong(
            TypeError,
            function,
            name,
            described(value),
            f"an array of {library.name}, the library of `x`",
            f"convert it with {library.name}'s own function first",
        )
    reason = library.check(value, name)
    if reason is not None:
        raise wrong(TypeError, function, name, reason, "a plain array of its library")
    here, there = library.device(x), library.device(value)
    if here is not None and there is not None and here != there:
        raise wrong(
            ValueError,
            function,
            name,
            f"one on {there}",
            f"on the device of `x`, {here}",
        )


def _broadcast(
    function: str, name: str, shape: tuple[int, ...], other: tuple[int, ...], *, grow: bool = False
) -> tuple[int, ...]:
    try:
        both = np.broadcast_shapes(shape, other)
    except ValueError:
        both = None
    if both is None or (not grow and both != shape):
        raise wrong(
            ValueError,
            function,
            name,
            f"an array of shape {other}",
            f"broadcastable against shape {shape}",
        )
    return both


def _check_parameter_shape(
    function: str,
    spec: Parameter,
    came: tuple[int, ...],
    shape: tuple[int, ...],
    axis: tuple[int, ...],
) -> None:
    padded = (1,) * (len(shape) - len(came)) + came
    if len(came) > len(shape):
        raise wrong(
            ValueError,
            function,
            spec.name,
            f"an array of shape {came}",
            f"of at most {len(shape)} axes",
        )
    if spec.shape == "row":
        rows = tuple(1 if i in axis else size for i, size in enumerate(shape))
        if any(size not in (1, row) for size, row in zip(padded, rows, strict=True)):
            raise wrong(
                ValueError,
                function,
                spec.name,
                f"an array of shape {came}",
                f"broadcastable against shape {rows}, one value per row",
                "keep the reduced axes at size 1 (keepdims=True)",
            )
    elif spec.shape == "along":
        outer = [
            (s, size)
            for i, (s, size) in enumerate(zip(padded, shape, strict=True))
            if i not in axis
        ]
        if any(s not in (1, size) for s, size in outer):
            raise wrong(
                ValueError,
                function,
                spec.name,
                f"an array of shape {came}",
                f"broadcastable against shape {shape}, save along the reduced axes {axis}",
            )


def _where(
    function: str,
    library: Library,
    x: Array,
    where: Any,
    shape: tuple[int, ...],
    library_of: Callable[[Any], Library | None],
) -> tuple[int, ...]:
    wanted = "an array of bool, True for the entries that take part"
    if isinstance(where, bool | np.bool_):
        return (1,) * len(shape)
    if isinstance(where, list | tuple) and library_of(where) is library:
        array = np.asarray(where)
    else:
        _same_home(function, "where", library, x, where, wanted, library_of)
        array = where
    if dtype_name(array.dtype) not in ("bool", "bool_"):
        raise wrong(
            TypeError, function, "where", described(array), wanted, "compare it: where=mask != 0"
        )
    _broadcast(function, "where", shape, tuple(array.shape))
    return (1,) * (len(shape) - array.ndim) + tuple(array.shape)


def _check_out(
    function: str,
    library: Library,
    x: Array,
    out: Any,
    shape: tuple[int, ...],
    dtype: str,
    library_of: Callable[[Any], Library | None],
) -> None:
    if not library.mutable:
        raise wrong(
            TypeError,
            function,
            "out",
            described(out),
            f"absent for arrays of {library.name}, which cannot be written to",
            "use the result",
        )
    wanted = f"an array of {library.name} of shape {shape} and dtype {dtype}"
    _same_home(function, "out", library, x, out, wanted, library_of)
    if tuple(out.shape) != shape or dtype_name(out.dtype) != dtype:
        raise wrong(ValueError, function, "out", described(out), wanted)
    _check_writable(function, library, out)


def _check_writable(function: str, library: Library, out: Any) -> None:
    reason = library.check_out(out)
    if reason is not None:
        raise wrong(ValueError, function, "out", reason, "writable, entry by entry")


def _softcap(function: str, value: Any) -> float | None:
    if value is None:
        return None
    wanted = "a number above 0, or None"
    if not is_number(value) or isinstance(value, complex | np.complexfloating):
        raise wrong(TypeError, function, "softcap", described(value), wanted)
    if not value > 0:
        raise wrong(ValueError, function, "softcap", repr(value), wanted)
    return None if math.isinf(value) else float(value)


def _choice(function: str, name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        choices = ", ".join(map(repr, known))
        raise wrong(ValueError, function, name, repr(value), f"one of {choices}")
    return str(value)


def _constant(function: str, constant: Constant, value: Any) -> Any:
    kind: type[Exception] = ValueError
    try:
        normal = constant.normal(value)
    except TypeError:
        normal, kind = None, TypeError
    if normal is None:
        raise wrong(kind, function, constant.name, described(value), constant.wanted)
    return normal
