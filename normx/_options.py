"""The keywords that all functions share, defined once.

Each option is one annotated entry: its type, its default and its text.  Type
checkers read the entries through ``Unpack``; ``help``, the signatures and the
validation read them at run time.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypedDict, get_type_hints

if TYPE_CHECKING:
    from normx._record import Paper

Array: TypeAlias = Any
ArrayLike: TypeAlias = Any
Axis: TypeAlias = "int | tuple[int, ...] | None"
EmptyPolicy: TypeAlias = Literal["zero", "nan", "uniform"]


@dataclass(frozen=True, slots=True)
class Option:
    """Default and text of a shared keyword."""

    default: Any
    type: str
    text: str


class CommonOptions(TypedDict, total=False):
    """Options of every function, but for the mask."""

    dtype: Annotated[
        Any,
        Option(None, "dtype, optional", "Floating dtype of the result; that of `x` by default."),
    ]
    backend: Annotated[
        str | None,
        Option(
            None,
            "str, optional",
            "Who computes: a name from `normx.backends()`. An explicit choice never falls back.",
        ),
    ]


class SharedOptions(CommonOptions, total=False):
    """Options of every function."""

    where: Annotated[
        ArrayLike | None,
        Option(
            None,
            "array of bool, optional",
            "Broadcastable against `x`; True takes part. Entries left out have no effect, "
            "whatever they hold, and receive gradient exactly 0.",
        ),
    ]


class FilledOptions(CommonOptions, total=False):
    """Options of the row normalizers whose mask is a keyword of their own."""

    temperature: Annotated[
        ArrayLike,
        Option(
            1.0,
            "float or array",
            "The scores are divided by it; at least 0, an array has size 1 along `axis`. "
            "At 0 the mass is shared among the maxima.",
        ),
    ]
    softcap: Annotated[
        float | None,
        Option(
            None,
            "float, optional",
            "The scores become ``c*tanh(x/c)``, before the temperature; positive.",
        ),
    ]
    empty: Annotated[
        EmptyPolicy,
        Option(
            "zero",
            '{"zero", "nan", "uniform"}',
            "What a row without any score above -inf becomes; goes to its kept entries, or to "
            "the whole row where none is kept.",
        ),
    ]
    out: Annotated[
        Array | None,
        Option(
            None,
            "array, optional",
            "Where the result is written (libraries with mutable arrays); may be `x` itself.",
        ),
    ]


class RowOptions(SharedOptions, FilledOptions, total=False):
    """Options of every row normalizer."""


_AXIS = Option(
    None,
    "int, tuple of int, or None",
    "Axis or axes that form a row, in any order; None stands for all of them.",
)
_X = Option(
    None,
    "array",
    "Scores: an array of any array-API library, or a list or number (taken as NumPy's). "
    "float16, bfloat16, float32 and float64 keep their dtype; integers and booleans are cast to "
    "the library's default floating dtype first.",
)


_RETURNS = """array
    Of the library, shape and floating dtype of `x`."""

_RAISES = """TypeError
    If an argument is of the wrong kind, or an explicit `backend` cannot take `x`.
ValueError
    If an argument has a wrong value or shape.  The values of arrays are looked at where
    that is possible: not while they are traced, nor in lazy arrays.
numpy.exceptions.AxisError
    If `axis` does not exist or is repeated; both a ValueError and an IndexError."""

_N = Option(
    None,
    "float or array, optional",
    "The length of a row, at least 1; an array has size 1 along `axis`. By default the number of "
    "entries that take part: those kept by `where`, with a score above -inf.",
)


def options_of(options: type) -> Mapping[str, Option]:
    """The entries of an options class, by name."""
    hints = get_type_hints(options, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def signature_with(function: Callable[..., Any], options: type) -> inspect.Signature:
    """The signature of `function` with its ``**options`` spelled out."""
    own = inspect.signature(function)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    hints = get_type_hints(options)
    parameters += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=hints[name]
        )
        for name, option in options_of(options).items()
        if name not in own.parameters
    ]
    return own.replace(parameters=parameters)


def _entry(name: str, option: Option) -> str:
    text = textwrap.fill(option.text, 88, initial_indent="    ", subsequent_indent="    ")
    return f"{name} : {option.type}\n{text}\n"


def filled(doc: str | None, entries: Mapping[str, Option | str]) -> str:
    """A docstring in which ``{name}`` stands for the entry of that parameter, or for a text."""
    doc = inspect.cleandoc(doc or "")
    for name, entry in entries.items():
        text = entry if isinstance(entry, str) else _entry(name, entry)
        doc = doc.replace(f"{{{name}}}", text.rstrip("\n"))
    return doc


def described(function: Callable[..., Any], options: type, papers: tuple[Paper, ...]) -> str:
    """The docstring of `function` with what all functions share filled in.

    ``{x}``, ``{axis}``, ``{n}`` and ``{options}`` stand for the parameters' entries,
    ``{returns}`` and ``{raises}`` for these sections, ``{papers}`` for the references.
    """
    own = inspect.signature(function).parameters
    shared = "\n".join(
        _entry(name, option) for name, option in options_of(options).items() if name not in own
    )
    references = "\n".join(f".. [{i}] {paper}" for i, paper in enumerate(papers, 1))
    entries: dict[str, Option | str] = {"x": _X, "axis": _AXIS, "n": _N, "options": shared}
    return filled(
        function.__doc__,
        entries | {"returns": _RETURNS, "raises": _RAISES, "papers": references},
    )
