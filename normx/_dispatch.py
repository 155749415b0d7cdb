"""From an array's type to its library, and from a plan to a backend.

Requirements this file meets:

* a framework is never imported to find out whether an array is its own: types are
  matched by the root module of their name, and the library's plugin is loaded when
  its first array shows up;
* after the first call of a form, a call costs one look-up, which a backend may do itself;
* an automatic choice may fall back and can say why; an explicit one never does;
* what ran can be proved (`trace`), what would run can be asked (`explain`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, TypeVar

import array_api_compat
import numpy as np

from normx._errors import described, wrong
from normx._libraries import ArrayAPILibrary, numpy_library
from normx._plan import Plan, Prepared, prepare
from normx._record import Record, record_of
from normx._reference import reference_backend
from normx.plugins import (
    Backend,
    Call,
    CallCache,
    Library,
    Losses,
    NotOnHost,
    Pullback,
    Refusal,
    TopKCall,
)

Array = Any
Answer = TypeVar("Answer")

#: Root modules of array types whose library has another name.
_ALIASES = frozenset({"jaxlib"})

#: Plans kept per function; beyond, all are dropped (shapes come in few forms).
_PLANS_KEPT = 1024


# ---------------------------------------------------------------- plugins


@cache
def _plugins(group: str) -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


@cache
def _loaded(group: str, name: str) -> Any:
    return _plugins(group)[name].load()


def backend_names() -> tuple[str, ...]:
    """Every backend that is installed, normx's own reference first."""
    return (
        "reference",
        *(name for name in sorted(_plugins("normx.backends")) if name != "reference"),
    )


def backend(name: str) -> Backend | Refusal:
    """The backend of that name, or why it cannot be had.

    Raises
    ------
    ValueError
        If no backend has that name.
    """
    if name == "reference":
        return reference_backend
    if name not in _plugins("normx.backends"):
        known = ", ".join(backend_names())
        raise ValueError(f"unknown backend {name!r}; known are {known}")
    try:
        found: Backend = _loaded("normx.backends", name)
    except Exception as error:  # noqa: BLE001  # a broken plugin must not break the others
        return Refusal(f"cannot be loaded: {error}")
    reason = found.unusable()
    return found if reason is None else Refusal(reason)


# -------------------------------------------------------------- libraries


#: Libraries by array type; None for types of no known library.
_by_type: dict[type, Library | None] = {}


def _library_of_type(kind: type) -> Library | None:
    """The library of a type, found by the names of its and its bases' root modules."""
    try:
        return _by_type[kind]
    except KeyError:
        found = _by_type[kind] = _search(kind)
        return found


def _search(kind: type) -> Library | None:
    if issubclass(kind, np.ndarray | np.generic):
        return numpy_library
    for base in kind.__mro__:
        root = base.__module__.partition(".")[0]
        if root in _plugins("normx.libraries"):
            found: Library = _loaded("normx.libraries", root)
            return found
    return None


# torch's compiler goes through the code that calls normx, and calls this one at once: the first
# tensor of all may come in a compiled function, and the plugin be loaded no earlier.
_library_of_type._dynamo_marked_constant = True  # type: ignore[attr-defined]


def library_of(x: Any) -> Library | None:
    """The array library of `x`; None if it is no array and cannot become one."""
    kind = type(x)
    library = _library_of_type(kind)
    if library is not None:
        return library
    if isinstance(x, bool | int | float | complex | list | tuple):
        return numpy_library
    try:
        namespace = array_api_compat.array_namespace(x)
    except TypeError:
        return None
    return _generic(kind.__module__.partition(".")[0], namespace)


@cache
def _generic(name: str, namespace: Any) -> Library:
    return ArrayAPILibrary(name, lambda: namespace)


def library(name: str) -> Library:
    """The library of that name, loaded.

    Raises
    ------
    ValueError
        If no library has that name.
    """
    if name not in library_names():
        known = ", ".join(library_names())
        raise ValueError(f"unknown library {name!r}; known are {known}")
    found: Library = numpy_library if name == "numpy" else _loaded("normx.libraries", name)
    return found


def library_names() -> tuple[str, ...]:
    """Every library with a plugin, NumPy first; others work through the array API."""
    roots = sorted(_plugins("normx.libraries"))
    # A library may have types of several root modules; it is listed under its own.
    return ("numpy", *(name for name in roots if name not in _ALIASES))


# ----------------------------------------------------------------- choice

_chosen: ContextVar[str | None] = ContextVar("normx_backend", default=None)


@cache
def _from_environment() -> str | None:
    name = os.environ.get("NORMX_BACKEND") or None
    if name is not None and name not in backend_names():
        known = ", ".join(backend_names())
        raise ValueError(f"the environment variable NORMX_BACKEND is {name!r}; known are {known}")
    return name


def chosen_backend() -> str | None:
    """The backend chosen by `use_backend`, else by NORMX_BACKEND, else None."""
    return _chosen.get() or _from_environment()


def _explicit(keywords: Mapping[str, Any]) -> str | None:
    """The backend that a call asks for, or that was chosen around it."""
    asked = keywords.get("backend")
    return chosen_backend() if asked is None else asked


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with one backend inside the ``with`` block, and with no other.

    Parameters
    ----------
    name : str
        One of `backends()`.  A call that it cannot take raises; nothing falls back.

    Raises
    ------
    ValueError
        If no backend has that name.

    Examples
    --------
    >>> import normx
    >>> with normx.use_backend("reference"), normx.trace() as ran:
    ...     weights = normx.softmax([0.0, 0.0])
    >>> ran[0].backend
    'reference'
    """
    backend(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend's answer to a call."""

    backend: str
    taken: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Who computes a call, and why.

    Attributes
    ----------
    function, library : str
    candidates : tuple of Candidate
        In the order in which they are asked; the first one taken computes.
    """

    function: str
    library: str
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        lines = [f"{self.function} on an array of {self.library}:"]
        width = max(len(candidate.backend) for candidate in self.candidates)
        for candidate in self.candidates:
            verdict = "taken" if candidate.taken else "refused"
            lines.append(f"  {candidate.backend:<{width}}  {verdict}: {candidate.reason}")
        return "\n".join(lines)


def _asked(
    plan: Plan,
    explicit: str | None,
    ask: Callable[[Backend, Plan], Answer | Refusal],
) -> Iterator[tuple[str, Answer | Refusal]]:
    """Every candidate with its answer, in order, the first one that takes the call last."""
    for name in (explicit,) if explicit is not None else plan.library.preference:
        if explicit is None and name != "reference" and name not in _plugins("normx.backends"):
            yield name, Refusal("not installed")
            continue
        found = backend(name)
        answer = found if isinstance(found, Refusal) else ask(found, plan)
        yield name, answer
        if not isinstance(answer, Refusal):
            return


def implementation(found: Backend, plan: Plan) -> Call | Refusal:
    """What a backend is asked for a call."""
    return found.implementation(plan)


def _gradient(found: Backend, plan: Plan) -> Pullback | Refusal:
    return found.gradient(plan)


def _choose(
    plan: Plan,
    explicit: str | None,
    ask: Callable[[Backend, Plan], Answer | Refusal],
) -> tuple[str, Answer]:
    refused = []
    for name, answer in _asked(plan, explicit, ask):
        if not isinstance(answer, Refusal):
            return name, answer
        refused.append(f"{name}: {answer.reason}")
    raise wrong(
        TypeError,
        plan.record.name,
        "backend" if explicit else "x",
        "; ".join(refused),
        "one that takes this call" if explicit else "an array that some backend takes",
        "leave `backend` out to let normx choose" if explicit else "",
    )


def choose_gradient(plan: Plan, keywords: Mapping[str, Any]) -> tuple[str, Pullback]:
    """Who computes the gradients of a call."""
    name, pullback = _choose(plan, _explicit(keywords), _gradient)
    return name, plan.library.entered_gradient(plan, name, pullback)


def choose_topk(plan: Plan, k: int, keywords: Mapping[str, Any]) -> tuple[str, TopKCall | Refusal]:
    """Who finds the largest weights of a call.

    The backend of the softmax answers alone: the values are its bits.
    """

    def ask(found: Backend, plan: Plan) -> tuple[TopKCall | Refusal] | Refusal:
        answer = found.topk(plan, k)
        elsewhere = isinstance(answer, Refusal) and isinstance(found.implementation(plan), Refusal)
        return answer if isinstance(answer, Refusal) and elsewhere else (answer,)

    name, (answer,) = _choose(plan, _explicit(keywords), ask)
    return name, answer


def choose_losses(plan: Plan, smoothing: float) -> tuple[str, Losses] | None:
    """Who has a kernel for the cross-entropy of rows where these are; None if nobody has."""
    for name, answer in _asked(plan, None, lambda by, plan: by.cross_entropy(plan, smoothing)):
        if not isinstance(answer, Refusal):
            return name, answer
    return None


# ------------------------------------------------------------------ trace


class Ran(NamedTuple):
    """What really ran in one call."""

    function: str
    backend: str
    kernel: str
    target: str


#: The lists of the blocks around a call, outermost first.
_tracing: ContextVar[tuple[list[Ran], ...]] = ContextVar("normx_trace", default=())


@contextmanager
def trace() -> Iterator[list[Ran]]:
    """Record what really runs inside the ``with`` block.

    Yields
    ------
    list of Ran
        One (function, backend, kernel, target) per call, filled as the calls return;
        blocks may be nested.

    Examples
    --------
    >>> import normx
    >>> with normx.trace() as ran:
    ...     weights = normx.softmax([1.0, 2.0], backend="reference")
    >>> ran
    [Ran(function='softmax', backend='reference', kernel='softmax_formula', target='numpy')]
    """
    events: list[Ran] = []
    token = _tracing.set((*_tracing.get(), events))
    try:
        yield events
    finally:
        _tracing.reset(token)


def traced(function: str, backend: str, kernel: str) -> None:
    """Tell the blocks around that something ran: "kernel__target"."""
    name, _, target = kernel.partition("__")
    for events in _tracing.get():
        events.append(Ran(function, backend, name, target))


# ------------------------------------------------------------------ calls


def _form(word: str, value: Any) -> Any:
    """What a plan depends on of a keyword: the value of a constant, the form of an array."""
    if value is None or word == "rng":
        return None
    if hasattr(value, "dtype") and not isinstance(value, np.generic | type):
        return type(value), tuple(value.shape), value.dtype, getattr(value, "device", None)
    if isinstance(value, tuple):  # 1, 1.0 and True are equal, and not the same keyword
        return type(value), tuple(_form(word, entry) for entry in value)
    return type(value), value


class _Bound(NamedTuple):
    """A plan with the backend that takes it."""

    prepared: Prepared
    backend: str
    call: Call
    #: Whether x goes to the backend, and the result back, with nothing around.
    bare: bool

    def run(self, x: Array, keywords: Mapping[str, Any]) -> Array:
        if self.bare:
            result, kernel = self.call(x, None, None, {})
        else:
            result, kernel = self.prepared.run(self.call, x, keywords)
        if kernel:
            traced(self.prepared.plan.record.name, self.backend, kernel)
        return result


def _arrive(record: Record, x: Any) -> tuple[Library, Array]:
    """The library of `x`, and `x` as one of its arrays."""
    library = library_of(x)
    if library is None:
        raise wrong(
            TypeError,
            record.name,
            "x",
            f"{described(x)} of type {type(x).__name__}",
            "an array of a library that speaks the array API, a list or a number",
        )
    if library is numpy_library and not isinstance(x, np.ndarray):
        try:
            x = np.asarray(x)
        except ValueError:
            raise wrong(
                TypeError, record.name, "x", "a ragged list", "an array or a regular nested list"
            ) from None
    return library, x


def _bind(
    record: Record,
    library: Library,
    x: Array,
    keywords: Mapping[str, Any],
    *,
    away: bool = False,
) -> _Bound:
    explicit = _explicit(keywords)
    if explicit is not None and explicit not in backend_names():
        known = ", ".join(backend_names())
        raise wrong(ValueError, record.name, "backend", repr(explicit), f"one of {known}")
    prepared = prepare(record, library, x, keywords, library_of)
    if away:
        prepared.plan = prepared.plan.away()
    bare = prepared.direct and not prepared.plan.out
    name, call = _choose(prepared.plan, explicit, implementation)
    if name != reference_backend.name:  # whose formulas are operations of the library itself
        call = library.entered(prepared.plan, name, call)
    return _Bound(prepared, name, call, bare)


def entry_point(name: str) -> Callable[..., Any]:
    """The public function of a record: look the plan up, or make it, and run it."""
    plans = _plans.setdefault(name, {})
    caches.append(plans)
    kept = _kept.setdefault(name, {})
    caches.append(kept)
    tracing, chosen = _tracing.get, _chosen.get
    library_of_type, cache_of = _library_of_type, _cache_of

    def function(x: Any, /, **keywords: Any) -> Any:
        kind = type(x)
        cache = cache_of(kept, kind)
        if cache is not None:
            y = cache.run(x, keywords)
            if y is not None:
                return y
        library = library_of_type(kind)
        key: Any = None
        bound = None
        if library is not None:
            try:
                parts = [kind, library.key(x), chosen()]
                for word, value in keywords.items():
                    plain = type(value) in _PLAIN
                    parts += (word, type(value), value if plain else _form(word, value))
                key = tuple(parts)
                bound = plans.get(key)
            except TypeError:  # an option that cannot be part of a key: a list, say
                key = None
        if bound is None:
            return called(name, key, x, keywords)
        try:
            if bound.bare and not tracing():
                return bound.call(x, None, None, _NOTHING)[0]
            return bound.run(x, keywords)
        except NotOnHost:
            return _called_away(name, x, keywords)

    return function


def _cache_of(kept: dict[type, CallCache], kind: type) -> CallCache | None:
    """A function of its own, in whose place a compiler has one that finds nothing."""
    return kept.get(kind)


def called(name: str, key: Any, x: Any, keywords: Mapping[str, Any]) -> Any:
    """Call a function for the first time in a form, and keep its plan if that has a key."""
    record = record_of(name)
    library, x = _arrive(record, x)
    keywords = {word: library.number(value) for word, value in keywords.items()}
    bound = _bind(record, library, x, keywords)
    if key is not None:
        plans = _plans[name]
        if len(plans) >= _PLANS_KEPT:
            plans.clear()
            _kept[name].clear()
        plans[key] = bound
        if bound.prepared.numbers is not None and _chosen.get() is None:
            _keep(name, bound, type(x), keywords)
    try:
        return bound.run(x, keywords)
    except NotOnHost:
        return _called_away(name, x, keywords)


def _keep(name: str, bound: _Bound, kind: type, keywords: dict[str, Any]) -> None:
    """Let the backend of a call answer the next one of its form by itself."""
    kept = _kept[name]
    by, plan, numbers = backend(bound.backend), bound.prepared.plan, bound.prepared.numbers
    assert isinstance(by, Backend) and numbers is not None
    cache = by.remember(kept.get(kind), plan, numbers, kind, keywords, (_tracing, _chosen))
    if cache is not None:
        kept[kind] = cache


def _called_away(name: str, x: Any, keywords: Mapping[str, Any]) -> Any:
    """Call a function whose scores cannot be read now, as only the attempt has shown."""
    record = record_of(name)
    library, x = _arrive(record, x)
    return _bind(record, library, x, keywords, away=True).run(x, keywords)


_NOTHING: Mapping[str, Any] = {}

#: Types of keywords that are part of a plan's key as they are.
_PLAIN = frozenset({int, float, str, bool, type(None)})

#: Every function's plans, by its name.
_plans: dict[str, dict[Any, _Bound]] = {}

#: Every function's calls that a backend answers by itself, by its name and the arrays' type.
_kept: dict[str, dict[type, CallCache]] = {}

#: What is forgotten with them.
caches: list[dict[Any, Any]] = []


def forget_plans() -> None:
    """Forget what was bound: the next call asks the backends again."""
    for plans in caches:
        plans.clear()


def clear_caches() -> None:
    """Forget plans, plugins and the environment: the next call looks again."""
    forget_plans()
    _by_type.clear()
    for cached in (_plugins, _loaded, _generic, _from_environment):
        cached.cache_clear()


def explain(f: Callable[..., Any] | str, x: Any, /, **params: Any) -> Explanation:
    """Say who would compute ``f(x, **params)``, and why the others would not.

    Parameters
    ----------
    f : function or str
        A function of normx, or its name.
    x : array
        As for `f`; its values are not looked at.
    **params
        As for `f`.

    Returns
    -------
    Explanation
        The candidates in order, each taken or refused with its reason; ``str()`` of
        it is readable.

    Raises
    ------
    TypeError, ValueError
        What the call itself would raise for wrong arguments.

    Examples
    --------
    >>> import normx
    >>> print(normx.explain(normx.softmax, [1.0, 2.0], backend="reference"))
    softmax on an array of numpy:
      reference  taken: the formula in array-API code, on any library
    """
    record = record_of(f)
    library, x = _arrive(record, x)
    explicit = _explicit(params)
    plan = prepare(record, library, x, params, library_of).plan
    if plan.on_host and explicit != reference_backend.name and not library.in_reach(x):
        plan = plan.away()
    candidates = []
    for name, answer in _asked(plan, explicit, implementation):
        if isinstance(answer, Refusal):
            candidates.append(Candidate(name, False, answer.reason))
        else:
            found = backend(name)
            assert isinstance(found, Backend)
            said = (found.description(), library.explained(plan, x))
            candidates.append(Candidate(name, True, "; ".join(filter(None, said))))
    return Explanation(record.name, library.name, tuple(candidates))
