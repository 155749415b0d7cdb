"""Uncertainty, calibration and regression on every library: values, gradients, compilers."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest

import normx
from normx import calibration, regression, uncertainty
from normx._dispatch import library as library_named
from normx._dispatch import library_of

LIBRARIES = ("numpy", "array_api_strict", "torch", "jax")
OTHERS = ("dask", "mlx")
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(3, 4, 5))
MASK = np.array([True, True, False, True, True])
A, X, B = RNG.normal(size=(6, 3)), RNG.normal(size=3), normx.softmax(RNG.normal(size=6))
TARGETS = np.array([[0, 4, 2, 1]] * 3)
LABELS = np.arange(12) % 3

#: Functions of one floating array, and where they are called.
FUNCTIONS = {
    "least_confidence": (uncertainty.least_confidence, SCORES),
    "margin": (uncertainty.margin, SCORES),
    "entropy": (uncertainty.entropy, SCORES),
    "masked": (partial(uncertainty.entropy, where=MASK, temperature=0.7), SCORES),
    "of columns": (partial(uncertainty.margin, axis=1), SCORES),
    "mc_dropout": (uncertainty.mc_dropout, SCORES),
    "passes last": (partial(uncertainty.mc_dropout, axis=0, pass_axis=2), SCORES),
    "consensus_kl": (uncertainty.consensus_kl, SCORES),
    "inhibited": (partial(uncertainty.inhibited, alpha=0.4), SCORES),
    "evidential": (partial(uncertainty.evidential, where=MASK), SCORES),
}


class Home:
    """Arrays of a library, in float64, and its differentiation."""

    def __init__(self, name):
        if name == "array_api_strict":
            self.library = library_of(pytest.importorskip(name).asarray(1.0))
        else:
            pytest.importorskip(name)
            self.library = library_of(np.zeros(1)) if name == "numpy" else library_named(name)
        self.name = name

    def __call__(self, values):
        return self.library.from_numpy(np.asarray(values))

    def back(self, array):
        return np.asarray(self.library.to_numpy(array))

    def gradient(self, f, x, weights):
        """Of the sum of ``weights * f(x)``."""
        if self.name == "torch":
            x = self(x).requires_grad_()
            (f(x) * self(weights)).sum().backward()
            return x.grad.numpy()
        if self.name == "jax":
            import jax

            return np.asarray(jax.jit(jax.grad(lambda x: (f(x) * weights).sum()))(self(x)))
        _, pullback = normx.vjp(getattr(f, "func", f), self(x), **getattr(f, "keywords", {}))
        return self.back(pullback(self(weights))["x"])


@pytest.fixture
def home(library):
    home = Home(library)
    with home_context(library):
        yield home


def home_context(name):
    if name != "jax":
        return nullcontext()
    import jax

    return jax.enable_x64(True)


every = pytest.mark.parametrize("library", LIBRARIES)


def differences(f, x, weights, step=1e-6):
    """The gradient of the sum of ``weights * f(x)``, by central differences."""
    found = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        values = []
        for sign in (1, -1):
            moved = x.copy()
            moved[i] += sign * step
            values.append((weights * f(moved)).sum())
        found[i] = (values[0] - values[1]) / (2 * step)
    return found


def with_arrays_of(home, f):
    """The same function, with the arrays among its keywords taken over."""
    if not isinstance(f, partial):
        return f
    given = {k: home(v) if isinstance(v, np.ndarray) else v for k, v in f.keywords.items()}
    return partial(f.func, **given)


@every
@pytest.mark.parametrize("what", FUNCTIONS)
def test_measures_are_the_same_on_every_library(home, what):
    f, x = FUNCTIONS[what]
    got = with_arrays_of(home, f)(home(x))
    assert library_of(got) is home.library
    np.testing.assert_allclose(home.back(got), f(x), rtol=1e-13)


@every
@pytest.mark.parametrize("what", FUNCTIONS)
def test_gradients_of_measures_by_finite_differences(home, what):
    f, x = FUNCTIONS[what]
    weights = np.cos(np.arange(np.size(f(x)))).reshape(np.shape(f(x)))
    got = home.gradient(with_arrays_of(home, f), x, weights)
    np.testing.assert_allclose(got, differences(f, x, weights), atol=1e-8)


@every
def test_the_other_measures_are_the_same_on_every_library(home):
    votes = RNG.integers(0, 3, (5, 7))
    got = home.back(uncertainty.vote_entropy(home(votes)))
    np.testing.assert_allclose(got, uncertainty.vote_entropy(votes), rtol=1e-6)
    points, samples = RNG.normal(size=(6, 2)), RNG.normal(size=(12, 2))
    arguments = (points, LABELS[:6], samples, LABELS)
    want = uncertainty.trust_score(*arguments, k=2, alpha=0.25)
    got = home.back(uncertainty.trust_score(*map(home, arguments), k=2, alpha=0.25))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    for keep in (1.0, 0.5):
        got = home.back(uncertainty.select(home(want), 3, keep))
        np.testing.assert_array_equal(got, uncertainty.select(want, 3, keep))
        got = home.back(uncertainty.clip_uncertain(home(want), keep))
        np.testing.assert_array_equal(got, uncertainty.clip_uncertain(want, keep))


@every
def test_drawn_passes_have_the_gradient_of_what_was_drawn(home):
    copy, rng = home.library.copy_of_rng, home.library.rng(3)
    draw = lambda x: uncertainty.mc_dropout(x, rng=copy(rng), passes=4, rate=0.5)  # noqa: E731
    x, weights = SCORES[0], np.arange(1.0, 5.0)
    if home.name in ("numpy", "array_api_strict"):
        _, pullback = normx.vjp(uncertainty.mc_dropout, home(x), rng=copy(rng), passes=4, rate=0.5)
        got = home.back(pullback(home(weights))["x"])
    else:
        got = home.gradient(draw, x, weights)
    want = differences(lambda x: home.back(draw(home(x))), x, weights)
    np.testing.assert_allclose(got, want, atol=1e-8)


@every
def test_inhibited_has_a_gradient_in_alpha(home):
    alpha = np.array([[0.1], [-0.3], [2.0], [0.0]])
    x, weights = SCORES[0], np.arange(1.0, 5.0)
    want = differences(lambda a: uncertainty.inhibited(x, alpha=a), alpha, weights)
    if home.name in ("numpy", "array_api_strict"):
        _, pullback = normx.vjp(uncertainty.inhibited, home(x), alpha=home(alpha))
        got = home.back(pullback(home(weights))["alpha"])
    else:
        got = home.gradient(lambda a: uncertainty.inhibited(home(x), alpha=a), alpha, weights)
    np.testing.assert_allclose(got, want, atol=1e-8)


@every
def test_calibration_is_the_same_on_every_library(home):
    want = calibration.fit_temperature(SCORES, TARGETS)
    assert calibration.fit_temperature(home(SCORES), home(TARGETS)) == want
    p = normx.softmax(SCORES)
    got = calibration.expected_calibration_error(home(p), home(TARGETS), bins=4)
    want = calibration.expected_calibration_error(p, TARGETS, bins=4)
    np.testing.assert_allclose(home.back(got), want, rtol=1e-13)


@every
@pytest.mark.parametrize("what", ["loss", "gradient", "hessian", "lipschitz_bound", "data_shift"])
def test_regression_is_the_same_on_every_library(home, what):
    f = getattr(regression, what)
    arguments = (A, B) if what == "lipschitz_bound" else (A, X, B)
    got, want = f(*map(home, arguments)), f(*arguments)
    for ours, theirs in zip(
        *(x if what == "data_shift" else (x,) for x in (got, want)), strict=True
    ):
        np.testing.assert_allclose(home.back(ours), theirs, rtol=1e-11)


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["a", "x", "b"])
@pytest.mark.parametrize("what", ["loss", "gradient", "data_shift"])
def test_regression_is_differentiable(home, place, what):
    def f(value, to=lambda x: x):
        arguments = [value if i == place else to(x) for i, x in enumerate((A, X, B))]
        if what == "data_shift":
            return regression.data_shift(*arguments, step=0.3).target
        return getattr(regression, what)(*arguments, weights=0.2)

    start = (A, X, B)[place]
    weights = np.cos(np.arange(np.size(f(start)))).reshape(np.shape(f(start)))
    got = home.gradient(partial(f, to=home), start, weights)
    np.testing.assert_allclose(got, differences(f, start, weights), atol=1e-8)


@pytest.mark.parametrize("library", ["jax"])
def test_all_but_the_fit_compiles(home):
    import jax

    p, targets = home(normx.softmax(SCORES)), home(TARGETS)
    error = jax.jit(calibration.expected_calibration_error)(p, targets)
    np.testing.assert_allclose(
        error, calibration.expected_calibration_error(p, targets), rtol=1e-14
    )
    u = home(RNG.normal(size=9))
    chosen = jax.jit(lambda u: uncertainty.select(u, 2, 0.7))(u)
    np.testing.assert_array_equal(chosen, uncertainty.select(u, 2, 0.7))
    arguments = [home(v) for v in (RNG.normal(size=(6, 2)), LABELS[:6], A[:, :2], LABELS[:6])]
    score = jax.jit(uncertainty.trust_score)(*arguments)
    np.testing.assert_allclose(score, uncertainty.trust_score(*arguments), rtol=1e-12)
    with pytest.raises(TypeError, match=r"fit_temperature: `x` must be an array with values"):
        jax.jit(calibration.fit_temperature)(p, targets)


@pytest.mark.parametrize("library", OTHERS)
@pytest.mark.parametrize("what", FUNCTIONS)
def test_measures_on_other_libraries(library, what):
    f, x = FUNCTIONS[what]
    home, x = Home(library), x.astype(np.float32)
    np.testing.assert_allclose(home.back(with_arrays_of(home, f)(home(x))), f(x), atol=1e-6)


@pytest.mark.parametrize("library", OTHERS)
def test_choices_and_regression_on_other_libraries(library):
    home = Home(library)
    u = np.float32([0.5, 0.1, 0.5, 0.9, 0.5])
    np.testing.assert_array_equal(home.back(uncertainty.select(home(u), 3)), [3, 0, 2])
    clipped = home.back(uncertainty.clip_uncertain(home(u), 0.6))
    np.testing.assert_array_equal(clipped, np.float32([-np.inf, 0.1, 0.5, -np.inf, 0.5]))
    arguments = [value.astype(np.float32) for value in (A, X, B)]
    for f in (regression.loss, regression.gradient, regression.hessian):
        got = home.back(f(*map(home, arguments)))
        np.testing.assert_allclose(got, f(*arguments), atol=1e-6)
    stack = np.stack([arguments[0], 2 * arguments[0]])
    for a in (arguments[0], stack):
        got = home.back(regression.lipschitz_bound(home(a)))
        np.testing.assert_allclose(got, regression.lipschitz_bound(a), rtol=1e-6)
    shifted = regression.data_shift(*map(home, arguments))
    for got, want in zip(shifted, regression.data_shift(*arguments), strict=True):
        np.testing.assert_allclose(home.back(got), want, atol=1e-6)


@pytest.mark.parametrize("library", ["dask"])
def test_bounds_of_matrices_in_chunks_are_found_later(library, monkeypatch):
    dask = pytest.importorskip("dask.array")
    stack = RNG.normal(size=(3, 6, 4))
    with monkeypatch.context() as patch:
        patch.setattr(dask.Array, "compute", None)
        later = regression.lipschitz_bound(dask.from_array(stack, chunks=(2, 3, 2)))
    np.testing.assert_allclose(later.compute(), regression.lipschitz_bound(stack), rtol=1e-12)
