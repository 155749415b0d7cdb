"""A softmax of 2^30 scores in 64 chunks, on workers of 2 GiB, against the exact answer.

The scores, float32, take 4 GiB and the weights as many, so neither fits in a worker; the scores
are needed twice, before and after all chunks have been seen, and go to disk in between.  The exact
answer is found apart: from scores made anew, in float64, with sums that are exactly rounded.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import platform
import resource
import tempfile
import time
from typing import Any

import numpy as np
from dask import config
from dask.array import map_blocks, zeros
from distributed import Client, LocalCluster

import normx
from normx.testing.ulp import error_in_ulp

Array = Any

_GIB = 1 << 30
#: Entries that are compared at a time.
_PIECE = 1 << 20


def made(blank: Array, block_info: Any = None) -> Array:
    """Scores of a chunk: normal, with a scale that differs from chunk to chunk."""
    (place,) = block_info[0]["chunk-location"]
    rng = np.random.default_rng(place)
    x = rng.standard_normal(blank.shape, np.float32)
    x *= np.float32(1.0 + place % 8)
    return x


def scores(size: int, chunks: int) -> Array:
    """The whole row; each call makes a graph of its own."""
    blank = zeros((size,), chunks=size // chunks, dtype=np.float32)
    return blank.map_blocks(made, dtype=np.float32, meta=np.zeros((0,), np.float32))


def pieces(size: int) -> list[slice]:
    """Parts of a chunk whose float64 copies are small."""
    return [slice(start, start + _PIECE) for start in range(0, size, _PIECE)]


def summed(x: Array, top: float) -> Array:
    """The sum of ``exp(x - top)`` over a chunk, exactly rounded but for the exponentials."""
    parts = (math.fsum(np.exp(x[cut].astype(np.float64) - top)) for cut in pieces(x.size))
    return np.array([math.fsum(parts)])


def compared(y: Array, x: Array, top: float, total: float) -> Array:
    """The largest error of a chunk of weights, in units in the last place."""
    worst = 0.0
    for cut in pieces(x.size):
        want = np.exp(x[cut].astype(np.float64) - top) / total
        worst = max(worst, float(error_in_ulp(y[cut], want, "float32", want).max()))
    return np.array([worst])


def main() -> None:
    """Compute, compare and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=30, help="the row has 2**BITS scores")
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    size, one = 1 << options.bits, np.zeros((0,))
    with (
        tempfile.TemporaryDirectory() as spill,
        # A worker that went beyond its limit would be ended, and the run would say so.
        config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            memory_limit=2 * _GIB,
            dashboard_address=None,
            silence_logs=logging.ERROR,
            local_directory=spill,
        ) as cluster,
        Client(cluster) as client,
    ):
        workers = client.run(os.getpid)
        top = float(scores(size, options.chunks).max().compute())
        sums = scores(size, options.chunks).map_blocks(
            summed, top, chunks=(1,), dtype=np.float64, meta=one
        )
        total = math.fsum(sums.compute())
        client.restart()
        workers = client.run(os.getpid)
        start = time.perf_counter()
        y = normx.softmax(scores(size, options.chunks))
        tasks = len(y.__dask_graph__())
        errors = map_blocks(
            compared,
            y,
            scores(size, options.chunks),
            top,
            total,
            chunks=(1,),
            dtype=np.float64,
            meta=one,
        ).compute()
        elapsed = time.perf_counter() - start
        peaks = client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        assert client.run(os.getpid) == workers, "a worker was ended: it went beyond its memory"
    print(
        f"softmax of 2^{options.bits} float32 scores in {options.chunks} chunks "
        f"on {options.workers} workers of 2 GiB ({platform.machine()}, {os.cpu_count()} CPUs)\n"
        f"  graph     {tasks} tasks\n"
        f"  time      {elapsed:.0f} s, with the comparison\n"
        f"  memory    {', '.join(f'{peak / 2**20:.2f}' for peak in peaks.values())} GiB at most\n"
        f"  error     {errors.max():.3f} ULP of the exact answer at most"
    )
    assert errors.max() <= 4.0
    assert max(peaks.values()) <= 2 << 20


if __name__ == "__main__":
    main()
