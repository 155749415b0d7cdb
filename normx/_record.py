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
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, cast

import numpy as np

from normx._options import RowOptions, SharedOptions, described, signature_with

if TYPE_CHECKING:
    from normx.laws import Law
    from normx.plugins import Library
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
    above : float, optional
        Every value must be greater than this.
    complex : bool
        Whether complex values are allowed.
    """

    name: str
    shape: Literal["row", "along", "elements"]
    minimum: float | None = None
    above: float | None = None
    complex: bool = False

    @property
    def range(self) -> str:
        """The values allowed, in words; empty if all are."""
        if self.minimum is not None:
            return f"at least {self.minimum:g}"
        return f"above {self.above:g}" if self.above is not None else ""

    def allows(self, values: Any) -> Any:
        """Whether values are in the range, if there is one; NaN is in none."""
        if self.minimum is not None:
            return values >= self.minimum
        return values > self.above


@dataclass(frozen=True, slots=True)
class Constant:
    """A keyword that shapes the formula itself: fixed when a plan is made.

    Attributes
    ----------
    name : str
        The keyword.
    wanted : str
        What is allowed, in words.
    normal : callable
        ``normal(value)`` gives the value as the formula takes it, hashable; None for a
        value that is not allowed, and TypeError for what is of another kind.
    """

    name: str
    wanted: str
    normal: Callable[[Any], Any]


def flag(name: str) -> Constant:
    """A keyword that is True or False."""

    def normal(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise TypeError
        return bool(value)

    return Constant(name, "True or False", normal)


@dataclass(frozen=True, slots=True)
class Stage:
    """One reduction over a row: blocks are lifted, and their states merged.

    Attributes
    ----------
    lift : callable
        ``lift(row, *states, **parameters)``: the state of a block, given the states of
        the stages before, which cover the whole row.
    monoid : Monoid
        How the states of two blocks become one.
    """

    lift: Callable[..., Any]
    monoid: Monoid


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One function of the catalogue.

    Attributes
    ----------
    name : str
        Public name, and the first part of the names of its kernels.
    apply : callable
        ``apply(row, *states, **parameters)``: the formula, in array-API code, from
        the scores of a block and the states of its row to weights (normalizers) or to
        the row's value (reductions).
    stages : tuple of Stage or None
        The reductions that the formula needs, in order.  Empty where it is pointwise;
        None where it needs the whole row at once.
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
    negated : bool
        Whether the formula is that of the negated scores.
    massless : callable or None
        ``massless(scores, **parameters)``: which scores can have no mass, whatever the
        others are.  They are left out, so a row of nothing else is empty.
    fills : bool
        Whether left-out entries take the score ``fill``, and have weights.
    at_infinity : {"share", "indicator", "pointwise"}
        What becomes of a row with scores of +inf: the mass is shared among them; the
        limit of the formula as these grow together and the rest is 0; or just the formula.
    noise : callable or None
        ``noise(xp, uniform)``: what is added to the scores, after the softcap, of numbers in
        (0, 1) that are drawn from the keyword `rng`: as many, a parameter ``uniform``.
    parameters : tuple of Parameter
        The numeric keywords besides the shared options.
    constants : tuple of Constant
        The keywords that are part of the plan.
    example : mapping of str to object
        Values for the keywords that have no default, for tests and documentation.
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
    stages: tuple[Stage, ...] | None
    vjp: Callable[..., dict[str, Any]] | None
    kind: Literal["normalizer", "reduction"]
    log_space: bool
    complex: bool
    negated: bool
    massless: Callable[..., Any] | None
    fills: bool
    at_infinity: Literal["share", "indicator", "pointwise"]
    noise: Callable[..., Any] | None
    parameters: tuple[Parameter, ...]
    constants: tuple[Constant, ...]
    example: Mapping[str, Any]
    laws: tuple[Law, ...]
    ulp: Mapping[str, float]
    papers: tuple[Paper, ...]
    doc: str
    signature: inspect.Signature
    function: Callable[..., Any] = field(repr=False)

    def example_for(self, library: Library) -> dict[str, Any]:
        """Values for the keywords that have no default, for arrays of a library."""
        return {**self.example, **({"rng": library.rng(0)} if self.random else {})}

    @property
    def random(self) -> bool:
        """Whether the formula takes noise."""
        return self.noise is not None

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


#: What most records have in common.
_DEFAULTS: dict[str, Any] = {
    "stages": (),
    "vjp": None,
    "log_space": False,
    "complex": False,
    "negated": False,
    "massless": None,
    "fills": False,
    "at_infinity": "share",
    "noise": None,
    "parameters": (),
    "constants": (),
    "example": {},
    "ulp": ULP_BUDGET,
}


class Fields(TypedDict, total=False):
    """The fields of a `Record` that have defaults."""

    stages: tuple[Stage, ...] | None
    vjp: Callable[..., dict[str, Any]]
    log_space: bool
    complex: bool
    negated: bool
    massless: Callable[..., Any]
    fills: bool
    at_infinity: Literal["share", "indicator", "pointwise"]
    noise: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    constants: tuple[Constant, ...]
    example: Mapping[str, Any]
    ulp: Mapping[str, float]


def normalizer(
    *,
    apply: Callable[..., Any],
    definition: Callable[..., Any],
    papers: tuple[Paper, ...],
    laws: tuple[Law, ...],
    **fields: Unpack[Fields],
) -> Callable[[F], F]:
    """Define a row normalizer; the arguments are the fields of `Record`."""
    own = {"apply": apply, "definition": definition, "papers": papers, "laws": laws}
    return _define(RowOptions, **_DEFAULTS | {"kind": "normalizer"} | own | fields)


def reduction(
    *,
    apply: Callable[..., Any],
    definition: Callable[..., Any],
    papers: tuple[Paper, ...],
    laws: tuple[Law, ...],
    **fields: Unpack[Fields],
) -> Callable[[F], F]:
    """Define a reduction of rows; the arguments are the fields of `Record`."""
    own = {"apply": apply, "definition": definition, "papers": papers, "laws": laws}
    kind = {"kind": "reduction", "log_space": True}
    return _define(SharedOptions, **_DEFAULTS | kind | own | fields)
