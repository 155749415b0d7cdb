"""The kernel of softmax_topk: the bits of softmax and the stable order, whatever a row holds."""

import numpy as np
import pytest
from normx_native import _core, use_algorithm, use_target

import normx
from normx import _dispatch as dispatch
from normx._libraries import numpy_library

NATIVE = dispatch.backend("native")
INF, NAN = np.inf, np.nan
SHORT = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
#: Around a vector, a block of eight, a chunk of floats and one of doubles; and several chunks.
LENGTHS = (1, 2, 15, 17, 127, 129, 1000, 8191, 8193, 16384, 16385, 50257)


def rows_that_hold_anything(n, dtype):
    rng = np.random.default_rng(n)
    x = np.empty((12, n))
    x[0] = rng.normal(0.0, 3.0, n)
    x[1] = np.round(x[0])  # many ties
    x[2] = 1.5
    x[3] = np.sort(x[0])
    x[4] = x[3, ::-1]
    x[5] = rng.normal(5000.0, 1.0, n)  # far from 0
    x[6] = rng.normal(-6000.0, 1.0, n)
    x[7] = np.where(rng.random(n) < 0.9, -INF, x[0])
    x[8] = -INF
    x[9] = np.where(rng.random(n) < 0.1, NAN, x[0])
    x[10] = np.where(rng.random(n) < 0.1, INF, x[0])
    x[11] = np.where(rng.random(n) < 0.5, -0.0, 0.0)
    if dtype != "float64":
        x = x.astype(np.float32)
    return numpy_library.cast(x, dtype)


def check(x, k, kernel):
    """The fused kernel's result is that of softmax and a stable sort, to the bit."""
    with normx.trace() as ran:
        values, indices = normx.softmax_topk(x, k)
    assert [(r.function, r.kernel) for r in ran] == [("softmax_topk", kernel)]
    wide = x.astype(np.float64)
    order = np.argsort(-np.where(np.isnan(wide), -INF, wide), axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(indices, order, strict=True)
    want = np.take_along_axis(normx.softmax(x), order, -1)
    assert values.dtype == x.dtype
    # As float64, which every one of them is exactly.
    np.testing.assert_array_equal(values.astype(np.float64), want.astype(np.float64))
    return ran[0]


@pytest.mark.parametrize("target", NATIVE.targets())
@pytest.mark.parametrize("dtype", SHORT)
def test_bits_and_order_on_every_target(target, dtype):
    with use_target(target):
        for n in LENGTHS:
            x = rows_that_hold_anything(n, dtype)
            for k in (1, 2, 8, 17, _core.most_k):
                if k <= n:
                    assert check(x, k, f"softmax_topk_{SHORT[dtype]}").target == target


@pytest.mark.parametrize("n", [150_000, 1_000_000])  # softmax computes these in two passes
def test_rows_longer_than_a_cache(n):
    check(rows_that_hold_anything(n, "float32"), 8, "softmax_topk_f32")


def test_the_best_at_the_edges_of_chunks():
    x = np.zeros((1, 3 * 16384 + 5), np.float32)
    places = [0, 127, 128, 16383, 16384, 32767, 32768, 3 * 16384, 3 * 16384 + 4]
    for height in (np.ones(9), np.arange(9), np.arange(9)[::-1]):
        x[0, places] = height
        check(x, 9, "softmax_topk_f32")
        check(x, 4, "softmax_topk_f32")


def test_threads_share_the_rows():
    x = np.random.default_rng(0).normal(size=(37, 20_000)).astype(np.float32)
    before = NATIVE.num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            NATIVE.set_num_threads(threads)
            results.append(normx.softmax_topk(x, 8))
            check(x, 8, "softmax_topk_f32")
    finally:
        NATIVE.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


BASE = np.random.default_rng(1).normal(size=(6, 5, 40))


@pytest.mark.parametrize(
    "x",
    [
        BASE,
        BASE[0, 0],
        BASE[::-2],
        BASE[:, 1:4, 3:33],
        BASE.transpose(1, 0, 2),
        np.broadcast_to(BASE[0, 0], (3, 2, 40)),
        np.frombuffer(b"\0" + BASE.tobytes(), np.uint8)[1:].view(np.float64).reshape(-1, 40),
    ],
)
def test_rows_may_lie_anywhere(x):
    check(x, 3, "softmax_topk_f64")


@pytest.mark.parametrize(
    ("x", "k", "options"),
    [
        (BASE[..., ::-1], 3, {}),
        (BASE[..., ::2], 3, {}),
        (BASE, 3, {"axis": 0}),
        (BASE, 3, {"temperature": 2.0}),
        (BASE, 3, {"where": BASE > 0}),
        (BASE, 3, {"backend": "reference"}),
        (BASE.reshape(-1, 200), _core.most_k + 1, {}),
    ],
)
def test_the_rest_is_done_in_two_steps(x, k, options):
    with normx.trace() as ran:
        values, indices = normx.softmax_topk(x, k, **options)
    assert [r.function for r in ran] == ["softmax"]
    want = np.take_along_axis(normx.softmax(x, **options), indices, options.get("axis", -1))
    np.testing.assert_array_equal(values, want)


def test_an_algorithm_that_was_asked_for_is_the_one_that_runs():
    with use_algorithm("online"), normx.trace() as ran:
        normx.softmax_topk(BASE, 3)
    assert ran[0].kernel == "softmax_f64_online"


def test_the_module_refuses_what_the_plugin_would_not_hand_over():
    x, values, indices = BASE[0], np.empty((5, 3)), np.empty((5, 3), np.int64)
    for wrong, kind in (
        ((x.astype(int), values, indices), TypeError),
        ((x, values.astype(np.float32), indices), TypeError),
        ((x, values, indices.astype(np.int32)), TypeError),
        ((x.tolist(), values, indices), TypeError),
        ((x[:, ::2], values, indices), ValueError),
        ((x, values[:4], indices), ValueError),
        ((x, values, indices[:, :2]), ValueError),
        ((x, values[:, :0], indices[:, :0]), ValueError),
        ((x, np.empty((5, 41)), np.empty((5, 41), np.int64)), ValueError),
    ):
        with pytest.raises(kind):
            _core.softmax_topk(*wrong)
    _core.softmax_topk(x, values, indices)
    assert np.array_equal(indices[:, 0], x.argmax(-1))
