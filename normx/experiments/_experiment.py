"""What an experiment is, and where all of them are found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from normx._record import Paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Told of what is being done; moves the progress bar one step.
Step = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of a claim, what was measured, and whether it held.

    Attributes
    ----------
    claim : str
        What should be the case.
    measured : str
        What is, in figures.
    held : bool
    """

    claim: str
    measured: str
    held: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an experiment found.

    Attributes
    ----------
    findings : tuple of Finding
    series : mapping of str to object
        The figures behind them, for the picture.
    """

    findings: tuple[Finding, ...]
    series: Mapping[str, Any]

    @property
    def held(self) -> bool:
        """Whether every part of the claim did."""
        return all(finding.held for finding in self.findings)


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """A claim of a paper, and how to see whether it holds.

    Attributes
    ----------
    name : str
        For ``normx experiment NAME``.
    claim : str
        What the paper says, in a sentence.
    paper : Paper
    setting : str
        What is done, in a sentence or two: data, model, and how far it is from the paper's.
    steps : callable
        ``steps(quick)``: how often `run` will call ``step``.
    run : callable
        ``run(quick, step)``: the outcome; the same in every run, on one machine.  ``quick``
        takes seconds and shows that all works, and is too small for its findings to mean much.
    draw : callable
        ``draw(figure, series)``.
    needs : tuple of str
        Modules that have to be installed.
    """

    name: str
    claim: str
    paper: Paper
    setting: str
    steps: Callable[[bool], int]
    run: Callable[[bool, Step], Outcome]
    draw: Callable[[Figure, Mapping[str, Any]], None]
    needs: tuple[str, ...] = ()

    def outcome(self, quick: bool, step: Step) -> Outcome:
        """What `run` finds, on one thread: its matrices are too small for more.

        Fitting a classifier to 400 digits takes 16 ms on one thread, and up to 0.5 s on the two
        threads of OpenBLAS where anything else runs (AMD EPYC, 2 cores).
        """
        for module in self.needs:  # what is loaded later would not be limited
            importlib.import_module(module)
        with _one_thread():
            return self.run(quick, step)


def _one_thread() -> AbstractContextManager[Any]:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits


@cache
def experiments() -> Mapping[str, Experiment]:
    """Every experiment by name: one per public module of this package.

    Examples
    --------
    >>> from normx.experiments import experiments
    >>> print(experiments()["dispersion"].paper.year)
    2024
    """
    package = importlib.import_module("normx.experiments")
    names = [found.name for found in pkgutil.iter_modules(package.__path__)]
    modules = [
        importlib.import_module(f"normx.experiments.{name}")
        for name in names
        if not name.startswith("_")
    ]
    return {module.EXPERIMENT.name: module.EXPERIMENT for module in modules}


def in_words(values: Mapping[Any, float], form: str = ".3g") -> str:
    """Figures with their names: "softmax 0.13, ssmax 1"."""
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())


def spread(values: Any, axis: int = 0) -> tuple[Any, Any]:
    """Mean of repetitions, and its standard error."""
    values = np.asarray(values)
    mean, n = values.mean(axis=axis), values.shape[axis]
    return mean, values.std(axis=axis, ddof=1) / np.sqrt(n) if n > 1 else np.zeros_like(mean)


def in_figures(values: Any, form: str = ".1f") -> str:
    """Mean of repetitions and its standard error: "63.7 ± 0.4"."""
    mean, error = spread(values)
    return f"{mean:{form}} ± {error:{form}}"
