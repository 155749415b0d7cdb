"""Finding the item of highest priority among more items than were ever seen in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import normx
from normx._record import Paper
from normx.experiments._experiment import Experiment, Finding, Outcome, Step, in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any

_CLASSES, _WIDTH, _BATCH, _SEEN = 10, 64, 128, 16
_READERS: dict[str, Callable[..., Any]] = {
    "softmax": normx.softmax,
    "adaptive temperature": normx.adaptive_softmax,
}


def _size(quick: bool) -> tuple[int, int, int, list[int]]:
    """Seeds, steps of training, items of the test, and the numbers of items in each."""
    if quick:
        return 1, 100, 64, [16, 64]
    return 3, 6000, 1024, [2**k for k in range(4, 15)]


def _problems(torch: Any, rng: Any, count: int, n: int) -> tuple[Array, Array, Array]:
    """Items (a priority and a class each), a query that says nothing, the class to be found."""
    priority = torch.rand(count, n, generator=rng)
    kind = torch.randint(0, _CLASSES, (count, n), generator=rng)
    one_hot = torch.nn.functional.one_hot(kind, _CLASSES).float()
    items = torch.cat([priority[..., None], one_hot], dim=-1)
    query = torch.rand(count, 1, generator=rng)
    return items, query, torch.gather(kind, 1, priority.argmax(1, keepdim=True))[:, 0]


def _model(torch: Any) -> Any:
    """One head that reads the items: MLPs around an attention of one query."""
    nn = torch.nn

    def mlp(inputs: int, outputs: int) -> Any:
        return nn.Sequential(nn.Linear(inputs, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, outputs))

    parts = nn.ModuleDict(
        {
            "item": mlp(1 + _CLASSES, _WIDTH),
            "query": mlp(1, _WIDTH),
            "q": nn.Linear(_WIDTH, _WIDTH, bias=False),
            "k": nn.Linear(_WIDTH, _WIDTH, bias=False),
            "v": nn.Linear(_WIDTH, _WIDTH, bias=False),
            "out": mlp(_WIDTH, _CLASSES),
        }
    )

    def predict(items: Array, query: Array, *normalizers: Callable[..., Any]) -> list[Array]:
        h, q = parts["item"](items), parts["q"](parts["query"](query))
        scores = (parts["k"](h) @ q[..., None])[..., 0] / _WIDTH**0.5
        weights = [normalizer(scores) for normalizer in normalizers]
        v = parts["v"](h)
        return [parts["out"]((w[:, None, :] @ v)[:, 0, :]) for w in weights]

    return parts, predict


def _trained(torch: Any, seed: int, steps: int) -> Callable[..., Any]:
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    parts, predict = _model(torch)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        n = int(torch.randint(5, _SEEN + 1, (), generator=rng))
        items, query, wanted = _problems(torch, rng, _BATCH, n)
        (scores,) = predict(items, query, normx.softmax)
        loss = torch.nn.functional.cross_entropy(scores, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    def read(*arguments: Any) -> Any:
        with torch.no_grad():
            return predict(*arguments)

    return read


def run(quick: bool, step: Step) -> Outcome:
    """Train on up to 16 items, and read more and more of them."""
    import torch

    seeds, steps, tests, sizes = _size(quick)
    right = {name: np.zeros((seeds, len(sizes))) for name in _READERS}
    for seed in range(seeds):
        step(f"training {seed + 1} of {seeds}")
        read = _trained(torch, seed, steps)
        for i, n in enumerate(sizes):
            step(f"{n:,} items")
            rng = torch.Generator().manual_seed(1000 + seed)
            part = max(1, min(tests, 2**18 // n))
            for _ in range(tests // part):
                items, query, wanted = _problems(torch, rng, part, n)
                for name, scores in zip(
                    _READERS, read(items, query, *_READERS.values()), strict=True
                ):
                    count = float((scores.argmax(1) == wanted).sum())
                    right[name][seed, i] += count / (tests // part * part)
    mean = {name: values.mean(axis=0) for name, values in right.items()}
    plain, adaptive = (mean[name][1:] for name in _READERS)
    gain = 100 * (adaptive - plain)
    largest = {f"{n:,}": 100 * value for n, value in zip(sizes, mean["softmax"], strict=True)}
    findings = (
        Finding(
            "softmax is good at sizes it was trained at, and decays towards chance (10 %) beyond",
            f"accuracy in %: {in_words(largest, '.1f')}",
            bool(mean["softmax"][0] > 0.9 and mean["softmax"][-1] < 0.5),
        ),
        Finding(
            "adaptive temperature is at least as good at every larger size",
            "more, in points: " + ", ".join(f"{value:+.1f}" for value in gain),
            bool((gain >= 0.0).all()),
        ),
        Finding(
            "adaptive temperature is better on average over the larger sizes",
            f"{gain.mean():+.2f} points",
            bool(gain.mean() > 0.0),
        ),
        Finding(
            "adaptive temperature decays too",
            f"{100 * mean['adaptive temperature'][-1]:.1f} % at {sizes[-1]:,} items",
            bool(adaptive[-1] < 0.5),
        ),
    )
    return Outcome(findings, {"sizes": sizes, "right": right})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """Accuracy over the number of items; each seed is a thin line."""
    from normx.cli import picture

    ax = fig.subplots()
    for colour, (name, values) in zip(picture.COLOURS, series["right"].items(), strict=False):
        for one in values:
            ax.semilogx(series["sizes"], one, color=colour, lw=0.6, alpha=0.6)
        ax.semilogx(series["sizes"], values.mean(axis=0), "o-", color=colour, label=name)
    ax.axhline(1 / _CLASSES, color=picture.GREY, ls=":", label="chance")
    ax.axvspan(5, _SEEN, color=picture.FAINT, label="seen in training")
    ax.set_xlabel("items")
    ax.set_title("accuracy")
    ax.legend()
    picture.quiet(ax)


EXPERIMENT = Experiment(
    name="max-retrieval",
    claim="Attention that finds the largest of 16 items disperses among more of them; an adaptive "
    "temperature at inference is at least as good at every size, and decays too.",
    paper=Paper(
        "P. Veličković, C. Perivolaropoulos, F. Barbero and R. Pascanu",
        "softmax is not enough (for sharp out-of-distribution)",
        2024,
        "arXiv:2410.01104",
    ),
    setting="One head of width 64 between MLPs, items of a priority and one of 10 classes, 6,000 "
    "steps of AdamW on 5 to 16 items; three seeds, 1,024 tests of each size.",
    steps=lambda quick: _size(quick)[0] * (1 + len(_size(quick)[3])),
    run=run,
    draw=draw,
    needs=("torch",),
)
