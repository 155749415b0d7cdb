"""A language model with sigmoid attention beside the same one with softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import normx
from normx._record import Paper
from normx.experiments._experiment import (
    Experiment,
    Finding,
    Outcome,
    Step,
    in_figures,
    spread,
)
from normx.experiments._text import Normalizer, characters, cut, train, transformer, windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any

_LENGTH, _BATCH = 64, 16


def _size(quick: bool) -> tuple[int, int, int]:
    """Seeds, steps of training, and how often they are told of."""
    return (1, 20, 2) if quick else (3, 800, 10)


def _sigmoid(bias: float) -> Normalizer:
    return lambda scores, where: normx.sigmoid(scores, bias=bias, where=where)


_NORMALIZERS: dict[str, Normalizer] = {
    "softmax": lambda scores, where: normx.softmax(scores, where=where),
    "sigmoid, b = -log n": _sigmoid(-math.log(_LENGTH)),
    "sigmoid, b = 0": _sigmoid(0.0),
}


def run(quick: bool, step: Step) -> Outcome:
    """Train one model per normalizer on the same windows, and compare their losses."""
    import torch

    seeds, steps, times = _size(quick)
    tokens, vocabulary = characters()
    learned, held_out = cut(tokens)
    causal = torch.tril(torch.ones(_LENGTH, _LENGTH, dtype=torch.bool))
    curves = {name: np.zeros((seeds, steps)) for name in _NORMALIZERS}
    test = {name: np.zeros(seeds) for name in _NORMALIZERS}
    for seed in range(seeds):
        for name, normalizer in _NORMALIZERS.items():
            torch.manual_seed(seed)
            rng = torch.Generator().manual_seed(seed)
            parts, predict = transformer(torch, vocabulary)

            def loss(
                source: Array = learned,
                rng: Any = rng,
                predict: Any = predict,
                normalizer: Normalizer = normalizer,
            ) -> Array:
                given = windows(torch, source, rng, _BATCH, _LENGTH + 1)
                scores = predict(given[:, :-1], normalizer, causal)
                wanted = given[:, 1:].flatten()
                return torch.nn.functional.cross_entropy(scores.flatten(0, 1), wanted)

            curves[name][seed] = train(torch, parts, steps, loss, times=times, step=step)
            step(f"testing {name}")
            fixed = torch.Generator().manual_seed(99)
            with torch.no_grad():
                losses = [float(loss(held_out, fixed)) for _ in range(2 if quick else 60)]
            test[name][seed] = np.mean(losses)
    early = {name: values[:, : steps // 10].mean(axis=1) for name, values in curves.items()}
    plain, biased, bare = test

    def above(found: Mapping[str, Array], high: str, low: str, times: float = 1.0) -> bool:
        """Whether one is above so many times the other by more than two standard errors."""
        gap, doubt = spread(found[high] - times * found[low])
        return bool(gap > 2 * doubt)

    def told(found: Mapping[str, Array]) -> str:
        return ", ".join(f"{name} {in_figures(values, '.3f')}" for name, values in found.items())

    findings = (
        Finding(
            "with b = -log n, sigmoid attention is as good as softmax",
            f"loss on held-out text, nats per character: {told(test)}",
            not above(test, biased, plain, 1.02),
        ),
        Finding(
            "without the bias it learns worse at first: attention is too large",
            f"mean loss over the first tenth of training: {told(early)}",
            above(early, bare, biased),
        ),
        Finding(
            "without the bias it ends worse",
            f"{in_figures(test[bare], '.3f')} instead of {in_figures(test[biased], '.3f')}",
            above(test, bare, biased),
        ),
    )
    return Outcome(findings, {"curves": curves, "test": test})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """Loss in training, smoothed, and in the end."""
    from normx.cli import picture

    left, right = fig.subplots(1, 2, width_ratios=(3, 1))
    for i, (name, values) in enumerate(series["curves"].items()):
        mean = values.mean(axis=0)
        width = max(1, len(mean) // 50)
        smooth = np.convolve(mean, np.ones(width) / width, "valid")
        left.plot(smooth, color=picture.COLOURS[i], label=name)
        right.plot(
            [i] * len(series["test"][name]), series["test"][name], "o", color=picture.COLOURS[i]
        )
    left.set_title("loss in training, nats per character")
    left.set_xlabel("steps")
    left.legend()
    right.set_title("held out")
    right.set_xticks([])
    right.set_xlim(-1, len(series["test"]))
    for ax in (left, right):
        picture.quiet(ax)


EXPERIMENT = Experiment(
    name="sigmoid-attention",
    claim="Sigmoid attention with a bias of -log n matches softmax attention.",
    paper=Paper(
        "J. Ramapuram et al.",
        "Theory, analysis, and best practices for sigmoid self-attention",
        2024,
        "arXiv:2409.04431",
    ),
    setting="A causal language model of the characters of Python's help, two layers of width 64 "
    "with rotary positions, 64 characters, 800 steps, three seeds; the paper's models have up to a "
    "billion weights.",
    steps=lambda quick: _size(quick)[0] * len(_NORMALIZERS) * (_size(quick)[2] + 1),
    run=run,
    draw=draw,
    needs=("torch",),
)
