"""The interface of plugins: array libraries and backends.

An array library is where an array lives; a backend is who computes.  Both are
found through entry points, normx's own like anybody else's::

    [project.entry-points."normx.libraries"]
    torch = "normx_torch:library"      # the name is the root module of the array type

    [project.entry-points."normx.backends"]
    native = "normx_native:backend"

A library is loaded when the first array of its type shows up and never earlier;
a backend when it is first a candidate.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

if TYPE_CHECKING:
    from normx._plan import Plan
    from normx._record import Record

__all__ = [
    "Backend",
    "Call",
    "CallCache",
    "Exchange",
    "Foreign",
    "Fused",
    "Library",
    "Losses",
    "NotOnHost",
    "Pullback",
    "Refusal",
    "RowKernel",
    "StagedKernel",
    "TopKCall",
    "dtype_name",
]

Array = Any


def dtype_name(dtype: Any) -> str:
    """The bare name of a dtype of any library: "float32", "bfloat16", "bool", ..."""
    if isinstance(dtype, np.dtype):
        return _numpy_name(dtype)
    if dtype is float:
        return "float64"
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


@cache  # NumPy puts the name together each time, in 2 microseconds
def _numpy_name(dtype: np.dtype[Any]) -> str:
    return dtype.name


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a backend does not take a call."""

    reason: str


class NotOnHost(Exception):  # noqa: N818  # no error: another backend is asked
    """Raised for values that cannot be had now, in a trace say."""


class Call(Protocol):
    """A backend's implementation of one plan."""

    def __call__(
        self, x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Any, str]:
        """Compute; return the result and the name of the kernel that ran.

        `x` has the plan's shape and working dtype and must not be changed.  `where`
        broadcasts against it.  The result goes into `out` where one is given.
        """


class Pullback(Protocol):
    """A backend's gradients of one plan."""

    def __call__(
        self,
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
        y: Array | None,
        dy: Array,
    ) -> tuple[dict[str, Any], str]:
        """Compute; return the gradients by keyword, and the name of the kernel that ran.

        The arguments are those of the `Call`, its result, where that is at hand as it was
        returned, and the cotangent in the same shape.
        Each gradient has an axis for each axis of `x`; that of a parameter has its size along
        the reduced ones, and is not summed yet over the others.
        """


class TopKCall(Protocol):
    """A backend's way to the largest weights of one plan."""

    def __call__(self, x: Array) -> tuple[Array, Array, str] | Refusal:
        """Compute; return values, indices and the name of the kernel that ran.

        Values and indices have the plan's shape, but k along the axis, and the order that
        `normx.softmax_topk` promises; the values are the bits of the backend's softmax.
        Refused is an `x` that does not lie as the kernel wants it.
        """


class Losses(Protocol):
    """A backend's way to the cross-entropy of rows: a kernel forward, and one for the gradient.

    Targets are the classes of rows, negative where a row takes no part; weights have an entry per
    class.  Results have an entry per row, in float32 or wider, and are 0 where it takes no part.
    """

    def forward(
        self, x: Array, targets: Array, where: Array | None, weight: Array | None
    ) -> tuple[tuple[Array, Array, Array], str]:
        """The losses, the logarithms of the denominators and the entropies; the kernel's name."""

    def pullback(
        self,
        x: Array,
        targets: Array,
        where: Array | None,
        weight: Array | None,
        cotangents: Sequence[Array | None],
    ) -> tuple[Array, str]:
        """The gradient of `x`, given those of the three; the kernel's name."""


class CallCache(Protocol):
    """Calls of one function on one type of arrays that a backend does at once.

    It is asked before anything has looked at the arguments, and knows by itself what the plan of
    a call depends on.
    """

    def run(self, x: Array, keywords: dict[str, Any]) -> Array | None:
        """The result, or None where the dispatcher has to find out what to do."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What tells that arrays of a type can be handed to compiled code, and out of it.

    Attributes
    ----------
    kinds : frozenset of type
        The types themselves: NumPy's, or some that have DLPack's table of functions
        (``__dlpack_c_exchange_api__``).  Results are what that makes, so subclasses do not count.
    watches : tuple of callable
        Each returns something false unless the library follows what is done to arrays: a
        tracer, a mode.
    variables : tuple of (module, str, object)
        The same of variables in Python, with the object that they are else.
    marks : tuple of str
        Attributes of an array, and methods without arguments, that are false unless there is
        more to it than its memory: it is differentiated, say, or holds its negative.
    """

    kinds: frozenset[type]
    watches: tuple[Callable[[], Any], ...] = ()
    variables: tuple[tuple[ModuleType, str, Any], ...] = ()
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Foreign:
    """A compiled kernel, as a compiler's programs call it.

    Attributes
    ----------
    name : str
        The same for the same handler, whatever the attributes.
    handler : object
        A capsule with the handler of XLA's typed foreign function interface.
    attributes : mapping of str to object
        Strings, and NumPy's booleans and arrays.
    operands : tuple of array
        Of the library; row-major.
    results : tuple of (tuple of int, str)
        Shape and dtype of each result.
    """

    name: str
    handler: Any
    attributes: Mapping[str, Any]
    operands: tuple[Array, ...]
    results: tuple[tuple[tuple[int, ...], str], ...]


class StagedKernel(Protocol):
    """A backend's way to compute one plan, or its gradients, of arrays that come later."""

    @property
    def names(self) -> tuple[str, ...]:
        """What operands are: "x", "where", a parameter, "y", the result, or "dy", the cotangent."""

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The operands whose gradients are the results; None for the function itself."""

    @property
    def differentiable(self) -> bool:
        """Whether the record has gradients, so that `pullback` can be asked for."""

    def results(self, *operands: Array) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each result."""

    def now(self, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
        """The results, of arrays that have come, as NumPy's."""

    def formula(self, *operands: Array) -> tuple[Array, ...]:
        """The results by the record's formula, in the library's operations."""

    def foreign(self, *operands: Array) -> Foreign | None:
        """The kernel for a compiler's program; None if the formula is all there is."""

    def mended(
        self, operands: Sequence[Array], raw: Sequence[Array], choose: Callable[..., Any]
    ) -> tuple[Array, ...]:
        """The results, of those that came of `foreign`.

        ``choose(condition, yes, no)`` gives ``yes()`` if a truth value of the library's turns
        out true, and else ``no()``: rows may have been left to the formula.
        """

    def stacked(self, size: int) -> StagedKernel:
        """The same for operands with one more axis, in front, of that size or of size 1.

        It is of that size for "x", "y", "dy" and those that are `wanted`.
        """

    def pullback(self, wanted: tuple[str, ...]) -> StagedKernel:
        """The kernel of the gradients; its operands are those of this one, "y" and "dy".

        "y" says nothing that the others do not: no derivative goes through it.
        """


class RowKernel(Protocol):
    """A function of rows, as it runs on a library's arrays."""

    def forward(self, x: Array) -> tuple[Array, ...]:
        """The results, each with an entry per row."""

    def pullback(
        self, x: Array, results: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> Array:
        """The gradient of `x`; None stands for a cotangent that is 0."""


class Fused(Protocol):
    """A function of rows that has a kernel beside its formula."""

    def kernel(self) -> RowKernel | None:
        """What runs on the arrays where they are; None where nothing does."""

    def formula(self, x: Array) -> tuple[Array, ...]:
        """The results in the library's operations, which it can differentiate."""


class Backend(ABC):
    """Who computes."""

    name: ClassVar[str]

    @abstractmethod
    def unusable(self) -> str | None:
        """Why the backend cannot run here at all; None if it can."""

    @abstractmethod
    def implementation(self, plan: Plan) -> Call | Refusal:
        """How it runs this plan, or why it does not."""

    def gradient(self, plan: Plan) -> Pullback | Refusal:
        """How it computes the gradients of this plan, or why it does not."""
        return Refusal("computes no gradients")

    def remember(
        self,
        cache: CallCache | None,
        plan: Plan,
        numbers: Mapping[str, float],
        kind: type,
        keywords: dict[str, Any],
        context: tuple[ContextVar[Any], ...],
    ) -> CallCache | None:
        """Put a call that it took, with nothing around it, into a cache that answers the next one.

        All of the plan's parameters are `numbers`, and what it was made of are the keywords.
        The cache is what was returned here the last time, for the same function and type of
        arrays.  It answers while the variables of the context have something false.
        """
        return None

    def topk(self, plan: Plan, k: int) -> TopKCall | Refusal:
        """How it finds the k largest weights of each row in one go, or why it does not.

        The plan is that of a softmax.  Where this is refused, the weights are taken from
        those of `implementation`, after a search for the largest scores.
        """
        return Refusal("has no kernel for the largest weights")

    def cross_entropy(self, plan: Plan, smoothing: float) -> Losses | Refusal:
        """How it computes the cross-entropy of rows where they are, or why it does not.

        The plan is that of a softmax of the logits, and its softcap theirs.
        """
        return Refusal("has no kernel for the cross-entropy of rows")

    def targets(self) -> Sequence[str]:
        """The variants that can be forced here (instruction sets, say)."""
        return ()

    def use_target(self, target: str) -> AbstractContextManager[Any]:
        """Force a variant inside the ``with`` block."""
        raise ValueError(f"backend {self.name!r} has no targets to choose from")

    def description(self) -> str:
        """One line for ``normx info`` and `explain`."""
        return ""

    def num_threads(self) -> int:
        """How many threads it computes with."""
        return 1

    def set_num_threads(self, count: int) -> None:
        """Choose how many threads it computes with, where it has threads of its own."""


class Library(ABC):
    """Where arrays live."""

    name: ClassVar[str]
    #: Backends tried for its arrays, in order.
    preference: tuple[str, ...] = ("reference",)
    #: Whether arrays can be written to, so that `out` makes sense.
    mutable: bool = False

    @abstractmethod
    def namespace(self) -> Any:
        """The array-API namespace."""

    def unusable(self) -> str | None:
        """Why it has no arrays here, though it is installed; None if it has."""
        return None

    def check(self, x: Array, argument: str = "x") -> str | None:
        """Why an array cannot be taken as `argument`, with the cure; None if it can."""
        return None

    def key(self, x: Array) -> Any:
        """What a plan depends on, besides the type: hashable, cheap."""
        return x.shape, x.dtype, getattr(x, "device", None)

    def is_concrete(self, x: Array) -> bool:
        """Whether values may be looked at: not while tracing, nor for lazy arrays."""
        return True

    def is_followed(self, x: Array) -> bool:
        """Whether the library may differentiate or trace what is computed with `x`.

        A kernel that the library knows nothing of is kept away from it then.
        """
        return True

    def on_host(self, x: Array) -> bool:
        """Whether the data of `x` can be read in host memory: part of a plan's key.

        Now, or, where not everything is `at_hand`, when what is being compiled runs.
        """
        return False

    def at_hand(self, arrays: Sequence[Array]) -> bool:
        """Whether all of these, on the host, have their data already: `staged` else."""
        return True

    def staged(self, kernel: StagedKernel, *operands: Array) -> tuple[Array, ...]:
        """What a kernel makes of arrays that come later."""
        raise NotImplementedError

    def host_view(self, x: Array) -> np.ndarray:
        """The memory of an array that is on the host, as NumPy's: shared, not copied.

        It raises `NotOnHost` where only the attempt tells that the values cannot be had.
        """
        raise NotImplementedError

    def exchange(self) -> Exchange | None:
        """How compiled code reads arrays on the host and makes them; None if only Python can."""
        return None

    def host_empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray | None:
        """Memory of an array of this library for a result; None where NumPy's does as well."""
        return None

    def host_address(self, x: Array) -> int | None:
        """Where the elements lie in memory, if it is side by side: faster than a view."""
        return None

    def host_adopt(self, fresh: np.ndarray) -> Array:
        """A fresh array of NumPy's as one of this library, in the same memory where it can be."""
        raise NotImplementedError

    def on_cuda(self, x: Array) -> bool:
        """Whether the data of `x` is in the memory of a CUDA device now: part of a plan's key."""
        return False

    def cuda_view(self, x: Array) -> Any:
        """What hands over the memory of an array on a CUDA device, through DLPack."""
        return x

    def cuda_stream(self, x: Array) -> int | None:
        """The address of the stream in which what is done to `x` is queued; None if not known."""
        return None

    def cuda_empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Array | None:
        """Memory of this library for a result; None where anybody's does as well."""
        return None

    def cuda_adopt(self, fresh: Any) -> Array:
        """A fresh array of CuPy's as one of this library, in the same memory."""
        return self.namespace().from_dlpack(fresh)

    def entered(self, plan: Plan, backend: str, call: Call) -> Call:
        """A backend's call as one that the library itself differentiates, traces and maps.

        It returns "" for the kernel where what runs tells of itself (`normx.trace`).
        """
        return call

    def entered_gradient(self, plan: Plan, backend: str, pullback: Pullback) -> Pullback:
        """The same for gradients, for `normx.vjp`; those of the reference come here too.

        Those of parameters may be summed already over the axes along which these were broadcast.
        """
        return pullback

    def explained(self, plan: Plan, x: Array) -> str:
        """What becomes of a call besides the backend's part in it, for `normx.explain`."""
        return ""

    def in_reach(self, x: Array) -> bool:
        """Whether the values of an array on the host can be had now: not in some traces."""
        return True

    def fused(self, what: Fused, x: Array) -> tuple[Array, ...] | None:
        """The results of a kernel that reads `x` where it is; None where the formula has to do.

        A library that differentiates by itself hands the kernel's pullback over, or answers
        None for what it follows.
        """
        if self.is_followed(x):
            return None
        try:
            kernel = what.kernel()
            return None if kernel is None else kernel.forward(x)
        except NotOnHost:
            return None

    @abstractmethod
    def device(self, x: Array) -> Any:
        """Where the data is, compared by equality; None while that is not known."""

    @abstractmethod
    def dtype(self, name: str) -> Any:
        """The dtype object of a bare name; raises AttributeError if there is none."""

    @abstractmethod
    def default_float(self) -> str:
        """Bare name of the dtype that integers become."""

    @abstractmethod
    def asarray(self, value: Any, dtype: str, like: Array) -> Array:
        """A number or nested list as an array beside `like`."""

    def number(self, value: Any) -> Any:
        """A keyword's value; a number instead of what stands for one to the library's compiler."""
        return value

    def has_dtype(self, x: Array, dtype: str) -> bool:
        """Whether `x` can be computed with as it is."""
        return dtype_name(x.dtype) == dtype

    @abstractmethod
    def cast(self, x: Array, dtype: str) -> Array:
        """`x` in another dtype, itself if it has that already."""

    def unsupported(self, plan: Plan) -> str | None:
        """Why a formula cannot run on its arrays; None if it can."""
        return None

    @abstractmethod
    def full(self, shape: tuple[int, ...], value: float, dtype: str, like: Array) -> Array:
        """A constant array beside `like`."""

    @abstractmethod
    def accurate_sum(self, x: Array, axis: tuple[int, ...]) -> Array:
        """Sum over `axis`, kept with size 1, whose error does not grow with the length."""

    def rng(self, seed: int) -> Any:
        """A source of random numbers as the library's users have them."""
        return np.random.default_rng(seed)

    def copy_of_rng(self, rng: Any) -> Any:
        """A source of the same numbers."""
        return copy.deepcopy(rng)

    def stop_gradient(self, x: Array) -> Array:
        """`x`, as a constant to the library's own differentiation."""
        return x

    def check_rng(self, rng: Any) -> str | None:
        """What is wanted as a source of random numbers; None if `rng` is one."""
        return None if isinstance(rng, np.random.Generator) else "a numpy.random.Generator"

    def uniform(self, rng: Any, shape: tuple[int, ...], dtype: str, like: Array) -> Array:
        """Random numbers strictly between 0 and 1, in float32 or float64."""
        bits, steps = (52, np.uint64) if dtype == "float64" else (23, np.uint32)
        noise = rng.integers(0, 2**bits, shape, dtype=steps).astype(dtype)
        noise += 0.5
        noise *= 2.0**-bits
        return self.from_numpy(noise)

    def check_out(self, out: Array) -> str | None:
        """Why `out` cannot be written to; None if it can."""
        return None

    def overlaps(self, out: Array, x: Array) -> bool:
        """Whether `out` shares memory with `x` without being the very same view."""
        return False

    def assign(self, out: Array, y: Array) -> None:
        """Write `y` into `out`."""
        out[...] = y

    #: What the formulas compute float32 in.  float64 where the library's float32
    #: exponential is too coarse for the error budget (NumPy's is off by 2.4 ULP).
    arithmetic: str = "float32"

    #: Whether its arithmetic takes subnormal numbers for 0.
    flushes_subnormals: bool = False

    @abstractmethod
    def from_numpy(self, x: Array) -> Array:
        """A NumPy array as one of this library, for tests and demonstrations."""

    @abstractmethod
    def to_numpy(self, x: Array) -> Array:
        """The values of an array, computed if it is lazy."""

    def modes(self) -> Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        """The ways in which a function of one array can be run: eagerly, compiled, ...

        A function of normx comes as a `functools.partial`, for a way that has to take it apart.
        """
        return {"eager": lambda f: f}

    def left_out(self, record: Record, backend: str, mode: str) -> str | None:
        """Why the suite does not run a function in one of the `modes`; None if it does."""
        return None

    def sampling(self, backend: str, mode: str) -> int:
        """Of how many cases the suite runs one: more than 1 where each compiles for seconds."""
        return 1

    def forget_compiled(self) -> None:
        """Free what it compiled and keeps: a suite of tests compiles thousands of functions."""

    def computed(
        self,
        formula: Callable[..., Any],
        plan: Plan,
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
    ) -> Any:
        """``formula(plan, x, where, parameters)``, in whatever parts suit the library."""
        return formula(plan, x, where, parameters)

    def in_turn(self, f: Callable[[Any], Array], numbers: range) -> Array:
        """``f`` of each number, one after the other, joined along the last axis but one.

        What is compiled need not be written out for each.
        """
        return self.namespace().concat([f(number) for number in numbers], axis=-2)

    def recomputed(self, f: Callable[..., Array]) -> Callable[..., Array]:
        """``f``, whose inner results are found again for its gradient instead of being kept."""
        return f

    def quiet(self) -> AbstractContextManager[Any]:
        """Silences the library's floating-point warnings: infinities are policy here."""
        return nullcontext()

    def finish(self, y: Array) -> Array:
        """Last touch on a result of the library's own."""
        return y

    def in_case(self, condition: Array, f: Callable[[], Array]) -> Array | None:
        """``f()`` if the condition holds; None if not, or if that cannot be known.

        What is compiled computes it only then, and has zeros else.  A constant: `f` is of what
        `stop_gradient` returned.
        """
        return f() if self.is_concrete(condition) and bool(condition) else None

    def spectral_norm(self, a: Array) -> Array | None:
        """The largest singular value of each matrix; None where nothing finds it."""
        xp = self.namespace()
        found = getattr(getattr(xp, "linalg", None), "svdvals", None)
        return None if found is None else xp.max(found(a), axis=-1)
