"""Sphinx extension: a page per function, generated from its record when the docs are built.

The pages are written to docs/functions/, which git ignores.  A new record has its page,
and its line in the index, by being a record.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normx._record import registry

if TYPE_CHECKING:
    from sphinx.application import Sphinx

    from normx._record import Record

#: What the shapes of a record's numeric keywords mean.
SHAPES = {
    "row": "one value per row",
    "along": "any number of values along the row",
    "elements": "broadcast against the scores",
}


def heading(text: str, line: str) -> str:
    """Underline a title."""
    return f"{text}\n{line * len(text)}\n"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Lay out a table."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (header, *rows):
        lines += [f"   {'-' if i else '* -'} {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines).replace("   - ", "     - ") + "\n"


def page(record: Record) -> str:
    """Write the page of a record."""
    state = (
        "The state of a row merges: rows may be cut into blocks, anywhere."
        if record.monoid is not None
        else "Rows have no mergeable state."
    )
    parts = [
        heading(record.name, "="),
        f".. autofunction:: normx.{record.name}\n",
        heading("Laws", "-"),
        "The test suite checks these on every library, backend and CPU target.\n",
        *[f"- {law.statement}" for law in record.laws],
        "",
        heading("Error budget", "-"),
        "Largest error, in units in the last place of the exact result.\n",
        table(("dtype", "ULP"), [(f"``{name}``", f"{ulp:g}") for name, ulp in record.ulp.items()]),
        heading("Structure", "-"),
        state + "\n",
    ]
    if record.parameters:
        rows = [(f"``{p.name}``", SHAPES[p.shape]) for p in record.parameters]
        parts += [
            "Numeric keywords, numbers or arrays, each with a gradient:\n",
            table(("keyword", "shape of an array"), rows),
        ]
    return "\n".join(parts)


def index(records: list[Record]) -> str:
    """Write the page that lists the functions."""
    kinds = {"normalizer": "Scores to weights", "reduction": "Scores to one value per row"}
    parts = [heading("Functions", "=")]
    for kind, title in kinds.items():
        chosen = [record for record in records if record.kind == kind]
        rows = [(f":doc:`{r.name}`", r.doc.partition("\n")[0]) for r in chosen]
        parts += [heading(title, "-"), table(("function", "what it does"), rows)]
    parts += [".. toctree::", "   :hidden:", "", *[f"   {record.name}" for record in records], ""]
    return "\n".join(parts)


def write(app: Sphinx) -> None:
    """Bring docs/functions/ up to date; files that would not change are left alone."""
    folder = Path(app.srcdir) / "functions"
    folder.mkdir(exist_ok=True)
    records = list(registry().values())
    pages = {"index.rst": index(records)} | {f"{r.name}.rst": page(r) for r in records}
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def keep_initials(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep "J. S. Bridle" at the start of a reference from being read as item J of a list."""
    lines[:] = [re.sub(r"^(\.\. \[\d+\] )(?=[A-Z]\.)", r"\1\\", line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("builder-inited", write)
    app.connect("autodoc-process-docstring", keep_initials, priority=400)  # before numpydoc's
    return {"parallel_read_safe": True, "parallel_write_safe": True}
