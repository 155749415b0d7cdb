"""Dask arrays on a cluster of processes, which have nothing in common but what is sent."""

import os
import signal
import time

import numpy as np
import pytest

import normx
from normx._record import registry
from normx.testing.ulp import error_in_ulp

distributed = pytest.importorskip("distributed")
array = pytest.importorskip("dask.array")

# Processes that are ended with their sockets open are what a cluster consists of.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning")

MIB = 1 << 20
QUIET = {"distributed.worker.memory.terminate": False, "distributed.scheduler.allowed-failures": 9}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two workers, each a process of its own, with 512 MiB."""
    import dask

    spill = str(tmp_path_factory.mktemp("spill"))
    with (
        dask.config.set(QUIET),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit=512 * MIB,
            dashboard_address=None,
            local_directory=spill,
        ) as cluster,
        distributed.Client(cluster) as found,
    ):
        yield found


def normal(block, block_info=None, pause=0.0):
    """Scores of a chunk, the same whoever makes them, wherever, however often."""
    time.sleep(pause)
    (info,) = [block_info[0]]
    rng = np.random.default_rng(info["chunk-location"])
    return 4.0 * rng.standard_normal(block.shape, np.float32)


def scores(shape, chunks, **keywords):
    blank = array.zeros(shape, chunks=chunks, dtype=np.float32)
    return blank.map_blocks(normal, dtype=np.float32, meta=np.zeros((0,), np.float32), **keywords)


def worst(y, x):
    """The largest error of a softmax of one row, in units in the last place, chunk by chunk."""
    top = x.max().compute()
    total = np.exp(x.astype(np.float64) - np.float64(top)).sum().compute()

    def error(y, x):
        want = np.exp(x.astype(np.float64) - top) / total
        return error_in_ulp(y, want, "float32", want).max(keepdims=True)

    meta = np.zeros((0,))
    return array.map_blocks(error, y, x, chunks=(1,), dtype=np.float64, meta=meta).max().compute()


@pytest.mark.parametrize("record", registry().values(), ids=lambda record: record.name)
def test_every_function_is_the_same_on_a_cluster(client, record):
    if record.random:
        pytest.skip("noise is drawn from the client's generator; see test_noise")
    x = np.random.default_rng(0).normal(size=(4, 60)).astype(np.float32)
    for chunks in ((2, 60), (2, 13)):
        y = record.function(array.from_array(x, chunks=chunks), axis=-1, **record.example)
        want = record.function(x, axis=-1, backend="reference", **record.example)
        tolerance = 2 * record.ulp["float32"] * np.finfo(np.float32).eps
        np.testing.assert_allclose(y.compute(), want, rtol=tolerance, atol=1e-7)


def test_noise(client):
    x = np.random.default_rng(0).normal(size=(4, 60)).astype(np.float32)
    want = normx.gumbel_softmax(x, rng=np.random.default_rng(1))
    got = normx.gumbel_softmax(array.from_array(x, chunks=(2, 13)), rng=np.random.default_rng(1))
    np.testing.assert_allclose(got.compute(), want, rtol=1e-6)


def test_the_workers_compute_with_the_kernels(client):
    """An explicit backend is asked for in the tasks, where it would be refused by name."""
    if not normx.backends()["native"].usable:
        pytest.skip(normx.backends()["native"].reason)
    x = scores((1 << 16,), 1 << 13)
    assert normx.explain(normx.softmax, x, backend="native").candidates[0].taken
    assert abs(float(normx.softmax(x, backend="native").sum().compute()) - 1.0) < 1e-5
    assert worst(normx.softmax(x.rechunk(-1), backend="native"), x.rechunk(-1)) <= 4.0


def test_an_array_larger_than_the_memory_of_a_worker(client):
    """768 MiB of scores and as much of weights, with two times 512 MiB."""
    x = scores((3 << 26,), 1 << 22)
    assert x.nbytes > 512 * MIB
    assert worst(normx.softmax(x), x) <= 4.0


def test_a_worker_that_is_killed_in_the_middle(client):
    """Its chunks are made again, and the result is right."""
    x = scores((1 << 18,), 1 << 12, pause=0.05)  # 64 chunks
    want = normx.softmax(x.compute())
    workers = client.run(os.getpid)
    future = client.compute(normx.softmax(x))
    address, victim = next(iter(workers.items()))
    deadline = time.monotonic() + 60.0
    while len(client.has_what()[address]) < 4:  # it holds chunks that others will need
        assert time.monotonic() < deadline and not future.done()
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    got = future.result(timeout=120)
    assert victim not in client.run(os.getpid).values()
    np.testing.assert_array_equal(got, normx.softmax(x).compute())
    assert error_in_ulp(got, want.astype(np.float64), "float32", want).max() <= 4.0
