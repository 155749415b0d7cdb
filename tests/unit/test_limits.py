"""Values and gradients at the limits: infinite scores, extreme temperatures, huge scores."""

import numpy as np
import pytest

import normx
from normx._record import registry
from normx.testing.oracle import oracle
from normx.testing.ulp import error_in_ulp

INF = np.inf
ROWS = np.array([[INF, 0.3, 0.1, -1.0], [INF, INF, 0.0, 1.0], [-INF, -INF, INF, 0.0]])
DY = np.random.default_rng(0).normal(size=ROWS.shape)

GRADIENTS = [
    (record, parameter)
    for record in registry().values()
    if record.vjp is not None and record.kind == "normalizer" and not record.random
    for parameter in (*(p.name for p in record.parameters), "temperature")
    if record.at_infinity != "pointwise"
]


def slope(f, value, step=1e-6):
    """The derivative of ``sum(f(value) * DY)`` per row, of what is finite."""
    with np.errstate(invalid="ignore"):
        change = (f(value + step) - f(value - step)) / (2 * step)
    return np.where(np.isfinite(change), change * DY, 0.0).sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("record", "name"), GRADIENTS, ids=[f"{record.name}-{name}" for record, name in GRADIENTS]
)
def test_rows_at_their_limit_do_not_move(record, name):
    keywords = {**record.example, name: np.full((3, 1), 1.7)}
    _, pullback = normx.vjp(record.function, -ROWS if record.negated else ROWS, **keywords)
    gradients = pullback(DY)
    assert set(gradients) >= {"x", name}
    for gradient in gradients.values():
        assert np.all(gradient == 0.0)


@pytest.mark.parametrize("name", ["n", "scale", "temperature"])
@pytest.mark.parametrize("f", [normx.squared_relu, normx.lips_relu])
def test_infinite_weights_do_not_move_with_a_divisor(f, name):
    if f is normx.lips_relu and name == "scale":
        pytest.skip("it has none")
    value = np.full((3, 1), 1.7)
    _, pullback = normx.vjp(f, ROWS, **{name: value})
    want = slope(lambda v: f(ROWS, **{name: v}), value)
    np.testing.assert_allclose(pullback(DY)[name], want, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("budget", [0.5, 1.0, 2.5, 3.5])
def test_what_infinite_scores_leave_of_a_budget_is_shared_and_moves(budget):
    f = normx.budget
    want = oracle(registry()["budget"], ROWS, budget=budget)
    np.testing.assert_allclose(f(ROWS, budget=budget), want.astype(float), rtol=1e-15)
    t = np.full((3, 1), 0.7)
    _, pullback = normx.vjp(f, ROWS, budget=budget, temperature=t)
    gradients = pullback(DY)
    want = slope(lambda t: f(ROWS, budget=budget, temperature=t), t)
    np.testing.assert_allclose(gradients["temperature"], want, atol=1e-8)
    moves = np.zeros(ROWS.shape)
    for i in zip(*np.nonzero(np.isfinite(ROWS)), strict=True):
        moved = np.zeros(ROWS.shape)
        moved[i] = 1.0
        steps = slope(lambda s: f(ROWS + s * moved, budget=budget, temperature=t), 0.0)  # noqa: B023
        moves[i] = steps.sum()
    np.testing.assert_allclose(gradients["x"], moves, atol=1e-8)


def test_the_deviation_added_to_an_infinite_one_is_nothing():
    want = oracle(registry()["zscore"], ROWS, eps=0.5)
    np.testing.assert_allclose(normx.zscore(ROWS, eps=0.5), want.astype(float), rtol=1e-15)
    far = np.where(ROWS == INF, 1e300, ROWS)
    np.testing.assert_allclose(normx.zscore(far, eps=0.5), normx.zscore(ROWS), rtol=1e-15)


@pytest.mark.parametrize("temperature", [0.0, INF])
def test_standard_scores_at_limits_of_the_temperature(temperature):
    x = np.array([[1.0, 2.0, 4.0]])
    y, pullback = normx.vjp(normx.zscore, x, temperature=temperature)
    np.testing.assert_allclose(y, normx.zscore(x), rtol=1e-15)
    assert np.all(np.isfinite(pullback(np.ones_like(x))["x"]))


@pytest.mark.parametrize("library", ["numpy", "torch", "jax.numpy", "mlx.core"])
def test_gradients_of_standard_scores_do_not_overflow(library):
    xp = pytest.importorskip(library)
    dtype, far = (np.float64, 1e200) if xp is np else (np.float32, 1e25)
    to = {"torch": getattr(xp, "from_numpy", None), "mlx.core": getattr(xp, "array", None)}
    to = to.get(library) or xp.asarray
    x, dy = np.array([[1.0, 2.0, 4.0, -1.0]], dtype), np.array([[0.3, -1.0, 0.5, 2.0]], dtype)
    eps = np.array([[0.25]], dtype)
    for scale in (dtype(far), dtype(1 / far)):
        _, pullback = normx.vjp(normx.zscore, to(x * scale), eps=to(eps * scale))
        got = pullback(to(dy))
        _, pullback = normx.vjp(normx.zscore, to(x), eps=to(eps))
        want = pullback(to(dy))
        for name in ("x", "eps"):
            np.testing.assert_allclose(
                np.asarray(got[name]) * scale, np.asarray(want[name]), rtol=1e-6
            )


@pytest.mark.parametrize(
    ("name", "sink"), [("softmax", "sink"), ("log_softmax", "sink"), ("inhibited_softmax", "alpha")]
)
@pytest.mark.parametrize("library", ["numpy", "jax.numpy"])
def test_the_distance_to_a_large_sink_is_not_rounded(name, sink, library):
    xp, record = pytest.importorskip(library), registry()[name]
    dtype = "float64" if xp is np else "float32"
    x, value = np.array([[0.3, -1.7, 0.1]], dtype), np.array([[50.7]], dtype)
    got = np.asarray(record.function(xp.asarray(x), **{sink: xp.asarray(value)}))
    want = oracle(record, x, **{sink: value[0, 0]})
    assert error_in_ulp(got, want, dtype, want).max() <= record.ulp[dtype]


MASK = np.array([True, True, False, True])
FILL = np.exp(-2.0)


@pytest.mark.parametrize(
    ("temperature", "x", "want"),
    [
        (INF, [0.5, -1.0, 9.0, 0.3], np.array([1.0, 1.0, FILL, 1.0]) / (3 + FILL)),
        (INF, [-INF, -1.0, 9.0, 0.3], np.array([0.0, 1.0, FILL, 1.0]) / (2 + FILL)),
        (0.0, [0.5, -1.0, 9.0, 0.5], [0.5, 0.0, 0.0, 0.5]),
        (0.0, [-0.5, -1.0, 9.0, -0.5], [0.0, 0.0, 1.0, 0.0]),
        (0.0, [0.0, -1.0, 9.0, 0.0], np.array([1.0, 0.0, FILL, 1.0]) / (2 + FILL)),
        (0.0, [-INF, -INF, 9.0, -INF], [0.0, 0.0, 1.0, 0.0]),
        (0.0, [INF, 2.0, 9.0, INF], [0.5, 0.0, 0.0, 0.5]),
        (1e30, [0.5, -1.0, 9.0, 0.3], np.array([1.0, 1.0, FILL, 1.0]) / (3 + FILL)),
    ],
)
def test_the_temperature_does_not_apply_to_what_is_filled_in(temperature, x, want):
    keywords = {"where": MASK, "fill": np.array([-2.0]), "temperature": temperature}
    y, pullback = normx.vjp(normx.masked_softmax, x, **keywords)
    np.testing.assert_allclose(y, want, rtol=1e-15)
    gradients = pullback(DY[0])
    others = y[MASK] @ DY[0, MASK] + y[2] * DY[0, 2]
    np.testing.assert_allclose(gradients["fill"], [y[2] * (DY[0, 2] - others)], atol=1e-15)
    assert np.all(np.isfinite(gradients["x"]))
