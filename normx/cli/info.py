"""``normx info``: what is installed, what can be used, and why the rest cannot."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
from rich.table import Table

import normx
from normx._dispatch import backend
from normx.cli import machine, screen
from normx.cli.homes import homes, plugin, version
from normx.plugins import Backend

_VARIABLES = ("NORMX_BACKEND", "NORMX_CPU_TARGET", "NORMX_NUM_THREADS", "NORMX_CACHE_MIB")


def _pairs(title: str, rows: dict[str, str]) -> Table:
    shown = screen.table(title)
    shown.show_header = False
    shown.add_column("", style="bold", min_width=20)
    shown.add_column("")
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def _threads() -> str:
    return f"{normx.get_num_threads()}, of {machine.processors()} processors this process may use"


def _softmax() -> str:
    """What runs for a NumPy array as things are set: tried, not guessed."""
    with normx.trace() as ran:
        normx.softmax(np.zeros(4, np.float32))
    return f"{ran[0].backend}: {ran[0].kernel} on {ran[0].target}"


def _said(question: Any) -> str:
    """The answer, or the message of a setting that is wrong."""
    try:
        return str(question())
    except (TypeError, ValueError) as error:
        return f"[red]{screen.one_line(error)}[/red]"


def here() -> Table:
    """Versions, threads, environment."""
    rows = {
        "normx": normx.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processor": machine.cpu(),
        "caches": ", ".join(f"L{i} {screen.size(machine.cache_size(i))}" for i in (1, 2, 3)),
        "threads": _said(_threads),
        "softmax of NumPy": _said(_softmax),
    }
    unset = "[dim]not set[/dim]"
    rows |= {name: os.environ.get(name) or unset for name in _VARIABLES}
    return _pairs("normx", rows)


def backends() -> Table:
    """Who can compute; targets that can be forced; the reason where one is missing."""
    shown = screen.table("backends: who computes")
    for header in ("backend", "usable", "targets", "what it is, or why not"):
        shown.add_column(header)
    for name, there in normx.backends().items():
        found = backend(name)
        targets = ", ".join(found.targets()) if isinstance(found, Backend) else ""
        shown.add_row(name, _mark(there.usable), targets or "–", there.reason)
    return shown


def libraries() -> Table:
    """Where arrays may live."""
    shown = screen.table(
        "array libraries: where arrays live",
        caption="Arrays of any other library that speaks the array API work too.",
    )
    for header in ("library", "version", "usable", "backends, in order", "note"):
        shown.add_column(header)
    known = normx.libraries()
    usable = {home.root: home for home in homes()}
    for root, there in known.items():
        if there.usable and root not in usable:
            continue  # another root module of a library listed already
        order = ", ".join(plugin(root).preference) if there.usable else "–"
        shown.add_row(root, version(root) or "–", _mark(there.usable), order, there.reason)
    for home in usable.values():
        if home.root not in known:
            shown.add_row(
                home.name, version(home.root), _mark(True), "reference", "through the array API"
            )
    return shown


def _mark(usable: bool) -> str:
    return "[green]yes[/green]" if usable else "[red]no[/red]"
