"""The k largest weights: their order, their bits, and rows that hold anything."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import normx
from normx._dispatch import library
from normx.testing.ulp import error_in_ulp
from normx.topk import softmax_topk, softmax_topk_vjp

INF, NAN = np.inf, np.nan
LIBRARIES = ("array_api_strict", "dask", "jax", "mlx", "torch")


def home_of(name):
    """Functions from NumPy to an array library, and back."""
    if name == "array_api_strict":
        return pytest.importorskip(name).asarray, np.asarray
    if name == "dask":
        dask = pytest.importorskip("dask.array")
        return (lambda x: dask.from_array(x, chunks=3)), np.asarray
    pytest.importorskip("mlx.core" if name == "mlx" else name)
    return library(name).from_numpy, library(name).to_numpy


def stable_order(x, kept=None, axis=-1):
    """Largest first; NaN as -inf, what is left out after everything."""
    key = np.where(np.isnan(x), -INF, x.astype(np.float64))
    if kept is None:
        return np.argsort(-key, axis=axis, stable=True)
    kept = np.broadcast_to(kept, x.shape)
    index = np.broadcast_to(np.arange(x.shape[-1]), x.shape)
    return np.lexsort((index, np.where(kept, -key, 0.0), ~kept), axis=axis)


def test_ties_go_to_the_lowest_index():
    weights = np.array([0.4, 0.3, 0.3, 0.0])
    with np.errstate(divide="ignore"):
        values, indices = softmax_topk(np.log(weights), 2)
    np.testing.assert_allclose(values, [0.4, 0.3], rtol=1e-15)
    assert indices.tolist() == [0, 1]
    assert indices.dtype == np.int64


LENGTHS = (1, 2, 3, 7, 8, 16, 17, 31, 33, 64, 127, 128, 129, 160, 256, 1000, 50257)


@pytest.mark.parametrize("n", LENGTHS)
def test_every_k_is_the_beginning_of_the_stable_order(n):
    rng = np.random.default_rng(n)
    x = rng.normal(0.0, 3.0, (2, n)).astype(np.float32)
    x[1] = np.round(x[1])  # many ties
    weights = normx.softmax(x, backend="reference")
    order = stable_order(x)
    for k in {*range(1, 17), 64, 128, n}:
        if k > n:
            continue
        values, indices = softmax_topk(x, k, backend="reference")
        assert np.array_equal(indices, order[:, :k])
        assert np.array_equal(values, np.take_along_axis(weights, indices, -1))


@pytest.mark.parametrize("name", ["numpy", "torch", "mlx"])
def test_few_of_long_rows_with_many_ties(name):
    to, back = (np.asarray, np.asarray) if name == "numpy" else home_of(name)
    x = np.round(np.random.default_rng(7).normal(size=(2, 300, 3)), 1).astype(np.float32)
    x[0, ::2, 0], x[0, :, 1], x[1, :200, 2] = -INF, NAN, INF
    order = stable_order(np.moveaxis(x, 1, -1))
    for k in (1, 5, 37):
        values, indices = softmax_topk(to(x), k, axis=1)
        assert np.array_equal(np.moveaxis(back(indices), 1, -1), order[..., :k])
        assert tuple(values.shape) == (2, k, 3)


def test_zeros_of_either_sign_are_equal():
    x = np.array([-0.0, 0.0, -0.0] * 20)
    for k in (2, 60):
        assert softmax_topk(x, k).indices.tolist() == list(range(k))


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    ("row", "order", "weights"),
    [
        ([-INF, -INF, -INF], [0, 1, 2], [0.0, 0.0, 0.0]),
        ([NAN, NAN, NAN], [0, 1, 2], [NAN, NAN, NAN]),
        ([0.0, NAN, 1.0], [2, 0, 1], [NAN, NAN, NAN]),
        ([1.0, INF, INF], [1, 2, 0], [0.5, 0.5, 0.0]),
        ([-INF, 3.0, -INF], [1, 0, 2], [1.0, 0.0, 0.0]),
    ],
)
def test_rows_that_hold_anything(row, order, weights, renormalize):
    for repeats in (1, 20):  # short, and long enough not to be sorted as a whole
        x = np.array([row + [-INF] * (3 * (repeats - 1)), [0.0] * 3 * repeats])
        values, indices = softmax_topk(x, 2, renormalize=renormalize)
        assert indices.tolist()[0] == order[:2]
        np.testing.assert_array_equal(values[0], weights[:2])
        assert indices.tolist()[1] == [0, 1]
        assert not np.isnan(values[1]).any()
    every = softmax_topk(np.array(row), 3, renormalize=renormalize)
    assert every.indices.tolist() == order
    np.testing.assert_array_equal(every.values, weights)


def test_what_is_left_out_comes_last_in_the_order_of_its_indices():
    x = np.array([NAN, -INF, 2.0, 9.0, 1.0])
    where = np.array([False, True, True, False, True])
    values, indices = softmax_topk(x, 5, where=where)
    assert indices.tolist() == [2, 4, 1, 0, 3]
    np.testing.assert_allclose(values, [0.7310585786, 0.2689414214, 0.0, 0.0, 0.0])
    renormalized = softmax_topk(x, 5, where=where.tolist(), renormalize=True)
    np.testing.assert_allclose(renormalized.values, values, rtol=1e-15)
    nothing = softmax_topk(x, 3, where=False)
    assert nothing.indices.tolist() == [0, 1, 2] and not nothing.values.any()


row_entries = st.floats(-50, 50, width=32) | st.sampled_from([INF, -INF, NAN, 0.0, -0.0, 1.0])


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 40)), elements=row_entries))
def test_any_row_has_k_different_indices(x):
    for k in {1, 2, x.shape[-1]} - {3}:
        if k > x.shape[-1]:
            continue
        values, indices = softmax_topk(x, k)
        assert np.array_equal(indices, stable_order(x)[:, :k])
        np.testing.assert_array_equal(
            values, np.take_along_axis(normx.softmax(x), indices, -1), strict=True
        )


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_masks_of_any_form(data):
    n = data.draw(st.integers(1, 12))
    x = data.draw(hnp.arrays(np.float64, (3, n), elements=row_entries))
    where = data.draw(hnp.arrays(bool, st.sampled_from([(3, n), (n,), (3, 1), ()])))
    if where.shape == ():
        where = np.bool_(where)
    values, indices = softmax_topk(x, n, where=where)
    assert np.array_equal(indices, stable_order(x, where))
    want = np.take_along_axis(normx.softmax(x, where=where), indices, -1)
    np.testing.assert_array_equal(values, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_renormalized_is_the_weights_over_their_sum(dtype):
    x = library_cast(np.random.default_rng(1).normal(0.0, 2.0, (5, 100)), dtype)
    values, indices = softmax_topk(x, 7, renormalize=True)
    assert values.dtype == x.dtype and indices.dtype == np.int64
    exact = np.exp(np.take_along_axis(x.astype(np.longdouble), indices, -1))
    exact /= exact.sum(-1, keepdims=True)
    assert error_in_ulp(values, exact, dtype).max() <= 4.0


def library_cast(x, dtype):
    from normx._libraries import numpy_library

    return numpy_library.cast(x, dtype)


def test_renormalized_where_the_sum_underflows():
    x = np.array([0.0, -900.0, -900.0], np.float64)
    where = np.array([True, True, True])
    assert softmax_topk(x, 3).values[1:].tolist() == [0.0, 0.0]
    # The chosen are always the largest: only a mask of the caller's can hide the first.
    hidden = softmax_topk(x[1:], 2, renormalize=True, where=where[1:])
    assert hidden.values.tolist() == [0.5, 0.5]
    exact = softmax_topk(np.full(3_000_000, -1.0, np.float16), 2, renormalize=True)
    assert exact.values.tolist() == [0.5, 0.5]  # each weight rounds to 3.6e-7 in float16


def test_temperature():
    x = np.array([[1.0, 3.0, 2.0], [3.0, 3.0, 0.0]])
    t = np.array([[0.5], [0.0]])
    values, indices = softmax_topk(x, 2, temperature=t)
    assert indices.tolist() == [[1, 2], [0, 1]]
    want = np.take_along_axis(normx.softmax(x, temperature=t), indices, -1)
    np.testing.assert_array_equal(values, want)
    renormalized = softmax_topk(x, 2, temperature=t, renormalize=True).values
    np.testing.assert_allclose(renormalized, values / values.sum(-1, keepdims=True), rtol=1e-15)


def test_any_axis():
    x = np.random.default_rng(0).normal(size=(4, 50, 3))
    for axis in range(-3, 3):
        values, indices = softmax_topk(x, 3, axis=axis)
        want = softmax_topk(np.moveaxis(x, axis, -1), 3)
        assert np.array_equal(indices, np.moveaxis(want.indices, -1, axis))
        np.testing.assert_allclose(values, np.moveaxis(want.values, -1, axis), rtol=1e-15)


def test_nothing_asked_for_and_nothing_there():
    for x, k, shape in (
        (np.ones((2, 3)), 0, (2, 0)),
        (np.ones((0, 3)), 2, (0, 2)),
        (np.ones((2, 0)), 0, (2, 0)),
    ):
        values, indices = softmax_topk(x, k)
        assert values.shape == indices.shape == shape
        assert values.dtype == np.float64 and indices.dtype == np.int64


def test_integers_and_lists():
    values, indices = softmax_topk([1, 2, 3], 1)
    assert values.dtype == np.float64 and indices.tolist() == [2]


def test_input_is_not_touched():
    x = np.random.default_rng(0).normal(size=(3, 30))
    x[0, 3] = NAN
    before = x.copy()
    softmax_topk(x, 2), softmax_topk(x, 30, where=x > 0, renormalize=True)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_libraries_agree(name, dtype):
    if dtype in ("float16", "bfloat16") and name == "array_api_strict":
        pytest.skip("has no narrow dtypes")
    to, back = home_of(name)
    x = np.round(np.random.default_rng(2).normal(0.0, 3.0, (4, 7, 5)), 1).astype(np.float32)
    x[0, 0, 0], x[0, 1, 1], x[1, 0], x[2, 3, 3], x[2, 3, 1] = NAN, INF, -INF, INF, INF
    x = library_cast(x, dtype)
    where = np.random.default_rng(3).random((4, 7, 5)) < 0.7
    for axis in (-1, 1):
        for k in (3, x.shape[axis]):
            for options in ({}, {"renormalize": True}, {"where": where}):
                want = softmax_topk(x, k, axis=axis, **options)
                there = {w: to(v) if w == "where" else v for w, v in options.items()}
                got = softmax_topk(to(x), k, axis=axis, **there)
                assert np.array_equal(back(got.indices), want.indices)
                assert type(got.values) is type(to(x))
                assert str(got.values.dtype).endswith(dtype)
                with np.errstate(invalid="ignore"):
                    close = back(got.values).astype(np.float64)
                tolerance = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6}[dtype]
                wanted = want.values.astype(np.float64)
                np.testing.assert_allclose(close, wanted, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("name", LIBRARIES)
def test_nothing_asked_for_on_every_library(name):
    to, _ = home_of(name)
    values, indices = softmax_topk(to(np.ones((2, 3), np.float32)), 0)
    assert tuple(values.shape) == tuple(indices.shape) == (2, 0)
    assert "int" in str(indices.dtype) and "32" in str(values.dtype)


def test_jax_compiled_and_differentiated():
    jax = pytest.importorskip("jax")
    x = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    got = jax.jit(lambda x: softmax_topk(x, 4))(jax.numpy.asarray(x))
    want = softmax_topk(x, 4)
    assert np.array_equal(got.indices, want.indices)
    np.testing.assert_allclose(got.values, want.values, rtol=1e-6)
    weights = np.linspace(1.0, 2.0, 12, dtype=np.float32).reshape(3, 4)
    for renormalize in (False, True):
        gradient = jax.grad(
            lambda x, r=renormalize: (softmax_topk(x, 4, renormalize=r).values * weights).sum()
        )(jax.numpy.asarray(x))
        pullback = softmax_topk_vjp(x, 4, renormalize=renormalize)[1]
        np.testing.assert_allclose(gradient, pullback(weights)["x"], atol=1e-6)


@pytest.mark.parametrize("renormalize", [False, True])
def test_torch_gradient(renormalize):
    torch = pytest.importorskip("torch")
    x = torch.tensor(np.random.default_rng(1).normal(size=(3, 6)), requires_grad=True)
    where = torch.tensor(np.random.default_rng(2).random((3, 6)) < 0.8)

    def values(x):
        return softmax_topk(x, 3, renormalize=renormalize, where=where, temperature=0.7).values

    assert torch.autograd.gradcheck(values, (x,))
    cotangent = np.random.default_rng(4).normal(size=(3, 3))
    (gradient,) = torch.autograd.grad(values(x), (x,), torch.tensor(cotangent))
    _, pullback = softmax_topk_vjp(
        x.detach().numpy(), 3, renormalize=renormalize, where=where.numpy(), temperature=0.7
    )
    np.testing.assert_allclose(pullback(cotangent)["x"], gradient.numpy(), atol=1e-12)
    assert not gradient[~where].any()
    if renormalize:
        chosen = softmax_topk(x, 3, where=where).indices
        assert not gradient.scatter(-1, chosen, 0.0).any()


def test_pullback_against_differences():
    rng = np.random.default_rng(5)
    x, cotangent = rng.normal(size=(4, 2)), rng.normal(size=(3, 2))
    for renormalize in (False, True):
        options = {"axis": 0, "renormalize": renormalize}
        result, pullback = softmax_topk_vjp(x, 3, temperature=1.3, **options)
        assert np.array_equal(result.values, softmax_topk(x, 3, temperature=1.3, **options).values)
        gradients = pullback(cotangent)

        def total(x, t, options=options):
            return (softmax_topk(x, 3, temperature=t, **options).values * cotangent).sum()

        step = 1e-6
        for place in np.ndindex(x.shape):
            move = np.zeros_like(x)
            move[place] = step
            slope = (total(x + move, 1.3) - total(x - move, 1.3)) / (2 * step)
            np.testing.assert_allclose(gradients["x"][place], slope, atol=1e-8)
        slope = (total(x, 1.3 + step) - total(x, 1.3 - step)) / (2 * step)
        np.testing.assert_allclose(gradients["temperature"], slope, atol=1e-8)
    with pytest.raises(ValueError, match=r"normx.softmax_topk_vjp: `dvalues` must be .* \(3, 2\)"):
        pullback(np.ones((4, 2)))


def test_torch_transforms():
    torch = pytest.importorskip("torch")
    x = torch.tensor(np.random.default_rng(0).normal(size=(4, 40)))
    want = softmax_topk(x, 3)
    got = torch.func.vmap(lambda row: tuple(softmax_topk(row, 3)))(x)
    assert torch.equal(got[1], want.indices)
    torch.testing.assert_close(got[0], want.values)


def test_torch_differentiates():
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(0).normal(size=(4, 40))
    x = torch.tensor(scores, requires_grad=True)
    values = softmax_topk(x, 3).values
    values.backward(torch.ones_like(values))
    _, pullback = softmax_topk_vjp(scores, 3)
    np.testing.assert_allclose(x.grad.numpy(), pullback(np.ones((4, 3)))["x"], atol=1e-15)


def test_dask_computes_nothing_by_itself():
    dask = pytest.importorskip("dask")
    array = importlib.import_module("dask.array")
    x = np.random.default_rng(0).normal(size=(4, 10))

    def refuse(*arguments, **keywords):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        values, indices = softmax_topk(array.from_array(x, chunks=(2, 3)), 3)
    assert values.shape == indices.shape == (4, 3) and indices.dtype == np.int64
    want = softmax_topk(x, 3)
    assert np.array_equal(indices.compute(), want.indices)
    np.testing.assert_allclose(values.compute(), want.values, rtol=1e-15)


X = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("k", "kind"),
    [(4, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)],
)
def test_a_wrong_k(k, kind):
    with pytest.raises(kind, match=r"normx.softmax_topk: `k` must be an int between 0 and 3"):
        softmax_topk(X, k)


@pytest.mark.parametrize("axis", [(0,), (0, 1), None, 1.0, True])
def test_more_than_one_axis(axis):
    with pytest.raises(TypeError, match=r"normx.softmax_topk: `axis` must be an int, not"):
        softmax_topk(X, 1, axis=axis)


@pytest.mark.parametrize(
    ("arguments", "keywords", "kind", "text"),
    [
        ((X, 1), {"axis": 2}, IndexError, "`axis` must be between -2 and 1"),
        ((3.0, 1), {}, ValueError, "`x` must be an array of at least one dimension"),
        ((X, 1), {"where": np.ones(3)}, TypeError, "`where` must be an array of bool"),
        ((X, 1), {"where": np.ones(4, bool)}, ValueError, "`where` must be broadcastable"),
        ((X, 1), {"temperature": -1.0}, ValueError, "`temperature` must be"),
        ((X, 1), {"renormalize": 1}, TypeError, "`renormalize` must be True or False"),
        ((X, 1), {"backend": "no"}, ValueError, "`backend` must be one of reference"),
        ((X, 1), {"tempratur": 1.0}, TypeError, "unknown keyword `tempratur`; known are axis"),
        ((X + 1j, 1), {}, TypeError, "`x` must be an array of real numbers"),
    ],
)
def test_wrong_arguments(arguments, keywords, kind, text):
    with pytest.raises(kind, match=f"normx.softmax_topk: {text}"):
        softmax_topk(*arguments, **keywords)


def test_sparse_arrays_are_refused():
    sparse = pytest.importorskip("sparse")
    x = sparse.COO.from_numpy(X, fill_value=-INF)
    with pytest.raises(TypeError, match=r"`x` must be a dense array.*todense"):
        softmax_topk(x, 1)
