"""Row programs: one row's bits depend on that row alone, and what they leave the formula takes."""

import numpy as np
import pytest
from normx_native import _core, use_target
from normx_native._rows import programs

import normx
from normx import _dispatch as dispatch
from normx._record import record_of
from normx.testing.samples import random_rows

NAMES = tuple(name for name in programs() if not record_of(name).random)
TARGETS = dispatch.backend("native").targets()


def options(name, shape, axis):
    """Keywords with which the row program of a function is what runs."""
    given = dict(record_of(name).example)
    if given.get("where") is True:
        given["where"] = np.ones(shape, bool)
    if name == "logsumexp":
        given["where"] = np.ones(shape, bool)
    elif name in {op for op, _, _ in _core.kernels()}:
        along = axis if isinstance(axis, tuple) else (axis,)
        form = [1 if i in along else size for i, size in enumerate(shape)]
        given["temperature"] = np.full(form, 1.5)
    return given


def run(name, x, axis=-1, **keywords):
    axis = axis if isinstance(axis, tuple) else axis % x.ndim
    given = options(name, x.shape, axis) | keywords
    with normx.trace() as ran:
        y = normx_function(name)(x, axis=axis, backend="native", **given)
    if name != "logsumexp":  # of which the kernel of its own takes masks
        assert ran[0].kernel == f"{name}_rows"
    return y


def normx_function(name):
    return getattr(normx, name)


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert a.tobytes() == np.ascontiguousarray(b).tobytes()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_layout(name, target):
    """Alone, in a batch, as a column, strided, misaligned: the same bits."""
    with use_target(target):
        for n in (1, 7, 8, 9, 130, 2049):
            x = random_rows(n, 19, 3.0).astype(np.float32)
            y = run(name, x)
            rows = (lambda a: a) if y.ndim == 2 else (lambda a: a[:, None])
            same(rows(y)[4:5], rows(run(name, x[4:5].copy())))
            same(rows(y), rows(run(name, np.asfortranarray(x))))
            columns = run(name, np.ascontiguousarray(x.T), axis=0)
            same(rows(y), columns.T if columns.ndim == 2 else columns[:, None])
            wide = np.zeros((19, 2 * n + 1), np.float32)
            wide[:, 1::2] = x
            same(rows(y), rows(run(name, wide[:, 1::2])))
            same(rows(y), rows(run(name, x[:, ::-1][:, ::-1])))
            shifted = np.frombuffer(b"\0" * 5 + x.tobytes(), np.float32, offset=5).reshape(x.shape)
            same(rows(y), rows(run(name, shifted)))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "masked_softmax"])
def test_masking_is_deleting_to_the_bit(name):
    """What is left out is not there: not as a zero, and not in the length."""
    rng = np.random.default_rng(2)
    x = random_rows(301, 1, 3.0).astype(np.float64)
    kept = rng.random(x.shape) < 0.5
    whole = run(name, x, where=kept, temperature=1.5) if name != "logsumexp" else None
    if whole is not None:
        same(whole[kept], run(name, x[kept][None], temperature=1.5)[0])
        assert np.all(whole[~kept] == (-np.inf if record_of(name).log_space else 0.0))


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_long_rows(name):
    """Two threads, and rows that exceed a thread's scratch, change nothing."""
    before = _core.num_threads()
    try:
        for shape in ((80, 1000), (3, 150_000)):
            x = random_rows(shape[1], shape[0], 2.0).astype(np.float32)
            results = []
            for count in (1, 2):
                normx.set_num_threads(count)
                results.append(run(name, x))
            same(*results)
            if shape[1] > 1000:
                want = normx_function(name)(
                    x, axis=-1, backend="reference", **options(name, shape, 1)
                )
                np.testing.assert_allclose(results[0], want, rtol=1e-5, atol=1e-12)
    finally:
        normx.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_rare_rows_are_left_to_the_formula(name, dtype):
    """Rows with NaN and +inf come out as the formula has them, the others as without them."""
    x = random_rows(33, 12, 2.0).astype(dtype)
    ordinary = run(name, x)
    strange = x.copy()
    strange[1, 3], strange[5, :2], strange[7], strange[9, 4] = np.nan, np.inf, -np.inf, -np.inf
    for axis, array in ((-1, strange), (0, np.ascontiguousarray(strange.T))):
        y = run(name, array, axis=axis)
        want = normx_function(name)(
            array, axis=axis, backend="reference", **options(name, array.shape, axis % 2)
        )
        if axis == 0 and y.ndim == 2:
            y, want = y.T, want.T
        rare, last_places = [1, 5, 7], 4 * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(y[rare], want[rare], rtol=last_places, atol=0)
        others = [0, 2, 3, 4, 6, 8, 10, 11]
        same(y[others], ordinary[others])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "logsumexp"])
def test_the_result_may_take_the_place_of_the_scores(name):
    """Even where rows have to be read again."""
    for axis in (0, 1):
        x = random_rows(40, 20, 2.0).astype(np.float32)
        x[3, 5], x[11, 0] = np.nan, np.inf
        y = run(name, x, axis=axis)
        same(run(name, x, axis=axis, out=x), y)


@pytest.mark.parametrize("empty", ["zero", "nan", "uniform"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "logsumexp"])
def test_empty_rows(name, empty):
    x = random_rows(17, 6, 2.0).astype(np.float32)
    kept = np.random.default_rng(0).random(x.shape) < 0.5
    kept[2] = False
    x[4] = np.inf if name == "softmin" else -np.inf
    given = options(name, x.shape, 1) | {"where": kept, "empty": empty}
    y = normx_function(name)(x, axis=1, backend="native", **given)
    want = normx_function(name)(x, axis=1, backend="reference", **given)
    same(y[[2, 4]], want[[2, 4]])


def gradients_of(name, x, dy, backend, **keywords):
    with normx.trace() as ran:
        _, pullback = normx.vjp(normx_function(name), x, axis=-1, backend=backend, **keywords)
        gradients = pullback(dy)
    assert [event.backend for event in ran] == [backend] * 2
    return gradients


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_the_formula(name, dtype):
    """Also of rows with NaN and infinities, under a mask and with every parameter."""
    rng = np.random.default_rng(4)
    record = record_of(name)
    x = (2 * rng.normal(size=(5, 4, 70))).astype(dtype)
    x[0, 1, 3], x[1, 2], x[2, 3, 5], x[3, 0, 0] = np.inf, -np.inf, np.nan, -np.inf
    kept = rng.random(x.shape) < 0.7
    kept[4, 1] = False
    choices = [{}, {"where": kept}]
    if "temperature" in record.keywords:
        choices += [{"temperature": (0.5 + rng.random((5, 1, 1))).astype(dtype), "where": kept}]
        choices += [{"softcap": 2.5, "temperature": 0.7}]
    if "differentiate_temperature" in record.keywords:
        choices += [{"differentiate_temperature": True}]
    for spec in record.parameters:
        shape = {"row": (4, 1), "along": (4, 3)}.get(spec.shape)
        if shape is not None:
            value = 0.3 + rng.random(shape) + (spec.minimum or 0.0) + (spec.above or 0.0)
            choices += [{spec.name: value.astype(dtype)}, {spec.name: 2.5, "where": kept}]
    for chosen in choices:
        given = dict(record.example) | chosen
        dy = rng.normal(size=x.shape if name != "logsumexp" else x.shape[:-1]).astype(dtype)
        got = gradients_of(name, x, dy, "native", **given)
        want = gradients_of(name, x, dy, "reference", **given)
        assert got.keys() == want.keys()
        for key, gradient in got.items():
            assert gradient.dtype == want[key].dtype and gradient.shape == want[key].shape
            size = np.max(np.abs(want[key]), initial=3e-3, where=np.isfinite(want[key]))
            tolerance = (3e-6 if dtype == "float32" else 1e-11) * size
            np.testing.assert_allclose(gradient, want[key], rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", ["normalized_squared_relu", "spherical_softmax", "zscore"])
def test_subnormal_scores_weigh(name):
    """What scores are relative to has a reciprocal, however small they are."""
    f = normx_function(name)
    x = np.array([[1e-310, -1e-310, 3e-309], [5e-324, 0.0, 1e-323], [2e-308, 1e-308, 5e-324]])
    y, pullback = normx.vjp(f, x, backend="native")
    expected, slow_pullback = normx.vjp(f, x, backend="reference")
    np.testing.assert_allclose(y, expected, rtol=1e-14)
    g = np.array([1.0, 3.0, 1.0]) * 1e-30  # so that no gradient is infinite
    gradient = slow_pullback(np.broadcast_to(g, x.shape))["x"]
    np.testing.assert_allclose(pullback(np.broadcast_to(g, x.shape))["x"], gradient, rtol=1e-12)


def test_gradients_of_a_sigmoid_with_a_subnormal_total():
    x, g = np.array([-712.0, -711.0, -713.0]), np.array([0.01, 0.03, 0.01])
    got, want = (
        normx.vjp(normx.sigmoid, x, normalize=True, backend=backend)[1](g)["x"]
        for backend in ("native", "reference")
    )
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sparsemax", "entmax15", "entmax", "budget"])
def test_gradients_start_from_the_result(name, dtype):
    """They are those from the scores alone, and it is the result that they are made of."""
    rng = np.random.default_rng(6)
    x, dy = (2 * rng.normal(size=(2, 7, 90))).astype(dtype)
    kept = rng.random(x.shape) < 0.7
    number = {"entmax": 1.3, "budget": 3.25}.get(name)
    known = {} if number is None else {"alpha" if name == "entmax" else "budget": number}
    y = normx_function(name)(x, where=kept, **known)

    def gradients(result):
        dx, left = np.empty_like(x), np.zeros((7, 1), bool)
        given = np.full(x.shape, number) if known else None
        slope = np.zeros((7, 1)) if known else None
        _core.RowsCall(name, x.shape, (1,), backward=True).run(
            x,
            dx,
            np.broadcast_to(left, x.shape),
            g=dy,
            where=kept,
            result=result,
            parameters=[given] if known else [],
            dparameters=[np.broadcast_to(slope, x.shape)] if known else [],
        )
        assert not left.any()
        return [dx] if slope is None else [dx, slope]

    tolerance = {"rtol": 0, "atol": 4 * np.finfo(dtype).eps * np.abs(dy).max()}
    for got, want in zip(gradients(y), gradients(None), strict=True):
        np.testing.assert_allclose(got, want, **tolerance)
    others = np.roll(y, 1, axis=0)  # weights of other rows
    assert not np.allclose(gradients(others)[0], gradients(y)[0], atol=1e-3)


def test_weights_that_are_rounded_to_1_move():
    """The budget cuts a weight where its score is too high, and not where rounding makes it 1."""
    x = np.array([[0.0, -(1.0 - 2.0**-24)], [0.0, -1.0]], np.float32)
    dy = np.array([[1.0, 3.0], [1.0, 3.0]], np.float32)
    y, pullback = normx.vjp(normx.budget, x, budget=1.0, backend="native")
    assert y[0, 0] == 1.0 and y[0, 1] > 0.0
    np.testing.assert_array_equal(pullback(dy)["x"], [[-1.0, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise(dtype, hard):
    """gumbel_softmax: the same draws as the formula's, and their gradients."""
    rng = np.random.default_rng(8)
    x, dy = rng.normal(size=(2, 6, 50)).astype(dtype)
    x[1, 4], x[2, 3], x[3] = np.inf, np.nan, -np.inf
    kept = rng.random(x.shape) < 0.7
    tolerance = {"rtol": 1e-5 if dtype == "float32" else 1e-11, "atol": np.finfo(dtype).eps}
    for keywords in ({}, {"temperature": 0.6}, {"where": kept}, {"axis": 0}):
        found = {}
        for backend in ("native", "reference"):
            given = {**keywords, "backend": backend, "hard": hard}
            with normx.trace() as ran:
                y, pullback = normx.vjp(
                    normx.gumbel_softmax, x, rng=np.random.default_rng(3), **given
                )
                found[backend] = y, pullback(dy)
            assert {event.backend for event in ran} == {backend}
            from_result = not (hard or keywords.keys() & {"temperature", "axis"})
            assert ran[1].kernel.startswith("softmax_") == (backend == "native" and from_result)
        (y, gradients), (want, exact) = found["native"], found["reference"]
        np.testing.assert_allclose(y, want, **tolerance)
        assert gradients.keys() == exact.keys()
        for key, gradient in gradients.items():
            np.testing.assert_allclose(gradient, exact[key], **tolerance)


def test_the_temperature_of_a_draw_has_a_gradient():
    x = np.random.default_rng(8).normal(size=(3, 20))

    def total(t, backend="reference"):
        rng = np.random.default_rng(3)
        return np.sum(x * normx.gumbel_softmax(x, rng=rng, temperature=t, backend=backend))

    slope = (total(0.7 + 1e-6) - total(0.7 - 1e-6)) / 2e-6
    for backend in ("native", "reference"):
        keywords = {"rng": np.random.default_rng(3), "temperature": 0.7, "backend": backend}
        _, pullback = normx.vjp(normx.gumbel_softmax, x, **keywords)
        np.testing.assert_allclose(pullback(x)["temperature"], slope, rtol=1e-7)


def test_wrong_arrays_are_refused():
    call = _core.RowsCall("softmin", (2, 3), (1,))
    x, flag = np.zeros((2, 3)), np.zeros((2, 3), bool)
    with pytest.raises(ValueError, match=r"x: its shape"):
        call.run(x[:1], x, flag)
    with pytest.raises(TypeError, match=r"flag: a NumPy array of another dtype"):
        call.run(x, x, x)
    with pytest.raises(ValueError, match=r"no row program 'softmost'"):
        _core.RowsCall("softmost", (2, 3), (1,))
    with pytest.raises(ValueError, match=r"axis 2 is out of range"):
        _core.RowsCall("softmin", (2, 3), (2,))


@pytest.mark.parametrize("f", [normx.softmax, normx.softmin, normx.log_softmax, normx.ssmax])
def test_gradients_of_temperatures_know_of_sinks(f):
    """The scores may not be taken relative to their maximum there: sinks do not shift along."""
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 2, 4)) + 3.0
    options = {"temperature": np.array([[0.7], [1.3]]), "sink": np.array([0.3, -0.2])}
    got, want = (
        normx.vjp(f, x, backend=backend, **options)[1](dy) for backend in ("native", "reference")
    )
    for name in ("x", "temperature", "sink"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["softmax", "ssmax", "sparsemax", "entmax15"])
@pytest.mark.parametrize("temperature", [1e-301, 1e301])
def test_temperatures_at_the_ends_of_the_range(name, temperature, target):
    """Without FMA a product with them overflows on the way; the formula takes such rows."""
    x = random_rows(9, 3) * temperature
    given = {"temperature": np.full((3, 1), temperature)}
    with use_target(target):
        got = getattr(normx, name)(x, backend="native", **given)
    want = getattr(normx, name)(x, backend="reference", **given)
    np.testing.assert_allclose(got, want, rtol=1e-15)
