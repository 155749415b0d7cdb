"""What a benchmark shows: tables, JSON, a picture.  Nothing here is measured."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import normx
from normx.cli import machine, picture, screen
from normx.cli.bench import SPREAD, Result, Score, Settings
from normx.cli.exact import CHECKED
from normx.cli.peers import COPY, NORMX

#: Contestants whose version the report gives elsewhere.
_OWN = (NORMX.name, COPY.name)
#: Busy threads below which a contestant must have waited for a processor.
_IDLE = 0.85


def about_machine() -> dict[str, Any]:
    """What the numbers depend on, besides the code."""
    return {
        "cpu": machine.cpu(),
        "processors": machine.processors(),
        "cache_bytes": {f"L{level}": machine.cache_size(level) for level in (1, 2, 3)},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "normx": normx.__version__,
    }


def machine_line() -> str:
    """The machine in one line."""
    about = about_machine()
    caches = ", ".join(f"{k} {screen.size(v)}" for k, v in about["cache_bytes"].items())
    return f"{about['cpu']} · {about['processors']} processors · {caches} · {about['system']}"


def title(function: str, result: Result, settings: Settings) -> str:
    """What a table or panel shows."""
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    output = "ready output" if result.case.ready else "fresh output"
    return f"{function} · {result.case} · {settings.dtype} · {result.place} · {output} · {threads}"


def tables(function: str, results: Sequence[Result], settings: Settings) -> list[Table]:
    """One table per case."""
    return [_table(function, result, settings) for result in results]


def _table(function: str, result: Result, settings: Settings) -> Table:
    ran = [f"{score.name} ran {score.ran}" for score in result.scores if score.ran]
    left_out = [f"left out {name}: {reason}" for name, reason in result.left_out.items()]
    shown = screen.table(title(function, result, settings), caption="; ".join([*ran, *left_out]))
    shown.add_column("contestant")
    shown.add_column("output")
    for header in ("median", "±", "÷ normx", "÷ copy", "error, ULP", "busy threads"):
        shown.add_column(header, justify="right")
    for score in sorted(result.scores, key=lambda score: score.median):
        mine = score.name == NORMX.name
        shown.add_row(
            f"{score.name} {score.version}" if score.name not in _OWN else score.name,
            score.output,
            screen.seconds(score.median),
            "–" if np.isnan(score.spread) else f"{100 * score.spread:.0f} %",
            f"{screen.figures(score.ratio_to_normx or 0)}×",
            f"{screen.figures(score.ratio_to_copy or 0)}×",
            "–" if score.ulp is None else screen.ulps(score.ulp),
            f"{score.busy_threads:.1f}",
            style="bold" if mine else None,
        )
    return shown


def footnote(settings: Settings) -> str:
    """How the numbers came about."""
    return (
        f"Medians of {settings.repeats} interleaved rounds; ± is half the distance of the "
        "quartiles. ÷ normx and ÷ copy: time over that of normx and of copying the array "
        "(np.copyto; ndarray.copy where the output is fresh). Above 1× is slower. "
        f"Error: the largest on these scores (normal, standard deviation {SPREAD:g}; whole rows, "
        f"up to {CHECKED:,} entries), against the exact result. "
        "Busy threads: processor time over wall time."
    )


def disturbed(busy_threads: Iterable[float]) -> str:
    """A warning if somebody else had the processors while contestants waited; else nothing."""
    least = min(busy_threads)
    if least >= _IDLE:
        return ""
    return (
        f"A contestant got {least:.1f} of a processor: the machine was busy, "
        "and the times are longer than on an idle one."
    )


def as_json(function: str, results: Sequence[Result], settings: Settings) -> dict[str, Any]:
    """Everything that was measured; times in seconds, errors in ULP."""
    return {
        "function": function,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": about_machine(),
        "settings": dataclasses.asdict(settings),
        "cases": [case_as_json(result) for result in results],
    }


def case_as_json(result: Result) -> dict[str, Any]:
    """Everything of one case."""
    return {
        **dataclasses.asdict(result.case),
        "place": result.place,
        "scores": [finite(dataclasses.asdict(score)) for score in result.scores],
        "left_out": result.left_out,
    }


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN; infinity becomes text."""
    return {
        name: value
        if not isinstance(value, float) or np.isfinite(value)
        else (None if np.isnan(value) else "infinite")
        for name, value in values.items()
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a report."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def draw(function: str, results: Sequence[Result], settings: Settings, path: Path) -> None:
    """Bars of time over copy time, a panel per case."""
    columns = min(len(results), 3)
    rows = -(-len(results) // columns)
    most = max(len(result.scores) for result in results)
    fig = picture.figure(max(4.2 * columns, 7.5), max(rows * (0.9 + 0.32 * most) + 0.9, 2.6))
    with picture.style():
        axes = fig.subplots(rows, columns, squeeze=False)
        for ax, result in zip(axes.flat, results, strict=False):
            _bars(ax, result)
        for ax in axes.flat[len(results) :]:
            ax.set_axis_off()
        picture.headline(
            fig,
            f"{function}, {settings.dtype}, {settings.threads} thread"
            f"{'s' if settings.threads > 1 else ''}: time over the time of a copy",
            f"Shorter is better; log scale. Medians of {settings.repeats} interleaved rounds. "
            f"Beside each bar: time per call, largest error in ULP.\n{machine_line()}",
        )
    picture.save(fig, path)


def _bars(ax: Any, result: Result) -> None:
    scores = sorted(result.scores, key=lambda score: score.median, reverse=True)
    ratios = [score.ratio_to_copy or 0.0 for score in scores]
    colours = {NORMX.name: picture.COLOURS[0], COPY.name: "#C8C8C8"}
    least = min(0.5, 0.8 * min(ratios))
    ax.barh(
        [score.name for score in scores],
        [ratio - least for ratio in ratios],
        left=least,
        color=[colours.get(score.name, "#E8C9A0") for score in scores],
        height=0.72,
    )
    ax.axvline(1.0, color=picture.INK, linewidth=0.8, linestyle=(0, (3, 2)))
    for y, (score, ratio) in enumerate(zip(scores, ratios, strict=True)):
        ax.text(ratio * 1.06, y, _label(score), va="center", fontsize=7.5)
    ax.set_xscale("log")
    # Room for the text beside the longest bar, on a logarithmic axis.
    ax.set_xlim(least, max(ratios) * (max(ratios) / least) ** 0.62)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    ax.minorticks_off()
    picture.quiet(ax, grid="x")
    ax.spines["left"].set_visible(False)
    output = "" if result.case.ready else ", fresh output"
    ax.set_title(f"{result.case}, {result.place}{output}")


def _label(score: Score) -> str:
    time = screen.seconds(score.median).replace("s ", "s")
    return time if score.ulp is None else f"{time}, {screen.ulps(score.ulp)} ULP"
