"""``normx experiment NAME``: a claim of a paper, what was measured, and whether it held."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import IO

from rich.table import Table

from normx.cli import picture, screen
from normx.experiments import Experiment, Outcome, experiments


def named(name: str) -> Experiment:
    """The experiment of that name, if all that it needs is installed."""
    known = experiments()
    if name not in known:
        raise screen.allowed("experiment", name, known)
    missing = [module for module in known[name].needs if importlib.util.find_spec(module) is None]
    if missing:
        extras = "torch" if "torch" in missing else "learn"
        raise screen.CommandError(
            f"the experiment {name} needs {' and '.join(missing)}; "
            f'pip install "normx[cli,plot,{extras}]"'
        )
    return known[name]


def overview() -> Table:
    """The experiments and what they are about."""
    shown = screen.table("experiments", caption="normx experiment NAME runs one, in minutes.")
    shown.add_column("name", style="bold", no_wrap=True)
    shown.add_column("the claim")
    shown.add_column("paper", style="dim")
    for name, experiment in experiments().items():
        shown.add_row(name, experiment.claim, f"{experiment.paper.where}")
    return shown


def table(experiment: Experiment, outcome: Outcome) -> Table:
    """Each part of the claim, the figures, and the verdict."""
    shown = screen.table(experiment.claim, caption=experiment.setting)
    shown.add_column("should be")
    shown.add_column("is")
    shown.add_column("held", justify="right")
    for finding in outcome.findings:
        verdict = "[green]yes[/green]" if finding.held else "[red]no[/red]"
        shown.add_row(finding.claim, finding.measured, verdict)
    return shown


def markdown(experiment: Experiment, outcome: Outcome) -> str:
    """The same as a section of a page."""
    rows = [
        f"| {finding.claim} | {finding.measured} | {'yes' if finding.held else '**no**'} |"
        for finding in outcome.findings
    ]
    head = f"## {experiment.name}\n\n{experiment.claim} ({experiment.paper})"
    table = "\n".join(["| should be | is | held |", "|---|---|---|", *rows])
    return f"{head}\n\n{experiment.setting}\n\n{table}\n"


def draw(experiment: Experiment, outcome: Outcome, to: Path | IO[bytes]) -> None:
    """The picture."""
    fig = picture.figure(10.0, 4.6)
    with picture.style():
        experiment.draw(fig, outcome.series)
        held = sum(finding.held for finding in outcome.findings)
        verdict = f"held: {held} of {len(outcome.findings)} parts of the claim"
        picture.headline(fig, f"{experiment.name}: {verdict}", f"{experiment.paper}")
    picture.save(fig, to)
