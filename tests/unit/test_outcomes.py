"""The table at the end of a conformance run."""

from types import SimpleNamespace

from normx.testing.outcomes import CELL, Outcomes


class Terminal:
    def __init__(self):
        self.lines = []

    def section(self, title):
        self.lines.append(title)

    def write_line(self, line):
        self.lines.append(line)


def report(cell, outcome, reason=None, when="call"):
    return SimpleNamespace(
        user_properties=[(CELL, cell)] if cell else [],
        outcome=outcome,
        passed=outcome == "passed",
        skipped=outcome == "skipped",
        when=when,
        longrepr=("file.py", 3, f"Skipped: {reason}") if reason else None,
    )


def table(path, *reports):
    outcomes, terminal = Outcomes(path), Terminal()
    for each in reports:
        outcomes.pytest_runtest_logreport(each)
    outcomes.pytest_terminal_summary(terminal)
    return [line.split() for line in terminal.lines]


def test_every_outcome_is_counted_once_and_every_skip_has_its_reason():
    lines = table(
        None,
        report("torch native eager", "passed"),
        report("torch native eager", "passed", when="setup"),
        report("torch native eager", "failed", when="teardown"),
        report("torch native eager", "skipped", "has no float16", when="setup"),
        report("torch reference eager", "skipped", "has no float16"),
        report(None, "failed"),
    )
    assert lines == [
        ["conformance"],
        ["library", "backend", "mode", "passed", "skipped", "failed"],
        ["torch", "native", "eager", "1", "1", "1"],
        ["torch", "reference", "eager", "0", "1", "0"],
        [],
        ["2", "skipped:", "has", "no", "float16"],
    ]


def test_runs_are_gathered_and_a_library_is_replaced(tmp_path):
    path = str(tmp_path / "new" / "outcomes.json")
    table(path, report("jax native jit", "failed"), report("mlx native eager", "passed"))
    lines = table(path, report("jax native eager", "passed"))
    assert [line[:4] for line in lines[2:4]] == [
        ["jax", "native", "eager", "1"],
        ["mlx", "native", "eager", "1"],
    ]
    assert len(lines) == 5 and table(path) == []
