"""Softmax within segments: each is a row of its own."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import normx
from normx import segment_softmax
from normx._dispatch import library
from normx._libraries import numpy_library
from normx.testing.ulp import error_in_ulp

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


def one_by_one(x, offsets, axis=-1, where=None, **options):
    """The definition: the softmax of each segment."""
    where = np.broadcast_to(True if where is None else where, x.shape)
    x, where = np.moveaxis(x, axis, -1), np.moveaxis(where, axis, -1)
    y = np.empty(x.shape, options.get("dtype") or x.dtype)
    for a, b in pairwise(offsets):
        y[..., a:b] = normx.softmax(
            x[..., a:b].copy(), where=where[..., a:b].copy(), backend="reference", **options
        )
    return np.moveaxis(y, -1, axis)


def test_the_numbers_of_two_segments_and_an_empty_one():
    got = segment_softmax([1.0, 2.0, 3.0, -1.0, 1.0, 3.0], [0, 4, 4, 6])
    want = [0.0889468173, 0.2417825172, 0.6572330228, 0.0120376427, 0.1192029220, 0.8807970780]
    np.testing.assert_allclose(got, want, rtol=1e-9)


entries = st.floats(-100, 100, width=32) | st.sampled_from([INF, -INF, NAN, 0.0])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_cut_is_the_softmax_of_each_segment(data):
    n = data.draw(st.integers(0, 60))
    x = data.draw(hnp.arrays(np.float64, (2, n), elements=entries))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=8)))
    where = data.draw(st.none() | hnp.arrays(bool, (2, n)))
    offsets = [0, *cuts, n]
    got = segment_softmax(x, offsets, where=where)
    np.testing.assert_allclose(got, one_by_one(x, offsets, where=where), rtol=1e-14)


@pytest.mark.parametrize("name", ["numpy", *LIBRARIES])
def test_special_scores_stay_in_their_segment(name):
    to, back = (np.asarray, np.asarray) if name == "numpy" else home_of(name)
    x = np.array([INF, 0.0, INF, NAN, 1.0, -INF, -INF, 0.0, 0.0], np.float32)
    got = back(segment_softmax(to(x), [0, 3, 5, 7, 9]))
    np.testing.assert_array_equal(got, [0.5, 0.0, 0.5, NAN, NAN, 0.0, 0.0, 0.5, 0.5])
    where = np.array([1, 1, 0, 0, 1, 1, 1, 1, 1], bool)
    got = back(segment_softmax(to(x), [0, 3, 5, 7, 9], where=to(where)))
    np.testing.assert_array_equal(got, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.5])


@pytest.mark.parametrize("name", ["numpy", *LIBRARIES])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_errors_on_every_library(name, dtype):
    if dtype in ("float16", "bfloat16") and name == "array_api_strict":
        pytest.skip("has no narrow dtypes")
    if dtype == "float64" and name in ("jax", "mlx"):
        pytest.skip("has no float64 here")
    to, back = (np.asarray, np.asarray) if name == "numpy" else home_of(name)
    rng = np.random.default_rng(1)
    x = numpy_library.cast(rng.normal(0.0, 20.0, (2, 3000)) - 2.0, dtype)
    offsets = np.array([0, 1, 1, 3, 10, 41, 300, 1500, 3000])
    got = back(segment_softmax(to(x), offsets))
    assert got.dtype == x.dtype
    for a, b in pairwise(offsets):
        if a == b:
            continue
        exact = x[:, a:b].astype(np.longdouble)
        exact = np.exp(exact - exact.max(-1, keepdims=True))
        exact /= exact.sum(-1, keepdims=True)
        if name in ("jax", "mlx"):  # which take subnormal numbers for 0
            exact = np.where(exact < 1.2e-38, 0.0, exact)
            part = np.where(got[:, a:b].astype(np.float64) < 1.2e-38, 0.0, got[:, a:b])
        else:
            part = got[:, a:b]
        assert error_in_ulp(part, exact, dtype).max() <= (0.51 if "16" in dtype else 4.0)


def test_long_segments_lose_nothing():
    x = np.zeros(2**20 + 3, np.float32)
    np.testing.assert_array_equal(
        segment_softmax(x, [0, 3, x.size])[[0, -1]], np.float32([1 / 3, 2.0**-20])
    )


@pytest.mark.parametrize("name", ["numpy", *LIBRARIES])
def test_axes_and_options_on_every_library(name):
    to, back = (np.asarray, np.asarray) if name == "numpy" else home_of(name)
    rng = np.random.default_rng(3)
    x = rng.normal(0.0, 3.0, (4, 7, 5)).astype(np.float32)
    where = rng.random((7, 1)) < 0.8
    t = np.float32([[0.5], [1.0], [2.0], [0.0]])[:, None]
    for axis, offsets in ((1, [0, 2, 2, 7]), (-1, (0, 5)), (0, np.array([0, 0, 1, 3, 4, 4]))):
        temperature = t if axis else 0.7
        want = one_by_one(x, offsets, axis, where=where, temperature=temperature, softcap=2.0)
        got = segment_softmax(
            to(x), offsets, axis=axis, where=to(where), softcap=2.0,
            temperature=to(temperature) if axis else temperature,
        )  # fmt: skip
        assert type(got) is type(to(x)) and tuple(got.shape) == x.shape
        np.testing.assert_allclose(back(got), want, rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_dtype_of_the_result(dtype):
    x = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    got = segment_softmax(x, [0, 4, 9], dtype=dtype)
    assert got.dtype == dtype
    want = one_by_one(x, [0, 4, 9], dtype=dtype)
    np.testing.assert_allclose(got, want, rtol=1e-3 if dtype == "float16" else 1e-15)


def test_integers_and_lists():
    got = segment_softmax([[1, 1], [2, 2]], [0, 1, 2])
    assert got.dtype == np.float64 and got.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert segment_softmax(np.ones((2, 0)), [0, 0]).shape == (2, 0)
    assert segment_softmax(np.ones((0, 2)), [0, 2]).shape == (0, 2)
    assert segment_softmax(np.ones((2, 0)), [0]).shape == (2, 0)


def test_input_is_not_touched():
    x, offsets = np.array([1.0, NAN, 3.0]), np.array([0, 1, 3])
    segment_softmax(x, offsets, where=x > 0)
    np.testing.assert_array_equal(x, [1.0, NAN, 3.0])
    np.testing.assert_array_equal(offsets, [0, 1, 3])


@pytest.mark.parametrize("name", LIBRARIES)
def test_offsets_of_the_library_itself(name):
    if name == "dask":
        pytest.skip("its offsets are not known now")
    to, back = home_of(name)
    offsets = np.array([0, 2, 2, 5], np.int32)
    x = np.arange(5.0, dtype=np.float32)
    want = one_by_one(x, offsets)
    np.testing.assert_allclose(back(segment_softmax(to(x), to(offsets))), want, rtol=1e-6)


def test_jax_compiled_with_offsets_known_and_not():
    jax = pytest.importorskip("jax")
    x = np.random.default_rng(0).normal(size=(2, 11)).astype(np.float32)
    want = one_by_one(x, [0, 0, 4, 9, 11, 11])
    offsets = jax.numpy.asarray([0, 0, 4, 9, 11, 11])
    known = jax.jit(lambda x: segment_softmax(x, [0, 0, 4, 9, 11, 11]))
    np.testing.assert_allclose(known(x), want, rtol=1e-6)
    traced = jax.jit(segment_softmax)
    np.testing.assert_allclose(traced(jax.numpy.asarray(x), offsets), want, rtol=1e-6)
    other = jax.numpy.asarray([0, 3, 3, 3, 10, 11])
    np.testing.assert_allclose(traced(x, other), one_by_one(x, other.tolist()), rtol=1e-6)


def test_torch_gradient():
    torch = pytest.importorskip("torch")
    x = torch.tensor(np.random.default_rng(1).normal(size=(2, 9)), requires_grad=True)
    where = torch.tensor(np.random.default_rng(2).random((2, 9)) < 0.8)
    offsets = torch.tensor([0, 3, 3, 4, 9])

    def f(x):
        return segment_softmax(x, offsets, where=where, temperature=0.7, softcap=3.0)

    assert torch.autograd.gradcheck(f, (x,))
    special = torch.tensor([-INF, -INF, 1.0, 2.0, -INF], requires_grad=True)
    segment_softmax(special, [0, 2, 5])[3].backward()
    p = normx.softmax([1.0, 2.0])[0]
    np.testing.assert_allclose(special.grad, [0, 0, -p * (1 - p), p * (1 - p), 0], atol=1e-7)


def test_dask_computes_nothing_by_itself():
    dask = pytest.importorskip("dask.array")
    from dask import config

    def refuse(*arguments, **keywords):
        raise AssertionError("computed")

    x = np.random.default_rng(0).normal(size=(4, 10))
    with config.set(scheduler=refuse):
        got = segment_softmax(dask.from_array(x, chunks=(2, 3)), [0, 4, 10])
    np.testing.assert_allclose(got.compute(), one_by_one(x, [0, 4, 10]), rtol=1e-15)
    with pytest.raises(TypeError, match=r"`offsets` must be known now.*compute\(\)"):
        segment_softmax(dask.from_array(x), dask.from_array(np.array([0, 10])))


X = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("offsets", "kind", "text"),
    [
        ([1, 3], ValueError, "not beginning with 1"),
        ([0, 2], ValueError, "not ending with 2; append the size of the axis"),
        ([0, 4], ValueError, "not ending with 4$"),
        ([0, 2, 1, 3], ValueError, r"not 2 followed by 1 \(entry 2\)"),
        ([], TypeError, "dtype float64"),
        (np.zeros(0, int), ValueError, r"shape \(0,\)"),
        ([[0, 3]], ValueError, r"shape \(1, 2\)"),
        ([0.0, 3.0], TypeError, "dtype float64"),
        ([False, True], TypeError, "dtype bool"),
        ([[0], [1, 2]], TypeError, "a ragged list"),
        (3, TypeError, "not 3"),
        (None, TypeError, "not None"),
    ],
)
def test_wrong_offsets(offsets, kind, text):
    wanted = r"normx.segment_softmax: `offsets` must be a list or one-dimensional array of ints"
    with pytest.raises(kind, match=rf"{wanted} from 0 to 3 in rising order, .*{text}"):
        segment_softmax(X, offsets)


@pytest.mark.parametrize(
    ("x", "keywords", "kind", "text"),
    [
        (X, {"axis": (1,)}, TypeError, "`axis` must be an int"),
        (X, {"axis": 2}, IndexError, "`axis` must be between -2 and 1"),
        (1.0, {}, ValueError, "`x` must be an array of at least one dimension"),
        (X, {"where": [1, 0, 1]}, TypeError, "`where` must be an array of bool"),
        (X, {"softcap": 0}, ValueError, "`softcap` must be a number above 0"),
        (X, {"temperature": NAN}, ValueError, "`temperature` must be"),
        (X, {"dtype": int}, TypeError, "`dtype` must be a floating dtype"),
        (X, {"backend": "no"}, ValueError, "`backend` must be one of"),
        (X, {"sink": 1.0}, TypeError, "unknown keyword `sink`; known are axis, temperature"),
        (X * 1j, {}, TypeError, "`x` must be an array of real numbers"),
    ],
)
def test_wrong_arguments(x, keywords, kind, text):
    with pytest.raises(kind, match=f"normx.segment_softmax: {text}"):
        segment_softmax(x, [0, 3], **keywords)


def test_only_the_reference_has_it():
    with normx.trace() as ran:
        segment_softmax(X, [0, 3], backend="reference")
    assert ran == [("segment_softmax", "reference", "segment_softmax_formula__numpy", "numpy")]
    if "native" in normx.backends():
        with pytest.raises(TypeError, match="`backend` must be 'reference', which alone"):
            segment_softmax(X, [0, 3], backend="native")


def test_sparse_arrays_are_refused():
    sparse = pytest.importorskip("sparse")
    with pytest.raises(TypeError, match=r"`x` must be a dense array.*todense"):
        segment_softmax(sparse.COO.from_numpy(X, fill_value=-INF), [0, 3])


def test_gradients_are_those_of_one_segment_at_a_time():
    rng = np.random.default_rng(2)
    x, dy, where = rng.normal(size=(2, 6)), rng.normal(size=(2, 6)), rng.random((2, 6)) < 0.8
    offsets, t = [0, 2, 2, 5, 6], np.array([[0.7], [1.3]])
    options = {"temperature": t, "softcap": 2.0}
    _, pullback = normx.vjp(segment_softmax, x, offsets, where=where, **options)
    got = pullback(dy)
    want = {"x": np.empty_like(x), "temperature": np.zeros_like(t)}
    for a, b in pairwise(offsets):
        _, pullback = normx.vjp(normx.softmax, x[:, a:b], where=where[:, a:b], **options)
        of_segment = pullback(dy[:, a:b])
        want["x"][:, a:b] = of_segment["x"]
        want["temperature"] += of_segment["temperature"]
    assert set(got) == set(want)
    for name, gradient in got.items():
        np.testing.assert_allclose(gradient, want[name], rtol=1e-12, atol=1e-15)


def test_gradients_of_numbers_and_of_nothing():
    _, pullback = normx.vjp(segment_softmax, np.zeros((2, 0)), [0], temperature=1.0)
    gradients = pullback(np.zeros((2, 0)))
    assert gradients["x"].shape == (2, 0) and gradients["temperature"] == 0.0
    _, pullback = normx.vjp(segment_softmax, [INF, 0.0, 1.0, 2.0], [0, 2, 4], temperature=2.0)
    gradients = pullback(np.array([1.0, 2.0, 1.0, 0.0]))
    assert np.all(gradients["x"][:2] == 0.0) and gradients["temperature"].shape == ()
