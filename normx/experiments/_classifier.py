"""Linear classifiers whose scores are fitted to any loss of them, and data for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

import normx
from normx.uncertainty import evidential, inhibited

Array = Any
#: ``loss(scores, targets)``: its mean, and its gradient in the scores.
Loss = Callable[[Array, Array], tuple[float, Array]]


@cache
def digits() -> tuple[Array, Array]:
    """Images of digits that come with scikit-learn, between 0 and 1, and what they show."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16.0, y


def one_hot(y: Array, classes: int) -> Array:
    """1 at each target."""
    return np.eye(classes)[y]


def smoothed_loss(smoothing: float = 0.0) -> Loss:
    """The cross-entropy of a softmax, of targets that are smoothed."""

    def loss(z: Array, y: Array) -> tuple[float, Array]:
        classes = z.shape[1]
        wanted = (1.0 - smoothing) * one_hot(y, classes) + smoothing / classes
        logs = normx.log_softmax(z)
        return -(wanted * logs).sum() / len(z), (np.exp(logs) - wanted) / len(z)

    return loss


def inhibited_loss(z: Array, y: Array) -> tuple[float, Array]:
    """The negative logarithm of an inhibited softmax."""
    p = normx.inhibited_softmax(z)
    levels = normx.logsumexp(z, axis=1) - np.log1p(-inhibited(z))
    return float((levels - np.take_along_axis(z, y[:, None], 1)[:, 0]).mean()), (
        p - one_hot(y, z.shape[1])
    ) / len(z)


def evidential_loss(z: Array, y: Array) -> tuple[float, Array]:
    """The expected squared error under a Dirichlet distribution (Sensoy et al., 2018)."""
    classes = z.shape[1]
    strength = classes / evidential(z)[:, None]
    p, wanted = (1.0 + np.maximum(z, 0.0)) / strength, one_hot(y, classes)
    squares, own = (p**2).sum(1, keepdims=True), (p * wanted).sum(1, keepdims=True)
    value = 1.0 - 2.0 * own + (squares * strength + 1.0) / (strength + 1.0)
    slope = 2.0 * ((own - wanted) / strength + (p - squares) / (strength + 1.0))
    slope += (squares - 1.0) / (strength + 1.0) ** 2
    return float(value.mean()), (z > 0.0) * slope / len(z)


class LinearClassifier:
    """Scores that are linear in the features, with a small penalty, fitted by L-BFGS."""

    def __init__(self, classes: int, loss: Loss, penalty: float = 1e-3) -> None:
        self.classes, self.loss, self.penalty = classes, loss, penalty
        self.weights: Array = None

    def fit(self, x: Array, y: Array) -> LinearClassifier:
        """Minimise the loss, from evidence for every class alike."""
        from scipy.optimize import minimize

        start = np.zeros((x.shape[1] + 1, self.classes))
        start[-1] = 1.0

        def total(flat: Array) -> tuple[float, Array]:
            w = flat.reshape(start.shape)
            value, slope = self.loss(x @ w[:-1] + w[-1], y)
            gradient = np.concatenate([x.T @ slope, slope.sum(0, keepdims=True)])
            gradient[:-1] += self.penalty * w[:-1]
            return value + 0.5 * self.penalty * (w[:-1] ** 2).sum(), gradient.ravel()

        options = {"maxiter": 100}
        found = minimize(total, start.ravel(), jac=True, method="L-BFGS-B", options=options)
        self.weights = found.x.reshape(start.shape)
        return self

    def scores(self, x: Array) -> Array:
        """Scores of the classes."""
        return x @ self.weights[:-1] + self.weights[-1]

    def accuracy(self, x: Array, y: Array) -> float:
        """The share of items whose highest score is the target's."""
        return float((self.scores(x).argmax(1) == y).mean())
