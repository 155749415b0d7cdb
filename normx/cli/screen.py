"""What the commands show: consoles, progress bars, numbers with units, one-line errors.

Tables go to stdout, progress bars and errors to stderr, so that a table can be piped.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

INSTALL = 'pip install "normx[cli,plot]"'
#: Width of tables that go to a file or a pipe, where no terminal says its own.
_PIPED_WIDTH = 120


class CommandError(Exception):
    """What a user can put right; shown as one line."""


def allowed(what: str, got: object, known: Iterable[object]) -> CommandError:
    """The error for a name that is none of the known ones."""
    return CommandError(f"unknown {what} {str(got)!r}; known are {', '.join(map(str, known))}")


def no_folder(path: Path) -> CommandError:
    """The error for a file in a folder that does not exist."""
    return CommandError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")


def console() -> Console:
    """Where tables go."""
    out = Console(highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out = Console(highlight=False, width=_PIPED_WIDTH)
    return out


def table(title: str, *, caption: str = "") -> Table:
    """An empty table in the style of all commands."""
    return Table(
        title=title,
        caption=caption or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        header_style="bold",
        pad_edge=False,
    )


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """A progress bar; yields ``step(text, advance=1)``."""
    console = Console(file=sys.stderr)
    bar = Progress(
        TextColumn("{task.description:<44.44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total)

        def step(text: str, advance: float = 1) -> None:
            bar.update(task, description=text, advance=advance)

        yield step


def figures(value: float, digits: int = 3) -> str:
    """A positive number with so many significant digits, never in exponent form."""
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def seconds(value: float) -> str:
    """A time with its unit: "12.3 µs"."""
    for unit, size in (("s ", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{figures(value / size)} {unit}"
    return f"{figures(value / 1e-9)} ns"


def size(count: int) -> str:
    """A number of bytes with its unit: "32 MiB"."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            value = figures(count / scale)
            return f"{value.rstrip('0').rstrip('.') if '.' in value else value} {unit}"
    return f"{count} B"


def ulps(value: float) -> str:
    """An error in units in the last place."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "wrong ∞/NaN"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def one_line(error: BaseException) -> str:
    """The message of an exception, on one line."""
    format_message = getattr(error, "format_message", None)  # usage errors of typer
    text = format_message() if format_message is not None else str(error)
    text = " ".join(str(text).split())
    known = isinstance(error, CommandError | ValueError | TypeError) or format_message is not None
    return text if known and text else f"{type(error).__name__}: {text}".rstrip(": ")
