"""Values from papers and from other people's bugs."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

import normx

pytestmark = pytest.mark.filterwarnings("error")

BACKENDS = [name for name, found in normx.backends().items() if found.usable]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    """Every test runs on every usable backend, unless a keyword is not its."""
    return request.param


def call(f, backend, x, **keywords):
    if not normx.explain(f, x, backend=backend, **keywords).candidates[0].taken:
        pytest.skip(
            f"{backend}: " + normx.explain(f, x, backend=backend, **keywords).candidates[0].reason
        )
    return f(x, backend=backend, **keywords)


GOLDEN = np.array([1.0, 2.0, 3.0, -1.0])


def test_golden_softmax(backend):
    got = call(normx.softmax, backend, GOLDEN)
    np.testing.assert_allclose(
        got, [0.0889468173, 0.2417825172, 0.6572330228, 0.0120376427], rtol=1e-9
    )
    got = call(normx.log_softmax, backend, GOLDEN)
    np.testing.assert_allclose(
        got, [-2.4197166463, -1.4197166463, -0.4197166463, -4.4197166463], rtol=1e-9
    )


def test_shifted_rows(backend):
    want = [0.03205860328008499, 0.08714431874203256, 0.23688281808991013, 0.6439142598879722]
    for shift in (0.0, 100.0):
        got = call(normx.softmax, backend, np.arange(4.0) + shift)
        np.testing.assert_allclose(got, want, rtol=1e-15)


def test_wide_rows_on_both_axes(backend):
    x = np.array([[-25.0, 0.0, 25.0, 50.0], [1.0, 325.0, 749.0, 750.0]])
    want = np.array(
        [
            [
                2.678636961770877e-33,
                1.9287498479371314e-22,
                1.3887943864771144e-11,
                0.999999999986112,
            ],
            [0.0, 1.9444526359919372e-185, 0.2689414213699951, 0.7310585786300048],
        ]
    )
    np.testing.assert_allclose(call(normx.softmax, backend, x, axis=1), want, rtol=1e-13)
    np.testing.assert_allclose(call(normx.softmax, backend, x.T, axis=0), want.T, rtol=1e-13)
    folded = call(normx.softmax, backend, x.reshape(2, 2, 2), axis=(1, 2))
    np.testing.assert_allclose(folded, want.reshape(2, 2, 2), rtol=1e-13)


def test_logsumexp_values(backend):
    f = normx.logsumexp
    assert call(f, backend, np.array([1000.0, 1000.0])) == pytest.approx(
        1000 + np.log(2), rel=1e-15
    )
    assert call(f, backend, np.full(1000, 10000.0)) == pytest.approx(
        10000 + np.log(1000), rel=1e-15
    )
    x = np.array([[1e10, 1e-10], [-1e10, -np.inf]])
    assert np.array_equal(call(f, backend, x, axis=-1), [1e10, -1e10])
    assert call(f, backend, x, axis=(-1, -2)) == 1e10
    assert call(f, backend, np.array([0.0, -40.0])) == pytest.approx(
        4.248354255291589e-18, rel=1e-15
    )
    many = np.full(1_000_000, np.log(1e-40))
    assert np.exp(call(f, backend, many)) == pytest.approx(1e-34, rel=1e-12)
    assert call(f, backend, np.array(3.0)) == 3.0


def test_logsumexp_shapes(backend):
    f = normx.logsumexp
    assert call(f, backend, np.zeros((1, 5))).shape == ()
    assert call(f, backend, np.zeros((5, 1, 8)), axis=(1, 2)).shape == (5,)
    assert call(f, backend, np.zeros((5, 1, 8)), axis=(1, 2), keepdims=True).shape == (5, 1, 1)
    x = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(call(f, backend, x, axis=()), x)
    assert np.array_equal(call(normx.softmax, backend, x, axis=()), np.ones((2, 3)))


def test_logsumexp_signs_and_weights(backend):
    f = normx.logsumexp
    inf = np.inf
    for x, b, want in (
        ([inf], 1.0, (inf, 1)),
        ([inf], -1.0, (inf, -1)),
        ([-inf, -inf], 1.0, (-inf, 0)),
    ):
        got = call(f, backend, np.array(x), b=np.array([b]), return_sign=True)
        assert (float(got[0]), float(got[1])) == want
    x = np.array([3.06409428, 0.37251854, 3.87471931])
    got = call(f, backend, x, b=np.array([1.88190708, 2.84174795, -0.85016884]))
    assert got == pytest.approx(1.2452165157907387, rel=4e-16)
    assert np.isnan(call(f, backend, x, b=np.array([1.88190708, 2.84174795, -3.85016884])))
    assert np.isnan(call(f, backend, np.array([inf, inf]), b=np.array([1.0, -1.0])))
    cancelled = call(f, backend, np.array([1.0, 1.0]), b=np.array([1.0, -1.0]), return_sign=True)
    assert cancelled == (-inf, 0)
    # b broadcasts both ways, as SciPy's does
    assert call(f, backend, np.zeros(3), b=np.ones((2, 3)), axis=-1).shape == (2,)
    assert call(f, backend, np.array([1.0, np.nan]), b=np.array([1.0, 0.0])) == 1.0


def test_complex_logsumexp(backend):
    f = normx.logsumexp
    got = call(f, backend, np.array([0.0, 2.22e-17j]))
    assert got.imag == pytest.approx(
        1.1102230246251566e-17, rel=1e-3
    ) and got.real == pytest.approx(np.log(2))
    turns = call(f, backend, 1j * np.arange(1.0, 41.0)[:, None], axis=-1)
    assert np.all(np.abs(turns.imag) <= np.pi)
    np.testing.assert_allclose(np.exp(turns), np.exp(1j * np.arange(1.0, 41.0)), rtol=1e-12)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5, 30)) + 1j * rng.normal(size=(5, 30))
    b = rng.normal(size=(5, 30)) + 1j * rng.normal(size=(5, 30))
    np.testing.assert_allclose(
        call(f, backend, z, b=b, axis=1), np.log((b * np.exp(z)).sum(1)), rtol=1e-12
    )
    size, phase = call(f, backend, z, b=b, axis=1, return_sign=True)
    np.testing.assert_allclose(np.exp(size) * phase, (b * np.exp(z)).sum(1), rtol=1e-12)
    assert call(f, backend, z.astype(np.complex64)).dtype == np.complex64


def test_complex_infinities(backend):
    values = [np.inf, -np.inf, 0.0, 1.0, np.nan]
    grid = np.array([complex(a, c) for a in values for c in (0.0, 1.0, -1.0)])
    for x in grid:
        for y in grid:
            pair = np.array([x, y])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want = np.log(np.sum(np.exp(pair)))
            got = call(normx.logsumexp, backend, pair)
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=str(pair))


def test_the_top_class_keeps_its_digits(backend):
    got = call(normx.log_softmax, backend, np.array([50.0, 0.0], np.float32))
    assert got[0] == np.float32(-1.9287498479639178e-22) and got[1] == -50.0


def test_subnormal_weights_are_kept(backend):
    got = call(normx.softmax, backend, np.array([0.0, -100.0], np.float32))
    np.testing.assert_allclose(got, [1.0, 3.8e-44], rtol=0.02)
    got = call(normx.softmax, backend, np.array([0.0, -103.9, -104.0], np.float32))
    assert got[1] == np.float32(1e-45) and got[2] == 0.0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_largest_numbers(backend, dtype):
    top = np.finfo(dtype).max
    x = np.array([top, -top], dtype)
    assert np.array_equal(call(normx.softmax, backend, x), [1.0, 0.0])
    assert np.array_equal(call(normx.log_softmax, backend, x), [0.0, -np.inf])
    assert call(normx.logsumexp, backend, np.array([top, top], dtype)) == top


def test_what_is_too_large_for_the_dtype_asked_for_is_infinite(backend):
    """Without a warning, which would be an error here."""
    x = np.array([[1e6, 1e6], [0.0, -1e6]], np.float32)
    got = call(normx.logsumexp, backend, x, dtype="float16", axis=-1)
    assert np.array_equal(got, np.array([np.inf, 0.0], np.float16))
    got = call(normx.log_softmax, backend, x, dtype="float16")
    assert np.array_equal(got[1], np.array([0.0, -np.inf], np.float16))


def test_infinities(backend):
    f = normx.softmax
    assert np.array_equal(call(f, backend, np.array([-np.inf, 0.0])), [0.0, 1.0])
    assert np.array_equal(
        call(normx.log_softmax, backend, np.array([-np.inf, 0.0])), [-np.inf, 0.0]
    )
    assert np.array_equal(call(f, backend, np.array([np.inf, np.inf, 0.0])), [0.5, 0.5, 0.0])
    assert np.array_equal(call(f, backend, np.array([np.inf, -np.inf])), [1.0, 0.0])


def test_half_precision_sums(backend):
    for shape, axis in (((1, 4096), -1), ((4096, 2), 0)):
        got = call(normx.softmax, backend, np.zeros(shape, np.float16), axis=axis)
        assert np.all(got.astype(np.float64).sum(axis=axis) == pytest.approx(1.0, abs=1e-3))
    zeros = np.zeros(70_000, np.float16)
    assert np.all(call(normx.softmax, backend, zeros) == np.float16(1 / 70_000))
    assert np.all(call(normx.log_softmax, backend, zeros) == np.float16(-np.log(70_000)))
    assert call(normx.logsumexp, backend, zeros) == np.float16(np.log(70_000))
    assert call(normx.logsumexp, backend, np.array([65504.0, 65504.0], np.float16)) == 65504.0


def test_bfloat16_sums(backend):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    got = call(normx.softmax, backend, np.zeros(512, ml_dtypes.bfloat16))
    assert got.dtype == ml_dtypes.bfloat16 and np.all(got == ml_dtypes.bfloat16(1 / 512))


def test_integers_at_their_limits(backend):
    assert np.array_equal(
        call(normx.softmax, backend, np.array([-128, 127], np.int8)), [0.0 + np.exp(-255.0), 1.0]
    )
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        got = call(normx.softmax, backend, np.array([0, 1], dtype))
        np.testing.assert_allclose(got, [0.2689414214, 0.7310585786], rtol=1e-9)
    got = call(normx.softmax, backend, np.array([np.iinfo(np.int64).min, 1]))
    assert np.array_equal(got, [0.0, 1.0])


def test_long_sums_along_a_strided_axis(backend):
    got = call(normx.softmax, backend, np.zeros((1 << 22, 2), np.float32), axis=0)
    assert np.all(np.abs(got * 2.0**22 - 1.0) < 1e-6)


def test_gradient_of_masked_entries_is_zero(backend):
    x = np.array([1.0, 1.0, 100.0])
    _, pullback = normx.vjp(normx.log_softmax, x, where=np.array([True, True, False]))
    gradient = pullback(np.ones(3))["x"]
    assert np.all(np.isfinite(gradient)) and gradient[2] == 0.0


def test_half_precision_gradients_of_long_rows(backend):
    x = np.zeros(2**16 + 1, np.float16)
    _, pullback = normx.vjp(normx.log_softmax, x)
    gradient = pullback(np.eye(1, x.size, dtype=np.float16)[0])["x"]
    assert gradient.dtype == np.float16 and np.all(np.isfinite(gradient))
    assert np.all(gradient >= -14) and np.all(gradient <= 1)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-45])
def test_cold_rows_share_among_the_maxima(backend, temperature):
    x = np.array([[1.0, 3.0, 3.0], [-1e30, 5.0, -np.inf], [2.0, -np.inf, 1.0]], np.float32)
    got = call(normx.softmax, backend, x, temperature=temperature)
    assert np.array_equal(got, [[0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    per_row = call(normx.softmax, backend, x, temperature=np.full((3, 1), temperature, np.float32))
    assert np.array_equal(per_row, got)


def test_hot_rows_are_uniform_over_the_finite_scores(backend):
    got = call(normx.softmax, backend, np.array([1.0, 3.0, -np.inf, 5.0]), temperature=np.inf)
    np.testing.assert_allclose(got, [1 / 3, 1 / 3, 0.0, 1 / 3], rtol=1e-15)


def test_softcap_comes_before_the_temperature(backend):
    x = np.array([1.0, -30.0, 200.0])
    capped = 5.0 * np.tanh(x / 5.0) / 0.5
    want = np.exp(capped) / np.exp(capped).sum()
    np.testing.assert_allclose(
        call(normx.softmax, backend, x, softcap=5.0, temperature=0.5), want, rtol=1e-13
    )


def test_sinks_take_mass_and_get_no_weight(backend):
    x = np.array([[1.0, 2.0, 3.0], [-5.0, 900.0, 1.0]])
    for sink in (0.5, np.array([0.5, -1.0, 2.0]), np.array([[0.5], [950.0]])):
        logits = np.broadcast_to(np.atleast_1d(sink), (2, np.atleast_1d(sink).shape[-1]))
        whole = normx.softmax(np.concatenate([x, logits], axis=-1), backend="reference")
        np.testing.assert_allclose(
            call(normx.softmax, backend, x, sink=sink), whole[:, :3], rtol=1e-14
        )
        log = call(normx.log_softmax, backend, x, sink=sink)
        np.testing.assert_allclose(np.exp(log), whole[:, :3], rtol=1e-12)


def test_results_may_take_the_place_of_parameters(backend):
    """They are read before anything is written there, whichever row they belong to."""
    x = 1.0 + np.random.default_rng(0).random((4, 4))
    for f, name in (
        (normx.softmax, "temperature"),
        (normx.entmax, "alpha"),
        (normx.softmax, "sink"),
        (normx.ssmax, "s"),
    ):
        for part in (lambda out: out[::-1, :1], lambda out: out[:1].T):
            out = x.copy()
            value = part(out)
            want = call(f, backend, x, **{name: value.copy()})
            np.testing.assert_array_equal(call(f, backend, x, **{name: value}, out=out), want)


def test_masks_are_not_expanded(backend):
    """A mask that broadcasts costs no memory of the size of x."""
    tracemalloc = pytest.importorskip("tracemalloc")
    if backend == "reference":
        pytest.skip("the formula makes arrays of the size of x anyway")
    x = np.zeros((512, 4096), np.float32)
    out = np.empty_like(x)
    mask = np.ones(4096, bool)
    call(normx.softmax, backend, x, where=mask, out=out)
    tracemalloc.start()
    call(normx.softmax, backend, x, where=mask, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 1024


def test_numbers_of_numpy_are_numbers(backend):
    x = np.array([1.0, 2.0])
    want = normx.softmax(x, temperature=2.0)
    for two in (np.float64(2), np.float32(2), np.int64(2), np.longdouble(2)):
        assert np.array_equal(call(normx.softmax, backend, x, temperature=two), want)
    assert np.array_equal(call(normx.softmax, backend, x, where=np.True_), normx.softmax(x))
    assert call(normx.softmax, backend, x, dtype=np.float32).dtype == np.float32
    assert np.array_equal(call(normx.softmax, backend, x, sink=np.zeros(0)), normx.softmax(x))


def test_parameters_keep_their_range_beside_half_precision_scores(backend):
    zeros = np.zeros(3, np.float16)
    got = call(normx.logsumexp, backend, zeros, b=np.array([1e6, 1.0, 1.0]))
    assert got == pytest.approx(np.log(1e6 + 2)) and got.dtype == np.float64
    x = np.array([6e4, 0.0], np.float16)
    want = call(normx.softmax, backend, x, temperature=1e5)
    assert np.array_equal(call(normx.softmax, backend, x, temperature=np.array([1e5])), want)


def test_gradients_where_some_factors_are_zero():
    for top in (1000.0, np.nan):
        x, b = np.array([top, 0.0]), np.array([0.0, 1.0])
        y, pullback = normx.vjp(normx.logsumexp, x, b=b)
        assert y == 0.0 and np.array_equal(pullback(np.float64(1.0))["x"], [0.0, 1.0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gradients_of_several_sinks_along_any_axis(backend, axis):
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(2, 5, 2, 3))
    sink = rng.normal(size=[4 if a == axis else n for a, n in enumerate(x.shape)])
    _, pullback = normx.vjp(normx.softmax, x, axis=axis, sink=sink, backend=backend)
    gradients = pullback(dy)
    logits = np.concatenate([x, sink], axis=axis)  # the sinks are scores without a cotangent
    _, whole = normx.vjp(normx.softmax, logits, axis=axis, backend="reference")
    want = whole(np.concatenate([dy, np.zeros_like(sink)], axis=axis))["x"]
    got = np.concatenate([gradients["x"], gradients["sink"]], axis=axis)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_gradients_of_nothing(backend, shape):
    x = np.zeros(shape, np.float32)
    t = np.ones((*shape[:-1], 1), np.float32)
    y, pullback = normx.vjp(normx.softmax, x, temperature=t, backend=backend)
    gradients = pullback(y)
    assert gradients["x"].shape == shape and np.array_equal(gradients["temperature"], 0 * t)


def test_gradients_of_left_out_nan_under_a_softcap_are_zero():
    x, kept = np.array([1.0, 2.0, np.nan]), np.array([True, True, False])
    _, pullback = normx.vjp(normx.softmax, x, where=kept, softcap=5.0)
    gradient = pullback(np.array([1.0, 0.0, 0.0]))["x"]
    assert np.all(np.isfinite(gradient)) and gradient[2] == 0.0


def test_gradients_of_what_was_passed():
    x = np.array([1.0, 2.0])
    near = normx.vjp(normx.softmax, x, temperature=1.0 + 1e-9)[1](np.array([1.0, 0.0]))
    at_one = normx.vjp(normx.softmax, x, temperature=1.0)[1](np.array([1.0, 0.0]))
    assert at_one["temperature"] == pytest.approx(near["temperature"], rel=1e-6)
    alone = normx.vjp(normx.softmax, np.arange(3.0), axis=())[1](np.ones(3))
    assert np.array_equal(alone["x"], np.zeros(3))
    nothing = normx.vjp(normx.softmax, np.zeros((0, 3)), temperature=2.0)[1](np.zeros((0, 3)))
    assert nothing["x"].shape == (0, 3) and nothing["temperature"] == 0.0
    far = normx.vjp(normx.softmax, 1e12 + np.array([0.0, 1.0, 3.0]), temperature=2.0)
    here = normx.vjp(normx.softmax, np.array([0.0, 1.0, 3.0]), temperature=2.0)
    dy = np.array([1.0, 0.0, -2.0])
    assert far[1](dy)["temperature"] == pytest.approx(here[1](dy)["temperature"], rel=1e-9)


def test_a_sign_where_nothing_is_summed(backend):
    value, sign = call(normx.logsumexp, backend, np.zeros(0), return_sign=True)
    assert value == -np.inf and sign == 0.0


def test_limits_of_softcap_and_temperature(backend):
    x = np.array([1.0, 2.0, 0.0], np.float32)
    for cap in (1e39, 1e300, np.inf):
        capped = call(normx.softmax, backend, x, softcap=cap)
        np.testing.assert_array_almost_equal_nulp(capped, normx.softmax(x), nulp=4)
    assert np.all(call(normx.softmax, backend, x, softcap=1e-46) == np.float32(1 / 3))
    infinite = call(normx.softmax, backend, np.array([np.inf, 0.0]), temperature=np.inf)
    assert np.array_equal(infinite, [1.0, 0.0])


def test_lists_and_numbers():
    assert np.array_equal(normx.softmax([1000, 0, 0, 0]), [1.0, 0.0, 0.0, 0.0])
    assert normx.softmax(3.0) == 1.0 and normx.logsumexp(3.0) == 3.0
    assert np.array_equal(
        normx.softmax(((1, 1), (2, 2)), axis=0).round(4), [[0.2689] * 2, [0.7311] * 2]
    )


def test_importing_normx_imports_no_framework():
    code = (
        "import sys, normx; normx.softmax([1.0]); normx.libraries(); normx.backends();"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frameworks = (
        "torch jax mlx cupy dask sparse array_api_strict matplotlib rich typer pytest scipy"
    )
    assert not set(done.stdout.split()) & set(frameworks.split())
