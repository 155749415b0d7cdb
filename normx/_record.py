"""The record: everything normx knows of one function, in one place.

A record is made by decorating a function that has a signature, a docstring and
no body.  Tests, documentation, benchmarks, gradients and the capability table
are loops over the registry; none of them keeps a list of its own.

The decorator is typed as the identity, so type checkers see the signature as it
is written.  At run time the name is bound to a real function (``help``,
``inspect.signature``, ``pickle`` and doctest work on it) whose calls go through
the plan cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from normx._options import RowOptions, SharedOptions, described, signature_with

if TYPE_CHECKING:
    from normx.laws import Law
    from normx.states import Monoid

F = TypeVar("F", bound=Callable[..., Any])

#: Largest error of a result, in units in the last place of its dtype.
ULP_BUDGET: Mapping[str, float] = {"float16": 1.0, "bfloat16": 1.0, "float32": 4.0, "float64": 4.0}


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a normalizer comes from."""

    authors: str
    title: str
    year: int
    where: str

    def __str__(self) -> str:
        return f'{self.authors}, "{self.title}", {self.where}, {self.year}.'


@dataclass(frozen=True, slots=True)
class Parameter:
    """A numeric keyword of a record: a number, or an array with a gradient.

    Attributes
    ----------
    name : str
        The keyword.
    shape : {"row", "along", "elements"}
        ``row``: one value per row, the reduced axes have size 1.  ``along``: any
        number of values along the reduced axes, broadcast over the others.
        ``elements``: broadcast against `x` itself.
    minimum : float, optional
        Smallest value allowed.
    complex : bool
        Whether complex values are allowed.
    """

    name: str
    shape: Literal["row", "along", "elements"]
    minimum: float | None = None
    complex: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One function of the catalogue.

    Attributes
    ----------
    name : str
        Public name, and the first part of the names of its kernels.
    apply : callable
        ``apply(row, state, **parameters)``: the formula, in array-API code, from
        the scores and the state of a row to its weights (normalizers) or its
        value (reductions).
    state : callable or None
        ``state(row, **parameters)``: the state of the row, an element of `monoid`.
        None where the formula is pointwise.
    monoid : Monoid or None
        How states of parts of a row merge into the state of the row.
    definition : callable
        ``definition(m, x, **parameters)``: the textbook formula for one row of finite
        scores, naive on purpose; `m` has ``exp``, ``log`` and ``sum`` in a precision
        and range where that is harmless.  What the tests hold the formula against.
    vjp : callable or None
        ``vjp(row, cotangent, **parameters)``: a dict with the gradient of the
        scores (key ``"x"``) and of each parameter passed.
    kind : {"normalizer", "reduction"}
        Whether the result has the shape of `x` or one value per row.
    log_space : bool
        Whether the results are logarithms: left-out entries are -inf then.
    complex : bool
        Whether complex scores are allowed.
    parameters : tuple of Parameter
        The numeric keywords besides the shared options.
    flags : frozenset of str
        The boolean keywords (True or False, part of the plan).
    laws : tuple of Law
        What holds for every row; checked on every library and backend.
    ulp : mapping of str to float
        Largest error per dtype, in units in the last place.
    papers : tuple of Paper
    doc, signature
        For ``help``.
    """

    name: str
    apply: Callable[..., Any]
    definition: Callable[..., Any]
    state: Callable[..., Any] | None
    monoid: Monoid | None
    vjp: Callable[..., dict[str, Any]] | None
    kind: Literal["normalizer", "reduction"]
    log_space: bool
    complex: bool
    parameters: tuple[Parameter, ...]
    flags: frozenset[str]
    laws: tuple[Law, ...]
    ulp: Mapping[str, float]
    papers: tuple[Paper, ...]
    doc: str
    signature: inspect.Signature
    function: Callable[..., Any] = field(repr=False)

    @property
    def keywords(self) -> Mapping[str, inspect.Parameter]:
        """Every keyword of the function, shared options included."""
        return {
            name: parameter
            for name, parameter in self.signature.parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }


_REGISTRY: dict[str, Record] = {}


def registry() -> Mapping[str, Record]:
    """Every record by name, in the order of definition."""
    return dict(_REGISTRY)


def record_of(function: Callable[..., Any] | str) -> Record:
    """The record behind a public function or its name.

    Raises
    ------
    TypeError
        If it is neither a function of normx nor the name of one.
    """
    name = function if isinstance(function, str) else getattr(function, "__name__", None)
    record = _REGISTRY.get(name) if isinstance(name, str) else None
    if record is None or not (isinstance(function, str) or function is record.function):
        known = ", ".join(_REGISTRY)
        raise TypeError(f"{function!r} is not a function of normx; known are {known}")
    return record


def _define(options: type, **fields: Any) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        # Not at module level: the dispatcher itself needs the record's class.
        from normx._dispatch import entry_point

        name = function.__name__
        if name in _REGISTRY:
            raise ValueError(f"a record named {name!r} is registered already; choose another name")
        entry: Any = entry_point(name)
        signature = signature_with(function, options)
        record = Record(
            name=name,
            doc=described(function, options, fields["papers"]),
            signature=signature,
            function=entry,
            **fields,
        )
        entry.__signature__ = signature
        entry.__doc__ = record.doc
        entry.__module__ = function.__module__
        entry.__qualname__ = entry.__name__ = name
        _REGISTRY[name] = record
        return cast(F, entry)

    return decorate


def normalizer(
    *,
    apply: Callable[..., Any],
    definition: Callable[..., Any],
    papers: tuple[Paper, ...],
    laws: tuple[Law, ...],
    state: Callable[..., Any] | None = None,
    monoid: Monoid | None = None,
    vjp: Callable[..., dict[str, Any]] | None = None,
    log_space: bool = False,
    parameters: tuple[Parameter, ...] = (),
    flags: frozenset[str] = frozenset(),
    ulp: Mapping[str, float] = ULP_BUDGET,
) -> Callable[[F], F]:
    """Define a row normalizer; the arguments are the fields of `Record`."""
    return _define(
        RowOptions,
        apply=apply,
        definition=definition,
        papers=papers,
        laws=laws,
        state=state,
        monoid=monoid,
        vjp=vjp,
        log_space=log_space,
        parameters=parameters,
        flags=flags,
        ulp=ulp,
        kind="normalizer",
        complex=False,
    )


def reduction(
    *,
    apply: Callable[..., Any],
    definition: Callable[..., Any],
    papers: tuple[Paper, ...],
    laws: tuple[Law, ...],
    state: Callable[..., Any] | None = None,
    monoid: Monoid | None = None,
    vjp: Callable[..., dict[str, Any]] | None = None,
    complex: bool = False,
    parameters: tuple[Parameter, ...] = (),
    flags: frozenset[str] = frozenset(),
    ulp: Mapping[str, float] = ULP_BUDGET,
) -> Callable[[F], F]:
    """Define a reduction of rows; the arguments are the fields of `Record`."""
    return _define(
        SharedOptions,
        apply=apply,
        definition=definition,
        papers=papers,
        laws=laws,
        state=state,
        monoid=monoid,
        vjp=vjp,
        log_space=True,
        parameters=parameters,
        flags=flags,
        ulp=ulp,
        kind="reduction",
        complex=complex,
    )
