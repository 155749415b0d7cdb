"""Which word comes next: the Z-loss, whose gradient costs as much for any vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from normx._record import Paper
from normx.experiments._experiment import (
    Experiment,
    Finding,
    Outcome,
    Step,
    in_figures,
    spread,
)
from normx.experiments._text import cut, train, windows, words
from normx.losses import cross_entropy, zloss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any

_CONTEXT, _EMBEDDING, _HIDDEN, _BATCH = 4, 32, 64, 200
_TOPS = (1, 5, 10, 20, 50, 100)


def _size(quick: bool) -> tuple[int, int, int]:
    """Seeds, steps of training, and how often they are told of."""
    return (1, 20, 2) if quick else (3, 1000, 10)


#: ``loss(scores, wanted)``.
_LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "log-softmax": lambda scores, wanted: cross_entropy(scores, wanted).loss,
    "Z-loss, a = 1, b = 0": zloss,
    "Z-loss, a = 0.1, b = 10": partial(zloss, a=0.1, b=10.0),
    "Z-loss, a = 0.1, b = 30": partial(zloss, a=0.1, b=30.0),
}


def _model(torch: Any, vocabulary: int) -> Any:
    nn = torch.nn
    return nn.Sequential(
        nn.Embedding(vocabulary, _EMBEDDING),
        nn.Flatten(),
        nn.Linear(_CONTEXT * _EMBEDDING, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, vocabulary),
    )


def _ranks(torch: Any, model: Any, tokens: Array) -> Array:
    """The place of each true next word among all, from 0."""
    given = torch.as_tensor(tokens).unfold(0, _CONTEXT + 1, 1)
    found = []
    with torch.no_grad():
        for part in given.split(500):
            scores = model(part[:, :-1])
            own = scores.gather(1, part[:, -1:])
            found.append((scores > own).sum(1).numpy())
    return np.concatenate(found)


def run(quick: bool, step: Step) -> Outcome:
    """Train one model per loss, and rank the words of held-out text."""
    import torch

    seeds, steps, times = _size(quick)
    tokens, vocabulary = words(least=2)
    learned, held_out = cut(tokens)
    if quick:
        held_out = held_out[:1000]
    found = {name: np.zeros((seeds, len(_TOPS))) for name in _LOSSES}
    for seed in range(seeds):
        for name, of in _LOSSES.items():
            torch.manual_seed(seed)
            rng = torch.Generator().manual_seed(seed)
            model = _model(torch, vocabulary)

            def loss(model: Any = model, rng: Any = rng, of: Any = of) -> Array:
                given = windows(torch, learned, rng, _BATCH, _CONTEXT + 1)
                return of(model(given[:, :-1]), given[:, -1])

            train(torch, model, steps, loss, times=times, step=step)
            step(f"ranking with {name}")
            ranks = _ranks(torch, model, held_out)
            found[name][seed] = [100 * (ranks < k).mean() for k in _TOPS]
    share = {name: dict(zip(_TOPS, values.T, strict=True)) for name, values in found.items()}
    plain, *others = share
    best = {k: max((float(share[name][k].mean()), name) for name in others)[1] for k in _TOPS}
    gains = {k: spread(share[best[k]][k] - share[plain][k]) for k in _TOPS}
    findings = (
        Finding(
            "the Z-loss is better than log-softmax in some top-k score",
            "share of words among the first k, in %: "
            + "; ".join(
                f"{k}: {in_figures(share[plain][k])}, at best {in_figures(share[best[k]][k])}"
                for k in _TOPS
            ),
            any(bool(gain > 0.5 and gain > 2 * doubt) for gain, doubt in gains.values()),
        ),
        Finding(
            "which k it is good at depends on a and b",
            "; ".join(
                f"top {k}: {in_figures(share[best[k]][k])} with {best[k]}" for k in (1, 10, 100)
            ),
            len(set(best.values())) > 1,
        ),
    )
    return Outcome(findings, {"share": share, "vocabulary": vocabulary})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """The share of words among the first k."""
    from normx.cli import picture

    ax = fig.subplots()
    for colour, (name, share) in zip(picture.COLOURS, series["share"].items(), strict=False):
        mean, doubt = zip(*(spread(values) for values in share.values()), strict=True)
        ax.errorbar(list(share), mean, doubt, fmt="o-", color=colour, capsize=3, label=name)
    ax.set_xscale("log")
    ax.set_title(f"next word of {series['vocabulary']:,} among the first k, %")
    ax.set_xlabel("k")
    ax.legend()
    picture.quiet(ax)


EXPERIMENT = Experiment(
    name="zloss-words",
    claim="The Z-loss, which a factored output layer trains at a cost that does not grow with the "
    "vocabulary, is better than log-softmax in some top-k scores.",
    paper=Paper(
        "A. de Brébisson and P. Vincent",
        "The Z-loss: a shift and scale invariant classification loss belonging to the spherical "
        "family",
        2016,
        "arXiv:1604.08859",
    ),
    setting="The next word of Python's help after four, an embedding of 32 and a hidden layer of "
    "64, dense output layers, 1,000 batches of 200 words, one learning rate for all, three "
    "seeds; the paper has a vocabulary of 793,471 and a billion words. The cost is not measured "
    "here.",
    steps=lambda quick: _size(quick)[0] * len(_LOSSES) * (_size(quick)[2] + 1),
    run=run,
    draw=draw,
    needs=("torch",),
)
