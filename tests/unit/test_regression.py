"""Softmax regression: the paper's formulas, its bounds, and the estimator."""

import subprocess
import sys

import numpy as np
import pytest

import normx
from normx import regression
from normx.regression import data_shift, gradient, hessian, lipschitz_bound, loss

A = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
X, B = np.array([0.5, -0.5]), np.array([0.2, 0.3, 0.5])


def problem(n=7, d=3, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, d)) * scale
    return a, rng.normal(size=d), normx.softmax(rng.normal(size=n))


def differences(f, x, step=1e-6):
    columns = [(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))]
    return np.stack(columns, axis=-1)


def test_the_papers_numbers():
    np.testing.assert_allclose(loss(A, X, B), 0.0720129762, rtol=1e-9)
    np.testing.assert_allclose(gradient(A, X, B), [0.0351207860, -0.1173329190], rtol=1e-9)


@pytest.mark.parametrize("weights", [None, 0.3, np.linspace(0, 1, 7)], ids=["none", "one", "each"])
@pytest.mark.parametrize("seed", range(3))
def test_derivatives_by_finite_differences(seed, weights):
    a, x, b = problem(seed=seed, scale=2.0)
    slope = differences(lambda x: loss(a, x, b, weights=weights), x)
    np.testing.assert_allclose(gradient(a, x, b, weights=weights), slope, atol=1e-8)
    curvature = differences(lambda x: gradient(a, x, b, weights=weights), x)
    np.testing.assert_allclose(hessian(a, x, b, weights=weights), curvature, atol=1e-8)


def test_hessian_is_symmetric_and_may_be_indefinite():
    signs = set()
    for seed in range(20):
        h = hessian(*problem(seed=seed, scale=3.0))
        np.testing.assert_allclose(h, h.T, rtol=1e-13, atol=1e-15)
        signs |= set(np.sign(np.linalg.eigvalsh(h)))
    assert signs == {-1.0, 1.0}


def test_enough_weight_makes_it_convex():
    for seed in range(20):
        a, x, b = problem(seed=seed, scale=3.0)
        least = np.linalg.svd(a, compute_uv=False)[-1]
        weight = np.sqrt(1.5 * np.sqrt(2) + 0.1 / least**2)
        assert np.linalg.eigvalsh(hessian(a, x, b, weights=weight))[0] >= 0.1


def test_a_constant_added_to_all_scores_changes_nothing():
    a, x, b = problem()
    moved = a + np.array([2.0, -1.0, 3.0])
    for f in (loss, lambda *p: np.linalg.norm(data_shift(*p, step=1.0).target - b)):
        assert f is not loss or np.allclose(loss(moved, x, b), loss(a, x, b), rtol=1e-13)
    slope = gradient(a, x, b)
    np.testing.assert_allclose(gradient(moved, x, b), slope, atol=1e-14)  # 1ᵀ J c = 0


def test_large_scores_do_not_overflow():
    a, x, b = A * 1e6, X, B
    for f in (loss, gradient, hessian):
        assert np.isfinite(f(a, x, b)).all()


def test_the_gradient_changes_no_faster_than_the_bound():
    rng = np.random.default_rng(0)
    for seed in range(10):
        a, _, b = problem(seed=seed, scale=2.0)
        bound, tighter = lipschitz_bound(a), lipschitz_bound(a, b)
        assert tighter <= bound <= 2.38 * np.linalg.norm(a, 2) ** 2
        for _ in range(200):
            x, y = rng.normal(size=(2, 3)) * rng.choice([0.01, 1.0])
            moved = np.linalg.norm(gradient(a, x, b) - gradient(a, y, b))
            assert moved <= tighter * np.linalg.norm(x - y)


def test_steps_of_one_over_the_bound_never_raise_the_loss():
    a, x, b = problem(scale=2.0)
    values = []
    for _ in range(300):
        values.append(loss(a, x, b))
        x = data_shift(a, x, b).x
    assert (np.diff(values) <= 0).all() and values[-1] < values[0] / 2


@pytest.mark.parametrize("step", [None, 0.1, 10.0])
def test_a_step_is_a_shift_of_the_target(step):
    a, x, b = problem(scale=2.0)
    after, target, bound = data_shift(a, x, b, step=step)
    eta = 1 / lipschitz_bound(a, b) if step is None else step
    np.testing.assert_allclose(after, x - eta * gradient(a, x, b), rtol=1e-14)
    np.testing.assert_allclose(normx.softmax(a @ after) - b, normx.softmax(a @ x) - target)
    assert np.linalg.norm(target - b) <= bound
    np.testing.assert_allclose(bound, np.linalg.norm(a, 2) * np.linalg.norm(after - x) / 2)


def test_many_problems_at_once():
    rng = np.random.default_rng(0)
    a, x, b = rng.normal(size=(2, 4, 6, 3)), rng.normal(size=(4, 3)), rng.random((2, 1, 6))
    for f, shape in ((loss, ()), (gradient, (3,)), (hessian, (3, 3))):
        got = f(a, x, b)
        assert got.shape == (2, 4, *shape)
        np.testing.assert_allclose(got[1, 2], f(a[1, 2], x[2], b[1, 0]), rtol=1e-12)
    shifted = data_shift(a, x, b)
    np.testing.assert_allclose(shifted.x[1, 2], data_shift(a[1, 2], x[2], b[1, 0]).x)
    assert shifted.target.shape == (2, 4, 6) and shifted.bound.shape == (2, 4)
    assert lipschitz_bound(a, b).shape == (2, 4)


def test_limits():
    assert loss([[1.0]], [3.0], [1.0]) == 0
    assert data_shift(np.zeros((2, 2)), X, [0.5, 0.5]).x.tolist() == X.tolist()
    assert loss(A.astype("float32"), X.astype("float32"), B.astype("float32")).dtype == "float32"
    assert gradient(A.astype("float16"), X.astype("float16"), [0, 0, 1]).dtype == "float16"


@pytest.mark.parametrize(
    ("call", "kind", "parts"),
    [
        (lambda: loss(A, X, X), ValueError, ("regression.loss", "`b`", "size 3", "rows")),
        (lambda: loss(A, B, B), ValueError, ("`x`", "size 2", "columns")),
        (lambda: loss(X, X, B), ValueError, ("`a`", "matrix")),
        (lambda: gradient(A, X, B, weights=X), ValueError, ("`weights`", "size 3")),
        (lambda: hessian(A * 1j, X, B), TypeError, ("`a`", "real")),
        (lambda: loss([[1.0], [1.0, 2.0]], X, B), TypeError, ("`a`",)),
        (lambda: loss(np.ones((2, 3, 2)), np.ones((4, 2)), B), ValueError, ("(2,)", "(4,)")),
        (lambda: loss(A, "x", B), TypeError, ("`x`",)),
        (lambda: data_shift(A, X, B, step=0.0), ValueError, ("`step`", "above 0")),
        (lambda: data_shift(A, X, B, step="a"), TypeError, ("`step`",)),
        (lambda: lipschitz_bound(A, X), ValueError, ("lipschitz_bound", "`b`", "size 3")),
    ],
)
def test_wrong_arguments(call, kind, parts):
    with pytest.raises(kind) as raised:
        call()
    assert all(part in str(raised.value) for part in parts), raised.value


# ----------------------------------------------------------------------- estimator


def test_without_scikit_learn_the_functions_are_there_and_the_estimator_says_what_to_install():
    program = (
        "import sys; sys.modules['sklearn'] = None; sys.modules['scipy'] = None;"
        "from normx import regression; print(regression.loss([[1.0]], [1.0], [1.0]));"
        "regression.SoftmaxRegression"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "0.0\n"
    assert 'SoftmaxRegression needs scikit-learn; pip install "normx[learn]"' in done.stderr


@pytest.fixture
def estimator():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    return regression.SoftmaxRegression


SOLVERS = ("newton", "gauss-newton", "lbfgs")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_target_that_can_be_reached_is_reached(estimator, solver):
    a, x, _ = problem(40, 4)
    for unit in (1e-5, 1.0, 1e5):
        model = estimator(solver=solver).fit(a / unit, normx.softmax(a @ x))
        np.testing.assert_allclose(model.coef_, x * unit, rtol=1e-9)
        assert model.converged_ and model.loss_ < 1e-20
        np.testing.assert_allclose(model.predict(a / unit), normx.softmax(a @ x), rtol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_solvers_end_where_the_gradient_is_zero(estimator, solver, weight):
    a, _, b = problem(30, 4)
    model = estimator(solver=solver, weight=weight, tol=1e-8).fit(a, b)
    assert model.converged_
    slope = gradient(a, model.coef_, b, weights=weight)
    np.testing.assert_allclose(np.linalg.norm(slope), model.gradient_norm_, atol=1e-12)
    assert np.abs(slope).max() < 1e-7
    assert model.loss_ == pytest.approx(loss(a, model.coef_, b, weights=weight), rel=1e-9)
    assert np.linalg.eigvalsh(hessian(a, model.coef_, b, weights=weight))[0] > 0


def test_targets_with_zeros_are_fitted(estimator):
    a, _, b = problem(20, 3)
    b[:5] = 0
    assert estimator().fit(a, b).converged_


def test_what_has_not_converged_says_so(estimator):
    from sklearn.exceptions import ConvergenceWarning

    a, _, b = problem(30, 4)
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol"):
        model = estimator(solver="lbfgs", max_iter=1, tol=1e-12).fit(a, b)
    assert not model.converged_ and model.n_iter_ == 1


@pytest.mark.parametrize(
    ("parameter", "value", "kind", "wanted"),
    [
        ("solver", "magic", ValueError, "one of 'newton', 'gauss-newton', 'lbfgs'"),
        ("weight", -1.0, ValueError, "at least 0"),
        ("weight", "a", TypeError, "a number"),
        ("tol", 0.0, ValueError, "above 0"),
        ("max_iter", 0, ValueError, "at least 1"),
        ("max_iter", 1.5, TypeError, "an int"),
    ],
)
def test_wrong_parameters_of_the_estimator(estimator, parameter, value, kind, wanted):
    with pytest.raises(kind, match=rf"SoftmaxRegression: `{parameter}` must be .*{wanted}"):
        estimator(**{parameter: value}).fit(A, B)


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks(estimator):
    from sklearn.utils.estimator_checks import check_estimator

    # A prediction is a distribution over the samples that are predicted together.
    reason = {"check_methods_subset_invariance": "a softmax over the samples"}
    found = check_estimator(estimator(), expected_failed_checks=reason, on_skip=None)
    assert {check["check_name"] for check in found if check["status"] == "xfail"} == set(reason)
    assert len(found) > 40
