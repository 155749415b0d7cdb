"""Digits learned from few examples, with noise on the score of the true class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

import normx
from normx._record import Paper
from normx.experiments._classifier import digits
from normx.experiments._experiment import Experiment, Finding, Outcome, Step, in_words, spread
from normx.losses import noisy_cross_entropy
from normx.losses.noisy import Noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any

_HIDDEN, _BATCH, _ITEMS, _RATE = 64, 25, 300, 0.05


_NOISES = get_args(Noise)
_ALPHAS = (0.05, 0.1, 0.3, 0.5, 1.0)
#: The kinds of noise are compared at the alpha that the paper calls effective.
_ALPHA = 0.1


def _size(quick: bool) -> tuple[int, int]:
    """Seeds, and passes over the items."""
    return (1, 3) if quick else (12, 60)


def _error(noise: str, alpha: float, seed: int, passes: int) -> float:
    """The share of clean test digits that a network gets wrong."""
    rng = np.random.default_rng(seed)
    x, y = digits()
    order = rng.permutation(len(y))
    x, y = x[order], y[order]
    w = rng.normal(size=(64, _HIDDEN)) * np.sqrt(2 / 64)
    v = rng.normal(size=(10, _HIDDEN)) * np.sqrt(1 / _HIDDEN)
    drawn = np.random.default_rng([seed, 1])  # apart, so that all see the same batches
    for _ in range(passes):
        for part in np.split(rng.permutation(_ITEMS), _ITEMS // _BATCH):
            h = np.maximum(x[part] @ w, 0.0)
            own = {"alpha": alpha, "rng": drawn, "noise": noise}
            _, pullback = normx.vjp(noisy_cross_entropy, h, v, y[part], **own)
            slopes = pullback(1.0)
            v -= _RATE * slopes["weights"]
            w -= _RATE * x[part].T @ (slopes["x"] * (h > 0))
    return float(((np.maximum(x[_ITEMS:] @ w, 0.0) @ v.T).argmax(1) != y[_ITEMS:]).mean())


def run(quick: bool, step: Step) -> Outcome:
    """Train with every strength of the annealed noise, and with every kind of noise."""
    seeds, passes = _size(quick)

    def errors(name: str, noise: str, alpha: float) -> Array:
        step(name)
        return np.array([100 * _error(noise, alpha, seed, passes) for seed in range(seeds)])

    plain = errors("softmax", "annealed", 0.0)
    strengths = {a: errors(f"alpha = {a}", "annealed", a) for a in _ALPHAS}
    kinds = {noise: errors(f"{noise} noise", noise, _ALPHA) for noise in _NOISES}
    gain, doubt = spread(plain - strengths[_ALPHA])
    mean = {name: float(values.mean()) for name, values in kinds.items()}
    best = min(strengths, key=lambda a: float(strengths[a].mean()))
    findings = (
        Finding(
            f"annealed noise of alpha = {_ALPHA} lowers the error",
            f"{plain.mean():.2f} % without, {mean['annealed']:.2f} % with: {gain:+.2f} ± "
            f"{doubt:.2f} points better over {seeds} seeds",
            bool(gain > 2 * doubt),
        ),
        Finding(
            "too strong a noise does harm",
            "error in %: "
            + in_words({f"alpha = {a}:": float(e.mean()) for a, e in strengths.items()}, ".2f")
            + f"; best {best}",
            bool(strengths[_ALPHAS[-1]].mean() > strengths[best].mean()),
        ),
        Finding(
            f"of the kinds of noise at alpha = {_ALPHA}, annealed is the best",
            f"error in %: {in_words(mean, '.2f')}",
            min(mean, key=lambda name: mean[name]) == "annealed",
        ),
        Finding(
            "negative noise is worse than none",
            f"{mean['negative']:.2f} % and {plain.mean():.2f} %",
            bool(mean["negative"] > plain.mean()),
        ),
    )
    return Outcome(findings, {"plain": plain, "strengths": strengths, "kinds": kinds})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """How much more or less than softmax, seed by seed, with standard errors."""
    from normx.cli import picture

    left, right = fig.subplots(1, 2)
    for ax, found in ((left, series["strengths"]), (right, series["kinds"])):
        pairs = [spread(values - series["plain"]) for values in found.values()]
        mean, doubt = (np.array(part) for part in zip(*pairs, strict=True))
        names = [str(name) for name in found]
        ax.axhline(0.0, color=picture.GREY, ls=":", label="softmax")
        ax.errorbar(names, mean, doubt, fmt="o", color=picture.COLOURS[0], capsize=3)
        picture.quiet(ax)
    left.set_yscale("symlog", linthresh=0.5)
    left.set_title("error more than softmax's, points")
    left.set_xlabel("alpha of annealed noise")
    left.legend()
    right.set_xlabel(f"kind of noise, alpha = {_ALPHA}")


EXPERIMENT = Experiment(
    name="noisy-digits",
    claim="Annealed noise on the score of the true class postpones saturation and generalises "
    "better.",
    paper=Paper(
        "B. Chen, W. Deng and J. Du",
        "Noisy softmax: improving the generalization ability of DCNN via postponing the early "
        "softmax saturation",
        2017,
        "CVPR, arXiv:1708.03769",
    ),
    setting="300 digits of scikit-learn to learn from, the rest to test with, a hidden layer of "
    "64; the paper has convolutional networks on MNIST, CIFAR and faces. 12 seeds; the same "
    "digits, starts and batches for all.",
    steps=lambda quick: 1 + len(_ALPHAS) + len(_NOISES),
    run=run,
    draw=draw,
    needs=("sklearn",),
)
