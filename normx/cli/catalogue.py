"""``normx bench`` without a function: the whole catalogue, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from normx._record import Record, registry
from normx.cli import screen, timing
from normx.cli.bench import Case, Result, Settings, run_case
from normx.cli.bench_report import case_as_json
from normx.cli.peers import COPY, ENTMAX, ENTMAX_NAMES, NORMX, REFERENCE, TORCH, Peer
from normx.cli.samples import unknown

_PEERS = (NORMX, COPY, REFERENCE, TORCH)


class Race(NamedTuple):
    """A function on one case, and who takes part."""

    record: Record
    case: Case
    peers: tuple[Peer, ...]


def races(quick: bool) -> list[Race]:
    """Every function forward and backward; those that the entmax package has, on its rows too.

    A quick run is over in seconds and says only that all works.
    """
    shape, few = ((8, 64), (2, 64)) if quick else ((1024, 4096), (16, 50257))
    found = []
    for backward in (False, True):
        every = [
            record
            for record in registry().values()
            if not unknown(record) and not (backward and record.vjp is None)
        ]
        found += [Race(record, Case(shape, backward=backward), _PEERS) for record in every]
        theirs = [record for record in every if record.name in ENTMAX_NAMES]
        peers = (NORMX, COPY, REFERENCE, ENTMAX)
        found += [Race(record, Case(few, backward=backward), peers) for record in theirs]
    return found


def measure(race: Race, settings: Settings, step: Callable[[str], object]) -> Result:
    """Time one function; `step` is told once."""
    step(f"{race.record.name}, {race.case}")
    return run_case(race.record, race.case, settings, race.peers, lambda text: None)


def tables(found: Sequence[tuple[Race, Result]], settings: Settings) -> list[Table]:
    """One table per case: a function a row, everybody's time over that of normx."""
    return [
        _table(case, [pair for pair in found if pair[0].case == case], settings)
        for case in dict.fromkeys(race.case for race, _ in found)
    ]


def _table(case: Case, found: Sequence[tuple[Race, Result]], settings: Settings) -> Table:
    others = [peer.name for peer in found[0][0].peers if peer is not NORMX]
    reasons = {
        f"left out {name}: {reason}"
        for _, result in found
        for name, reason in result.left_out.items()
        if not reason.startswith("has no ")
    }
    shown = screen.table(f"{case} · {settings.dtype}", caption="; ".join(sorted(reasons)))
    shown.add_column("function")
    for header in ("median", "lower quartile", *others, "error, ULP"):
        shown.add_column(header, justify="right")
    shown.add_column("ran on", no_wrap=True)
    for race, result in found:
        scores = {score.name: score for score in result.scores}
        mine = scores[NORMX.name]
        ratios = [scores[name].ratio_to_normx if name in scores else None for name in others]
        shown.add_row(
            race.record.name,
            screen.seconds(mine.median),
            screen.seconds(mine.lower),
            *("–" if ratio is None else f"{screen.figures(ratio)}×" for ratio in ratios),
            "–" if mine.ulp is None else screen.ulps(mine.ulp),
            mine.ran.rpartition(" on ")[2],
        )
    return shown


def footnote(settings: Settings) -> str:
    """How the numbers came about."""
    return (
        f"Medians of {settings.repeats} interleaved rounds per function; whose call takes longer "
        f"than {timing.PATIENCE:g} s is timed once. The median and lower quartile are those of "
        "normx, the columns of the others their time over that of normx: above 1×, normx is "
        "faster. copy: of the scores (np.copyto). reference: the record's "
        "formula on NumPy. –: has no such function. Results go into a ready array (out=) where "
        "that is possible; gradients are those of the scores, torch's and entmax's by autograd. "
        "Error: the largest, against the exact result."
    )


def as_json(found: Sequence[tuple[Race, Result]]) -> list[dict[str, Any]]:
    """Everything that was measured."""
    return [{"function": race.record.name, **case_as_json(result)} for race, result in found]
