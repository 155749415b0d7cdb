"""Sparsemax, entmax, normmax and budget: values, exactness, limits and gradients."""

import warnings

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import normx
from normx._dispatch import library
from normx._libraries import numpy_library
from normx._record import record_of
from normx.normalizers import sparse
from normx.testing.oracle import oracle
from normx.testing.samples import random_rows, special_rows
from normx.testing.ulp import error_in_ulp

INF, NAN = np.inf, np.nan

#: Every function, with keywords of each kind.
CALLS = [
    (sparse.sparsemax, {}),
    (sparse.entmax15, {}),
    (sparse.entmax, {"alpha": 1.0}),
    (sparse.entmax, {"alpha": 1.25}),
    (sparse.entmax, {"alpha": 1.5}),
    (sparse.entmax, {"alpha": 2.25}),
    (sparse.normmax, {}),
    (sparse.normmax, {"alpha": 1.4}),
    (sparse.budget, {"budget": 1.5}),
    (sparse.budget, {"budget": 6.25}),
]
NAMES = [f"{f.__name__}-{'-'.join(map(str, kw.values())) or 'default'}" for f, kw in CALLS]
every = pytest.mark.parametrize(("f", "keywords"), CALLS, ids=NAMES)


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("alpha", [2.5, 4.0, 7.0])
def test_steep_powers_of_scores_in_two_precisions(alpha, backend):
    """Flat powers of small bases: the threshold needs more digits than the scores have."""
    for dtype, rows in (("float32", 12), ("float64", 12)):
        for n in (2, 3, 8, 40):
            x = random_rows(n, rows, 0.5).astype(dtype)
            want = oracle(record_of(sparse.entmax), x, alpha=alpha)
            got = sparse.entmax(x, alpha=alpha, backend=backend)
            off = np.abs(got.astype(np.longdouble) - want) / np.finfo(dtype).eps
            assert np.max(off) <= 4, (dtype, n)


def test_no_step_to_the_threshold_passes_an_entry_by():
    """A weight of 7e-4 whose base is 5e-29 of the other's, once taken for 0.36."""
    y = sparse.entmax([6.4093, 6.5197], alpha=10.0, backend="reference")
    np.testing.assert_allclose(y, [0.000713, 0.999287], atol=0.04)  # 2**(-44 / 9)


def test_golden_values():
    x = [-2.0, 0.0, 0.5]
    assert np.array_equal(sparse.sparsemax(x), [0.0, 0.25, 0.75])
    np.testing.assert_allclose(sparse.entmax15(x), [0, 0.32600736, 0.67399264], atol=5e-9)
    got = sparse.entmax15([0.0, 0.5, 1.0])
    np.testing.assert_allclose(got, [0.0841358, 0.29166667, 0.62419753], atol=5e-9)
    got = sparse.entmax15([0.1, 0.2, 0.3, 0.4, 0.5])
    want = [0.11668239, 0.1533412, 0.195, 0.2416588, 0.29331761]
    np.testing.assert_allclose(got, want, atol=5e-9)
    for f in (sparse.sparsemax, sparse.entmax15):
        assert np.array_equal(f([1.0, 1.0, -5.0]), [0.5, 0.5, 0.0])
        assert np.array_equal(f([3.0, 0.0, 0.0]), [1.0, 0.0, 0.0])
    got = sparse.entmax([[-1.0, 0.0, 0.5], [1.0, 2.0, 3.5]], alpha=1.33)
    want = [[0.0460, 0.3276, 0.6264], [0.0026, 0.1012, 0.8963]]
    np.testing.assert_allclose(got, want, atol=5e-5)
    x = [0.0, 0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(sparse.normmax(x), [0, 0.0239, 0.1746, 0.3254, 0.4761], atol=5e-5)
    want = [0, 0, 0.3330, 0.3334, 0.3336]
    np.testing.assert_allclose(sparse.normmax(x, alpha=1000.0), want, atol=5e-5)
    assert np.array_equal(sparse.budget([2.0, 0.5, 0.25, -3.0], budget=1.5), [1, 0.375, 0.125, 0])


def test_golden_gradient_in_alpha():
    x, alpha = np.array([[-1.0, 0.0, 0.5]]), np.array([[1.33]])
    _, pullback = normx.vjp(sparse.entmax, x, alpha=alpha)
    gradient = pullback(np.array([[1.0, 0.0, 0.0]]))["alpha"]
    np.testing.assert_allclose(gradient, [[-0.2562]], atol=5e-5)


def by_sorting(x):
    """Sparsemax by its published algorithm, with 60 digits."""
    with mpmath.workdps(60):
        z = sorted((mpmath.mpf(float(v)) for v in x), reverse=True)
        sums = [mpmath.fsum(z[: k + 1]) for k in range(len(z))]
        k = max(k for k in range(len(z)) if 1 + (k + 1) * z[k] > sums[k])
        tau = (sums[k] - 1) / (k + 1)
        return np.array([np.longdouble(str(max(0, mpmath.mpf(float(v)) - tau))) for v in x])


def test_sparsemax_by_sorting():
    for n in (1, 2, 3, 7, 40, 150):
        for spread in (0.01, 0.3, 3.0):
            x = random_rows(n, 1, spread)
            assert error_in_ulp(sparse.sparsemax(x)[0], by_sorting(x[0]), "float64").max() <= 0.51


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_oracle(f, keywords, dtype):
    # General powers are rounded, which the smallest weights of a row feel.
    exact = dtype != "float64" or keywords.get("alpha", 1.5) in (1.0, 1.5, 2.0)
    for n in (1, 2, 9, 33, 130, 300):
        for spread in (0.01, 0.5, 5.0):
            x = numpy_library.cast(random_rows(n, 1, spread, seed=4), dtype)
            want = oracle(record_of(f), x, **keywords_as(keywords, dtype))
            got = f(x, **keywords)
            assert got.dtype == x.dtype
            scale = want if exact else np.broadcast_to(want.max(), want.shape)
            assert error_in_ulp(got, want, dtype, scale).max() <= (2.5 if exact else 8.0)


def keywords_as(keywords, dtype):
    """Numbers as the arithmetic of a dtype has them."""
    kind = np.float64 if dtype == "float64" else np.float32
    return {name: kind(value) for name, value in keywords.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hard_rows(dtype):
    """Many scores at the threshold, at every scale, and far from one another."""
    rng = np.random.default_rng(1)
    rows = [
        -(2.0 ** -np.arange(60.0)),
        2.0 ** -np.arange(50.0) - 1.0,
        np.append(-0.5 - 1e-9 * np.arange(100), 0.0),
        1e-20 * rng.normal(size=50),
        10.0 ** rng.uniform(-20, 20, 50),
        1e6 + rng.normal(size=50),
        rng.integers(-2, 3, 100) * 0.25,
        np.array([3e38, -3e38, 1.0]),
    ]
    for f, keywords in CALLS:
        if keywords.get("alpha", 1.5) != 1.5:
            continue
        for row in rows:
            x = row[None].astype(dtype)
            want = oracle(record_of(f), x, **keywords)
            assert error_in_ulp(f(x, **keywords), want, dtype).max() <= 2.0


def test_long_half_rows_count_their_support():
    for dtype in ("float16", "bfloat16"):
        x = numpy_library.cast(random_rows(1000, 2, 1e-3), dtype)
        y = sparse.sparsemax(x)
        assert (y > 0).sum(axis=-1).min() > 300
        assert error_in_ulp(y, oracle(record_of("sparsemax"), x), dtype).max() <= 0.51
        x = numpy_library.cast(np.full((1, 128), -1005.0), dtype)
        x[0, 0] = -992.0
        for f, keywords in CALLS[:2] + CALLS[3:7]:
            assert np.array_equal(f(x, **keywords)[0].astype(float), np.eye(128)[0])


# ------------------------------------------------------------------ limits


def test_alpha_from_softmax_over_sparsemax_to_the_maximum():
    x = random_rows(30, 4, 2.0)
    softmax = normx.softmax(x)
    assert (
        error_in_ulp(sparse.entmax(x, alpha=1.0), softmax.astype(np.longdouble), "float64").max()
        <= 4
    )
    for step, tolerance in ((2.0**-52, 1e-13), (1e-12, 1e-9), (1e-7, 1e-4)):
        np.testing.assert_allclose(sparse.entmax(x, alpha=1 + step), softmax, rtol=tolerance)
    assert np.array_equal(sparse.entmax(x, alpha=2.0), sparse.sparsemax(x))
    assert np.array_equal(sparse.entmax(x), sparse.entmax15(x))
    x = np.array([[0.0, 1.0, 1.5, 1.5], [0.0, 0.0, 0.0, 0.0]])
    for alpha in (4.0, 50.0, 1000.0, 1e30, 1e300, INF):
        want = [[0, 0, 0.5, 0.5], [0.25, 0.25, 0.25, 0.25]]
        np.testing.assert_allclose(sparse.entmax(x, alpha=alpha), want, rtol=1e-14)


def test_normmax_limits():
    x = np.array([[0.0, 0.25, 1.0, 1.0]])
    np.testing.assert_allclose(sparse.normmax(x, alpha=1.0 + 1e-9), [[0, 0, 0.5, 0.5]], rtol=1e-7)
    for alpha in (1e12, INF):  # the mean of the support of sparsemax
        got = sparse.normmax(np.array([[0.0, 0.8, 1.0, 1.0]]), alpha=alpha)
        np.testing.assert_allclose(got, [[0, 1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)


def test_alpha_and_budget_per_row():
    x = random_rows(20, 3, 1.0)
    alpha = np.array([[1.0], [1.5], [2.0]])
    rows = [sparse.entmax(x[i], alpha=float(alpha[i, 0])) for i in range(3)]
    np.testing.assert_allclose(sparse.entmax(x, alpha=alpha), rows, rtol=1e-15)
    b = np.array([[0.0], [2.5], [100.0]])
    y = sparse.budget(x, budget=b)
    np.testing.assert_allclose(y.sum(axis=-1), [0.0, 2.5, 20.0], rtol=1e-15)
    assert np.all(y[0] == 0) and np.all(y[2] == 1)
    np.testing.assert_allclose(sparse.budget(x, budget=1.0), sparse.sparsemax(x), rtol=1e-15)


def test_a_score_on_the_threshold_of_a_budget_weighs_nothing():
    x = np.array([[3.0], [13.0], [40.0]]) * [3.0, -2.0, 4.0, 0.0]
    for dtype in ("float32", "float64"):
        y = sparse.budget(x.astype(dtype), budget=1.0, temperature=x.max(-1, keepdims=True) * 1.75)
        assert np.array_equal(y > 0, np.broadcast_to([True, False, True, False], y.shape))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("f", [sparse.entmax, sparse.normmax])
def test_powers_are_rounded_and_nothing_else(f, backend):
    """The threshold of a general power is off by what the powers' own roundings amount to."""
    alpha, off = 1.75, []
    for seed in range(40):
        x = random_rows(33, 1, seed=seed)
        want = oracle(record_of(f), x, alpha=alpha)[0]
        least = np.argmin(np.where(want > 0, want, np.inf))
        # The power moves with its base; all weights are powers of bases, the largest below 1.
        base = (want[least] / want.max()) ** (alpha - 1)
        error = f(x, alpha=alpha, backend=backend)[0][least] / want[least] - 1
        off.append(float(error * (alpha - 1) * base) * 2.0**53)
    assert np.sqrt(np.mean(np.square(off))) < 0.35


@pytest.mark.parametrize("alpha", [1.75, 2.5, 3.0])
def test_general_powers_of_long_rows(alpha):
    """The threshold of 30000 scores in the support, which plain sums are too coarse for."""
    n = 30_000
    x = np.random.default_rng(0).uniform(-1.5, 0.0, n) * n ** (1 - alpha) / (alpha - 1)
    x[0] = 0.0
    kernel, formula = (sparse.entmax(x, alpha=alpha, backend=b) for b in ("native", "reference"))
    assert error_in_ulp(kernel, formula.astype(np.longdouble), "float64").max() <= 3.0


def test_temperature_limits_of_a_budget():
    x = np.array([3.0, 1.0, 1.0, 0.0])
    for b, want in ((2.0, [1, 0.5, 0.5, 0]), (1.0, [1, 0, 0, 0]), (3.5, [1, 1, 1, 0.5])):
        for temperature in (0.0, 1e-300, 1e-9):
            assert np.array_equal(sparse.budget(x, budget=b, temperature=temperature), want)
    np.testing.assert_allclose(sparse.budget(x, budget=3.0, temperature=INF), 0.75)
    assert np.array_equal(sparse.budget([0.0, -1e9], budget=1.5), [1.0, 0.5])


# ---------------------------------------------------------------- policies


@every
def test_masks_are_deletions(f, keywords):
    x = random_rows(24, 3, 1.0)
    kept = np.arange(24) % 3 != 1
    want = f(x[:, kept], **keywords)
    y = f(np.where(kept, x, NAN), where=kept, **keywords)
    np.testing.assert_allclose(y[:, kept], want, rtol=1e-14)
    assert np.all(y[:, ~kept] == 0)
    short = np.where(np.arange(24) < 9, x, -INF)
    np.testing.assert_allclose(f(short, **keywords)[:, :9], f(x[:, :9], **keywords), rtol=1e-14)
    _, pullback = normx.vjp(f, np.where(kept, x, INF), where=kept, **keywords)
    gradient = pullback(np.ones_like(x) * np.arange(24))["x"]
    assert np.all(gradient[:, ~kept] == 0) and np.all(np.isfinite(gradient))


@every
def test_ties_get_equal_bits(f, keywords):
    x = random_rows(40, 4, 1.0).astype(np.float32)
    doubled = np.concatenate([x, x[:, ::-1]], axis=-1)
    y = f(doubled, **keywords)
    assert np.array_equal(y, y[:, ::-1])
    total = min(keywords.get("budget", 1.0), 7.0)
    np.testing.assert_allclose(f(np.full(7, 0.7), **keywords), total / 7, rtol=1e-15)


@every
def test_special_rows(f, keywords):
    y = f(special_rows(), **keywords)
    finite = [0, 4, 8, 9]
    for i in finite:
        assert np.array_equal(y[i], f(special_rows()[i], **keywords)), "one row changed another"
    assert np.all(y[1] == 0)
    assert np.isnan(y[[3, 5, 6]]).all()
    share = min(1.0, keywords.get("budget", 1.0) / 2)
    assert np.array_equal(y[2, [0, 2]], [share, share])
    left = max(0.0, keywords.get("budget", 0.0) - 2.0)
    assert y[2, [1, 4]].sum() == min(left, 2.0)
    share = min(1.0, keywords.get("budget", 1.0) / 5)
    np.testing.assert_allclose(y[7], share, rtol=1e-15)
    uniform = f(special_rows(), empty="uniform", **keywords)
    assert np.all(uniform[1] == 0.2)


def test_wrong_arguments():
    x = np.zeros((2, 3))
    for f, keywords in (
        (sparse.entmax, {"alpha": 0.99}),
        (sparse.entmax, {"alpha": NAN}),
        (sparse.entmax, {"alpha": np.array([[1.5], [0.5]])}),
        (sparse.entmax, {"alpha": np.ones((2, 3))}),
        (sparse.normmax, {"alpha": 1.0}),
        (sparse.budget, {"budget": -0.1}),
    ):
        with pytest.raises(ValueError, match=next(iter(keywords))):
            f(x, **keywords)
    with pytest.raises(TypeError, match="budget"):
        sparse.budget(x)
    for f, keywords in CALLS:
        with pytest.raises(TypeError, match="complex"):
            f(x + 1j, **keywords)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.floats(1.0, 6.0),
    st.floats(0.0, 40.0),
)
def test_any_row(scores, alpha, b):
    x = np.array(scores)
    order = np.argsort(x, kind="stable")
    for f, keywords, total in (
        (sparse.sparsemax, {}, 1.0),
        (sparse.entmax, {"alpha": alpha}, 1.0),
        (sparse.normmax, {"alpha": 1.01 + alpha}, 1.0),
        (sparse.budget, {"budget": b}, min(b, x.size)),
    ):
        y = f(x, **keywords)
        assert np.all((y >= 0) & (y <= 1))
        assert abs(y.sum() - total) <= 1e-14 * max(total, 1.0)
        assert np.all(np.diff(y[order]) >= 0)


# --------------------------------------------------------------- gradients


GRADIENTS = [
    (sparse.sparsemax, {}),
    (sparse.entmax15, {}),
    *((sparse.entmax, {"alpha": a}) for a in (1.0, 1.0 + 1e-5, 1.001, 1.2, 1.5, 2.0, 2.5)),
    *((sparse.normmax, {"alpha": a}) for a in (1.2, 2.0, 3.0)),
    *((sparse.budget, {"budget": b}) for b in (0.4, 1.5, 3.3)),
]
COEFFICIENTS = np.array([1, -8, 8, -1]) / 12


@pytest.mark.parametrize(
    ("f", "numbers"), GRADIENTS, ids=[f"{f.__name__}-{kw}" for f, kw in GRADIENTS]
)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(f, numbers, masked):
    """Against central differences of fourth order, on rows away from every kink."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(3, 6))
    keywords = {name: np.full((3, 1), value) for name, value in numbers.items()}
    keywords["temperature"] = np.array([[0.8], [1.3], [2.0]])
    if masked:
        keywords["where"] = rng.random(x.shape) < 0.8
    y, pullback = normx.vjp(f, x, **keywords)
    dy = rng.normal(size=y.shape)
    gradients = pullback(dy)
    assert set(gradients) == {"x", "temperature", *numbers}
    step = 1e-4
    for name, gradient in gradients.items():
        base = x if name == "x" else keywords[name]
        if name == "alpha" and base[0, 0] < 1.001:
            continue  # no alpha below 1
        numeric = np.zeros_like(base)
        for i in np.ndindex(base.shape):
            for k, c in zip((2, 1, -1, -2), -COEFFICIENTS, strict=True):
                moved = base.copy()
                moved[i] += k * step
                others = keywords if name == "x" else {**keywords, name: moved}
                numeric[i] += c * np.sum(dy * f(moved if name == "x" else x, **others)) / step
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-9, err_msg=name)


def test_gradient_in_alpha_at_one_is_the_limit():
    x = random_rows(8, 2, 1.0)
    dy = random_rows(8, 2, 1.0, seed=1)

    def gradient(alpha):
        return normx.vjp(sparse.entmax, x, alpha=np.full((2, 1), alpha))[1](dy)["alpha"]

    for step in (1e-15, 1e-9, 1e-7):
        np.testing.assert_allclose(gradient(1.0 + step), gradient(1.0), rtol=20 * step + 1e-12)
    one, h = np.ones((2, 1)), 1e-6
    weights = [sparse.entmax(x, alpha=one + k * h) for k in (0.0, 1.0, 2.0)]
    forward = (-1.5 * weights[0] + 2.0 * weights[1] - 0.5 * weights[2]) / h
    want = np.sum(forward * dy, axis=-1, keepdims=True)
    np.testing.assert_allclose(gradient(1.0), want, rtol=1e-7, atol=1e-8)


# --------------------------------------------------------------- libraries


def agreement(f, keywords, run):
    """Another library's values against NumPy's, the special rows among them."""
    rows = np.concatenate([special_rows(), random_rows(5, 4, 1.0), random_rows(5, 4, 0.1)])
    x = rows.astype(np.float32)
    want = f(x, **keywords)
    got = run(lambda scores: f(scores, **keywords), x)
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-7)
    assert np.array_equal(got == 0, want == 0), "another support"


@every
@pytest.mark.parametrize("name", ["torch", "jax", "mlx"])
def test_libraries_agree(f, keywords, name):
    pytest.importorskip("mlx.core" if name == "mlx" else name)
    home = library(name)
    for mode, way in home.modes().items():
        if home.left_out(record_of(f), "reference", mode) is None:
            agreement(f, keywords, lambda g, x, way=way: home.to_numpy(way(g)(home.from_numpy(x))))


@every
def test_dask_agrees(f, keywords):
    dask = pytest.importorskip("dask.array")

    def run(g, x):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return g(dask.from_array(x, chunks=(7, 3))).compute(scheduler="synchronous")

    agreement(f, keywords, run)


@every
def test_array_api_strict_agrees(f, keywords):
    strict = pytest.importorskip("array_api_strict")
    agreement(f, keywords, lambda g, x: np.asarray(g(strict.asarray(x))))


@every
def test_several_axes(f, keywords):
    x = random_rows(60, 2, 1.0).reshape(2, 3, 4, 5)
    rows = np.moveaxis(x, (1, 3), (2, 3)).reshape(8, 15)
    want = np.moveaxis(f(rows, **keywords).reshape(2, 4, 3, 5), 1, 2)
    np.testing.assert_allclose(f(x, axis=(3, 1), **keywords), want, rtol=1e-13)
