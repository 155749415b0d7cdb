"""Which word comes next: the Z-loss, whose gradient costs as much for any vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from normx._record import Paper
from normx.experiments._experiment import Experiment, Finding, Outcome, Step, in_words
from normx.experiments._text import cut, train, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any

_CONTEXT, _EMBEDDING, _HIDDEN, _BATCH = 4, 32, 64, 200
_TOPS = (1, 5, 10, 20, 50, 100)


def _size(quick: bool) -> tuple[int, int]:
    """Steps of training, and how often they are told of."""
    return (20, 2) if quick else (1000, 10)


def _zloss(a: float, b: float) -> Callable[..., Array]:
    def loss(torch: Any, scores: Array, wanted: Array) -> Array:
        own = scores.gather(1, wanted[:, None])[:, 0]
        z = (own - scores.mean(1)) / scores.std(1, correction=0)
        return (torch.nn.functional.softplus(a * (b - z)) / a).mean()

    return loss


_LOSSES: dict[str, Callable[..., Array]] = {
    "log-softmax": lambda torch, scores, wanted: torch.nn.functional.cross_entropy(scores, wanted),
    "Z-loss, a = 1, b = 0": _zloss(1.0, 0.0),
    "Z-loss, a = 0.1, b = 10": _zloss(0.1, 10.0),
    "Z-loss, a = 0.1, b = 30": _zloss(0.1, 30.0),
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

    steps, times = _size(quick)
    tokens, vocabulary = words(least=2)
    learned, held_out = cut(tokens)
    if quick:
        held_out = held_out[:1000]
    share: dict[str, dict[int, float]] = {}
    for name, of in _LOSSES.items():
        torch.manual_seed(0)
        rng = torch.Generator().manual_seed(0)
        model = _model(torch, vocabulary)

        def loss(model: Any = model, rng: Any = rng, of: Any = of) -> Array:
            starts = torch.randint(0, len(learned) - _CONTEXT, (_BATCH, 1), generator=rng)
            given = torch.as_tensor(learned)[starts + torch.arange(_CONTEXT + 1)]
            return of(torch, model(given[:, :-1]), given[:, -1])

        train(torch, model, steps, loss, times=times, step=step)
        step(f"ranking with {name}")
        ranks = _ranks(torch, model, held_out)
        share[name] = {k: 100 * float((ranks < k).mean()) for k in _TOPS}
    plain, *others = share
    best = {k: max((share[name][k], name) for name in others)[1] for k in _TOPS}
    gains = {k: share[best[k]][k] - share[plain][k] for k in _TOPS}
    findings = (
        Finding(
            "the Z-loss is better than log-softmax in some top-k score",
            "share of words among the first k, in %: "
            + "; ".join(
                f"{k}: {share[plain][k]:.1f}, at best {share[best[k]][k]:.1f}" for k in _TOPS
            ),
            max(gains.values()) > 0.5,
        ),
        Finding(
            "which k it is good at depends on a and b",
            in_words({f"top {k}:": share[best[k]][k] for k in (1, 10, 100)}, ".1f")
            + f" with {best[1]}; {best[10]}; {best[100]}",
            len(set(best.values())) > 1,
        ),
    )
    return Outcome(findings, {"share": share, "vocabulary": vocabulary})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """The share of words among the first k."""
    from normx.cli import picture

    ax = fig.subplots()
    for colour, (name, share) in zip(picture.COLOURS, series["share"].items(), strict=False):
        ax.semilogx(list(share), list(share.values()), "o-", color=colour, label=name)
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
    "64, dense output layers, 1,000 batches of 200 words, one learning rate for all; the paper has "
    "a vocabulary of 793,471 and a billion words. The cost is not measured here.",
    steps=lambda quick: len(_LOSSES) * (_size(quick)[1] + 1),
    run=run,
    draw=draw,
    needs=("torch",),
)
