"""Gradients from results: exact but for last places; what they leave to the row programs."""

import numpy as np
import pytest
from normx_native import _core, backend

import normx

DTYPES = ("float32", "float64")
SHORT = {"float32": "f32", "float64": "f64"}
RNG = np.random.default_rng(5)


def pulled(function, x, dy, **keywords):
    """The gradient of x, and the name of the kernel that computed it."""
    y, pullback = normx.vjp(function, x, backend="native", **keywords)
    with normx.trace() as ran:
        gradients = pullback(dy)
    return y, gradients["x"], ran[0].kernel


def exact(function, x, y, dy):
    """The gradient, in extended precision, and the size of its terms."""
    x, y, dy = (a.astype(np.longdouble) for a in (x, y, dy))
    if function == "sigmoid":
        e = np.exp(x - np.log(np.longdouble(x.shape[-1])))
        dx = dy * (e / (1 + e) ** 2)
        return dx, 2 * np.abs(dx)
    weights, terms = (np.exp(y), dy) if function == "log_softmax" else (y, y * dy)
    total, size = (np.sum(a, -1, keepdims=True) for a in (terms, np.abs(terms)))
    if function == "log_softmax":
        return dy - weights * total, np.abs(dy) + weights * size * (1 + np.abs(y))
    dx = weights * (dy - total)
    return -dx if function == "softmin" else dx, weights * (np.abs(dy) + size)


@pytest.mark.parametrize("target", backend.targets())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", _core.vjps)
def test_rows_of_any_length(function, dtype, target):
    eps = np.finfo(dtype).eps
    with backend.use_target(target):
        for n in (1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 128, 1000, 16384, 40001):
            x, dy = (
                RNG.normal(size=(2, 3, n)).astype(dtype),
                RNG.normal(size=(2, 3, n)).astype(dtype),
            )
            y, dx, kernel = pulled(function, x, dy)
            assert kernel == f"{function}_{SHORT[dtype]}_vjp"
            want, size = exact(function, x, y, dy)
            assert np.all(np.abs(dx - want) <= 2 * eps * size + np.finfo(dtype).tiny), n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", _core.vjps)
def test_rows_as_the_formula_has_them(function, dtype):
    x = RNG.normal(size=(9, 40)).astype(dtype)
    dy = RNG.normal(size=x.shape).astype(dtype)
    x[0, 3] = x[0, 8] = np.inf
    x[1, 5] = -np.inf
    x[2] = -np.inf
    x[3, 2] = np.nan
    x[4, 1] = x[4, 7] = -np.inf
    x[5] = np.inf
    x[6, 0], x[6, 9] = np.nan, np.inf
    where = RNG.random(x.shape) < 0.7
    where[7] = False
    masks = ({},) if function == "sigmoid" else ({}, {"where": where})
    for keywords in masks:
        with np.errstate(all="ignore"):
            dy[:, 11] = np.where(np.arange(9) == 1, np.inf, dy[:, 11])
            _, dx, kernel = pulled(function, x, dy, **keywords)
            assert kernel.endswith("_vjp")
            _, pullback = normx.vjp(function, x, backend="reference", **keywords)
            want = pullback(dy)["x"]
        rows = [0, 2, 3, 4, 5, 6, 7, 8]  # 1 has an infinite cotangent, and so a row of NaN
        np.testing.assert_allclose(dx[rows], want[rows], rtol=3e-6, atol=1e-6)
        if "where" in keywords:
            assert np.all(dx[~where] == 0)


def test_what_does_not_lie_in_order_starts_from_the_scores():
    x, dy = RNG.normal(size=(6, 32)).astype("f"), RNG.normal(size=(6, 32)).astype("f")
    _, want, _ = pulled("softmax", x, dy)
    for a, b in ((x[:, ::2].repeat(2, 1)[:, :32], dy), (np.asfortranarray(x), dy), (x, dy[::-1])):
        _, dx, kernel = pulled("softmax", a, b)
        by_rows = not (a.flags.c_contiguous and b.flags.c_contiguous)
        assert kernel == ("softmax_rows" if by_rows else "softmax_f32_vjp")
    _, dx, kernel = pulled("softmax", x.T.copy(), dy.T.copy(), axis=0)
    assert kernel == "softmax_rows"
    np.testing.assert_allclose(dx.T, want, rtol=2e-6, atol=1e-7)
    _, dx, kernel = pulled("softmax", x.reshape(2, 3, 4, 8), dy.reshape(2, 3, 4, 8), axis=(2, 3))
    assert kernel == "softmax_f32_vjp" and np.array_equal(dx.reshape(x.shape), want)


def test_scores_within_their_elements_start_from_the_scores():
    memory = np.zeros(4 * 33, np.uint8)
    x = memory[1 : 1 + 4 * 32].view(np.float32).reshape(1, 32)
    x[...] = RNG.normal(size=x.shape)
    dy = RNG.normal(size=x.shape).astype("f")
    _, dx, kernel = pulled("softmax", x, dy)
    assert kernel == "softmax_rows"
    np.testing.assert_allclose(dx, pulled("softmax", x.copy(), dy)[1], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("function", ["softmax", "sparsemax", "zscore"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cotangents_may_have_their_bytes_in_another_order(function, dtype):
    x, dy = RNG.normal(size=(2, 3, 32)).astype(dtype)
    swapped = dy.astype(np.dtype(dtype).newbyteorder())
    np.testing.assert_array_equal(pulled(function, x, swapped)[1], pulled(function, x, dy)[1])


@pytest.mark.parametrize(
    "keywords", [{"temperature": 0.5}, {"softcap": 2.0}, {"sink": 0.0}, {"empty": "uniform"}]
)
def test_keywords_that_the_result_does_not_tell(keywords):
    x, dy = RNG.normal(size=(2, 32)).astype("f"), RNG.normal(size=(2, 32)).astype("f")
    assert pulled("softmax", x, dy, **keywords)[2] == "softmax_rows"


def test_the_bits_of_a_row_are_its_own():
    x, dy = RNG.normal(size=(600, 4096)).astype("f"), RNG.normal(size=(600, 4096)).astype("f")
    _, whole, _ = pulled("softmax", x, dy)  # large enough to go past the caches
    for row in (0, 299, 599):
        assert np.array_equal(pulled("softmax", x[row], dy[row])[1], whole[row])


def test_wrong_arrays_are_refused():
    x = np.zeros((2, 8), np.float32)
    for arrays in (
        (x[0],) * 4,
        (x, x, x, x[:1]),
        (x, x, x, x.astype(np.float64)),
        (x[:, ::2],) * 4,
    ):
        with pytest.raises(TypeError, match="contiguous matrices"):
            _core.vjp("softmax", *arrays)
    with pytest.raises(TypeError, match="float32 or float64"):
        _core.vjp("softmax", *(x.astype(np.float16),) * 4)
    with pytest.raises(ValueError, match="one of vjps"):
        _core.vjp("sparsemax", x, x, x, x.copy())
    frozen = x.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _core.vjp("softmax", x, x, x, frozen)


@pytest.mark.parametrize("function", ["squared_relu", "lips_relu"])
def test_infinite_gradients_of_a_parameter_meet_in_silence(function):
    """At a temperature of 0 there is one of +inf and one of -inf, and their sum is NaN."""
    x = np.array([[1.0, 2.0], [3.0, 1.0]], np.float32)
    _, pullback = normx.vjp(function, x, axis=(), n=1.5, temperature=0.0, backend="native")
    gradient = pullback(np.array([[1, -1], [-1, 1]], np.float32))
    assert np.isnan(gradient["n"]) and not gradient["x"].any()


def test_a_gradient_too_large_for_half_precision_is_infinite_in_silence():
    """The second row is the kernel's, the first one left to the formula and then put beside it."""
    x = np.array([[0, -0.0095], [0, -1]], np.float16)
    alpha = np.array([[101], [1]], np.float16)
    _, pullback = normx.vjp(normx.entmax, x, alpha=alpha, backend="native")
    gradient = pullback(np.array([[1, 0], [1, 0]], np.float16))
    assert np.isinf(gradient["x"][0]).all() and np.isinf(gradient["alpha"][0]).all()
    assert np.isfinite(gradient["x"][1]).all() and np.isfinite(gradient["alpha"][1]).all()
