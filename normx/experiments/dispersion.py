"""Largest weights as rows grow: softmax, scalable-softmax and adaptive temperature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import normx
from normx._record import Paper
from normx.experiments._experiment import Experiment, Finding, Outcome, Step, in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The leader and the others of the row in Fig. 1 of the paper of SSMax.
_LEADER, _OTHERS = 3.0, -2.0
#: A lead below 1/s, which is too small for SSMax.
_SMALL_LEAD = 1.5
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax": normx.softmax,
    "adaptive_softmax": normx.adaptive_softmax,
    "ssmax": normx.ssmax,
}


def _lengths(quick: bool) -> list[int]:
    return [2**k for k in range(3, 15 if quick else 25)]


def run(quick: bool, step: Step) -> Outcome:
    """Compute the largest weights of rows of every length."""
    lengths = _lengths(quick)
    rng = np.random.default_rng(0)
    largest: dict[str, list[float]] = {name: [] for name in (*_FUNCTIONS, "ssmax, small lead")}
    entropies: dict[str, list[float]] = {name: [] for name in _FUNCTIONS}
    within, least, most = True, [], []
    for n in lengths:
        step(f"{n:,} scores")
        x = np.full(n, _OTHERS)
        x[0] = _LEADER
        for name, f in _FUNCTIONS.items():
            y = f(x)
            largest[name].append(float(y[0]))
            entropies[name].append(float(-(y * np.log(np.where(y > 0, y, 1))).sum()))
        x[0] = _OTHERS + _SMALL_LEAD
        largest["ssmax, small lead"].append(float(normx.ssmax(x)[0]))
        y = n * normx.softmax(rng.uniform(-1.0, 1.0, n))
        least.append(float(y.min()))
        most.append(float(y.max()))
        # Lemma 2.1, for scores between -1 and 1.
        within &= bool(y.min() >= np.exp(-2.0) and y.max() <= np.exp(2.0))
    plain, adaptive, scaled = (np.array(largest[name]) for name in _FUNCTIONS)
    slope = float(np.polyfit(np.log(lengths[-5:]), np.log(plain[-5:]), 1)[0])
    longest = f"at n = {lengths[-1]:,}"
    sharper = np.array(entropies["adaptive_softmax"]) <= np.array(entropies["softmax"]) + 1e-12
    # The published polynomial falls below 1 again at an entropy of 5.9445.
    same = np.isclose(adaptive, plain, rtol=1e-9)
    off = [n for n, equal in zip(lengths, same, strict=True) if n > 381 and equal]
    findings = (
        Finding(
            "every weight of a softmax of bounded scores is of order 1/n (Lemma 2.1)",
            f"n times the weights of scores in [-1, 1]: {min(least):.3f} to {max(most):.3f}, "
            f"within [{np.exp(-2):.3f}, {np.exp(2):.3f}]",
            within,
        ),
        Finding(
            "softmax disperses: its largest weight falls as 1/n",
            f"slope {slope:.3f} in log-log; {plain[-1]:.2e} {longest}",
            abs(slope + 1) < 0.05,
        ),
        Finding(
            "adaptive temperature is never less sharp than softmax",
            f"entropy at most softmax's at {int(sharper.sum())} of {len(lengths)} lengths; largest "
            f"weight at n = 128: {adaptive[4]:.3f} instead of {plain[4]:.3f}",
            bool(sharper.all() and (adaptive >= plain).all()),
        ),
        Finding(
            "adaptive temperature does not stop dispersion",
            f"{adaptive[-1]:.2e} {longest}; it is softmax itself from n = {min(off, default=0):,} "
            "on, where the published polynomial turns itself off",
            bool(adaptive[-1] < 0.1),
        ),
        Finding(
            "SSMax keeps a leader whose lead is above 1/s, and only such a leader",
            in_words({"lead 5:": scaled[-1], "lead 1.5:": largest["ssmax, small lead"][-1]})
            + f" {longest} (1/s = {1 / 0.43:.2f})",
            bool(scaled[-1] > 0.999 and largest["ssmax, small lead"][-1] < 0.1),
        ),
    )
    return Outcome(findings, {"lengths": lengths, "largest": largest, "entropies": entropies})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """Largest weight and entropy over the length."""
    from normx.cli import picture

    left, right = fig.subplots(1, 2)
    for colour, (name, values) in zip(picture.COLOURS, series["largest"].items(), strict=False):
        left.loglog(series["lengths"], values, label=name, color=colour)
    left.set_title("largest weight")
    left.legend()
    for colour, (name, values) in zip(picture.COLOURS, series["entropies"].items(), strict=False):
        right.semilogx(series["lengths"], values, label=name, color=colour)
    right.semilogx(
        series["lengths"], np.log(series["lengths"]), color=picture.GREY, ls=":", label="log n"
    )
    right.set_title("entropy, nats")
    right.legend()
    for ax in (left, right):
        picture.quiet(ax)
        ax.set_xlabel("scores in the row")


EXPERIMENT = Experiment(
    name="dispersion",
    claim="Softmax cannot stay sharp as rows grow; adaptive temperature puts that off, and "
    "scalable-softmax prevents it where a leader leads by more than 1/s.",
    paper=Paper(
        "P. Veličković, C. Perivolaropoulos, F. Barbero and R. Pascanu",
        "softmax is not enough (for sharp out-of-distribution)",
        2024,
        "arXiv:2410.01104",
    ),
    setting="Rows of one leading score and n - 1 equal ones, as in Fig. 1 of K. M. Nakanishi, "
    '"Scalable-softmax is superior for attention", arXiv:2501.19399; s = 0.43.',
    steps=lambda quick: len(_lengths(quick)),
    run=run,
    draw=draw,
)
