"""The output layer in O(d²): the steps of the dense layer, at a cost that does not grow."""

import numpy as np
import pytest

import normx
from normx.losses import (
    SphericalHead,
    SphericalPartials,
    SphericalSums,
    spherical_cross_entropy,
    taylor_cross_entropy,
    zloss,
)

FAMILY = {
    "zloss": (zloss, {"a": 0.7, "b": 0.4}),
    "taylor": (taylor_cross_entropy, {}),
    "spherical": (spherical_cross_entropy, {"eps": 0.1}),
}


def squared_error(xp, sums):
    """Of a one-hot target, as anybody could write it."""
    target, _, squares, _ = sums
    one = xp.ones_like(target)
    return SphericalPartials(squares - 2.0 * target + 1.0, -2.0 * one, 0.0 * one, one)


def dense_step(w, x, slope, rate, decay=0.0):
    return (w - rate * slope.T @ x) * (1.0 - rate * decay), slope @ w


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("every", [1000, 3])
def test_the_steps_are_those_of_the_dense_layer(name, every):
    """Twenty of them and more, with targets that occur twice, and with weights that decay."""
    loss, keywords = FAMILY[name]
    rng = np.random.default_rng(0)
    w = rng.normal(size=(40, 5))
    given = w.copy()
    head = SphericalHead(given, loss=loss, stabilize_every=every, **keywords)
    for turn in range(40):
        x, targets = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
        reduction = "sum" if turn % 2 else "mean"
        want, pullback = normx.vjp(loss, x @ w.T, targets, reduction=reduction, **keywords)
        slope = pullback(1.0)["x"]
        step = head.step(x, targets, learning_rate=0.1, weight_decay=0.3, reduction=reduction)
        w, gradient = dense_step(w, x, slope, 0.1, 0.3)
        np.testing.assert_allclose(step.loss, want, rtol=1e-9)
        np.testing.assert_allclose(step.gradient, gradient, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(head.weights, w, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(head.outputs(x), x @ w.T, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(
        head.loss(x, targets, reduction="none"),
        loss(x @ w.T, targets, reduction="none", **keywords),
        rtol=1e-9,
    )
    assert not np.array_equal(given, head.weights) and given.shape == head.shape
    np.testing.assert_array_equal(given, np.random.default_rng(0).normal(size=(40, 5)))


def test_what_is_kept_beside_the_weights_decays_with_them():
    """The published code shrinks U and omega alone, and its losses are wrong from then on."""
    rng = np.random.default_rng(1)
    head = SphericalHead(rng.normal(size=(20, 4)))
    x, targets = rng.normal(size=(3, 4)), np.array([1, 2, 3])
    head.step(x, targets, learning_rate=0.5, weight_decay=1.0)
    o = x @ head.weights.T
    sums = head.sums(x, targets)
    np.testing.assert_allclose(sums.squares, (o * o).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(sums.sum, o.sum(-1), rtol=1e-12)
    np.testing.assert_allclose(sums.target, o[range(3), targets], rtol=1e-12)


def test_any_loss_of_the_family():
    rng = np.random.default_rng(2)
    w = rng.normal(size=(30, 4))
    head = SphericalHead(w, loss=squared_error)
    for _ in range(5):
        x, targets = rng.normal(size=(7, 4)), rng.integers(0, 30, 7)
        error = x @ w.T - np.eye(30)[targets]
        step = head.step(x, targets, learning_rate=0.01)
        np.testing.assert_allclose(step.loss, (error**2).sum(-1).mean(), rtol=1e-10)
        w, gradient = dense_step(w, x, 2.0 * error / 7, 0.01)
        np.testing.assert_allclose(step.gradient, gradient, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(head.weights, w, rtol=1e-9, atol=1e-12)


def test_a_long_run_keeps_its_digits():
    """U would lose its inverse: some of its singular values are brought back, then all."""
    rng = np.random.default_rng(3)
    w = rng.normal(size=(25, 6))
    head = SphericalHead(w, loss=squared_error, stabilize_every=1)
    brought = []
    stabilize, head.stabilize = head.stabilize, lambda: brought.append(stabilize())
    for _ in range(300):
        x, targets = rng.normal(size=(4, 6)), rng.integers(0, 25, 4)
        w, _ = dense_step(w, x, 2.0 * (x @ w.T - np.eye(25)[targets]) / 4, 0.05)
        head.step(x, targets, learning_rate=0.05)
    assert {1, 2} & set(brought) and max(brought) > 2
    np.testing.assert_allclose(head.weights, w, rtol=1e-8, atol=1e-10)
    assert np.linalg.cond(head._u) <= 4.0


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_weights_stay_narrow(dtype):
    rng = np.random.default_rng(4)
    w = rng.normal(size=(50, 8)).astype(dtype)
    head = SphericalHead(w, copy=False)
    x, targets = rng.normal(size=(5, 8)).astype(dtype), rng.integers(0, 50, 5)
    start = w.astype(float)
    _, pullback = normx.vjp(zloss, x.astype(float) @ start.T, targets)
    want, gradient = dense_step(start, x.astype(float), pullback(1.0)["x"], 0.1)
    step = head.step(x, targets, learning_rate=0.1)
    assert head.weights.dtype == step.gradient.dtype == dtype
    np.testing.assert_allclose(head.weights, want, atol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(step.gradient, gradient, rtol=4e-3 if dtype == "float16" else 1e-6)


def test_the_work_does_not_grow_with_the_outputs(monkeypatch):
    """Of V a step touches the rows of the targets, and nothing else."""
    rng = np.random.default_rng(5)
    head = SphericalHead(rng.normal(size=(1000, 4)), stabilize_every=10**6)
    before = head._v.copy()
    targets = np.array([7, 7, 300])
    for _ in range(3):
        head.step(rng.normal(size=(3, 4)), targets, learning_rate=0.1)
    changed = np.flatnonzero((head._v != before).any(-1))
    assert changed.tolist() == [7, 300]


def test_no_rows_are_no_step():
    head = SphericalHead(np.ones((3, 2)))
    step = head.step(np.zeros((0, 2)), [], learning_rate=1.0)
    assert step.loss == 0.0 and step.gradient.shape == (0, 2)
    np.testing.assert_array_equal(head.weights, np.ones((3, 2)))


def test_one_output_and_zeros():
    """D = 1, and features and weights of zeros: the defined limits."""
    for w in (np.ones((1, 2)), np.zeros((4, 2))):
        for loss, keywords in FAMILY.values():
            head = SphericalHead(w, loss=loss, **keywords)
            step = head.step(np.zeros((2, 2)), [0, 0], learning_rate=0.1)
            assert np.isfinite(step.loss) and np.isfinite(step.gradient).all()
            assert np.isfinite(head.weights).all()


def test_a_step_too_large_changes_nothing():
    head = SphericalHead(np.eye(3, 2), loss=squared_error)
    x = np.array([[1.0, 0.0]])
    before = head.weights
    with pytest.raises(ValueError, match=r"learning_rate.*keeps its inverse"):
        head.step(x, [0], learning_rate=0.5)  # 1 - 2 * rate * |x|**2 is 0
    np.testing.assert_array_equal(head.weights, before)


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda h: h.step(np.ones((2, 3)), [0, 1], learning_rate=1.0), ValueError, ("(rows, 2)",)),
        (lambda h: h.step(np.ones((2, 2)), [0, 3], learning_rate=1.0), ValueError, ("3, which",)),
        (lambda h: h.step(np.ones((2, 2)), [0], learning_rate=1.0), ValueError, ("(2,)",)),
        (
            lambda h: h.step(np.ones((2, 2)), [0.0, 1.0], learning_rate=1.0),
            TypeError,
            ("integers",),
        ),
        (
            lambda h: h.step(np.ones((2, 2)), [0, 1], learning_rate=-1.0),
            ValueError,
            ("at least 0",),
        ),
        (
            lambda h: h.step(np.ones((2, 2)), [0, 1], learning_rate=1.0, weight_decay=2.0),
            ValueError,
            ("`weight_decay`", "below 1"),
        ),
        (lambda h: h.loss(np.ones(2), 0), ValueError, ("two dimensions",)),
        (lambda h: SphericalHead(np.ones(3)), ValueError, ("`weights`", "two dimensions")),
        (lambda h: SphericalHead(np.ones((3, 2), int)), TypeError, ("`weights`", "floating")),
        (lambda h: SphericalHead(np.ones((0, 2))), ValueError, ("(1, 1)",)),
        (lambda h: SphericalHead(np.ones((3, 2)), loss="zloss"), TypeError, ("`loss`", "zloss")),
        (lambda h: SphericalHead(np.ones((3, 2)), eps=1.0), TypeError, ("'eps'", "a, b")),
        (lambda h: SphericalHead(np.ones((3, 2)), a=-1.0), ValueError, ("`a`",)),
        (lambda h: SphericalHead(np.ones((3, 2)), stabilize_every=0), ValueError, ("at least 1",)),
    ],
)
def test_errors(call, error, parts):
    with pytest.raises(error) as told:
        call(SphericalHead(np.ones((3, 2))))
    assert all(part in str(told.value) for part in parts), told.value


def test_sums_are_a_tuple_of_arrays():
    sums = SphericalHead(np.eye(3, 2)).sums([[1.0, 2.0]], [1])
    assert isinstance(sums, SphericalSums)
    assert (sums.target, sums.sum, sums.squares, sums.size) == (2.0, 3.0, 5.0, 3)
