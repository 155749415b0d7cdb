"""A masked language model read at lengths beyond those it was trained at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from normx.experiments._text import characters, cut, train, transformer, windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any

_TRAINED_AT, _BATCH, _HIDDEN = 64, 32, 0.15


def _size(quick: bool) -> tuple[int, int, int, list[int]]:
    """Seeds, steps of training, how often they are told of, the lengths of the test."""
    return (1, 20, 2, [64, 256]) if quick else (3, 2000, 10, [64, 128, 256, 512, 1024])


_NORMALIZERS: dict[str, Callable[[Array, Array | None], Array]] = {
    "softmax": lambda scores, where: normx.softmax(scores, where=where),
    "entropy-invariant": lambda scores, where: normx.entropy_invariant_softmax(
        # The same as softmax at the length of training: one model does for both.
        scores,
        where=where,
        n0=_TRAINED_AT,
    ),
}


def _hidden(torch: Any, tokens: Array, rng: Any, vocabulary: int) -> tuple[Array, Array]:
    """Some characters replaced by a mark, and which."""
    hidden = torch.rand(tokens.shape, generator=rng) < _HIDDEN
    return torch.where(hidden, vocabulary, tokens), hidden


def _accuracy(
    torch: Any, predict: Callable[..., Array], normalizer: Any, n: int, tests: int
) -> tuple[float, float]:
    """The share of hidden characters that are guessed, and the mean loss."""
    tokens, vocabulary = characters()
    rng = torch.Generator().manual_seed(7)
    right, loss, count = 0.0, 0.0, 0
    with torch.no_grad():
        for _ in range(max(1, tests // n)):
            given = windows(torch, cut(tokens)[1], rng, 4, n)
            shown, hidden = _hidden(torch, given, rng, vocabulary)
            scores = predict(shown, normalizer)[hidden]
            right += float((scores.argmax(-1) == given[hidden]).sum())
            loss += float(torch.nn.functional.cross_entropy(scores, given[hidden], reduction="sum"))
            count += int(hidden.sum())
    return right / count, loss / count


def run(quick: bool, step: Step) -> Outcome:
    """Train a model at 64 characters, and read up to 1,024 with it in both ways."""
    import torch

    seeds, steps, times, lengths = _size(quick)
    tokens, vocabulary = characters()
    learned, _ = cut(tokens)
    found = {name: np.zeros((seeds, len(lengths), 2)) for name in _NORMALIZERS}
    for seed in range(seeds):
        torch.manual_seed(seed)
        rng = torch.Generator().manual_seed(seed)
        parts, predict = transformer(torch, vocabulary + 1)

        def loss(rng: Any = rng, predict: Any = predict) -> Array:
            given = windows(torch, learned, rng, _BATCH, _TRAINED_AT)
            shown, hidden = _hidden(torch, given, rng, vocabulary)
            scores = predict(shown, _NORMALIZERS["softmax"])[hidden]
            return torch.nn.functional.cross_entropy(scores, given[hidden])

        train(torch, parts, steps, loss, times=times, step=step)
        for i, n in enumerate(lengths):
            step(f"reading {n} characters")
            for name, normalizer in _NORMALIZERS.items():
                tests = 2_000 if quick else 40_000
                found[name][seed, i] = _accuracy(torch, predict, normalizer, n, tests)
    accuracy = {name: 100 * values[..., 0].T for name, values in found.items()}
    plain, invariant = accuracy.values()
    lost = {name: values[0] - values[-1] for name, values in accuracy.items()}
    triples = zip(lengths, plain, invariant, strict=True)
    gain, doubt = spread(invariant - plain, axis=1)
    more = ", ".join(f"{a:.1f} ± {b:.1f}" for a, b in zip(gain, doubt, strict=True))
    kept, unsure = spread(lost["softmax"] - lost["entropy-invariant"])
    findings = (
        Finding(
            "entropy-invariant attention is better at every longer length",
            "accuracy in %: "
            + ", ".join(f"{n}: {in_figures(a)} and {in_figures(b)}" for n, a, b in triples)
            + f"; more by {more}",
            bool((gain > 2 * doubt)[1:].all()),
        ),
        Finding(
            f"it loses less from {lengths[0]} to {lengths[-1]}",
            "in points: "
            + ", ".join(f"{name} {in_figures(values)}" for name, values in lost.items()),
            bool(kept > 2 * unsure),
        ),
    )
    return Outcome(findings, {"lengths": lengths, "found": found})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """Accuracy and loss over the length."""
    from normx.cli import picture

    axes = fig.subplots(1, 2)
    for k, (ax, title) in enumerate(zip(axes, ("accuracy", "loss, nats"), strict=True)):
        for colour, (name, values) in zip(picture.COLOURS, series["found"].items(), strict=False):
            for one in values[..., k]:
                ax.semilogx(series["lengths"], one, color=colour, lw=0.6, base=2)
            ax.semilogx(
                series["lengths"], values[..., k].mean(0), "o-", color=colour, label=name, base=2
            )
        ax.set_title(title)
        ax.set_xlabel("characters read")
        picture.quiet(ax)
    axes[0].legend()


EXPERIMENT = Experiment(
    name="length-extrapolation",
    claim="Scores scaled by the logarithm of the length let a model read longer texts than it was "
    "trained with.",
    paper=Paper(
        "J. Su",
        "Entropy invariance of the scaling in attention",
        2021,
        "kexue.fm/archives/8823",
    ),
    setting="A masked language model of characters, two layers of width 64 with rotary positions, "
    f"trained with {_TRAINED_AT} characters of Python's help (the paper's: words, far larger); "
    f"n0 is {_TRAINED_AT}, so that the two are one model in training. Three seeds.",
    steps=lambda quick: _size(quick)[0] * (_size(quick)[2] + len(_size(quick)[3])),
    run=run,
    draw=draw,
    needs=("torch",),
)
