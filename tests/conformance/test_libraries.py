"""What is particular to one library."""

import numpy as np
import pytest

import normx
from normx._record import registry

RECORDS = [record for record in registry().values() if not record.random]


@pytest.fixture(autouse=True)
def only_if_asked(request):
    name = request.function.__name__.split("_")[1]
    if name not in (request.config.getoption("--library") or ()):
        pytest.skip(f"runs with --library {name}")


def test_mlx_out_of_zero_dimensions_is_written():
    mx = pytest.importorskip("mlx.core")
    out = mx.array(7.0)
    assert normx.softmax(mx.array(3.0), out=out) is out and out.item() == 1.0
    out = mx.array([7.0, 8.0])
    normx.softmax(mx.array([3.0, 4.0]), axis=(), out=out)
    assert out.tolist() == [1.0, 1.0]


def test_mlx_transformations_take_arrays_of_parameters():
    mx = pytest.importorskip("mlx.core")
    x, t = mx.array([[1.0, 2.0], [3.0, 5.0]]), mx.array([[0.5], [2.0]])
    # What is compiled is the formula.
    want = np.asarray(normx.softmax(x, temperature=t, backend="reference"))
    assert np.array_equal(
        np.asarray(mx.compile(lambda a, b: normx.softmax(a, temperature=b))(x, t)), want
    )
    got = mx.vmap(lambda a, b: normx.softmax(a, temperature=b))(x, t)
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-6)


def test_torch_transformations_take_arrays_of_parameters():
    torch = pytest.importorskip("torch")
    x, t = torch.randn(3, 4), torch.ones(3, 1)
    got = torch.func.vmap(lambda a, b: normx.softmax(a, temperature=b))(x, t)
    assert torch.equal(got, normx.softmax(x, temperature=t))
    gradient = torch.func.grad(lambda b: normx.softmax(x, temperature=b)[:, 0].sum())(t)
    assert gradient.shape == t.shape and torch.isfinite(gradient).all()
    assert normx.softmax(x.to("meta"), temperature=t.to("meta")).shape == x.shape


def test_torch_integers_follow_the_default_dtype():
    torch = pytest.importorskip("torch")
    x = torch.tensor([1, 2])
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            assert normx.softmax(x).dtype == dtype
    finally:
        torch.set_default_dtype(before)


def test_torch_gradients_of_weighted_sums_do_not_overflow():
    torch = pytest.importorskip("torch")
    x = torch.tensor([100.0, 0.0], requires_grad=True)
    normx.logsumexp(x, b=torch.tensor([1.0, 2.0])).backward()
    assert torch.allclose(x.grad, torch.tensor([1.0, 0.0]))


def test_jax_dtypes_and_vmap():
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray([[1.0, 2.0], [0.0, 4.0]])
    assert normx.softmax(x, dtype=jax.numpy.float16).dtype == jax.numpy.float16
    np.testing.assert_allclose(jax.vmap(normx.softmax)(x), normx.softmax(x), rtol=1e-6)
    assert np.array_equal(jax.grad(normx.logsumexp)(jax.numpy.full(2, -np.inf)), [0.0, 0.0])


def test_jax_compiled_functions_refuse_the_values_that_are_known():
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray([[1.0, 2.0], [0.0, 4.0]])
    for cold in (-1.0, np.float32(-1.0), jax.numpy.full((2, 1), -1.0)):
        with pytest.raises(ValueError, match=r"softmax: `temperature` must be .* at least 0"):
            jax.jit(lambda a, t=cold: normx.softmax(a, temperature=t))(x)
    # What a tracer stands for is not known, and goes on as it is.
    traced = jax.jit(lambda a, t: normx.softmax(a, temperature=t))(x, -1.0)
    assert traced.shape == x.shape


def test_dask_unknown_chunk_sizes_are_refused_with_the_cure():
    array = pytest.importorskip("dask.array")
    x = array.from_array(np.zeros((4, 3)), chunks=2)
    with pytest.raises(TypeError, match=r"compute_chunk_sizes"):
        normx.softmax(x[x[:, 0] > -1])


def test_dask_arrays_stay_lazy_and_keep_their_chunks():
    array = pytest.importorskip("dask.array")
    x = array.from_array(np.random.default_rng(0).normal(size=(6, 8)), chunks=(2, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(array.Array, "compute", lambda *a, **k: pytest.fail("computed"))
        y = normx.softmax(x, where=x > -1.0)
    assert y.chunks == x.chunks
    want = normx.softmax(x.compute(), where=x.compute() > -1.0)
    np.testing.assert_allclose(y.compute(), want, rtol=1e-14)


@pytest.mark.parametrize("chunks", [(2, 12), (3, 7)], ids=str)
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_dask_chunks_of_any_shape_give_the_same(record, chunks):
    array = pytest.importorskip("dask.array")
    rng = np.random.default_rng(0)
    x, where = rng.normal(size=(6, 12)), rng.random((6, 12)) < 0.7
    where[1], x[2, 3], x[3] = False, np.inf, -np.inf
    lazy = array.from_array(x, chunks=chunks)
    t = np.array([[0.3], [1.0], [2.0]] * 2)
    options = [{}, {"where": where, "temperature": t}, {"empty": "uniform", "softcap": 2.0}]
    options += [{"sink": rng.normal(size=(6, 3))}, {"sink": rng.normal(size=12)}]
    b = rng.random((6, 12))
    options += [{"where": where, "b": b, "keepdims": True}, {"b": b[:, :1], "return_sign": True}]
    for chosen in options:
        keywords = {"axis": -1, **record.example, **chosen}
        if not set(keywords) <= set(record.keywords):
            continue
        arrays = {k: array.asarray(v) if np.ndim(v) else v for k, v in keywords.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(array.Array, "compute", lambda *a, **k: pytest.fail("computed"))
            y = record.function(lazy, **arrays)
        want = record.function(x, backend="reference", **keywords)
        if record.kind == "normalizer":
            assert y.chunks == lazy.chunks
        pairs = [value if isinstance(value, tuple) else (value,) for value in (y, want)]
        for got, value in zip(*pairs, strict=True):
            assert got.dtype == value.dtype and got.shape == value.shape
            rtol = 2 * record.ulp["float64"] * np.finfo(np.float64).eps
            np.testing.assert_allclose(got.compute(), value, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_dask_a_chunk_of_whole_rows_is_one_task(record):
    array = pytest.importorskip("dask.array")
    cloudpickle = pytest.importorskip("cloudpickle")  # what Dask sends to other processes
    x = array.ones((6, 4), chunks=(2, 4))
    y = record.function(x, axis=-1, **record.example)
    masks = 2 if "where" in record.example else 0
    assert len(y.dask) - len(x.dask) <= 3 + masks
    sent = cloudpickle.loads(cloudpickle.dumps(y))
    assert np.array_equal(sent.compute(scheduler="sync"), y.compute())


def test_sparse_fill_values_are_part_of_the_plan():
    sparse = pytest.importorskip("sparse")
    x = np.array([[1.0, -np.inf, 2.0]])
    normx.softmax(sparse.COO.from_numpy(x, fill_value=-np.inf))
    with pytest.raises(TypeError, match=r"fill value 0.0.*todense"):
        normx.softmax(sparse.COO.from_numpy(np.array([[1.0, 0.0, 2.0]])))
    for options in ({"softcap": 2.0}, {"empty": "uniform"}, {"sink": 0.0}):
        with pytest.raises(TypeError, match=rf"one fill value, .* with {next(iter(options))}"):
            normx.softmax(sparse.COO.from_numpy(x, fill_value=-np.inf), **options)


def test_ndonnx_writes_models():
    """A library that normx knows nothing of, whose functions become graphs of ONNX."""
    ndx = pytest.importorskip("ndonnx")
    runtime = pytest.importorskip("onnxruntime")
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for f in (normx.ssmax, normx.entmax15, normx.logsumexp):
        want = f(rows, axis=-1, backend="reference")
        assert np.array_equal(f(ndx.asarray(rows), axis=-1).unwrap_numpy(), want)
    x = ndx.argument(shape=(3, 5), dtype=ndx.float32)
    model = ndx.build({"x": x}, {"y": normx.softmax(x)})
    (y,) = runtime.InferenceSession(model.SerializeToString()).run(None, {"x": rows})
    np.testing.assert_allclose(y, normx.softmax(rows), rtol=1e-6)
    for shape in (("N", 5), (3, "N")):
        with pytest.raises(TypeError, match="sizes that are not known"):
            normx.softmax(ndx.argument(shape=shape, dtype=ndx.float32))
