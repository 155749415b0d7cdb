"""Arrays of Dask: rows in one chunk and in several, and who computes the chunks."""

import numpy as np
import pytest

import normx
from normx._record import registry
from normx.testing.conformance import with_scale
from normx.testing.oracle import oracle
from normx.testing.ulp import error_in_ulp

RECORDS = [record for record in registry().values() if not record.random]


@pytest.fixture(autouse=True)
def only_if_asked(request):
    if "dask" not in (request.config.getoption("--library") or ()):
        pytest.skip("runs with --library dask")


def dask_tasks(*counts, **options):
    """The number of tasks of a softmax of one row in so many chunks."""
    array = pytest.importorskip("dask.array")
    for count in counts:
        x = array.zeros(8 * count, chunks=8, dtype=np.float32)
        yield len(normx.softmax(x, **options).__dask_graph__()) - len(x.__dask_graph__())


def test_graphs_grow_with_the_chunks_and_no_faster():
    small, large, larger = dask_tasks(16, 256, 1024)
    assert large <= 17 * small and larger <= 4.1 * large
    assert larger <= 6 * 1024


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_rows_with_states_are_never_rechunked(record):
    array = pytest.importorskip("dask.array")
    x = array.zeros((4, 60), chunks=(2, 7), dtype=np.float32)
    example = {k: v for k, v in record.example.items() if k != "where"}
    if "where" in record.example:
        example["where"] = array.ones((4, 60), chunks=(2, 7), dtype=bool)
    y = record.function(x, axis=-1, **example)
    rechunked = any("rechunk" in str(layer) for layer in y.__dask_graph__().layers)
    assert rechunked == (record.stages is None)
    said = normx.explain(record.name, x, axis=-1, **example)
    assert ("gathered" if rechunked else "states of the chunks") in str(said)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_rows_that_are_cut_are_as_exact_as_whole_ones(record, dtype):
    array = pytest.importorskip("dask.array")
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(6, 400)) * np.array([0.1, 1, 4, 10, 40, 1])[:, None]).astype(dtype)
    x[5] += np.asarray(300.0, dtype)
    mask = rng.random(x.shape) < 0.8
    for keywords in ({}, {"temperature": 0.3}, {"where": mask}):
        if not set(keywords) <= set(record.keywords):
            continue
        exact = with_scale(record, x, oracle(record, x, **{**record.example, **keywords}))
        arrays = {k: array.asarray(v) if np.ndim(v) else v for k, v in keywords.items()}
        lazy = array.from_array(x, chunks=(3, 90))
        got = record.function(lazy, axis=-1, **{**record.example, **arrays}).compute()
        whole = record.function(x, axis=-1, backend="reference", **{**record.example, **keywords})
        worst, before = (error_in_ulp(y, exact[0], dtype, exact[1]).max() for y in (got, whole))
        assert worst <= max(record.ulp[dtype], before), f"{worst:.3g} ULP, {keywords}"


def test_explicit_backends_are_those_of_the_tasks():
    array = pytest.importorskip("dask.array")
    x = np.random.default_rng(0).normal(size=(4, 60)).astype(np.float32)
    for chunks in ((2, 60), (2, 13)):
        lazy = array.from_array(x, chunks=chunks)
        for name in ("native", "reference"):
            with normx.trace() as ran:
                y = normx.softmax(lazy, backend=name)
            assert ran[0].backend == name
            np.testing.assert_allclose(y.compute(), normx.softmax(x), rtol=1e-6)
            with normx.use_backend(name):
                again = normx.softmax(lazy)
            assert np.array_equal(again.compute(), y.compute())
    whole = array.from_array(x, chunks=(2, 60))
    assert np.array_equal(normx.softmax(whole).compute(), normx.softmax(x))  # the same kernel
    with pytest.raises(TypeError, match="not native: its logsumexp has no b"):
        normx.logsumexp(whole, b=whole, backend="native")


def test_gradients_of_whole_rows_are_the_kernels():
    array = pytest.importorskip("dask.array")
    x = np.random.default_rng(0).normal(size=(4, 6))
    for chunks, backend in (((2, 6), "native"), ((2, 4), "reference")):
        lazy = array.from_array(x, chunks=chunks)
        with normx.trace() as ran:
            _, pullback = normx.vjp(normx.softmax, lazy, temperature=array.ones((4, 1)))
            gradients = pullback(lazy)
        assert ran[-1].backend == backend
        want = normx.vjp(normx.softmax, x, temperature=np.ones((4, 1)))[1](x)
        for name, gradient in want.items():
            assert gradients[name].shape == gradient.shape
            np.testing.assert_allclose(gradients[name].compute(), gradient, atol=1e-14)


def test_split_every_is_dasks_own():
    dask = pytest.importorskip("dask")
    wide, narrow = [], []
    with dask.config.set(split_every=64):
        wide.extend(dask_tasks(64))
    with dask.config.set(split_every=2):
        narrow.extend(dask_tasks(64))
    assert narrow[0] > wide[0]


@pytest.mark.parametrize("name", ["softmax", "zscore", "sparsemax"])
def test_chunks_with_nothing_in_them(name):
    da = pytest.importorskip("dask.array")
    f = getattr(normx, name)
    x = np.arange(6.0)
    y = f(da.from_array(x, chunks=((0, 3, 3),)))
    assert y.chunks == ((0, 3, 3),)
    np.testing.assert_allclose(y.compute(), f(x), rtol=1e-14)
    some = da.from_array(x, chunks=3)
    some = some[some > 2].compute_chunk_sizes()
    np.testing.assert_allclose(f(some).compute(), f(x[3:]), rtol=1e-14)
