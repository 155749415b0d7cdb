"""Every kernel of the list runs under every target of this CPU, proven by the trace."""

import os

import numpy as np
import pytest
from normx_native import _core, algorithms, use_algorithm, use_target

import normx
from normx import _dispatch as dispatch
from normx._record import record_of
from normx.testing.conformance import check, expected
from normx.testing.plugin import Case
from normx.testing.samples import random_rows

TARGETS = dispatch.backend("native").targets()
KERNELS = _core.kernels()
ACROSS = ("columns", "sweep")  # algorithms for rows that lie across the contiguous axis
SHORT = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}


def where_it_runs(algorithm, rows):
    """The same rows as they lie where an algorithm takes them, and their axis."""
    if algorithm in ACROSS:
        return np.ascontiguousarray(rows.T), 0
    if algorithm == "packed":
        return np.repeat(rows, 2, axis=1)[:, ::2], 1
    return rows, 1


def run(record, x, algorithm, dtype):
    rows = dispatch.numpy_library.cast(x, dtype)
    scores, axis = where_it_runs(algorithm, rows)
    with use_algorithm("auto" if algorithm == "packed" else algorithm), normx.trace() as ran:
        y = record.function(scores, axis=axis, backend="native")
    return rows, (y.T if axis == 0 else y), ran[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS, ids="_".join)
def test_every_kernel_on_every_target(kernel, target):
    op, dtype, algorithm = kernel
    record = record_of(op)
    case = Case(record, dispatch.numpy_library, "native", "eager", target)
    for n in (2, 7, 130, 1000, 40_000):
        x = random_rows(n, 20 if n < 2000 else 3, 4.0)
        with use_target(target):
            rows, y, ran = run(record, x, algorithm, dtype)
        assert ran.kernel == f"{op}_{SHORT[dtype]}_{algorithm}" and ran.target == target
        check(case, y, expected(case, np.ascontiguousarray(rows)), dtype)


@pytest.mark.parametrize("empty", ["zero", "nan", "uniform"])
def test_sigmoid_of_empty_rows_and_masks(empty):
    """The kernel knows rows by their length alone; what asks for more goes to the row program."""
    x = random_rows(40, 6, 3.0).astype(np.float32)
    x[1], x[2, ::3], x[3, 5] = -np.inf, -np.inf, np.nan
    where = np.ones(x.shape, bool)
    where[4], where[5, :30] = False, False
    for mask in (None, where):
        with normx.trace() as ran:
            y = normx.sigmoid(x, where=mask, empty=empty, backend="native")
        kernel = (
            "sigmoid_rows"
            if empty != "zero"
            else f"sigmoid_f32_{'online' if mask is None else 'packed'}"
        )
        assert ran[0].kernel == kernel
        want = normx.sigmoid(x, where=mask, empty=empty, backend="reference")
        np.testing.assert_allclose(y, want, rtol=3e-7)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 3e-7), ("float16", 1e-3), ("bfloat16", 8e-3)]
)
@pytest.mark.parametrize("n", [2, 40, 1001, 40_001])
@pytest.mark.parametrize("target", TARGETS)
def test_sigmoid_of_rows_that_are_not_finite(target, n, dtype, tolerance):
    """Written once as if they were, and then again: unless the scores are gone by then."""
    x = dispatch.numpy_library.cast(random_rows(n, 6, 3.0), dtype)
    x[1], x[2, ::3], x[3, -1], x[4, 0] = -np.inf, -np.inf, np.nan, np.inf
    want = normx.sigmoid(x, backend="reference").astype(np.float64)
    with use_target(target):
        y = normx.sigmoid(x, backend="native")
        assert normx.sigmoid(x, out=x, backend="native") is x
    np.testing.assert_allclose(y.astype(np.float64), want, rtol=tolerance, atol=1e-7)
    np.testing.assert_array_equal(x.view("u1"), y.view("u1"))


def test_the_targets_of_this_cpu_are_all_there():
    flags = {name: (compiled, supported) for name, compiled, supported in _core.targets()}
    assert flags["scalar"] == (True, True)
    best = [name for name, pair in flags.items() if pair == (True, True)][-1]
    assert _core.target() == os.environ.get("NORMX_CPU_TARGET", best)


def test_unknown_targets_and_algorithms_are_refused():
    with pytest.raises(RuntimeError, match=r"avx512.*scalar|scalar.*avx512"):
        _core.set_target("avx1024")
    with (
        pytest.raises(ValueError, match=r"unknown algorithm 'threepass'; known are auto, reload"),
        use_algorithm("threepass"),
    ):
        pass
    with use_algorithm("twopass"), pytest.raises(ValueError, match=r"twopass"):
        normx.logsumexp(np.zeros(3, np.float32), backend="native")
    assert "reload" in algorithms("softmax") and algorithms("nothing") == ()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", TARGETS)
def test_all_algorithms_and_layouts_give_the_same_bits(target, dtype):
    rng = np.random.default_rng(1)
    for n in (1, 5, 16, 127, 128, 129, 4096, 16_384, 16_385, 50_257):
        for spread, offset in ((1.0, 0.0), (30.0, 0.0), (2.0, 300.0), (5.0, -4094.0), (1.0, 1e5)):
            x = rng.normal(offset, spread, (3, n)).astype(dtype)
            with use_target(target):
                results = {}
                for algorithm in ("reload", "recompute", "twopass", "online"):
                    with use_algorithm(algorithm):
                        results[algorithm] = normx.softmax(x, backend="native")
                for algorithm in ACROSS:
                    with use_algorithm(algorithm):
                        y = normx.softmax(np.ascontiguousarray(x.T), axis=0, backend="native")
                        results[algorithm] = y.T
                results["transposed"] = normx.softmax(np.asfortranarray(x), backend="native")
                results["packed"] = normx.softmax(x, where=np.ones(n, bool), backend="native")
                wide = np.zeros((3, 2 * n), dtype)
                wide[:, ::2] = x
                results["strided"] = normx.softmax(wide[:, ::2], backend="native")
            for name, got in results.items():
                different = int((got != results["reload"]).sum())
                assert not different, (
                    f"{name}: {different} of {got.size} bits differ, n={n}, around {offset}"
                )


@pytest.mark.parametrize(
    ("f", "algorithm"),
    [
        (normx.softmax, "sweep"),
        (normx.softmax, "columns"),
        (normx.log_softmax, "columns"),
        (normx.logsumexp, "columns"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("target", TARGETS)
def test_columns_of_several_vectors_and_chunks(f, algorithm, target):
    """Neighbours of every magnitude share a panel, and none is changed by the others."""
    rng = np.random.default_rng(2)
    rows = [rng.normal(0.0, 10.0 ** (k / 4), 40_000) for k in range(-20, 60)]
    x = np.stack(rows).astype(np.float32)
    x[3, 7], x[5, 9], x[8] = np.inf, np.nan, -np.inf
    with use_target(target), normx.trace() as ran:
        want = f(x, axis=1, backend="native")
        with use_algorithm(algorithm):
            got = f(np.ascontiguousarray(x.T), axis=0, backend="native")
    assert ran[1].kernel.endswith(f"_{algorithm}")
    np.testing.assert_array_equal(got.T, want)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", TARGETS)
def test_panels_of_a_sweep(target, dtype, threads):
    """Matrices side by side, panels that end within a vector, a column that needs its maximum."""
    x = np.random.default_rng(3).normal(0.0, 4.0, (2, 300, 4500)).astype(dtype)
    x[0, :, 4000] *= 1e6
    memory = np.zeros(x.size + 1, dtype)
    before = normx.get_num_threads()
    normx.set_num_threads(threads)
    try:
        with use_target(target), normx.trace() as ran:
            want = np.moveaxis(normx.softmax(np.moveaxis(x, 1, 2).copy(), backend="native"), 2, 1)
            for start in (0, 1):  # results that begin with a line of memory, and within one
                y = memory[start : start + x.size].reshape(x.shape)
                normx.softmax(x, axis=1, out=y, backend="native")
                np.testing.assert_array_equal(y, want)
            normx.softmax(x, axis=1, out=x, backend="native")
            np.testing.assert_array_equal(x, want)
        assert {call.kernel for call in ran[1:]} == {f"softmax_{SHORT[dtype]}_sweep"}
    finally:
        normx.set_num_threads(before)


@pytest.mark.parametrize(
    "f", [normx.softmax, normx.log_softmax, normx.logsumexp], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_row_has_the_same_bits_everywhere(f, dtype):
    """Alone, in a batch, at any alignment, strided or masked, on one thread or two."""
    before = normx.get_num_threads()
    keywords = {"axis": -1, "backend": "native"}
    try:
        for n, spread in (
            (1, 3.0),
            (3, 3.0),
            (33, 3.0),
            (1000, 3.0),
            (40_001, 3.0),
            (20_000, 40.0),
        ):
            rows = dispatch.numpy_library.cast(
                random_rows(n, 8 if n > 2000 else 40, spread, seed=n), dtype
            )
            alone = [f(row.copy(), **keywords) for row in rows]
            for threads in (1, 2):
                normx.set_num_threads(threads)
                apart = np.repeat(rows, 2, axis=1)[:, ::2]
                assert np.array_equal(f(apart, **keywords), alone)
                kept = np.ones(rows.shape, bool)
                assert np.array_equal(f(rows, where=kept, **keywords), alone)
                batch = np.concatenate([rows] * (1 if n < 2000 else 9))
                for y, want in zip(f(batch, **keywords), alone * 9, strict=False):
                    assert np.array_equal(y, want)
            size = rows.dtype.itemsize
            memory = np.zeros(rows[0].nbytes + 64 + size, np.uint8)
            for offset in range(0, 64, 1 if n < 100 else 7):
                view = memory[offset : offset + rows[0].nbytes].view(rows.dtype)
                view[...] = rows[0]
                assert np.array_equal(f(view, **keywords), alone[0]), f"offset {offset}"
    finally:
        normx.set_num_threads(before)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "f", [normx.softmax, normx.log_softmax, normx.logsumexp], ids=lambda f: f.__name__
)
def test_four_ulp_at_every_length(f, target):
    """n = 1 ... 2^20 here, spreads 0.01 ... 100; tests/native/test_long.py goes to 2^26."""
    case = Case(record_of(f), dispatch.numpy_library, "native", "eager", target)
    for power in range(0, 21, 4):
        for n in {max(2**power - 1, 1), 2**power, 2**power + 1}:
            for spread in (0.01, 1.0, 10.0, 100.0):
                x = random_rows(n, 1, spread, seed=power).astype(np.float32)
                check(case, case.values(x, axis=-1), expected(case, x), "float32")


@pytest.mark.parametrize("target", TARGETS)
def test_float64_is_within_four_ulp(target):
    case = Case(record_of("softmax"), dispatch.numpy_library, "native", "eager", target)
    for n in (1, 100, 10_000, 1_000_000):
        for spread in (0.01, 10.0, 100.0):
            x = random_rows(n, 1, spread)
            check(case, case.values(x, axis=-1), expected(case, x), "float64")
