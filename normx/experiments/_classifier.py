"""Linear classifiers whose scores are fitted to any loss of them, and data for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

import normx

Array = Any
#: ``loss(scores, targets)``: its mean, and its gradient in the scores.
Loss = Callable[[Array, Array], tuple[float, Array]]


@cache
def digits() -> tuple[Array, Array]:
    """Images of digits that come with scikit-learn, between 0 and 1, and what they show."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16.0, y


def of_scores(loss: Callable[..., Any], **options: Any) -> Loss:
    """A loss of the library with its gradient."""

    def value_and_slope(z: Array, y: Array) -> tuple[float, Array]:
        value, pullback = normx.vjp(loss, z, y, **options)
        return float(getattr(value, "loss", value)), pullback(1.0)["x"]

    return value_and_slope


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
