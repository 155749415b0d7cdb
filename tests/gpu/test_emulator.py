"""The GPU kernels on a CPU: every program in every geometry, and faults that are found."""

import numpy as np
import pytest
from normx_gpu import emulator, source
from normx_gpu.abi import Flag, Operand
from normx_gpu.emulator import Emulator, Fault
from normx_gpu.launch import Geometry, geometry
from normx_gpu.programs import PROGRAMS, SELFTEST, Program

import normx
from normx._dispatch import numpy_library
from normx._plan import Plan
from normx._record import record_of
from normx.losses import CrossEntropy, cross_entropy
from normx.testing.samples import random_rows
from normx.testing.ulp import error_in_ulp

if emulator.emulator.unusable():
    pytest.skip(emulator.emulator.unusable(), allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def registered():
    with emulator.registered():
        yield


def example(name, x):
    """The keywords that a function needs."""
    given = record_of(name).example_for(numpy_library)
    return given | {"where": x < 1.0} if "where" in given else given


def emulated(name, x, **keywords):
    keywords = example(name, x) | keywords
    return normx_function(name)(x, axis=-1, backend="gpu-emulator", **keywords)


def normx_function(name):
    return record_of(name).function


def close(name, got, x, budget=4.0, **keywords):
    """Within the budget of the formula, which computes in float64 and rounds once."""
    keywords = example(name, x) | keywords
    want = normx_function(name)(x, axis=-1, backend="reference", **keywords)
    budget = max(record_of(name).ulp["float32"], budget) + 0.5
    scale = np.maximum(np.abs(want), np.abs(x).max(axis=-1)) if want.ndim < x.ndim else None
    error = error_in_ulp(got, want, "float32", scale)
    assert error.max() <= budget, f"{error.max():.3g} ULP at {error.argmax()}"


@pytest.fixture
def chosen(monkeypatch):
    """Other geometries, for as long as a test runs."""

    def choose(lanes, rows, *, warp=32, parts=1, loop=False, backwards=False):
        def of(n, dtype, *, columns=False, heavy=False, resident=0):
            usual = geometry(n, dtype, columns=columns, heavy=heavy)
            vectors = max(-(-n // usual.vector), 1)
            steps = 0 if loop else -(-vectors // (lanes * parts))
            columns = columns and parts == 1
            return Geometry(lanes, rows, steps, usual.vector, columns, parts, 3 * parts)

        monkeypatch.setattr(emulator.emulator, "choose", of)
        monkeypatch.setattr(emulator.emulator, "warp", warp)
        monkeypatch.setattr(emulator.emulator, "backwards", backwards)

    return choose


#: Lanes of a row in a block, rows of a block, lanes of a warp, and blocks of a row: parts of warps,
#: warps, many of them, and several blocks that meet.
SHAPES = [
    (1, 4, 4, 1),
    (2, 16, 32, 1),
    (4, 2, 8, 1),
    (32, 1, 32, 1),
    (32, 1, 8, 1),
    (8, 4, 8, 1),
    (64, 1, 8, 1),
    (16, 1, 4, 1),
    (8, 1, 8, 4),
    (16, 1, 4, 8),
]


@pytest.mark.parametrize("loop", [False, True], ids=["registers", "loop"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_in_every_geometry(name, loop, chosen):
    x = random_rows(61, 5, 3.0).astype(np.float32)
    x[1] += 300.0
    x[4, 3:] = -np.inf
    results, gradients = [], []
    for lanes, rows, warp, parts in SHAPES:
        for backwards in (False, True):
            chosen(lanes, rows, warp=warp, parts=parts, loop=loop, backwards=backwards)
            for columns in (False, True):
                scores = np.asfortranarray(x) if columns else x
                y, pullback = normx.vjp(
                    name, scores, axis=-1, backend="gpu-emulator", **example(name, x)
                )
                close(name, np.asarray(y), x)
                g = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)
                results.append((lanes * parts, np.asarray(y)))
                gradients.append((lanes * parts, pullback(g)["x"]))
    # The order in which lanes run, warps, blocks and layouts do not show; how many lanes may.
    for found in (results, gradients):
        for lanes in {lanes for lanes, _ in found}:
            first, *others = (y for of, y in found if of == lanes)
            assert all(np.array_equal(first, other) for other in others), lanes
    wide = x if record_of(name).random else x.astype(np.float64)  # the noise has its dtype
    want, back = normx.vjp(name, wide, axis=-1, backend="reference", **example(name, x))
    wanted = back(np.cos(np.arange(want.size, dtype=wide.dtype)).reshape(want.shape))["x"]
    for _, gradient in gradients:
        np.testing.assert_allclose(gradient, wanted, rtol=2e-4, atol=2e-5)


#: Exponentials, any power, squares, the scores themselves, and a power with a slope without bound.
ALPHA = np.array([[1.0], [1.2], [1.5], [2.0], [3.0]], np.float32)


def of_top(got, want):
    """The largest error, in units in the last place of the largest weight of a row."""
    return error_in_ulp(
        got, want, "float32", np.broadcast_to(want.max(-1, keepdims=True), want.shape)
    )


def pulled(name, x, backend, **keywords):
    """Weights and gradients."""
    y, pullback = normx.vjp(name, x, axis=-1, backend=backend, **keywords)
    return y, pullback(np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype))


@pytest.mark.parametrize("loop", [False, True], ids=["registers", "loop"])
@pytest.mark.parametrize("name", ["entmax", "normmax"])
def test_neighbouring_rows_with_powers_of_their_own(name, loop, chosen):
    x = random_rows(61, 5, 1.0).astype(np.float32)
    alpha = ALPHA if name == "entmax" else np.maximum(ALPHA, np.float32(1.05))
    t = np.array([[0.5], [1.0], [2.0], [0.1], [7.0]], np.float32)
    wide = {"alpha": alpha.astype(np.float64), "temperature": t.astype(np.float64)}
    want, gradients = pulled(name, x.astype(np.float64), "reference", **wide)
    for lanes, rows, warp, parts in SHAPES:
        chosen(lanes, rows, warp=warp, parts=parts, loop=loop, backwards=rows > 1)
        got, found = pulled(name, x, "gpu-emulator", alpha=alpha, temperature=t)
        assert of_top(got, want).max() <= 4.0
        for of, gradient in found.items():
            np.testing.assert_allclose(gradient, gradients[of], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("alpha", [1 + 1e-6, 1.04, 1.33, 1.9, 4.0, 1e9])
@pytest.mark.parametrize("name", ["entmax", "normmax"])
def test_any_power(name, alpha):
    x = np.concatenate([random_rows(300, 3, spread) for spread in (0.1, 1.0, 9.0)])
    for dtype, budget in (("float32", 4.0), ("float16", 0.51)):
        scores = x.astype(dtype)
        want = normx_function(name)(
            scores.astype(np.float64), alpha=float(np.float32(alpha)), backend="reference"
        )
        got = normx_function(name)(scores, alpha=alpha, backend="gpu-emulator")
        scale = np.broadcast_to(want.max(-1, keepdims=True), want.shape)
        assert error_in_ulp(got, want, dtype, scale).max() <= budget


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_budgets_at_every_distance(dtype):
    far = np.finfo(dtype).max
    rows = {
        (0.0, -1e30, -1e30): (1.5, [1.0, 0.25, 0.25]),
        (far, 0.0, -far): (2.5, [1.0, 1.0, 0.5]),
        (3.0, 2.5, 2.5): (1.0, [2 / 3, 1 / 6, 1 / 6]),
        (np.inf, np.inf, 0.0): (1.0, [0.5, 0.5, 0.0]),
        (np.inf, 0.0, -0.5): (1.75, [1.0, 0.625, 0.125]),
        (-np.inf, 0.0, 1e-30): (5.0, [0.0, 1.0, 1.0]),
        (1.0, 2.0, 3.0): (0.0, [0.0, 0.0, 0.0]),
    }
    x, wanted = np.array(list(rows), dtype), np.array([y for _, y in rows.values()], dtype)
    budget = np.array([[b] for b, _ in rows.values()], dtype)
    got = normx.budget(x, budget=budget, backend="gpu-emulator")
    assert error_in_ulp(got, wanted, dtype).max() <= 1.0
    for t in (0.0, 1e-30, np.inf):
        got = normx.budget(x[2:3], budget=2.0, temperature=t, backend="gpu-emulator")
        want = normx.budget(x[2:3], budget=2.0, temperature=t, backend="reference")
        assert error_in_ulp(got, want, dtype).max() <= 1.0


@pytest.mark.parametrize("keywords", [{}, {"hard": True}, {"temperature": 0.2}, {"softcap": 2.0}])
def test_noise_is_added_in_two_words(keywords):
    for n in (7, 500, 40_000):
        x = random_rows(n, 2, 3.0).astype(np.float32)
        found = [
            pulled("gumbel_softmax", x, b, rng=np.random.default_rng(0), **keywords)
            for b in ("gpu-emulator", "reference")
        ]
        (got, gradients), (want, exact) = found
        budget = 16.0 if "softcap" in keywords else 4.0  # a score of 2 has been rounded
        assert error_in_ulp(got, want, "float32").max() <= budget
        np.testing.assert_allclose(gradients["x"], exact["x"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "logsumexp", "sparsemax", "zscore"])
def test_every_length(name):
    for n in range(1, 301):
        x = random_rows(n, 3, 3.0).astype(np.float32)
        close(name, emulated(name, x), x)


@pytest.mark.parametrize("n", [1023, 1025, 4099, 20_000, 33_000, 70_001])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "entmax15", "expm1_relu"])
def test_long_rows(name, n):
    x = random_rows(n, 2, 4.0).astype(np.float32)
    x[0] = np.sort(x[0])  # the reference of the online state moves all the way
    close(name, emulated(name, x), x)


@pytest.mark.parametrize("kind", ["normal", "equal", "rising"])
def test_accuracy_does_not_depend_on_length(kind, request):
    n = 2**24 if request.config.getoption("long") else 2**20
    x = random_rows(n, 1, 3.0).astype(np.float32)
    if kind != "normal":
        x = np.linspace(0.7 if kind == "equal" else -90.0, 0.7, n, dtype=np.float32)[None]
    exact = x.astype(np.longdouble)
    level = exact.max() + np.log(np.exp(exact - exact.max()).sum())
    for name, want in (("softmax", np.exp(exact - level)), ("log_softmax", exact - level)):
        got = emulated(name, x)
        assert error_in_ulp(got, want, "float32").max() <= 4.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_long_rows_of_other_dtypes(dtype):
    x = numpy_library.cast(random_rows(40_000, 1, 4.0), dtype)
    want = normx.softmax(x.astype(np.float64), backend="reference")
    error = error_in_ulp(normx.softmax(x, backend="gpu-emulator"), want, dtype)
    assert error.max() <= (4.0 if dtype == "float64" else 1.0)


def test_many_rows_share_few_blocks(monkeypatch):
    monkeypatch.setattr(emulator, "_MOST_BLOCKS", 2)
    x = random_rows(5, 700).astype(np.float32)
    close("softmax", emulated("softmax", x), x)


def test_which_kernels_ran():
    emulator.emulator.ran.clear()
    x = random_rows(64, 4).astype(np.float32)
    normx.softmax(x, backend="gpu-emulator")
    normx.softmax(x[:, ::2], backend="gpu-emulator")
    normx.softmax(x.T, backend="gpu-emulator")
    normx.softmax(random_rows(40_000, 1), backend="gpu-emulator")
    ran = emulator.emulator.ran
    assert {bool(kernel.flags & Flag.WIDE) for kernel in ran} == {True, False}
    assert {kernel.geometry.columns for kernel in ran} == {True, False}
    assert {kernel.geometry.loop for kernel in ran} == {True, False}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_largest_weights(dtype):
    for n, k, axis in ((1, 1, 1), (5, 5, 0), (37, 3, 1), (300, 8, 0), (40_000, 4, 1)):
        x = numpy_library.cast(np.round(random_rows(n, 6, 3.0), 1), dtype)  # with ties
        if n >= 5:
            x[1, :3], x[2, 1], x[3] = np.inf, np.nan, -np.inf
        x = np.moveaxis(x, 1, axis)
        with normx.trace() as ran:
            got = normx.softmax_topk(x, k, axis=axis, backend="gpu-emulator")
        assert ran[-1].kernel.startswith("normx_softmax_topk")
        want = normx.softmax_topk(x, k, axis=axis, backend="reference")
        assert np.array_equal(got.indices, want.indices)
        weights = normx.softmax(x, axis=axis, backend="gpu-emulator")
        chosen = np.take_along_axis(weights, got.indices, axis)
        assert np.array_equal(got.values, chosen, equal_nan=True), "the bits of softmax"


def losses(x, targets, cotangents, *, axis=-1, where=None, softcap=None, **keywords):
    """What the kernels find of rows and their classes, and the gradient."""
    plan = Plan(
        record_of("softmax"),
        numpy_library,
        x.shape,
        (axis % x.ndim,),
        x.dtype.name,
        where=None if where is None else where.shape,
        softcap=softcap,
    )
    found = emulator.emulator.cross_entropy(plan, keywords.get("label_smoothing", 0.0))
    given = (x, np.where(targets == -9, -1, targets), where, keywords.get("weight"))
    return found.forward(*given)[0], found.pullback(*given, cotangents)[0]


def check_losses(x, targets, **keywords):
    """Against those of NumPy's arrays in float64."""
    some = [np.cos(np.arange(targets.size) + k).reshape(targets.shape) for k in range(3)]
    wide = dict(keywords)
    if "weight" in keywords:
        wide["weight"] = keywords["weight"].astype(np.float64)
    want, pullback = normx.vjp(
        cross_entropy, x.astype(np.float64), targets, ignore_index=-9, reduction="none", **wide
    )
    precision = "float64" if x.dtype == np.float64 else "float32"
    roundoff = 8 * np.finfo(x.dtype if x.dtype.kind == "f" else np.float32).eps
    for cotangents in (some, [some[0], None, None]):
        found, gradient = losses(x, targets, cotangents, **keywords)
        for got, exact in zip(found, (want.loss, want.logsumexp, want.entropy), strict=True):
            assert error_in_ulp(got, exact, precision).max() <= 5.0
        exact = pullback(CrossEntropy(cotangents[0], None, *cotangents[1:]))["x"]
        np.testing.assert_allclose(gradient, exact, rtol=roundoff * 8, atol=roundoff)
    return found, gradient


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_losses_of_rows(dtype):
    rng = np.random.default_rng(0)
    for n in (3, 300, 5000, 40_000):
        x, t = random_rows(n, 6, 4.0).astype(dtype), rng.integers(0, n, 6)
        t[0], t[5] = x[0].argmax(), -9
        check_losses(x, t)
        mask = rng.random(x.shape) < 0.7
        mask[np.arange(6), np.maximum(t, 0)] = True
        weight = rng.random(n).astype("float64" if dtype == "float64" else "float32")
        check_losses(x, t, where=mask, weight=weight, label_smoothing=0.1, softcap=5.0)
        if n < 1000:
            across = np.ascontiguousarray(x.T), t
            check_losses(*across, axis=0, weight=weight, label_smoothing=0.2)
            check_losses(x.reshape(2, 3, n).swapaxes(1, 2), t.reshape(2, 3), axis=1)


def test_losses_of_rows_at_their_limits():
    inf, nan = np.inf, np.nan
    x = [[0, 1, 2, inf], [nan, 1, 2, 3], [-inf] * 4, [0, -inf, 1, 2], [60, 0, 0, 0]]
    x = np.array([*x, [inf, 1, inf, 2], [nan, inf, 0, 0]], np.float64)
    for keywords in ({}, {"label_smoothing": 0.1}, {"where": np.isfinite(x) | (x > 0)}):
        for ignored in (0, 1):
            t = np.array([3, 1, 0, 1, 0, 2, -9 * ignored])
            t[2] = -9 if "where" in keywords else 0
            t[[1, 3]] = (-9 * ignored, 2)
            if "where" in keywords:
                t[[1, 6]] = -9
            check_losses(x, t, **keywords)


@pytest.mark.parametrize("loop", [False, True], ids=["registers", "loop"])
def test_losses_in_every_geometry(loop, chosen):
    x, t = random_rows(61, 5, 3.0).astype(np.float32), np.array([0, 60, 7, -9, 33])
    found = {}
    for lanes, rows, warp, parts in SHAPES:
        for backwards in (False, True):
            chosen(lanes, rows, warp=warp, parts=parts, loop=loop, backwards=backwards)
            of, gradient = check_losses(x, t, label_smoothing=0.1)
            same = found.setdefault(lanes * parts, (*of, gradient))
            assert all(map(np.array_equal, same, (*of, gradient)))


# ------------------------------------------------------------------------------- the vocabulary


def planted(body, x, *, warp=32, backwards=False, lanes=64):
    """Run a text on the rows of `x`, in one block per row."""
    program = Program("planted", ())
    text = f"NX_FN void nx_planted_forward(NX_THREAD nx_row& r) {{ {body} }}\n"
    text += "NX_FN void nx_planted_backward(NX_THREAD nx_row&) {}\n"
    return launched(Emulator(source.host((program,), text)), program, x, warp, backwards, lanes)


def launched(machine, program, x, warp=32, backwards=False, lanes=64):
    machine.warp, machine.backwards = warp, backwards
    vector = 16 // x.itemsize
    machine.choose = lambda n, dtype, **_: Geometry(lanes, 1, n // lanes // vector, vector)
    plan = Plan(record_of("softmax"), numpy_library, x.shape, (1,), x.dtype.name)
    y = np.zeros_like(x)
    machine.launch(plan, program, {Operand.X: x, Operand.Y: y}, {}, backward=False)
    return y


COPY = "NX_WRITE(r) NX_PUT(r, NX_SCORE(r));"
X = np.arange(2 * 256, dtype=np.float32).reshape(2, 256)

FAULTS = {
    "nothing": (COPY, ""),
    "race": (
        "nx_share(r.c, r.lane, nx_t(1)); nx_shared(r.c, r.lane ^ 1, nx_t(0));" + COPY,
        "without a barrier|nobody wrote",
    ),
    "overwritten while it is read": (
        "nx_share(r.c, r.lane, nx_t(1)); nx_barrier(r.c);"
        "if (r.lane == 0) nx_shared(r.c, 63, nx_t(0));"
        "if (r.lane == 63) nx_share(r.c, 63, nx_t(2));" + COPY,
        "another lane may still read|without a barrier",
    ),
    "one cell for all": ("nx_share(r.c, 0, nx_t(1));" + COPY, "two lanes write one shared cell"),
    "read of nothing": ("nx_shared(r.c, 5, nx_t(0));" + COPY, "nobody wrote"),
    "read out of bounds": ("nx_load(r.c.x, r.x + r.n + r.index);" + COPY, "read out of bounds"),
    "write out of bounds": ("nx_store(r.c.y, r.y - 1, 0);" + COPY, "write out of bounds"),
    "written twice": (COPY + COPY, "written twice"),
    "not all written": ("if (r.lane > 0) { " + COPY + " }", "of 512 Y written"),
    "divergent barrier": ("if (r.lane == 3) nx_barrier(r.c);" + COPY, "barrier"),
    "divergent shuffle": ("if (r.lane % 2) nx_shuffle(r.c, nx_t(1), 1);" + COPY, "collective"),
    "different collectives": (
        "if (r.lane % 2) nx_shuffle(r.c, nx_t(1), 1); else nx_shuffle(r.c, nx_t(1), 2);" + COPY,
        "different collectives",
    ),
    "a vector that is not aligned": (
        "nx_t v[8]; nx_load_wide(r.c.x, r.x + 1, v, NX_V);" + COPY,
        "not aligned",
    ),
    "blocks of a row without a meeting": (
        "nx_publish(r.c, 0, nx_t(1)); nx_published(r.c, 1, nx_t(0));" + COPY,
        "two lanes write|nobody wrote|does not exist",
    ),
    "an array that is not there": ("nx_value(r.c.p[2], 0);" + COPY, "not given"),
}


@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, backwards):
    body, message = FAULTS[fault]
    if not message:
        assert np.array_equal(planted(body, X, backwards=backwards), X)
        return
    with pytest.raises(Fault, match=message):
        planted(body, X, backwards=backwards)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("warp", [8, 32])
def test_every_word(warp, dtype):
    program = SELFTEST
    x = np.tile(np.arange(256) % 7, (2, 1)).astype(dtype)
    y = launched(Emulator(source.host((program,))), program, x, warp)
    assert np.array_equal(y, np.ones_like(x)), f"checks {sorted(set(np.nonzero(y != 1)[1]))} fail"
