"""Queries, keys and values, checked once and brought into one form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from normx._dispatch import library_of
from normx._errors import described, wrong
from normx._plan import FLOATS, INTEGERS, NARROW, is_number, promoted
from normx.plugins import Library, dtype_name

Array = Any

LAYOUTS = ("bhld", "blhd")


class Form(NamedTuple):
    """How outputs go out: the fields are those of `Heads`."""

    group: int
    dtype: str
    layout: str

    def natural(self, xp: Any, x: Array) -> Array:
        """An array (..., Lq, something) with the heads as the user sees them."""
        if self.group == 1:
            return x
        *batch, heads, group, rows, columns = x.shape
        return xp.reshape(x, (*batch, heads * group, rows, columns))

    def finished(self, library: Library, x: Array) -> Array:
        """Outputs in the dtype and layout that the user wants."""
        xp = library.namespace()
        x = library.cast(self.natural(xp, x), self.dtype)
        return _moved(xp, x) if self.layout == "blhd" else x


@dataclass(frozen=True)
class Heads:
    """What attends to what.

    Attributes
    ----------
    library : Library
    q, k, v : array
        In the dtype of the arithmetic, (..., length, size).  Where query heads share keys they
        have the axes (key heads, group, length, size), with a group of one for `k` and `v`.
    scores : tuple of int
        Shape of the scores as the user sees it: (..., heads, Lq, Lk).
    group : int
        How many query heads share the keys of one.
    dtype : str
        Of the result.
    layout : str
    shapes, forms : mapping of str to tuple of int
        Of `q`, `k` and `v`: as they came, and in the form of this.
    """

    library: Library
    q: Array
    k: Array
    v: Array
    scores: tuple[int, ...]
    group: int
    dtype: str
    layout: str
    shapes: Mapping[str, tuple[int, ...]]
    forms: Mapping[str, tuple[int, ...]]

    @property
    def xp(self) -> Any:
        """The array-API namespace."""
        return self.library.namespace()

    @property
    def size(self) -> int:
        """How many numbers a query has."""
        return int(self.q.shape[-1])

    @property
    def lengths(self) -> tuple[int, int]:
        """How many queries and keys there are."""
        return self.scores[-2], self.scores[-1]

    @property
    def offset(self) -> int:
        """How many keys the first query of a causal attention sees, less one."""
        return self.scores[-1] - self.scores[-2]

    @cached_property
    def lead(self) -> tuple[int, ...]:
        """The axes of the scores before queries and keys, as they are computed."""
        return _common(*(tuple(x.shape[:-2]) for x in (self.q, self.k, self.v)))

    def aligned(self, x: Array) -> Array:
        """An array that broadcasts against the scores as the user sees them, for them as here."""
        if self.group == 1 or len(x.shape) < 3:
            return x
        *batch, heads, rows, columns = x.shape
        split = (heads // self.group, self.group) if heads > 1 else (1, 1)
        return self.xp.reshape(x, (*batch, *split, rows, columns))

    def natural(self, x: Array) -> Array:
        """An array (..., Lq, something) with the heads as the user sees them."""
        return self.form.natural(self.xp, x)

    def finished(self, x: Array) -> Array:
        """Outputs in the dtype and layout that the user wants."""
        return self.form.finished(self.library, x)

    @property
    def form(self) -> Form:
        """What the user wants of the outputs."""
        return Form(self.group, self.dtype, self.layout)

    def entered(self, x: Array) -> Array:
        """The reverse of `finished`: a cotangent of the outputs in the form of this."""
        x = self.library.cast(x, dtype_name(self.q.dtype))
        return _split(self.xp, _moved(self.xp, x) if self.layout == "blhd" else x, self.group)

    def returned(self, name: str, x: Array) -> Array:
        """The gradient of `q`, `k` or `v` in the shape in which that came."""
        xp, shape, mine = self.xp, self.shapes[name], self.forms[name]
        spread = tuple(i for i, n in enumerate(mine) if n == 1 and x.shape[i] != 1)
        if spread:
            x = xp.sum(x, axis=spread, keepdims=True)
        if self.layout == "blhd":
            flat = (*x.shape[:-4], x.shape[-4] * x.shape[-3], *x.shape[-2:])
            x = _moved(xp, xp.reshape(x, flat) if self.group > 1 else x)
        return self.library.cast(xp.reshape(x, shape), self.dtype)


def _common(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that some shapes broadcast to."""
    first, *others = shapes
    if all(shape == first for shape in others):  # NumPy takes 2 microseconds to see it
        return first
    return np.broadcast_shapes(*shapes)


def _moved(xp: Any, x: Array) -> Array:
    """(..., L, H, d) for (..., H, L, d), and the other way round."""
    n = x.ndim
    return xp.permute_dims(x, (*range(n - 3), n - 2, n - 3, n - 1))


def _split(xp: Any, x: Array, group: int) -> Array:
    """The axis of heads as one of key heads and one of those that share them."""
    if group == 1:
        return x
    *batch, heads, rows, columns = x.shape
    return xp.reshape(x, (*batch, heads // group, group, rows, columns))


def heads_of(function: str, q: Any, k: Any, v: Any, layout: str = "bhld") -> Heads:
    """Check queries, keys and values."""
    if layout not in LAYOUTS:
        known = " or ".join(map(repr, LAYOUTS))
        cure = "b stands for the batch, h for heads, l for the length, d for the numbers of a head"
        raise wrong(ValueError, function, "layout", repr(layout), known, cure)
    library, arrays = arrays_of(function, {"q": q, "k": k, "v": v})
    shapes = {name: tuple(x.shape) for name, x in arrays.items()}
    xp = library.namespace()
    least = 3 if layout == "blhd" else 2
    for name, shape in shapes.items():
        if len(shape) < least:
            axes = "(..., length, heads, size)" if least == 3 else "(..., length, size)"
            raise wrong(ValueError, function, name, f"of shape {shape}", f"of shape {axes}")
    dtype, working = dtypes_of(library, arrays)
    q, k, v = (library.cast(x, working) for x in arrays.values())
    if layout == "blhd":
        q, k, v = (_moved(xp, x) for x in (q, k, v))
    _check_sizes(function, shapes, q, k, v)
    ndim = max(x.ndim for x in (q, k, v))
    if not q.ndim == k.ndim == v.ndim:
        q, k, v = (xp.reshape(x, (1,) * (ndim - x.ndim) + tuple(x.shape)) for x in (q, k, v))
    group = 1
    if ndim > 2:
        group = _group(function, shapes, q.shape[-3], k.shape[-3], v.shape[-3])
    batches = [tuple(x.shape[:-3]) for x in (q, k, v)]
    try:
        batch = _common(*batches)
    except ValueError:
        wanted = f"of axes before the heads that fit those of `q`, {shapes['q']}"
        raise wrong(
            ValueError, function, "k", f"of shape {shapes['k']} beside v {shapes['v']}", wanted
        ) from None
    count = (max(x.shape[-3] for x in (q, k, v)),) if ndim > 2 else ()
    scores = (*batch, *count, q.shape[-2], k.shape[-2])
    if group > 1:
        q = _split(xp, q, group)
        k, v = (xp.expand_dims(x, axis=-3) for x in (k, v))
    forms = {name: tuple(x.shape) for name, x in zip("qkv", (q, k, v), strict=True)}
    heads = Heads(library, q, k, v, scores, group, dtype, layout, shapes, forms)
    if _common(forms["q"][:-2], forms["k"][:-2]) != heads.lead:
        # The values alone have some axis: then the scores have it too.
        heads = replace(heads, q=xp.broadcast_to(q, (*heads.lead, *q.shape[-2:])))
    return heads


def arrays_of(function: str, given: Mapping[str, Any]) -> tuple[Library, dict[str, Array]]:
    """The library of some arrays, and these as its arrays; lists and numbers are NumPy's."""
    arrays: dict[str, Array] = {}
    first: Library | None = None
    for name, value in given.items():
        library, x = _array_of(function, name, value)
        if first is not None:
            same_home(function, name, first, next(iter(arrays.values())), x)
        first = first or library
        arrays[name] = x
    assert first is not None
    return first, arrays


def _array_of(function: str, name: str, value: Any) -> tuple[Library, Array]:
    wanted = "an array of real numbers"
    library, x = library_of(value), value
    if library is None:
        raise wrong(TypeError, function, name, described(value), wanted)
    if library.name == "numpy" and not hasattr(value, "dtype"):
        try:
            x = np.asarray(value)
        except ValueError:
            came, cure = "a ragged list", "an array or a regular nested list"
            raise wrong(TypeError, function, name, came, cure) from None
    reason = library.check(x, name)
    if reason is not None:
        raise wrong(TypeError, function, name, reason, "a plain array of its library")
    if library.name == "sparse":
        cure = f"pass {name}.todense()"
        raise wrong(TypeError, function, name, described(x), "a dense array", cure)
    if dtype_name(x.dtype) not in (*FLOATS, *INTEGERS):
        raise wrong(TypeError, function, name, described(x), wanted)
    return library, x


def same_home(function: str, name: str, library: Library, beside: Array, value: Any) -> None:
    """Refuse an array of another library or device than that of the first one."""
    home = library_of(value)
    if home is None or home.name != library.name:  # a compiler may have two of one library
        wanted = f"an array of {library.name}, as the first one is"
        cure = f"convert it with {library.name}'s own function first"
        raise wrong(TypeError, function, name, described(value), wanted, cure)
    here, there = library.device(beside), library.device(value)
    if here is not None and there is not None and here != there:
        raise wrong(
            ValueError, function, name, f"one on {there}", f"on {here}, as the first one is"
        )


def dtypes_of(library: Library, arrays: Mapping[str, Array]) -> tuple[str, str]:
    """The dtype of the result, and the one that is computed with: float32 or wider."""
    result = ""
    for x in arrays.values():
        came = dtype_name(x.dtype)
        came = library.default_float() if came in INTEGERS else came
        result = promoted(result, came) if result else came
    return result, "float32" if result in NARROW else result


def _check_sizes(
    function: str, shapes: Mapping[str, tuple[int, ...]], q: Array, k: Array, v: Array
) -> None:
    if q.shape[-1] != k.shape[-1]:
        wanted = f"with as many numbers as a query has, {q.shape[-1]}, in its last axis"
        raise wrong(ValueError, function, "k", f"of shape {shapes['k']}", wanted)
    if k.shape[-2] != v.shape[-2]:
        wanted = f"with one value for each of the {k.shape[-2]} keys"
        cure = 'the axis before the last is the length, or the heads with layout="blhd"'
        raise wrong(ValueError, function, "v", f"of shape {shapes['v']}", wanted, cure)
    if q.shape[-1] == 0:
        raise wrong(ValueError, function, "q", f"of shape {shapes['q']}", "of at least one number")


def _group(function: str, shapes: Mapping[str, tuple[int, ...]], hq: int, hk: int, hv: int) -> int:
    """How many query heads share the keys of one."""
    if hk != hv and 1 not in (hk, hv):
        wanted = f"with as many heads as `k` has, {hk}"
        raise wrong(ValueError, function, "v", f"of shape {shapes['v']}, with {hv}", wanted)
    shared = max(hk, hv)
    if shared == 1 or hq in (1, shared):
        return 1
    if hq % shared:
        wanted = f"with a number of heads that divides that of `q`, {hq}"
        cure = 'heads are the third axis from the end, or the second with layout="blhd"'
        raise wrong(
            ValueError, function, "k", f"of shape {shapes['k']}, with {shared}", wanted, cure
        )
    return hq // shared


def scale_of(function: str, scale: Any, size: int) -> Any:
    """What the scores are multiplied by: one over the root of the size by default."""
    if scale is None:
        return 1.0 / math.sqrt(size)
    if not is_number(scale) or isinstance(scale, complex):
        raise wrong(TypeError, function, "scale", described(scale), "a real number, or None")
    if not math.isfinite(scale):
        raise wrong(ValueError, function, "scale", repr(scale), "a finite number, or None")
    return float(scale)


def flag_of(function: str, name: str, value: Any) -> bool:
    """A keyword that is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise wrong(TypeError, function, name, described(value), "True or False")
    return bool(value)


def mask_of(function: str, heads: Heads, where: Any) -> Array | None:
    """The mask as an array that broadcasts against the scores as they are computed."""
    if where is None:
        return None
    library = heads.library
    if isinstance(where, bool | np.bool_ | list | tuple) and library.name == "numpy":
        where = np.asarray(where)
    wanted = "an array of bool, True for the keys that a query sees"
    if not hasattr(where, "dtype") or dtype_name(where.dtype) not in ("bool", "bool_"):
        cure = "compare it: where=mask != 0"
        raise wrong(TypeError, function, "where", described(where), wanted, cure)
    same_home(function, "where", library, heads.q, where)
    shape = tuple(where.shape)
    check_broadcast(function, "where", shape, heads.scores)
    return heads.aligned(where)


def check_broadcast(
    function: str, name: str, shape: tuple[int, ...], scores: tuple[int, ...]
) -> None:
    """Refuse a shape that does not broadcast against the scores, or that would make them grow."""
    try:
        fits = np.broadcast_shapes(shape, scores) == scores
    except ValueError:
        fits = False
    if not fits:
        wanted = f"broadcastable against the scores, {scores}"
        raise wrong(ValueError, function, name, f"an array of shape {shape}", wanted)
