"""The estimator of softmax regression; `normx.regression` has it when scikit-learn is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
from scipy import optimize
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from normx._errors import described, wrong
from normx.normalizers.softmax import softmax
from normx.regression import gradient, hessian, loss

Array = Any


class SoftmaxRegression(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # both untyped
    r"""Coefficients whose scores have a softmax, over the samples, near the targets.

    .. math:: \min_x \tfrac12 \|\operatorname{softmax}(A x) - b\|_2^2 + \tfrac12 w^2 \|A x\|_2^2

    Parameters
    ----------
    solver : {"newton", "gauss-newton", "lbfgs"}
        Newton's method with a trust region, damped Gauss-Newton steps (both are SciPy's, and want
        few columns), or L-BFGS, for many.
    weight : float
        The weight w of the penalty, at least 0.  From
        :math:`\sqrt{1.5\sqrt2}` on the problem is convex for targets that are a distribution.
    tol : float
        The fit has converged when the norm of the gradient is at most `tol` times its largest
        possible value, half the norm of A.
    max_iter : int
        How many steps are made at most.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,)
        The solution x.
    loss_ : float
        The least value that was found.
    gradient_norm_ : float
        The norm of the gradient there.
    n_iter_ : int
        How many steps were made.
    converged_ : bool
        Whether `tol` was reached; otherwise there was a ``ConvergenceWarning``.
    n_features_in_ : int
        How many columns A has.

    See Also
    --------
    normx.regression.loss, normx.regression.gradient, normx.regression.hessian : What is minimised.

    Notes
    -----
    A is `X`, b is `y`; what is predicted is a distribution over the samples that are passed
    together, so samples cannot be predicted one by one.  The problem is not convex without a
    penalty.  The search starts from 0, or, for a positive target, from the solution of
    :math:`A x = \log b` up to a constant, if the loss is lower there: where a loss of 0 can be
    reached, that reaches it.

    References
    ----------
    .. [1] S. Li, Z. Song, Y. Xia, T. Yu and T. Zhou, "The closeness of in-context learning and
       weight shifting for softmax regression", arXiv:2304.13276, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> import normx
    >>> from normx.regression import SoftmaxRegression
    >>> a = np.random.default_rng(0).normal(size=(50, 3))
    >>> model = SoftmaxRegression().fit(a, normx.softmax(a @ [1.0, -2.0, 0.5]))
    >>> print(model.coef_.round(6), model.converged_)
    [ 1.  -2.   0.5] True
    """

    def __init__(
        self,
        *,
        solver: Literal["newton", "gauss-newton", "lbfgs"] = "newton",
        weight: float = 0.0,
        tol: float = 1e-6,
        max_iter: int = 1000,
    ) -> None:
        self.solver = solver
        self.weight = weight
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803  # scikit-learn's names
        """Find the coefficients.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            The matrix A.
        y : array of shape (n_samples,)
            The target b.

        Returns
        -------
        SoftmaxRegression
            Itself.

        Raises
        ------
        TypeError, ValueError
            If a parameter of the estimator, or the data, are not what they must be.
        """
        self._check_parameters()
        a, b = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        b = b.astype(np.float64)
        # In units in which the norm of A is 1: a step is a step, whatever the data's units.
        scale = np.linalg.norm(a, 2) or 1.0
        a = a / scale
        starts = [np.zeros(a.shape[1]), *_from_logarithms(a, b)]
        weight = self.weight
        start = min(starts, key=lambda x: loss(a, x, b, weights=weight))
        x, self.n_iter_ = _SOLVERS[self.solver](a, b, start, weight, self.max_iter)
        self.coef_ = x / scale
        self.loss_ = float(loss(a, x, b, weights=weight))
        slope = float(np.linalg.norm(gradient(a, x, b, weights=weight)))
        self.gradient_norm_ = slope * scale
        self.converged_ = slope <= 0.5 * self.tol
        if not self.converged_:
            warnings.warn(
                f"SoftmaxRegression(solver={self.solver!r}) stopped after {self.n_iter_} steps at "
                f"a gradient of {slope:.1e} times the norm of A, above tol / 2; raise max_iter or "
                "tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: Any) -> Array:  # noqa: N803  # scikit-learn's names
        """The softmax over the samples that are passed.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Weights, which sum to 1.
        """
        check_is_fitted(self)
        a = validate_data(self, X, dtype=np.float64, reset=False)
        return softmax(a @ self.coef_)

    def _check_parameters(self) -> None:
        name = "regression.SoftmaxRegression"
        if self.solver not in _SOLVERS:
            known = ", ".join(map(repr, _SOLVERS))
            raise wrong(ValueError, name, "solver", described(self.solver), f"one of {known}")
        rules: tuple[tuple[str, type, Callable[[Any], bool], str], ...] = (
            ("weight", Real, lambda value: 0 <= value < np.inf, "a number, at least 0"),
            ("tol", Real, lambda value: value > 0, "a number above 0"),
            ("max_iter", Integral, lambda value: value >= 1, "an int, at least 1"),
        )
        for what, kind, fits, wanted in rules:
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise wrong(TypeError, name, what, described(value), wanted)
            if not fits(value):
                raise wrong(ValueError, name, what, described(value), wanted)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # of targets that are no distribution
        return tags


def _from_logarithms(a: Array, b: Array) -> list[Array]:
    """Where the softmax is proportional to a positive target, or nearly."""
    if not (b > 0.0).all():
        return []
    logs = np.log(b)
    return [np.linalg.lstsq(a - a.mean(axis=0), logs - logs.mean(), rcond=None)[0]]


def _newton(a: Array, b: Array, start: Array, weight: float, steps: int) -> tuple[Array, int]:
    found = optimize.minimize(
        lambda x: loss(a, x, b, weights=weight),
        start,
        jac=lambda x: gradient(a, x, b, weights=weight),
        hess=lambda x: hessian(a, x, b, weights=weight),
        method="trust-exact",
        options={"gtol": 1e-12, "maxiter": steps, "max_trust_radius": 1e9},
    )
    return found.x, int(found.nit)


def _lbfgs(a: Array, b: Array, start: Array, weight: float, steps: int) -> tuple[Array, int]:
    found = optimize.minimize(
        lambda x: (loss(a, x, b, weights=weight), gradient(a, x, b, weights=weight)),
        start,
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-12, "ftol": 0.0, "maxiter": steps, "maxfun": 20 * steps},
    )
    return found.x, int(found.nit)


def _gauss_newton(a: Array, b: Array, start: Array, weight: float, steps: int) -> tuple[Array, int]:
    def residuals(x: Array) -> Array:
        scores = a @ x
        return np.concatenate([softmax(scores) - b, weight * scores])

    def jacobian(x: Array) -> Array:
        f = softmax(a @ x)
        return np.concatenate([f[:, None] * (a - f @ a), weight * a])

    found = optimize.least_squares(
        residuals, start, jacobian, method="trf", xtol=1e-15, ftol=None, gtol=1e-12, max_nfev=steps
    )
    return found.x, int(found.njev)


_SOLVERS = {"newton": _newton, "gauss-newton": _gauss_newton, "lbfgs": _lbfgs}
