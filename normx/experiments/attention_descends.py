"""A trained layer of attention beside one step of gradient descent on a softmax regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import normx
from normx._record import Paper
from normx.experiments._experiment import Experiment, Finding, Outcome, Step
from normx.regression import gradient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = Any
_FEATURES = 20
_LENGTHS = (25, 200)
_BATCH = 64
#: Spread of A x; the targets are far from even, and not a single peak.
_SPREAD = 1.0


def _times(quick: bool) -> tuple[int, int]:
    """Steps of training, and how often the two are compared."""
    return (60, 4) if quick else (3000, 30)


def _tasks(rng: Any, n: int, count: int = _BATCH) -> tuple[Array, Array, Array]:
    """Documents, their targets, and the regression's solution."""
    a = rng.normal(size=(count, n, _FEATURES))
    x = rng.normal(size=(count, _FEATURES)) * _SPREAD / np.sqrt(_FEATURES)
    return a, normx.softmax((a @ x[..., None])[..., 0]), x


def _descended(a: Array, b: Array) -> Array:
    """Where a step of gradient descent from 0 leads; its length is fitted elsewhere."""
    return -gradient(a, np.zeros((len(a), _FEATURES)), b)


class _Layer:
    """One head: queries, keys and values are linear in the documents and their targets."""

    def __init__(self, rng: Any, n: int) -> None:
        self.n = n
        self.w = rng.normal(size=(_FEATURES, _FEATURES)) * 0.1
        self.v = np.array(0.1)
        self._moments = [[np.zeros_like(p), np.zeros_like(p)] for p in (self.w, self.v)]
        self._count = 0

    def values(self, b: Array) -> Array:
        return self.n * b - 1.0

    def predict(self, a: Array, b: Array, q: Array) -> tuple[Array, Array]:
        """The predicted scores of queries, and how they change with these."""
        p = normx.softmax(q @ self.w @ a.mT)
        u = self.values(b)[:, None, :]
        o = (p * u).sum(-1, keepdims=True)
        return self.v * o[..., 0], self.v * ((p * (u - o)) @ a) @ self.w.T

    def learn(self, a: Array, b: Array, q: Array, wanted: Array, rate: float) -> None:
        """One step of Adam on the squared error."""
        p, pull = normx.vjp(normx.softmax, q @ self.w @ a.mT)
        u = self.values(b)[:, None, :]
        o = (p * u).sum(-1)
        error = 2.0 * (self.v * o - wanted) / wanted.size
        of_scores = pull(error[..., None] * self.v * u)["x"]
        of_w = np.einsum("bqd,bqn,bne->de", q, of_scores, a, optimize=True)
        self._count += 1
        gradients = (of_w, (error * o).sum())
        for parameter, g, m in zip((self.w, self.v), gradients, self._moments, strict=True):
            m[0] += 0.1 * (g - m[0])
            m[1] += 0.01 * (g * g - m[1])
            corrected = m[0] / (1 - 0.9**self._count)
            parameter[...] -= rate * corrected / (np.sqrt(m[1] / (1 - 0.99**self._count)) + 1e-9)


def _compared(layer: _Layer, tasks: tuple[Array, ...], q: Array, step: float) -> dict[str, float]:
    """The paper's three measures, and both models' errors."""
    a, b, x = tasks
    moved = step * _descended(a, b)
    of_layer, slope = layer.predict(a, b, q)
    of_descent = (q @ moved[..., None])[..., 0]
    moved = np.broadcast_to(moved[:, None, :], slope.shape)
    size = np.linalg.norm(slope, axis=-1) * np.linalg.norm(moved, axis=-1)
    wanted = (q @ x[..., None])[..., 0]
    return {
        "preds diff": float(np.linalg.norm(of_layer - of_descent, axis=-1).mean()),
        "model diff": float(np.linalg.norm(slope - moved, axis=-1).mean()),
        "model cos": float(((slope * moved).sum(-1) / size).mean()),
        "error of the layer": float(((of_layer - wanted) ** 2).mean()),
        "error of the step": float(((of_descent - wanted) ** 2).mean()),
    }


def run(quick: bool, step: Step) -> Outcome:
    """Train a layer per length, and compare it with a step of descent on the way."""
    steps, times = _times(quick)
    series: dict[int, dict[str, list[float]]] = {}
    for n in _LENGTHS:
        rng = np.random.default_rng(n)
        a, b, x = _tasks(rng, n, 512)
        base = np.einsum("bd,bd->b", _descended(a, b), x).sum() / (_descended(a, b) ** 2).sum()
        layer, tasks = _Layer(rng, n), _tasks(rng, n)
        q = rng.normal(size=(_BATCH, 8, _FEATURES))
        found: dict[str, list[float]] = {"steps": []}
        for i in range(steps + 1):
            if i % (steps // times) == 0:
                step(f"n = {n}: step {i}")
                for name, value in _compared(layer, tasks, q, base).items():
                    found.setdefault(name, []).append(value)
                found["steps"].append(i)
            a, b, x = _tasks(rng, n)
            asked = rng.normal(size=(_BATCH, 8, _FEATURES))
            layer.learn(a, b, asked, (asked @ x[..., None])[..., 0], 0.01 * (1 - i / (steps + 1)))
        series[n] = found
    findings = []
    for n, found in series.items():
        for name, verb, sign in (
            ("preds diff", "falls", -1),
            ("model diff", "falls", -1),
            ("model cos", "rises", 1),
        ):
            first, last = found[name][0], found[name][-1]
            findings.append(
                Finding(
                    f"n = {n}: {name} {verb} in training",
                    f"from {first:.3f} to {last:.3f}",
                    bool(sign * (last - first) > 0 and (sign < 0 or last > 0.8)),
                )
            )
    return Outcome(tuple(findings), {"found": series})


def draw(fig: Figure, series: Mapping[str, Any]) -> None:
    """The three measures over the steps of training."""
    from normx.cli import picture

    axes = fig.subplots(1, 3)
    for ax, name in zip(axes, ("preds diff", "model diff", "model cos"), strict=True):
        for colour, (n, found) in zip(picture.COLOURS, series["found"].items(), strict=False):
            ax.plot(found["steps"], found[name], color=colour, label=f"n = {n}")
        ax.set_title(name)
        ax.set_xlabel("steps of training")
        picture.quiet(ax)
    axes[0].legend()


EXPERIMENT = Experiment(
    name="attention-descends",
    claim="A layer of softmax attention that is trained on softmax regressions becomes a step of "
    "gradient descent on them.",
    paper=Paper(
        "S. Li, Z. Song, Y. Xia, T. Yu and T. Zhou",
        "The closeness of in-context learning and weight shifting for softmax regression",
        2023,
        "arXiv:2304.13276",
    ),
    setting="Documents of 25 or 200 rows of A with targets b = softmax(A x), d = 20; both predict "
    "a further row's score. Preds diff: distance of predictions; model diff, cos: of their slopes.",
    steps=lambda quick: len(_LENGTHS) * (_times(quick)[1] + 1),
    run=run,
    draw=draw,
)
