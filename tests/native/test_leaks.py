"""Calls give back what they take: memory of Python and NumPy, and of the process as a whole."""

import ctypes
import os
import tracemalloc
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from normx_native import _core

import normx
from normx._libraries import numpy_library
from normx._record import record_of
from normx.testing.plugin import records_of

STATUS = Path("/proc/self/statm")
LEAST = 1 << 17  # bytes by which a process may grow for other reasons

X = np.linspace(-1.0, 1.0, 128, dtype=np.float32).reshape(2, 64)
OUT = np.empty_like(X)
KEPT = X > -0.5


def refused(f, *args, **keywords):
    with suppress(TypeError, ValueError):
        f(*args, **keywords)
        raise AssertionError("a wrong call was taken")


def planned(out, axis=1):
    _core.Call("softmax", "float32", X.shape, (axis,)).run(X, out)


softmax = partial(normx.softmax, backend="native")
_, PULLBACK = normx.vjp(normx.softmax, X, backend="native")
CALLS = {
    record.name: partial(record.function, X, backend="native", **record.example)
    for record in map(record_of, records_of("native", numpy_library))
} | {
    "softmax_topk": partial(normx.softmax_topk, X, 4, backend="native"),
    "gradient": lambda: PULLBACK(X),
    "gradient_by_rows": lambda: PULLBACK(X[::-1]),
    "along_axis_0": partial(softmax, X, axis=0),
    "of_float16": partial(softmax, X.astype(np.float16)),
    "with_out": partial(softmax, X, out=OUT),
    "with_where": partial(softmax, X, where=KEPT),
    "with_where_and_out": partial(softmax, X, where=KEPT, out=OUT),
    "with_strides": partial(softmax, X[:, ::2]),
    "with_a_wrong_axis": partial(refused, softmax, X, axis=7),
    "with_a_wrong_mask": partial(refused, softmax, X, where=KEPT[:, :5]),
    "with_a_wrong_out": partial(refused, softmax, X, out=OUT[:, :5]),
    "with_a_wrong_dtype": partial(refused, softmax, X.astype(np.complex64)),
    "with_a_plan": partial(planned, OUT),
    "of_a_wrong_plan": partial(refused, planned, OUT, axis=7),
    "of_a_plan_with_wrong_arrays": partial(refused, planned, OUT[:, :5]),
}


def resident():
    """Bytes of the process that are in memory, without what glibc keeps for later."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(STATUS.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(measure, call, count):
    for _ in range(1000):  # plans are made, and free lists filled
        call()
    before = measure()
    for _ in range(count):
        call()
    return measure() - before


@pytest.mark.skipif(not STATUS.exists(), reason="this system has no /proc/self/statm")
@pytest.mark.parametrize("kind", CALLS)
def test_calls_give_back_what_they_take(kind, pytestconfig):
    count = 1_000_000 if pytestconfig.getoption("long") else 10_000
    assert growth(resident, CALLS[kind], count) <= max(count, LEAST), "less than a byte a call"
    tracemalloc.start()
    try:
        traced = growth(lambda: tracemalloc.get_traced_memory()[0], CALLS[kind], count // 10)
    finally:
        tracemalloc.stop()
    assert traced <= count // 10, "less than a byte a call"
