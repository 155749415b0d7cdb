"""What to label next: measures of uncertainty, with and without clipping, against chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from normx import uncertainty
from normx._record import Paper
from normx.calibration import fit_temperature
from normx.experiments._classifier import LinearClassifier, Loss, digits, of_scores
from normx.experiments._experiment import Experiment, Finding, Outcome, Step, in_words
from normx.losses import cross_entropy, evidential_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any

_CLASSES, _FIRST, _BATCH, _COMMITTEE = 10, 25, 25, 5
_KEEP = 0.9
#: Share of the pool that shows nothing, under the label of something.
_OUTLIERS = {"digits": 0.0, "digits and outliers": 0.15}
_PLAIN = of_scores(cross_entropy)


def _size(quick: bool) -> tuple[int, int]:
    """How many seeds, and how many batches are asked for."""
    return (1, 2) if quick else (5, 20)


def _committee(x: Array, y: Array, pool: Array, rng: Any) -> Array:
    """Scores of classifiers that were each fitted to a sample of the labelled."""
    samples = [rng.integers(0, len(y), len(y)) for _ in range(_COMMITTEE)]
    models = [LinearClassifier(_CLASSES, _PLAIN).fit(x[i], y[i]) for i in samples]
    return np.stack([model.scores(pool) for model in models])


def _tempered(model: LinearClassifier, x: Array, y: Array, pool: Array, rng: Any) -> Array:
    """Least confidence at the temperature that fits a third of the labelled, held out."""
    order = rng.permutation(len(y))
    out, within = order[: len(y) // 3], order[len(y) // 3 :]
    part = LinearClassifier(_CLASSES, _PLAIN).fit(x[within], y[within])
    t = fit_temperature(part.scores(x[out]), y[out])
    return uncertainty.least_confidence(model.scores(pool), temperature=min(max(t, 0.05), 20.0))


def _trust(model: LinearClassifier, x: Array, y: Array, pool: Array, rng: Any) -> Array:
    predicted = model.scores(pool).argmax(1)
    there = np.isin(predicted, y)
    u = np.full(len(pool), np.inf)  # of a class without a sample, nothing is near
    u[there] = uncertainty.trust_score(pool[there], predicted[there], x, y)
    return u


def _by_scores(measure: Callable[[Array], Array]) -> Callable[..., Array]:
    return lambda model, x, y, pool, rng: measure(model.scores(pool))


#: How each strategy's model is fitted, and how uncertain it is of a pool.
STRATEGIES: dict[str, tuple[Loss, Callable[..., Array]]] = {
    "random": (_PLAIN, lambda model, x, y, pool, rng: rng.random(len(pool))),
    "least confidence": (_PLAIN, _by_scores(uncertainty.least_confidence)),
    "margin": (_PLAIN, _by_scores(uncertainty.margin)),
    "entropy": (_PLAIN, _by_scores(uncertainty.entropy)),
    "temperature scaling": (_PLAIN, _tempered),
    "label smoothing": (
        of_scores(cross_entropy, label_smoothing=0.2),
        _by_scores(uncertainty.least_confidence),
    ),
    "MC dropout": (
        _PLAIN,
        lambda model, x, y, pool, rng: uncertainty.mc_dropout(model.scores(pool), rng=rng),
    ),
    "inhibited softmax": (
        of_scores(cross_entropy, normalizer="inhibited_softmax"),
        _by_scores(uncertainty.inhibited),
    ),
    "evidential": (
        of_scores(evidential_loss, annealing=0.0),
        _by_scores(uncertainty.evidential),
    ),
    "trust score": (_PLAIN, _trust),
    "vote entropy": (
        _PLAIN,
        lambda model, x, y, pool, rng: uncertainty.vote_entropy(
            _committee(x, y, pool, rng).argmax(-1)
        ),
    ),
    "consensus KL": (
        _PLAIN,
        lambda model, x, y, pool, rng: uncertainty.consensus_kl(_committee(x, y, pool, rng)),
    ),
}


def _data(outliers: float, seed: int) -> tuple[Array, Array, Array, Array]:
    """A pool, in which some images are shuffled pixels and labels, and a clean test set."""
    rng = np.random.default_rng(seed)
    x, y = digits()
    order = rng.permutation(len(y))
    x, y = x[order].copy(), y[order].copy()
    pool = len(y) - 597
    spoilt = rng.permutation(pool)[: int(outliers * pool)]
    x[spoilt] = rng.permuted(x[spoilt], axis=1)
    y[spoilt] = rng.integers(0, _CLASSES, len(spoilt))
    return x[:pool], y[:pool], x[pool:], y[pool:]


def _curve(strategy: str, keep: float, outliers: float, seed: int, batches: int) -> list[float]:
    """Accuracy after each batch."""
    loss, measure = STRATEGIES[strategy]
    x, y, test_x, test_y = _data(outliers, seed)
    rng = np.random.default_rng([seed, 1])
    labelled = np.zeros(len(y), bool)
    labelled[:_FIRST] = True  # the pool is in random order
    curve = []
    for batch in range(batches + 1):
        model = LinearClassifier(_CLASSES, loss).fit(x[labelled], y[labelled])
        curve.append(model.accuracy(test_x, test_y))
        if batch < batches:
            (left,) = np.nonzero(~labelled)
            u = measure(model, x[labelled], y[labelled], x[left], rng)
            labelled[left[uncertainty.select(u, _BATCH, keep)]] = True
    return curve


def _runs() -> list[tuple[str, str, float]]:
    """Pools, strategies and shares that are kept; clipping does nothing to chance."""
    return [
        (pool, strategy, keep)
        for pool in _OUTLIERS
        for strategy in STRATEGIES
        for keep in ((1.0,) if strategy == "random" else (1.0, _KEEP))
    ]


def run(quick: bool, step: Step) -> Outcome:
    """Draw every learning curve for every seed."""
    seeds, batches = _size(quick)
    curves: dict[tuple[str, str, float], Array] = {}
    for pool, strategy, keep in _runs():
        step(f"{strategy} on {pool}")
        found = [_curve(strategy, keep, _OUTLIERS[pool], seed, batches) for seed in range(seeds)]
        curves[pool, strategy, keep] = np.array(found)
    findings = []
    others = [name for name in STRATEGIES if name != "random"]
    for pool in _OUTLIERS:
        chance = curves[pool, "random", 1.0].mean()
        plain = {name: curves[pool, name, 1.0].mean() for name in others}
        clipped = {name: curves[pool, name, _KEEP].mean() for name in others}
        worse = [name for name, value in plain.items() if value < chance]
        better = [name for name in others if clipped[name] > plain[name]]
        best = max(plain, key=lambda name: max(plain[name], clipped[name]))
        findings += [
            Finding(
                f"{pool}: most measures are worse than chance, as they find outliers",
                f"{len(worse)} of {len(others)} below {chance:.3f}, the mean accuracy of random "
                f"choice; {in_words({name: plain[name] for name in others[:3]}, '.3f')}",
                len(worse) > len(others) / 2,
            ),
            Finding(
                f"{pool}: clipping the most uncertain {1 - _KEEP:.0%} improves most measures",
                f"{len(better)} of {len(others)}; on average by "
                f"{np.mean([clipped[n] - plain[n] for n in others]):+.4f}; the best of all is "
                f"{best} ({max(plain[best], clipped[best]):.3f})",
                len(better) > len(others) / 2,
            ),
        ]
    return Outcome(tuple(findings), {"curves": curves})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """One panel per strategy: both pools, with and without clipping, chance behind."""
    from normx.cli import picture

    curves = series["curves"]
    fig.set_size_inches(11, 8)
    axes = fig.subplots(3, 4, sharex=True, sharey=True)
    for ax, strategy in zip(axes.flat, STRATEGIES, strict=True):
        for pool, colour in zip(_OUTLIERS, picture.COLOURS, strict=False):
            chance = curves[pool, "random", 1.0].mean(0)
            labelled = _FIRST + _BATCH * np.arange(len(chance))
            ax.plot(labelled, chance, color=picture.FAINT, lw=3)
            for keep, style in ((1.0, "-"), (_KEEP, "--")):
                if (pool, strategy, keep) in curves:
                    label = f"{pool}, {'clipped' if keep < 1 else 'all'}"
                    values = curves[pool, strategy, keep].mean(0)
                    ax.plot(labelled, values, style, color=colour, lw=1.3, label=label)
        ax.set_title(strategy)
        picture.quiet(ax)
    axes[0, 1].legend(fontsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("labelled items")
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy")


EXPERIMENT = Experiment(
    name="active-learning",
    claim="Measures of uncertainty are so good at finding outliers that choosing at random beats "
    "them; leaving out the most uncertain items makes most of them better.",
    paper=Paper(
        "J. Gonsior et al.",
        "To softmax, or not to softmax: that is the question when applying active learning for "
        "transformer models",
        2022,
        "arXiv:2210.03005",
    ),
    setting="Digits of scikit-learn instead of texts, linear classifiers instead of transformers: "
    "25 items at first, 20 batches of 25, five seeds; a second pool in which 15 % are shuffled "
    "images under random labels. Figures are accuracies on clean digits, averaged over the curve.",
    steps=lambda quick: len(_runs()),
    run=run,
    draw=draw,
    needs=("sklearn", "scipy"),
)
