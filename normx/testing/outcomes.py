"""What a run of the suite, or several, came to: a line per library, backend and mode."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

#: The property of a test that says which cell of the matrix it belongs to.
CELL = "normx-cell"
_HEAD = ("library", "backend", "mode", "passed", "skipped", "failed")

#: By cell: the reports that passed and failed, and the reasons of those that were skipped.
Outcome = dict[str, Counter[str]]


class Outcomes:
    """Counts the reports of a run, and ends it with the table.

    Parameters
    ----------
    path : str or None
        A file in which runs are gathered, each in the place of the last one of its libraries
        and backends; the table is that of all of them.
    """

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._cells: dict[str, Outcome] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        cell = dict(report.user_properties).get(CELL)
        if cell is None or (report.passed and report.when != "call"):
            return
        reason = ""
        if report.skipped:
            *_, text = report.longrepr if isinstance(report.longrepr, tuple) else ("no reason",)
            reason = str(text).removeprefix("Skipped: ")
        outcome = self._cells.setdefault(str(cell), {})
        outcome.setdefault(report.outcome, Counter())[reason] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._cells:
            return
        cells = self._gathered()
        terminalreporter.section("conformance")
        for line in _table(cells):
            terminalreporter.write_line(line)
        reasons: Counter[str] = Counter()
        for outcome in cells.values():
            reasons.update(outcome.get("skipped", {}))
        terminalreporter.write_line("")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:>7} skipped: {reason}")

    def _gathered(self) -> dict[str, Outcome]:
        if self._path is None:
            return self._cells
        kept: dict[str, Outcome] = {}
        if self._path.exists():
            kept = json.loads(self._path.read_text("utf-8"))
        now = {_pair(cell) for cell in self._cells}
        kept = {cell: outcome for cell, outcome in kept.items() if _pair(cell) not in now}
        kept |= self._cells
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(kept), "utf-8")
        return kept


def _pair(cell: str) -> tuple[str, ...]:
    return tuple(cell.split()[:2])


def _table(cells: dict[str, Outcome]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [_HEAD]
    for cell, outcome in sorted(cells.items()):
        counts = (
            str(sum(outcome.get(word, {}).values())) for word in ("passed", "skipped", "failed")
        )
        library, backend, mode = cell.split()
        rows.append((library, backend, mode, *counts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        words = [f"{word:<{width}}" for word, width in zip(row[:3], widths[:3], strict=True)]
        numbers = [f"{word:>{width}}" for word, width in zip(row[3:], widths[3:], strict=True)]
        yield "  ".join((*words, *numbers))
