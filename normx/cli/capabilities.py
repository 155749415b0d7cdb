"""``normx capabilities``: what runs where, as computed by `normx.capabilities`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from rich.table import Table

import normx
from normx._insight import Capability
from normx.cli import screen
from normx.cli.homes import homes

_SHORT = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
_NOTE = (
    "“all”: every floating dtype that the library has here. "
    "The first backend that takes a call computes it; a call falls through to the next."
)


def rows() -> tuple[Capability, ...]:
    """The capabilities, each library once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about dtypes they do not have
        found = normx.capabilities()
    once = {home.root for home in homes()}
    return tuple(row for row in found if row.library in once)


def grid(found: Sequence[Capability], between: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells: function, one column per library, gradient."""
    libraries = list(dict.fromkeys(row.library for row in found))
    functions = list(dict.fromkeys(row.function for row in found))
    lines = []
    for function in functions:
        mine = [row for row in found if row.function == function]
        cells = [_cell([row for row in mine if row.library == name], between) for name in libraries]
        gradient = "yes" if any(row.gradient for row in mine) else "no"
        lines.append([function, *cells, gradient])
    return ["function", *libraries, "gradient"], lines


def _cell(found: Sequence[Capability], between: str) -> str:
    """Backends with their dtypes; a backend without any is not mentioned."""
    has = list(dict.fromkeys(row.dtype for row in found))
    parts = []
    for name in dict.fromkeys(row.backend for row in found):
        takes = [row.dtype for row in found if row.backend == name and row.supported]
        if takes:
            what = "all" if len(takes) == len(has) else " ".join(_SHORT.get(d, d) for d in takes)
            parts.append(f"{name}: {what}")
    return between.join(parts) or "–"


def table() -> Table:
    """For a terminal."""
    header, lines = grid(rows(), "\n")
    shown = screen.table("what runs where", caption=_NOTE)
    for name in header:
        shown.add_column(name, style="bold" if name == "function" else None)
    for line in lines:
        shown.add_row(*line)
    return shown


def markdown() -> str:
    """For a page on GitHub."""
    header, lines = grid(rows(), "<br>")
    lines = [[f"`{line[0]}`", *line[1:]] for line in lines]
    body = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body) + f"\n\n{_NOTE}\n"
