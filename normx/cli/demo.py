"""``normx demo``: real attention scores through every function, everywhere it runs.

The functions come from the registry, the libraries from `homes`; NumPy arrays go to
every usable backend, other arrays to the one that normx chooses.  What ran is read
from the trace, never assumed.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

import normx
from normx._record import Record, record_of, registry
from normx.cli import picture, samples, screen
from normx.cli.exact import exact, largest_error
from normx.cli.homes import Home, homes, to_numpy

_REPEATS = 5
#: Seconds of timing per line of the table, so that slow libraries do not hold up the rest.
_ENOUGH = 0.1
#: A first call this slow is the measurement, except where it may have compiled something.
_SLOW = 0.2
#: An error that only a result of 0 for a subnormal number can have, nearly.
_FLUSHED = 1e6


@dataclass(frozen=True, slots=True)
class Place:
    """A library, and a backend if one is forced."""

    home: Home
    backend: str | None

    def __str__(self) -> str:
        return self.home.name


@dataclass(frozen=True, slots=True)
class Line:
    """One function at one place; `refused` says why nothing ran."""

    function: str
    place: Place
    ran: str = ""
    time: float = 0.0
    ulp: float = float("nan")
    budget: float = 0.0
    refused: str = ""


def places() -> tuple[Place, ...]:
    """Where every function is tried."""
    numpy, *others = homes()
    usable = [name for name, there in normx.backends().items() if there.usable]
    return (
        *(Place(numpy, name) for name in usable),
        *(Place(home, None) for home in others),
    )


def run(x: NDArray[np.float32], step: Callable[[str], object]) -> Iterator[Line]:
    """Every function at every place; `step` is told of each, and of the imports before."""
    for place in places():
        step(f"importing {place}")
        _try(record_of("softmax"), place, x[..., :1, :], None)
    for record in registry().values():
        missing = samples.unknown(record)
        want = None if missing else _want(record, x)
        for place in places():
            step(f"{record.name} on {place}")
            if missing:
                reason = f"needs {', '.join(missing)}, which the demo has no value for"
                yield Line(record.name, place, refused=reason)
            else:
                yield _try(record, place, x, want)


def _want(record: Record, x: NDArray[np.float32]) -> NDArray[Any] | None:
    """The exact result; None where the function draws random numbers."""
    keywords = samples.keywords(record, x.shape)
    return None if "rng" in keywords else exact(record, x, keywords)


def _try(record: Record, place: Place, x: NDArray[np.float32], want: NDArray[Any] | None) -> Line:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of libraries, about dtypes they do not have
            return _line(record, place, x, want)
    except Exception as error:  # noqa: BLE001  # shown as a reason: one place must not end the demo
        return Line(record.name, place, refused=screen.one_line(error))


def _line(record: Record, place: Place, x: NDArray[np.float32], want: NDArray[Any] | None) -> Line:
    scores = place.home.make(x)
    names = samples.required(record)

    def call() -> Any:
        keywords = samples.keywords(record, x.shape)  # anew: a generator has a state
        if "where" in names:
            keywords["where"] = place.home.make(keywords["where"])
        return to_numpy(record.function(scores, axis=-1, backend=place.backend, **keywords))

    start = time.perf_counter()
    with normx.trace() as ran:
        got = call()
    first = time.perf_counter() - start
    taken = first if first > _SLOW and not place.home.compiles else _time(call)
    error = float("nan") if want is None else largest_error(got, want)
    who = ran[-1]
    what = f"{who.backend}: {who.kernel.removeprefix(f'{record.name}_')}"
    if who.target not in ("", place.home.name):
        what += f" on {who.target}"
    return Line(record.name, place, what, taken, error, record.ulp["float32"])


def _time(call: Callable[[], Any]) -> float:
    """Median time of a few calls; the caller has made the first one already."""
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _ENOUGH:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# ---------------------------------------------------------------------- report


def table(lines: Sequence[Line], x: NDArray[Any]) -> Table:
    """What ran, how long it took, and how far from exact it was."""
    rows, n = x.size // x.shape[-1], x.shape[-1]
    flushed = any(line.ulp > _FLUSHED for line in lines)
    shown = screen.table(
        f"{rows:,} rows of {n} real attention scores, float32",
        caption="time: median of a call; ÷ reference: over that of the reference backend on NumPy. "
        "error: largest against the exact result, in units in the last place; red above the budget"
        + (" (millions: a library that flushes subnormal weights to zero)." if flushed else "."),
    )
    shown.add_column("function", style="bold", no_wrap=True)
    shown.add_column("library")
    shown.add_column("what ran", style="dim")
    for header in ("time", "÷ reference", "error, ULP"):
        shown.add_column(header, justify="right")
    before = ""
    for line in lines:
        if line.refused:
            continue
        if before and line.function != before:
            shown.add_section()
        base = _reference_time(lines, line.function)
        colour = "red" if line.ulp > line.budget else "green"
        shown.add_row(
            "" if line.function == before else line.function,
            str(line.place),
            line.ran,
            screen.seconds(line.time),
            f"{screen.figures(line.time / base)}×" if base else "–",
            f"[{colour}]{screen.ulps(line.ulp)}[/{colour}]",
        )
        before = line.function
    return shown


def _reference_time(lines: Sequence[Line], function: str) -> float | None:
    for line in lines:
        if line.function == function and line.place.backend == "reference" and not line.refused:
            return line.time
    return None


def refusals(lines: Sequence[Line]) -> list[str]:
    """Why nothing ran at some places, one line per place and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line.refused:
            forced = f" with {line.place.backend}" if line.place.backend else ""
            reason = line.refused.replace(f"normx.{line.function}: ", "")
            found.setdefault((f"{line.place}{forced}", reason), []).append(line.function)
    return [f"{', '.join(names)} on {where}: {why}" for (where, why), names in found.items()]


# --------------------------------------------------------------------- picture

#: Tokens of the row that are drawn, around the query.
_WINDOW = slice(samples.QUERY - 22, samples.QUERY + 23)


def draw(path: Path) -> None:
    """One row with its tokens, and one head's map, under each function."""
    scores, tokens = samples.attention()
    head = scores[samples.LAYER, samples.HEAD]
    records = [record for record in registry().values() if not samples.unknown(record)]
    results = {record: _result(record, head) for record in records}
    columns = 4
    rows = -(-(1 + len(records)) // columns)  # the scores themselves come first
    heights = [2.3 + 0.26 * len(records), 0.4 + 2.75 * rows]
    fig = picture.figure(12.0, sum(heights))
    with picture.style():
        parts: Any = fig.subfigures(2, 1, height_ratios=heights)
        top, bottom = parts
        _row(top, head[samples.QUERY], tokens, results)
        _maps(bottom, head, results, rows, columns)
    picture.save(fig, path)


def _result(record: Record, head: NDArray[np.float32]) -> NDArray[Any]:
    keywords = samples.keywords(record, head.shape)
    return np.asarray(record.function(head, axis=-1, **keywords))


def _row(
    fig: Any, row: NDArray[Any], tokens: Sequence[str], results: dict[Record, NDArray[Any]]
) -> None:
    drawn = {record: y for record, y in results.items() if y.ndim == 2}
    axes = fig.subplots(
        1 + len(drawn), 1, sharex=True, squeeze=False,
        gridspec_kw={"height_ratios": [5, *[1] * len(drawn)]},
    )[:, 0]  # fmt: skip
    shown = row[_WINDOW]
    here = samples.QUERY - _WINDOW.start
    axes[0].bar(np.arange(shown.size), shown, width=0.8, color=picture.COLOURS[0])
    axes[0].axhline(0, color=picture.INK, linewidth=0.6)
    axes[0].set_ylabel("score")
    axes[0].set_title(
        f"One row of real attention scores: the query is “{tokens[samples.QUERY]}”. "
        "Below: what each function makes of it (each strip from its least to its largest)"
    )
    picture.quiet(axes[0])
    for ax, (record, y) in zip(axes[1:], drawn.items(), strict=True):
        ax.imshow(y[samples.QUERY, _WINDOW][None], aspect="auto", cmap=picture.MAP)
        ax.set_yticks([0], [record.name])
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    axes[-1].set_xticks(np.arange(shown.size), tokens[_WINDOW], rotation=90)
    axes[-1].get_xticklabels()[here].set(fontweight="bold", color=picture.COLOURS[1])


def _maps(
    fig: Any,
    head: NDArray[Any],
    results: dict[Record, NDArray[Any]],
    rows: int,
    columns: int,
) -> None:
    axes = fig.subplots(rows, columns, squeeze=False)
    panels = [("scores", head, True), *((r.name, y, r.log_space) for r, y in results.items())]
    for i, (ax, (name, y, logarithmic)) in enumerate(zip(axes.flat, panels, strict=False)):
        ax.set_title(name)
        _map(fig, ax, y, logarithmic) if y.ndim == 2 else _values(ax, y)
        ax.set_box_aspect(1)
        ax.tick_params(labelsize=7)
        if i % columns == 0:
            ax.set_ylabel("query")
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    fig.suptitle(
        "The whole head: queries down, keys across",
        x=0.01, ha="left", fontsize=10, fontweight="bold",
    )  # fmt: skip


def _map(fig: Any, ax: Any, y: NDArray[Any], logarithmic: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    # The few largest weights (lowest logarithms) would leave the rest in one colour.
    cut = (0.01, 1.0) if logarithmic else (0.0, 0.99)
    low, high = np.quantile(y[np.isfinite(y)], cut)
    drawn = ax.imshow(y, cmap=picture.MAP, vmin=low, vmax=high, interpolation="nearest")
    bar = fig.colorbar(
        drawn, ax=ax, fraction=0.046, pad=0.03, extend="min" if logarithmic else "max"
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()


def _values(ax: Any, y: NDArray[Any]) -> None:
    """One value per query, at the height of its row."""
    ax.plot(y, np.arange(y.size), ".", markersize=2.5, color=picture.COLOURS[0])
    ax.set_ylim(y.size - 0.5, -0.5)
    ax.set_xlabel("value", fontsize=8)
    picture.quiet(ax, grid="x")
