"""Digits that are learned two at a time: masking the softmax keeps what was learned before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import normx
from normx._record import Paper
from normx.experiments._classifier import digits
from normx.experiments._experiment import Experiment, Finding, Outcome, Step, in_words
from normx.losses import (
    class_incremental_accuracy,
    cross_entropy,
    forgetting,
    masked_cross_entropy,
    task_incremental_accuracy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any

_TASKS = tuple((2 * i, 2 * i + 1) for i in range(5))
_HIDDEN, _RATE, _BATCH = 64, 0.1, 16
#: Items of earlier tasks that are kept, per class.
_KEPT = 5
#: The score that classes of other tasks take; None: no mask, the usual softmax of all classes.
_FILLS = {"no mask": None, "m = 5": 5.0, "m = 0": 0.0, "m = -2": -2.0, "m = -inf": -np.inf}


def _size(quick: bool) -> tuple[int, int]:
    """How many seeds, and how many passes over each task."""
    return (1, 1) if quick else (5, 10)


class _Net:
    """One hidden layer, trained by stochastic gradient descent."""

    def __init__(self, rng: Any) -> None:
        self.w = rng.normal(size=(64, _HIDDEN)) * np.sqrt(2 / 64)
        self.c = np.zeros(_HIDDEN)
        self.v = np.zeros((_HIDDEN, 10))

    def scores(self, x: Array) -> tuple[Array, Array]:
        h = np.maximum(x @ self.w + self.c, 0.0)
        return h, h @ self.v

    def learn(self, x: Array, y: Array, where: Array | None, fill: float | None) -> None:
        """One step on the cross-entropy of a softmax of which some classes may be masked."""
        h, z = self.scores(x)
        if fill is None or where is None:
            _, pullback = normx.vjp(cross_entropy, z, y)
        else:
            _, pullback = normx.vjp(masked_cross_entropy, z, y, where=where, fill=fill)
        slope = pullback(1.0)["x"]
        back = (slope @ self.v.T) * (h > 0)
        self.v -= _RATE * h.T @ slope
        self.w -= _RATE * x.T @ back
        self.c -= _RATE * back.sum(0)


def _learned(fill: float | None, seed: int, passes: int, replay: bool) -> tuple[Array, float]:
    """Accuracy on each task after each, classes of all tasks seen allowed; and within tasks."""
    rng = np.random.default_rng(seed)
    x, y = digits()
    order = rng.permutation(len(y))
    x, y = x[order], y[order]
    train, test = slice(0, 1200), slice(1200, None)
    net = _Net(rng)
    found = np.full((len(_TASKS), len(_TASKS)), np.nan)
    kept: list[int] = []
    for t, classes in enumerate(_TASKS):
        (mine,) = np.nonzero(np.isin(y[train], classes))
        current = np.isin(np.arange(10), classes)
        # Those of this task too, or its classes would never be set against the earlier ones.
        kept += [int(i) for c in classes for i in mine[y[mine] == c][:_KEPT]]
        for _ in range(passes):
            for _ in range(0, len(mine), _BATCH):
                chosen = rng.permutation(mine)[:_BATCH]
                net.learn(x[chosen], y[chosen], current, fill)
                if replay:  # without a mask: all that was seen is to be told apart
                    again = rng.choice(kept, _BATCH)
                    net.learn(x[again], y[again], None, None)
        _, z = net.scores(x[test])
        seen = np.arange(10) <= classes[1]
        for s, old in enumerate(_TASKS[: t + 1]):
            shown = np.isin(y[test], old)
            found[t, s] = class_incremental_accuracy(z[shown], y[test][shown], seen=seen)
    _, z = net.scores(x[test])
    own = np.arange(10) // 2 == (y[test] // 2)[:, None]
    return found, float(task_incremental_accuracy(z, y[test], where=own))


def run(quick: bool, step: Step) -> Outcome:
    """Learn the tasks under every mask, with and without replay."""
    seeds, passes = _size(quick)
    series: dict[str, dict[str, dict[str, Any]]] = {}
    for replay in (False, True):
        of_fill = series.setdefault("replay" if replay else "no replay", {})
        for name, fill in _FILLS.items():
            step(f"{name}, {'with' if replay else 'without'} replay")
            runs = [_learned(fill, seed, passes, replay) for seed in range(seeds)]
            mean = np.mean([np.nanmean(found, axis=1) for found, _ in runs], axis=0)
            of_fill[name] = {
                "after each task": mean,
                "accuracy": float(mean[-1]),
                "forgetting": float(np.mean([forgetting(found) for found, _ in runs])),
                "within tasks": float(np.mean([within for _, within in runs])),
            }
    bare, again = series["no replay"], series["replay"]

    def of(where: dict[str, dict[str, Any]], what: str) -> dict[str, float]:
        return {name: found[what] for name, found in where.items()}

    values = [again[name]["forgetting"] for name in _FILLS]
    findings = (
        Finding(
            "a mask of -inf keeps what was learned within each task, even without replay",
            in_words(of(bare, "within tasks"), ".3f"),
            bare["m = -inf"]["within tasks"] > bare["no mask"]["within tasks"],
        ),
        Finding(
            "with replay, masking raises the accuracy over all classes",
            in_words(of(again, "accuracy"), ".3f"),
            again["m = -inf"]["accuracy"] > again["no mask"]["accuracy"],
        ),
        Finding(
            "with replay, masking forgets less",
            in_words(of(again, "forgetting"), ".3f"),
            again["m = -inf"]["forgetting"] < again["no mask"]["forgetting"],
        ),
        Finding(
            "the mask's value tunes stability: the lower, the less is forgotten",
            "forgetting " + ", ".join(f"{value:.3f}" for value in values[1:]),
            values[1:] == sorted(values[1:], reverse=True),
        ),
    )
    return Outcome(findings, {"found": series})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """Accuracy over all classes seen, after each task."""
    from normx.cli import picture

    axes = fig.subplots(1, 2, sharey=True)
    for ax, (title, of_fill) in zip(axes, series["found"].items(), strict=True):
        for colour, (name, found) in zip(picture.COLOURS, of_fill.items(), strict=False):
            ax.plot(range(1, 6), found["after each task"], "o-", color=colour, label=name)
        ax.set_title(title)
        ax.set_xlabel("tasks learned")
        ax.set_xticks(range(1, 6))
        picture.quiet(ax)
    axes[0].set_ylabel("accuracy over all classes seen")
    axes[0].legend()


EXPERIMENT = Experiment(
    name="continual-digits",
    claim="Masking the classes of other tasks in the softmax keeps what was learned before, and "
    "the mask's value trades stability for plasticity.",
    paper=Paper(
        "H. Kim, M. Kwon and K. Kim",
        "Revisiting softmax masking: stop gradient for enhancing stability in replay-based "
        "continual learning",
        2023,
        "arXiv:2309.14808",
    ),
    setting="Digits of scikit-learn in five tasks of two classes, a hidden layer of 64, 5 items "
    "per class kept for replay, which is not masked; five seeds. The paper's values of the mask "
    "are not known.",
    steps=lambda quick: 2 * len(_FILLS),
    run=run,
    draw=draw,
    needs=("sklearn",),
)
