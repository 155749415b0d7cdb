"""``normx bench softmax --algorithms``: the algorithms of the CPU kernels, by length of the row.

Draws throughput over the length of the row for every algorithm that the compiled
backend offers, on every instruction set of this processor, with the bandwidth of a
copy as the roof.  All of one length are timed in the same interleaved rounds, and the
trace has to show that the algorithm and the target asked for are what ran.  A call
takes as many short rows as fill the second-level cache, so that it is the kernel that
is timed and not the way to it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

import normx
from normx._dispatch import backend
from normx._record import Record
from normx.cli import machine, picture, screen
from normx.cli.bench import IN_CACHE, Settings, buffer_sets, numpy_dtype, scores
from normx.cli.timing import Contestant, interleave
from normx.plugins import Refusal

_FIRST, _LAST = 1 << 7, 1 << 26
#: Entries per call, at least.
_CALL = 1 << 17
COPY = "copy"
#: Whose algorithms are compared; the one with several per function.
_BACKEND = "native"


class Selectable(Protocol):
    """What the compiled backend has to offer for the study."""

    def algorithms(self, name: str, /) -> Sequence[str]:
        """Names of the algorithms of a function."""

    def use_algorithm(self, name: str, /) -> AbstractContextManager[object]:
        """Compute with one algorithm inside the ``with`` block."""

    def use_target(self, name: str, /) -> AbstractContextManager[object]:
        """Compute with one instruction set inside the ``with`` block."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measured length; entries per second, of a copy too."""

    target: str
    algorithm: str
    n: int
    throughput: float
    copy: float
    busy_threads: float


def kernels() -> tuple[Selectable, tuple[str, ...]]:
    """The compiled backend and its targets, or one line why there is no study."""
    native = backend(_BACKEND)
    if isinstance(native, Refusal):
        raise screen.CommandError(f"--algorithms needs the compiled backend: {native.reason}")
    try:
        module = importlib.import_module("normx_native")
    except ImportError as error:
        raise screen.CommandError(f"--algorithms needs the compiled backend: {error}") from None
    missing = [
        name for name in ("algorithms", "use_algorithm", "use_target") if not hasattr(module, name)
    ]
    if missing:
        raise screen.CommandError(f"the compiled backend here has no {' and no '.join(missing)}")
    return cast(Selectable, module), tuple(native.targets())


def lengths(largest: int) -> list[int]:
    """Powers of two from 2^7 on."""
    if not _FIRST <= largest <= _LAST:
        raise screen.CommandError(f"--max-size must be from {_FIRST} to {_LAST}, not {largest}")
    return [1 << k for k in range(_FIRST.bit_length() - 1, largest.bit_length())]


def study(
    record: Record, sizes: Sequence[int], settings: Settings, step: Callable[[str], object]
) -> list[Point]:
    """Time every algorithm on every target at every length; `step` is told once per length."""
    module, targets = kernels()
    algorithms = tuple(module.algorithms(record.name))
    if not algorithms:
        raise screen.CommandError(f"the compiled backend has one algorithm only for {record.name}")
    before = normx.get_num_threads()
    normx.set_num_threads(settings.threads)
    try:
        points = []
        for n in sizes:
            step(f"rows of {n:,}")
            points += _at(record, n, settings, module, targets, algorithms)
    finally:
        normx.set_num_threads(before)
    if not points:
        raise screen.CommandError(f"no algorithm of {record.name} takes contiguous rows")
    return points


def _at(
    record: Record,
    n: int,
    settings: Settings,
    module: Selectable,
    targets: Sequence[str],
    algorithms: Sequence[str],
) -> list[Point]:
    dtype = numpy_dtype(settings.dtype)
    shape = max(1, _CALL // n), n
    first = scores(shape, dtype, 0)
    count, place = buffer_sets(2 * first.nbytes)
    buffers = [(first.copy(), np.ones_like(first)) for _ in range(count)]
    runners = [
        _Forced(module, target, algorithm, record, buffers, place == IN_CACHE)
        for target in targets
        for algorithm in algorithms
    ]
    runners = [runner for runner in runners if runner.applies()]
    copies = [functools.partial(np.copyto, out, x) for x, out in buffers]
    copy = Contestant(COPY, copies, place == IN_CACHE)
    interleave([copy, *runners], settings.repeats, lambda text: None)
    return [
        Point(
            runner.target,
            runner.algorithm,
            n,
            first.size / runner.median,
            first.size / copy.median,
            runner.threads,
        )
        for runner in runners
    ]


class _Forced(Contestant):
    """A contestant whose rounds run one algorithm on one target."""

    def __init__(
        self,
        module: Selectable,
        target: str,
        algorithm: str,
        record: Record,
        buffers: Sequence[tuple[Any, Any]],
        warm: bool,
    ) -> None:
        self._module, self.target, self.algorithm = module, target, algorithm
        calls = [
            functools.partial(record.function, x, out=out, backend=_BACKEND) for x, out in buffers
        ]
        super().__init__(f"{target} {algorithm}", calls, warm)

    def _forced(self) -> ExitStack:
        forced = ExitStack()
        forced.enter_context(self._module.use_target(self.target))
        forced.enter_context(self._module.use_algorithm(self.algorithm))
        return forced

    def applies(self) -> bool:
        """Whether the algorithm takes contiguous rows at all; some are for other layouts."""
        try:
            with self._forced(), normx.trace() as ran:
                self.calls[0]()
        except ValueError:
            return False
        if ran[0].target != self.target or self.algorithm not in ran[0].kernel:
            raise screen.CommandError(
                f"asked for {self.algorithm} on {self.target}, but {ran[0].kernel} on "
                f"{ran[0].target} ran"
            )
        return True

    def calibrate(self) -> None:
        with self._forced():
            super().calibrate()

    def run(self) -> None:
        with self._forced():
            super().run()


# ---------------------------------------------------------------------- report


def _series(points: Sequence[Point], target: str) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.target == target:
            found.setdefault(point.algorithm, []).append(point)
    return found


def targets_of(points: Sequence[Point]) -> list[str]:
    """Targets in the order of the study."""
    return list(dict.fromkeys(point.target for point in points))


def tables(function: str, points: Sequence[Point], settings: Settings) -> list[Any]:
    """One table per target: throughput of every algorithm, the best one in bold."""
    shown = []
    for target in targets_of(points):
        series = _series(points, target)
        table = screen.table(
            f"{function} of rows of n · {settings.dtype} · {target} · 10⁹ entries per second",
            caption="bold: the fastest algorithm; in brackets: its share of the speed of a copy",
        )
        table.add_column("n", justify="right")
        for algorithm in (*series, COPY):
            table.add_column(algorithm, justify="right")
        for n in dict.fromkeys(point.n for point in points):
            row = {
                point.algorithm: point for point in points if (point.target, point.n) == (target, n)
            }
            best = max(row.values(), key=lambda point: point.throughput)
            cells = [_cell(row.get(algorithm), best) for algorithm in series]
            table.add_row(f"2^{n.bit_length() - 1}", *cells, f"{best.copy / 1e9:.2f}")
        shown.append(table)
    return shown


def _cell(point: Point | None, best: Point) -> str:
    if point is None:
        return "–"
    speed = f"{point.throughput / 1e9:.2f}"
    return f"[bold]{speed} ({point.throughput / point.copy:.2f})[/bold]" if point is best else speed


def draw(
    function: str, points: Sequence[Point], settings: Settings, machine_text: str, path: Path
) -> None:
    """Throughput over length, a panel per target."""
    names = targets_of(points)
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    fig = picture.figure(max(5.2 * columns, 7.0), 3.3 * rows + 0.9)
    with picture.style():
        axes = fig.subplots(rows, columns, squeeze=False, sharex=True)
        for ax, target in zip(axes.flat, names, strict=False):
            _curves(ax, target, _series(points, target), settings)
        for ax in axes.flat[len(names) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("length of the row")
        for ax in axes[:, 0]:
            ax.set_ylabel("10⁹ entries per second")
        longest = max(axes.flat, key=lambda ax: len(ax.get_lines()))
        fig.legend(*longest.get_legend_handles_labels(), loc="outside upper right", ncols=8)
        picture.headline(
            fig,
            f"{function} by algorithm, {settings.dtype}, {threads}",
            f"Medians of {settings.repeats} interleaved rounds of calls of at least {_CALL:,} "
            "entries. Dashed: copying the same array (np.copyto). Dotted: where input and output "
            f"of one row fill a cache.\n{machine_text}",
        )
    picture.save(fig, path)


def _curves(ax: Any, target: str, series: dict[str, list[Point]], settings: Settings) -> None:
    some = max(series.values(), key=len)
    ns = [point.n for point in some]
    ax.plot(ns, [p.copy / 1e9 for p in some], color=picture.GREY, linestyle="--", label=COPY)
    for colour, (algorithm, points) in zip(picture.COLOURS, series.items(), strict=False):
        lengths = [point.n for point in points]
        ax.plot(lengths, [p.throughput / 1e9 for p in points], color=colour, label=algorithm)
    itemsize = numpy_dtype(settings.dtype).itemsize
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    for level in (1, 2, 3):
        edge = machine.cache_size(level) // (2 * itemsize)
        if ns[0] < edge < ns[-1]:
            ax.axvline(edge, color=picture.GREY, linewidth=0.8, linestyle=":")
            ax.annotate(
                f"L{level}", (edge, 0.02), xycoords=("data", "axes fraction"), fontsize=7,
                color="#555555", ha="right", xytext=(-2, 0), textcoords="offset points",
            )  # fmt: skip
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    picture.quiet(ax, grid="both")
    ax.set_title(target)
