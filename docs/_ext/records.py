"""Sphinx extension: a page per function, generated from its record when the docs are built.

The pages and their pictures are written to docs/functions/, which git ignores.  A new record
has its page, and its line in the index, by being a record; what else `normx` exports from a
public module has a page of its docstring.
"""

from __future__ import annotations

import inspect
import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import normx
from normx._record import registry
from normx.cli import plot, samples

if TYPE_CHECKING:
    from sphinx.application import Sphinx

    from normx._record import Parameter, Record

#: What the shapes of a record's numeric keywords mean.
SHAPES = {
    "row": "one value per row",
    "along": "any number of values along the row",
    "elements": "broadcast against the scores",
}

#: What becomes of scores at the end that a function prefers, in words, by `Record.at_infinity`.
AT_INFINITY = {
    "share": "Scores of {top} share the mass",
    "indicator": "With {top} in it, a row is taken as one of ones (for {top}) and zeros",
    "pointwise": "Scores of {top} go into the formula as they are",
}

#: The rows of the table of edge cases; None stands for a score that `where` leaves out.
CASES: dict[str, tuple[float | None, ...]] = {
    "ordinary": (1, 2, 3, -1),
    "NaN": (1, np.nan, 3, -1),
    "+inf": (np.inf, 2, np.inf, -1),
    "-inf": (1, 2, 3, -np.inf),
    "only +inf": (np.inf,) * 4,
    "only -inf": (-np.inf,) * 4,
    "one entry": (2,),
    "equal scores": (1, 1, 1, 1),
    "one left out by ``where``": (1, 2, None, -1),
    "large scores": (1e4, 9999, 0, -1e4),
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


def listed(names: list[str]) -> str:
    """Join names of keywords."""
    *first, last = [f"``{name}``" for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def numbers(values: Any) -> str:
    """Show the numbers of a row, to four decimals; a dot for what is left out."""
    shown = ["·" if v is None else f"{round(float(v), 4) + 0.0:g}" for v in values]
    return f"``{', '.join(shown)}``"


def call(record: Record, row: tuple[float | None, ...]) -> Any:
    """Compute a function of one row."""
    kept = np.asarray([score is not None for score in row])
    x = np.asarray([np.nan if score is None else score for score in row])
    keywords = samples.keywords(record, x.shape)
    if not kept.all():
        keywords["where"] = kept
    return np.ravel(record.function(x, axis=-1, **keywords))


def edge_cases(record: Record) -> list[str]:
    """Compute what becomes of rows that are not ordinary."""
    passed = [f"``{name}={value!r}``" for name, value in record.example.items()]
    passed += ["``rng=numpy.random.default_rng(0)``"] * record.random
    how = "Computed with NumPy in float64 when this page was built, and rounded to four decimals"
    return [
        heading("Edge cases", "-"),
        f"{how}; passed: {', '.join(passed)}.\n" if passed else f"{how}.\n",
        at_infinity(record) if record.kind == "normalizer" else "",
        table(
            ("row", "scores", "result"),
            [(name, numbers(row), numbers(call(record, row))) for name, row in CASES.items()],
        ),
    ]


def at_infinity(record: Record) -> str:
    """Say what infinite scores do in a row of weights."""
    top, bottom = ("-inf", "+inf") if record.negated else ("+inf", "-inf")
    text = AT_INFINITY[record.at_infinity].format(top=top)
    nothing = f"nothing but {bottom}{' and of scores without mass' if record.massless else ''}"
    return f"{text}; a row of {nothing} is empty, and becomes what ``empty`` says.\n"


def has_gradient(record: Record, parameter: Parameter) -> bool:
    """Whether the result moves with a numeric keyword, on an ordinary row somewhere."""
    x = np.asarray([0.3, -0.2, 0.4, 0.1])
    keywords = samples.keywords(record, x.shape)
    if "where" in keywords:
        keywords["where"] = np.asarray([True, True, True, False])
    least = max(parameter.minimum or 0.0, parameter.above or 0.0)
    for value in (least + 0.5, least + 9.0):
        passed = keywords | {parameter.name: value}
        y, pullback = normx.vjp(record.function, x, axis=-1, **passed)
        if np.any(pullback(np.cos(np.arange(np.size(y)).reshape(np.shape(y))))[parameter.name]):
            return True
    return False


def gradient(record: Record) -> list[str]:
    """Say what `normx.vjp` gives."""
    parts = [heading("Gradient", "-")]
    if record.vjp is None:
        return [*parts, "None: :func:`normx.vjp` refuses this function.\n"]
    moving = {p.name: has_gradient(record, p) for p in record.parameters}
    given = ["temperature"] * ("temperature" in record.keywords)
    given += [name for name, moves in moving.items() if moves]
    text = f":func:`normx.vjp` with ``normx.{record.name}`` gives the gradient of the scores"
    if given:
        text += f", and of {listed(given)} if passed"
    still = [name for name, moves in moving.items() if not moves]
    if still:
        text += f"; that of {listed(still)} is 0"
    return [*parts, f"{text}.\n", "Complex numbers have none.\n" if record.complex else ""]


def structure(record: Record) -> list[str]:
    """Say which reductions the formula needs, and what its keywords take."""
    if record.stages is None:
        text = "The formula needs its whole row at once: there are no states of blocks to merge."
    elif not record.stages:
        text = "The formula is pointwise: a result depends on its own score alone."
    else:
        many = len(record.stages)
        text = (
            "The formula needs one reduction of its row, "
            if many == 1
            else f"The formula needs {many} reductions of its row, each given those before, "
        ) + "with states that merge: a row may be cut into blocks, anywhere."
    parts = [heading("Structure", "-"), f"{text}\n"]
    if record.parameters:
        rows = [(f"``{p.name}``", SHAPES[p.shape], p.range or "any") for p in record.parameters]
        parts += [
            "Numeric keywords, numbers or arrays:\n",
            table(("keyword", "shape of an array", "values"), rows),
        ]
    if record.constants:
        rows = [(f"``{c.name}``", c.wanted) for c in record.constants]
        parts += ["Keywords that shape the formula:\n", table(("keyword", "values"), rows)]
    return parts


def page(record: Record) -> str:
    """Write the page of a record."""
    parts = [
        heading(record.name, "="),
        f".. autofunction:: normx.{record.name}\n",
        heading("Picture", "-"),
        f"``normx plot {record.name}`` draws it.\n",
        f".. image:: {record.name}.png\n   :alt: {record.name} on one row, and as rows grow\n",
        heading("Laws", "-"),
        "The test suite checks these on every library, backend and CPU target.\n",
        *[f"- {law.statement}" for law in record.laws],
        "",
        *edge_cases(record),
        *gradient(record),
        heading("Error budget", "-"),
        "Largest error, in units in the last place of the exact result.\n",
        table(("dtype", "ULP"), [(f"``{name}``", f"{ulp:g}") for name, ulp in record.ulp.items()]),
        *structure(record),
    ]
    return "\n".join(parts)


def picture(record: Record) -> bytes:
    """Draw what ``normx plot`` draws."""
    file = BytesIO()
    plot.draw(record, file)
    return file.getvalue()


def others() -> dict[str, Any]:
    """Find what `normx` exports from its public modules that is no record."""
    return {
        name: value
        for name, value in vars(normx).items()
        if callable(value)
        and not name.startswith("_")
        and name not in registry()
        and not value.__module__.startswith("normx._")
    }


def plain_page(name: str, value: Any) -> str:
    """Write the page of what is no record."""
    directive = "autoclass" if inspect.isclass(value) else "autofunction"
    members = "   :members:\n" if inspect.isclass(value) else ""
    return f"{heading(name, '=')}\n.. {directive}:: normx.{name}\n{members}"


def index() -> str:
    """Write the page that lists the functions."""
    records = registry().values()
    groups = {
        "Scores to weights": {r.name: r.doc for r in records if r.kind == "normalizer"},
        "Scores to one value per row": {r.name: r.doc for r in records if r.kind == "reduction"},
        "Parts of rows": {name: inspect.getdoc(value) or "" for name, value in others().items()},
    }
    parts = [heading("Functions", "=")]
    for title, docs in groups.items():
        rows = [(f":doc:`{name}`", doc.partition("\n")[0]) for name, doc in docs.items()]
        parts += [heading(title, "-"), table(("name", "what it does"), rows)]
    names = [name for docs in groups.values() for name in docs]
    return "\n".join([*parts, ".. toctree::", "   :hidden:", "", *[f"   {n}" for n in names], ""])


def write(app: Sphinx) -> None:
    """Bring docs/functions/ up to date; files that would not change are left alone."""
    folder = Path(app.srcdir) / "functions"
    folder.mkdir(exist_ok=True)
    pages = {"index": index()}
    pages |= {record.name: page(record) for record in registry().values()}
    pages |= {name: plain_page(name, value) for name, value in others().items()}
    files = {f"{name}.rst": text.encode() for name, text in pages.items()}
    files |= {f"{record.name}.png": picture(record) for record in registry().values()}
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


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
