"""The plugin: which plans the compiled kernels take, and how they are called."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from normx._dispatch import forget_plans
from normx._plan import Plan
from normx._version import __version__
from normx.plugins import Backend, Call, CallCache, Library, Pullback, Refusal, TopKCall
from normx_native import _host, _rows, _vjp
from normx_native._plain import is_plain
from normx_native._results import allocator

_missing: str | None = None
try:
    from normx_native import _core
except ImportError as error:
    _missing = f"the compiled part is not installed ({error})"

Array = Any


class NativeBackend(Backend):
    """SIMD kernels for arrays in host memory."""

    name = "native"

    def __init__(self) -> None:
        #: "auto" chooses by length and layout; see `use_algorithm`.
        self.algorithm = "auto"

    def unusable(self) -> str | None:
        return _missing

    def description(self) -> str:
        threads = _core.num_threads()
        return (
            f"SIMD kernels for {_core.target()}, {threads} thread{'s' * (threads != 1)}, "
            f"up to {_core.cache_limit() >> 20} MiB kept for large results"
        )

    def targets(self) -> Sequence[str]:
        return tuple(
            name for name, compiled, supported in _core.targets() if compiled and supported
        )

    def use_target(self, target: str) -> AbstractContextManager[None]:
        return use_target(target)

    def num_threads(self) -> int:
        return int(_core.num_threads())

    def set_num_threads(self, count: int) -> None:
        _core.set_num_threads(count)

    def implementation(self, plan: Plan) -> Call | Refusal:
        # Wrong numbers in the environment are told now, not at the first large array.
        _core.num_threads(), _core.cache_limit()
        plain = self.has_kernel(plan) and plan.where is None
        wrap = _host.forward_at if plain else _host.forward
        return _host.on_host(plan, self.forward, wrap)

    def gradient(self, plan: Plan) -> Pullback | Refusal:
        wrap = _host.backward_at if _vjp.takes(plan) else _host.backward
        return _host.on_host(plan, _vjp.backward, wrap)

    def topk(self, plan: Plan, k: int) -> TopKCall | Refusal:
        return _host.on_host(plan, lambda here, _: self._topk(here, k), _host.topk)

    def has_kernel(self, plan: Plan) -> bool:
        """Whether there is a kernel of its own: what these do not know, the row programs do."""
        known = any(
            op == plan.record.name and dtype == plan.dtype for op, dtype, _ in _core.kernels()
        )
        return known and is_plain(plan)

    def forward(self, plan: Plan, home: Library) -> Call | Refusal:
        """How it runs a plan for NumPy's arrays, with results for `home`, or why it does not."""
        if not self.has_kernel(plan):
            if self.algorithm != "auto":
                return Refusal(f"has no algorithms to choose from for such a {plan.record.name}")
            return _rows.forward(plan, home)
        run = self._compiled(plan).run
        shape, dtype = plan.result_shape, plan.library.dtype(plan.dtype)
        empty, broadcast_to = allocator(home, shape, dtype), np.broadcast_to

        def call(
            x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
        ) -> tuple[Array, str]:
            if out is None:
                out = empty(shape, dtype)
            if where is None:
                return out, run(x, out)
            return out, run(x, out, broadcast_to(where, x.shape))

        return call

    def _compiled(self, plan: Plan) -> Any:
        """A plan with a kernel of its own."""
        return _core.Call(
            plan.record.name,
            plan.dtype,
            plan.shape,
            plan.axis,
            has_where=plan.where is not None,
            empty=plan.empty,
            algorithm=self.algorithm,
        )

    def remember(
        self,
        cache: CallCache | None,
        plan: Plan,
        numbers: Mapping[str, float],
        kind: type,
        keywords: dict[str, Any],
        context: tuple[ContextVar[Any], ...],
    ) -> CallCache | None:
        exchange = plan.library.exchange()
        if exchange is None or kind not in exchange.kinds:
            return None
        if self.algorithm != "auto" or 0 in plan.shape:
            return None
        compiled = self._compiled(plan) if self.has_kernel(plan) else _rows.compiled(plan, numbers)
        if compiled is None:
            return None
        own = cache if isinstance(cache, _core.CallCache) else None
        own = own or _core.CallCache(
            kind,
            context,
            exchange.watches,
            exchange.variables,
            exchange.marks,
            takes_out="out" in plan.record.keywords,
        )
        own.keep(keywords, compiled, plan.dtype, plan.shape, plan.result_shape)
        return own

    def _topk(self, plan: Plan, k: int) -> TopKCall | Refusal:
        if plan.parameters or plan.where is not None or self.algorithm != "auto":
            return Refusal("finds the largest weights of the plain softmax alone")
        if plan.axis != (len(plan.shape) - 1,) or not 1 <= k <= _core.most_k:
            return Refusal(f"finds 1 to {_core.most_k} weights, along the last axis")
        shape, dtype = (*plan.shape[:-1], k), plan.library.dtype(plan.dtype)

        def call(x: Array) -> tuple[Array, Array, str] | Refusal:
            if x.strides[-1] != x.itemsize:
                return Refusal("reads rows whose elements lie side by side")
            values, indices = np.empty(shape, dtype), np.empty(shape, np.int64)
            return values, indices, _core.softmax_topk(x, values, indices)

        return call


def _register_with_threadpoolctl() -> None:
    """Let threadpoolctl see and limit the threads, where it is installed."""
    try:
        from threadpoolctl import LibController, register
    except ImportError:
        return

    class Controller(LibController):  # type: ignore[misc]
        user_api = internal_api = "normx"
        filename_prefixes = ("_core",)
        check_symbols = ("normx_thread_pool",)  # others name a file like this one too

        def get_num_threads(self) -> int:
            return backend.num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            backend.set_num_threads(num_threads)

        def get_version(self) -> str:
            return __version__

    register(Controller)


backend = NativeBackend()
if _missing is None:
    _register_with_threadpoolctl()
atexit.register(forget_plans)  # or the plans' calls would outlive the compiled module


def get_cache_memory() -> int:
    """Say how much memory of freed results is kept for the next ones.

    Results of 32 MiB and more come from a cache, as most of the time of a fresh one
    goes into the system's zeroing its pages.  They are ordinary arrays that own their
    memory, and what is kept is nobody's: a view keeps its array alive as always.  The
    system may take kept memory back when it is short of it, and a forked child keeps none.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> import normx, normx_native, numpy as np
    >>> normx_native.clear_cache()
    >>> y = normx.softmax(np.zeros((1024, 16384), np.float32), backend="native")
    >>> normx_native.get_cache_memory()
    0
    >>> del y
    >>> normx_native.get_cache_memory() >> 20
    64
    >>> normx_native.clear_cache()
    """
    return 0 if _missing is not None else _core.cache_memory()


def get_cache_limit() -> int:
    """Say how much memory of freed results may be kept.

    Returns
    -------
    int
        Bytes: NORMX_CACHE_MIB, or 256 MiB, unless `set_cache_limit` chose another number.

    Examples
    --------
    >>> import normx_native
    >>> normx_native.get_cache_limit() >= normx_native.get_cache_memory()
    True
    """
    return 0 if _missing is not None else _core.cache_limit()


def set_cache_limit(size: int, /) -> None:
    """Choose how much memory of freed results may be kept; see `get_cache_memory`.

    Parameters
    ----------
    size : int
        Bytes; 0 keeps none.  What is kept beyond is freed, the oldest first.

    Raises
    ------
    TypeError, ValueError
        If `size` is no whole number, or below 0.

    Examples
    --------
    >>> import normx_native
    >>> before = normx_native.get_cache_limit()
    >>> normx_native.set_cache_limit(0)
    >>> normx_native.get_cache_memory()
    0
    >>> normx_native.set_cache_limit(before)
    """
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise TypeError(f"set_cache_limit: `size` must be a whole number of bytes, not {size!r}")
    if size < 0:
        raise ValueError(f"set_cache_limit: `size` must be at least 0, not {size}; 0 keeps nothing")
    if _missing is None:
        _core.set_cache_limit(min(size, sys.maxsize))


def clear_cache() -> None:
    """Free the memory that is kept of freed results.

    Examples
    --------
    >>> import normx_native
    >>> normx_native.clear_cache()
    >>> normx_native.get_cache_memory()
    0
    """
    if _missing is None:
        _core.clear_cache()


def algorithms(function: str) -> tuple[str, ...]:
    """The algorithms that compute `function`, side by side, for study.

    Parameters
    ----------
    function : str
        Name of a function of normx.

    Returns
    -------
    tuple of str
        Names for `use_algorithm`; empty where there is no choice.
    """
    if _missing is not None:
        return ()
    found = dict.fromkeys(algorithm for op, _, algorithm in _core.kernels() if op == function)
    return tuple(found)


@contextmanager
def use_algorithm(name: str) -> Iterator[None]:
    """Compute with one algorithm inside the ``with`` block, whatever the length.

    For study: it is one setting for the whole process.

    Parameters
    ----------
    name : str
        One of `algorithms`, or "auto".

    Raises
    ------
    ValueError
        If no kernel has that name; at a call, if its function has no such algorithm.
    """
    known = dict.fromkeys(["auto", *(algorithm for _, _, algorithm in _core.kernels())])
    if name not in known:
        raise ValueError(f"unknown algorithm {name!r}; known are {', '.join(known)}")
    before, backend.algorithm = backend.algorithm, name
    forget_plans()
    try:
        yield
    finally:
        backend.algorithm = before
        forget_plans()


@contextmanager
def use_target(name: str) -> Iterator[None]:
    """Compute with one instruction set inside the ``with`` block.

    For tests and study: it is one setting for the whole process.

    Parameters
    ----------
    name : str
        One of the backend's targets, such as "avx2".

    Raises
    ------
    RuntimeError
        If it was not compiled, or this CPU lacks it.
    """
    before = _core.target()
    _core.set_target(name)
    try:
        yield
    finally:
        _core.set_target(before)
