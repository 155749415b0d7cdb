"""Interleaved clocks: every round runs each contestant once, in a rotated order.

Whatever disturbs the machine then disturbs everybody, and nobody always comes after
the same neighbour.  One timing lasts at least a millisecond (many calls of a short
one); the garbage collector is off meanwhile.  Processor time is read beside the wall
clock: it tells how many threads really ran, whatever was asked for.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

#: Shortest timing, in seconds: far above the resolution and the cost of the clock.
LEAST = 1e-3
#: Whose call takes longer than this, in seconds, is timed once: others are not kept waiting.
PATIENCE = 0.5


def _nothing() -> None:
    """Wait for what is done already."""


@dataclass(slots=True)
class Contestant:
    """Who is timed.

    Attributes
    ----------
    name : str
    calls : sequence of callable
        The same call on one set of buffers each; used in turn.
    warm : bool
        Whether its data is to be in the cache: one call precedes every timing then.
    times : list of float
        Seconds per call, one per round; one alone where that took long.
    processors : list of float
        Processor time over wall time, one per round.
    """

    name: str
    calls: Sequence[Callable[[], Any]]
    warm: bool = True
    times: list[float] = field(default_factory=list)
    processors: list[float] = field(default_factory=list)
    #: Returns when all calls are done: those to a device return early.
    wait: Callable[[], object] = _nothing
    _turn: Iterator[Callable[[], Any]] = field(init=False)
    _inner: int = 1

    def __post_init__(self) -> None:
        self._turn = itertools.cycle(self.calls)

    def calibrate(self) -> None:
        """Compile, touch all buffers, and find how many calls fill a timing."""
        start = time.perf_counter()
        for call in self.calls:
            call()
        self.wait()
        if time.perf_counter() - start > PATIENCE * len(self.calls):
            return
        while (wall := self._clock()[0]) < LEAST and self._inner < 1 << 24:
            # Aim above the target: the first calls are the slowest ones.
            enough = math.ceil(1.2 * self._inner * LEAST / max(wall, 1e-7))
            self._inner = max(self._inner + 1, enough)

    def run(self) -> None:
        """One timing, unless there is one already and it took too long."""
        if self.times and self.times[0] > PATIENCE:
            return
        if self.warm:
            next(self._turn)()
        wall, processor = self._clock()
        self.times.append(wall / self._inner)
        self.processors.append(processor / wall)

    def _clock(self) -> tuple[float, float]:
        calls = tuple(itertools.islice(self._turn, self._inner))
        processor, start = time.process_time(), time.perf_counter()
        for call in calls:
            call()
        self.wait()
        wall = time.perf_counter() - start
        return wall, time.process_time() - processor

    @property
    def median(self) -> float:
        """Median time of a call, in seconds."""
        return statistics.median(self.times)

    @property
    def lower(self) -> float:
        """Lower quartile of the times: near what an idle machine would take."""
        if len(self.times) < 2:
            return self.median
        return statistics.quantiles(self.times, n=4, method="inclusive")[0]

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.times) < 2:
            return math.nan
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    @property
    def threads(self) -> float:
        """Processors that were busy on average: the median of the rounds."""
        return statistics.median(self.processors)


@contextmanager
def _without_gc() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def interleave(
    contestants: Sequence[Contestant], repeats: int, step: Callable[[str], object]
) -> None:
    """Time all contestants, `repeats` rounds; `step` is told of every round."""
    with _without_gc():
        for contestant in contestants:
            contestant.calibrate()
        for turn in range(repeats):
            first = turn % max(len(contestants), 1)
            for contestant in (*contestants[first:], *contestants[:first]):
                contestant.run()
            step(f"round {turn + 1} of {repeats}")
