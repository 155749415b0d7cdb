"""Every experiment, far too small: it runs to its end, twice to the same figures, and draws."""

# ruff: noqa: E402  # what may be missing is looked for before it is imported

from __future__ import annotations

import importlib.util
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

for _package in ("typer", "rich", "matplotlib"):
    pytest.importorskip(_package, reason=f"{_package} is not installed")

from typer.testing import CliRunner

from normx import experiments as package
from normx.cli import experiment as cli
from normx.cli.app import app
from normx.cli.screen import CommandError
from normx.experiments import Experiment, Finding, Outcome, _text, active_learning, experiments

KNOWN = experiments()
CLAIMS = ("claim", "setting", "name")
LOSSES = ("label smoothing", "inhibited softmax", "evidential")


def runnable(experiment):
    missing = [name for name in experiment.needs if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    return experiment


@pytest.fixture(scope="module", params=KNOWN)
def found(request):
    """An experiment, what it found, and what it told of on the way."""
    experiment = runnable(KNOWN[request.param])
    told = []
    return experiment, experiment.outcome(True, told.append), told


def test_every_file_is_an_experiment():
    files = {path.stem for path in Path(package.__file__).parent.glob("[a-z]*.py")}
    assert {name.replace("-", "_") for name in KNOWN} == files


def test_progress_is_told_of_as_often_as_announced(found):
    experiment, _, told = found
    assert len(told) == experiment.steps(True)
    assert experiment.steps(False) >= experiment.steps(True)


def test_findings_are_figures(found):
    _, outcome, _ = found
    assert outcome.findings
    for finding in outcome.findings:
        assert type(finding.held) is bool
        assert any(letter.isdigit() for letter in finding.measured)
        assert "nan" not in finding.measured
    assert outcome.held == all(finding.held for finding in outcome.findings)


def test_pictures_are_drawn(found):
    experiment, outcome, _ = found
    picture = BytesIO()
    cli.draw(experiment, outcome, picture)
    assert len(picture.getvalue()) > 20_000


@pytest.mark.parametrize("name", ["dispersion", "continual-digits", "noisy-digits"])
def test_a_second_run_finds_the_same(name):
    experiment = runnable(KNOWN[name])
    first, second = (experiment.outcome(True, lambda text: None) for _ in "ab")
    assert first.findings == second.findings


def test_experiments_say_what_they_are_about():
    for experiment in KNOWN.values():
        assert all(getattr(experiment, part).strip() for part in CLAIMS)
        assert experiment.paper.year > 2000


def test_dispersion_holds_even_when_it_is_small():
    assert KNOWN["dispersion"].outcome(True, lambda text: None).held


# -------------------------------------------------------------------- command line


def test_command_prints_findings_and_draws(tmp_path):
    path = tmp_path / "d.png"
    result = CliRunner().invoke(app, ["experiment", "dispersion", "--quick", "--out", str(path)])
    assert result.exit_code == 0, result.output
    assert "held" in result.stdout and "Lemma 2.1" in result.stdout
    assert path.stat().st_size > 20_000


def test_command_without_a_picture_writes_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment", "dispersion", "--quick", "--no-picture"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert not list(tmp_path.iterdir())


def test_command_as_a_section_of_a_page():
    arguments = ["experiment", "dispersion", "--quick", "--markdown"]
    text = CliRunner().invoke(app, arguments).stdout
    assert text.startswith("## dispersion\n")
    assert sum(line.startswith("| ") for line in text.splitlines()) == 1 + 5


def test_every_experiment_has_its_section():
    page = Path(__file__).parents[2] / "docs" / "experiments.md"
    if not page.exists():
        pytest.skip("the pages are not here")
    for name, experiment in KNOWN.items():
        assert page.read_text("utf-8").count(f"<!-- {name} -->") == 2
        assert experiment.claim in page.read_text("utf-8")


def test_command_without_a_name_lists_all():
    text = CliRunner().invoke(app, ["experiment"]).stdout
    assert all(name in text for name in KNOWN)


def test_listing_imports_no_framework():
    code = (
        "import sys; from normx import calibration, regression, uncertainty;"
        "from normx.experiments import experiments; experiments();"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "sklearn", "scipy", "matplotlib", "rich"}


def test_what_did_not_hold_is_said():
    outcome = Outcome((Finding("a", "1", True), Finding("b", "2", False)), {})
    assert not outcome.held
    assert cli.table(KNOWN["dispersion"], outcome).row_count == 2


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else real(name)
    )
    with pytest.raises(CommandError, match=r'needs torch; pip install "normx\[cli,plot,torch\]"'):
        cli.named("max-retrieval")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CommandError, match=r"needs sklearn.*\[cli,plot,learn\]"):
        cli.named("noisy-digits")
    assert isinstance(cli.named("dispersion"), Experiment)


# ----------------------------------------------------------------- what they are made of


@pytest.mark.parametrize(
    "loss",
    [active_learning.STRATEGIES[name][0] for name in LOSSES],
    ids=LOSSES,
)
def test_losses_of_classifiers_have_their_gradients(loss):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(5, 4)), rng.integers(0, 4, 5)
    want = np.empty(z.shape)
    for i in np.ndindex(z.shape):
        values = []
        for step in (1e-6, -1e-6):
            moved = z.copy()
            moved[i] += step
            values.append(loss(moved, y)[0])
        want[i] = (values[0] - values[1]) / 2e-6
    np.testing.assert_allclose(loss(z, y)[1], want, atol=1e-8)


def test_text_is_cut_without_overlap():
    tokens, count = _text.characters()
    assert tokens.max() == count - 1
    learned, held_out = _text.cut(tokens)
    assert len(learned) + len(held_out) == len(tokens)
    assert 0.08 < len(held_out) / len(tokens) < 0.12
    numbers, known = _text.words(least=2)
    assert numbers.max() == known - 1 and (numbers == 0).mean() < 0.1
