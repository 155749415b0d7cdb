"""The losses on NumPy: the papers' numbers, their errors not repeated, blocks, memory, messages."""

import math
import tracemalloc

import numpy as np
import pytest

import normx
from normx import losses
from normx._libraries import numpy_library
from normx.losses import CrossEntropy, SphericalSums, _fused, _rows, cross_entropy
from normx.losses.softmax import Entropy
from normx.testing.ulp import error_in_ulp

INF, NAN = np.inf, np.nan
GOLDEN = np.array([1.0, 2.0, 3.0, -1.0])


def rows(shape=(4, 7), spread=2.0, seed=0):
    return np.random.default_rng(seed).normal(0.0, spread, shape)


# ------------------------------------------------------------------ golden values


@pytest.mark.parametrize(
    ("loss", "arguments", "keywords", "want"),
    [
        (cross_entropy, (GOLDEN, 2), {}, 0.4197166463),
        (cross_entropy, (GOLDEN, 2), {"label_smoothing": 0.2}, 0.7697166463),
        (cross_entropy, (GOLDEN, 2), {"normalizer": "taylor_softmax"}, -math.log(0.5151515152)),
        (cross_entropy, (GOLDEN, 2), {"normalizer": normx.spherical_softmax}, -math.log(0.6)),
        (losses.taylor_cross_entropy, (GOLDEN, 2), {}, -math.log(0.5151515152)),
        (losses.spherical_cross_entropy, (GOLDEN, 2), {"eps": 0.0}, -math.log(0.6)),
        (losses.spherical_cross_entropy, (GOLDEN, 2), {}, -math.log(0.5999066915)),
        (losses.zloss, (GOLDEN, 2), {}, 0.2671926895),
        (losses.evidential_loss, (GOLDEN[[0, 1, 3]], 1), {"annealing": 0.0}, 0.4761904762),
        (losses.evidential_loss, (GOLDEN[[0, 1, 3]], 1), {}, 0.4761904762 + 0.2652789553 / 1.0),
    ],
)
def test_golden_values(loss, arguments, keywords, want):
    got = loss(*arguments, **keywords)
    got = got.loss if isinstance(got, CrossEntropy) else got
    np.testing.assert_allclose(got, want, rtol=3e-10)


def test_golden_fields_and_gradients():
    found, pullback = normx.vjp(cross_entropy, GOLDEN, 2, z_loss=0.1)
    np.testing.assert_allclose(found.logsumexp, 3.4197166463, rtol=1e-10)
    np.testing.assert_allclose(found.entropy, 0.8875433689, rtol=1e-9)
    np.testing.assert_allclose(found.z_loss, 0.1 * 3.4197166463**2, rtol=1e-9)
    np.testing.assert_allclose(found.loss, 0.4197166463 + found.z_loss, rtol=1e-9)
    p = normx.softmax(GOLDEN)
    want = (1.0 + 2.0 * 0.1 * 3.4197166463) * p - (np.arange(4) == 2)
    np.testing.assert_allclose(pullback(1.0)["x"], want, rtol=1e-9)
    _, pullback = normx.vjp(losses.zloss, GOLDEN, 2)
    want = [0.03170673, 0.06341347, -0.06341347, -0.03170673]
    np.testing.assert_allclose(pullback(1.0)["x"], want, atol=1e-8)


@pytest.mark.parametrize(
    ("fill", "weights", "want"),
    [
        (-INF, [0.8455347, 0.1544653], 0.1677860),
        (-1.0, [0.7798745, 0.1424702], 0.2486223),
        (0.0, [0.6880636, 0.1256979], 0.3738741),
        (5.0, [0.0241816, 0.0044176], 3.7221633),
    ],
)
def test_golden_masked(fill, weights, want):
    x, task = np.array([[0.5, -1.0, 2.0, 0.3]]), np.array([False, False, True, True])
    loss, pullback = normx.vjp(losses.masked_cross_entropy, x, [2], where=task, fill=fill)
    np.testing.assert_allclose(loss, want, atol=5e-8)
    gradient = pullback(1.0)["x"][0]
    np.testing.assert_allclose(gradient[2:], np.array(weights) - [1.0, 0.0], atol=5e-8)
    assert not gradient[:2].any()
    masked = normx.masked_softmax(x, where=task, fill=fill)[0, 2:]
    np.testing.assert_allclose(masked, weights, atol=5e-8)


def test_golden_noise():
    from normx.losses.noisy import _Noise

    x, w = np.array([[2.0, 1.0]]), np.array([[1.0, 2.0]])
    noise = _Noise(numpy_library, "annealed", x, w, np.array([0.1 * -1.3]))
    np.testing.assert_allclose(noise.amount(), 0.13, rtol=1e-12)
    of_x, of_w = noise.slopes()
    np.testing.assert_allclose(w - of_x, [[0.87, 2.13]], rtol=1e-12)
    np.testing.assert_allclose(x - of_w, [[2.13, 0.87]], rtol=1e-12)


# --------------------------------------------------------------- by their definitions


@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 2.0, 3.0])
def test_fenchel_young_losses_are_the_gap_of_their_entropies(alpha):
    """No weights do better than the normalizer's; the loss is what the target's fall short by."""
    x, targets = rows(), np.array([3, 0, 6, 1])
    got = losses.entmax_loss(x, targets, alpha=alpha, reduction="none")

    def value(p):
        with np.errstate(divide="ignore"):
            logs = np.where(p > 0, np.log(np.where(p > 0, p, 1.0)), 0.0)
        tsallis = -p * logs if alpha == 1.0 else (p - p**alpha) / (alpha * (alpha - 1.0))
        return (p * x).sum(-1) + tsallis.sum(-1)

    best = value(normx.entmax(x, alpha=alpha))
    np.testing.assert_allclose(got, best - value(np.eye(7)[targets]), rtol=1e-10)
    rng = np.random.default_rng(1)
    assert all((value(rng.dirichlet(np.ones(7), 4)) <= best + 1e-12).all() for _ in range(50))


@pytest.mark.parametrize(("alpha", "margin"), [(1.5, 2.0), (2.0, 1.0)])
def test_fenchel_young_losses_are_0_from_their_margin_on(alpha, margin):
    loss = lambda lead: losses.entmax_loss([lead, 0.0, 0.0], 0, alpha=alpha)  # noqa: E731
    assert loss(margin) == 0.0 < loss(margin - 1e-3)
    _, pullback = normx.vjp(losses.entmax_loss, np.array([margin, 0.0, 0.0]), 0, alpha=alpha)
    assert not pullback(1.0)["x"].any()


def test_the_named_ones_are_those_of_their_powers():
    x, targets = rows(), [3, 0, 6, 1]
    for loss, alpha in ((losses.sparsemax_loss, 2.0), (losses.entmax15_loss, 1.5)):
        np.testing.assert_array_equal(loss(x, targets), losses.entmax_loss(x, targets, alpha=alpha))
    np.testing.assert_allclose(
        losses.entmax_loss(x, targets, alpha=1.0), cross_entropy(x, targets).loss, rtol=1e-13
    )


def test_zloss_is_blind_to_shift_and_scale():
    x, targets = rows(), np.array([3, 0, 6, 1])
    loss, pullback = normx.vjp(losses.zloss, x, targets)
    np.testing.assert_allclose(losses.zloss(3.0 * x + 1e6, targets), loss, rtol=1e-9)
    gradient = pullback(1.0)["x"]
    np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-15)
    np.testing.assert_allclose((gradient * x).sum(-1), 0.0, atol=1e-15)
    assert losses.zloss(-x, targets) != pytest.approx(loss)  # but not to the sign
    hinge = np.maximum(0.0, 0.5 - np.take_along_axis(normx.zscore(x), targets[:, None], -1)).mean()
    assert losses.zloss(x, targets, a=1e4, b=0.5) == pytest.approx(hinge, abs=1e-4)


def test_zloss_in_float32_with_a_large_mean():
    """q/D - mean**2 in float32 would be negative here."""
    x = (1e4 + rows((3, 50))).astype(np.float32)
    want = losses.zloss(x.astype(np.float64), [1, 2, 3])
    np.testing.assert_allclose(losses.zloss(x, [1, 2, 3]), want, rtol=1e-6)
    at = x[[0, 1, 2], [1, 2, 3]]
    sums = SphericalSums(at, x.sum(-1), (x * x).sum(-1), 50)
    loss, pullback = normx.vjp(losses.zloss, sums)
    assert np.isfinite(loss) and all(np.isfinite(part).all() for part in pullback(1.0).values())


def test_flat_rows_have_no_score_and_no_gradient():
    for x, size in (([[0.3]], 1), ([[2.0, 2.0, 2.0]], 3)):
        loss, pullback = normx.vjp(losses.zloss, np.array(x), [0], b=1.0, a=2.0)
        assert loss == pytest.approx(math.log1p(math.exp(2.0)) / 2.0)
        assert not pullback(1.0)["x"].any()
        sums = SphericalSums(x[0][0], sum(x[0]), sum(v * v for v in x[0]), size)
        assert losses.zloss(sums, b=1.0, a=2.0) == loss


def test_evidence_is_not_the_softmax():
    """Without evidence every class is as likely, and the divergence is 0: not so for a softmax."""
    x = np.array([-3.0, -1.0, -2.0])
    assert losses.evidential_loss(x, 0) == pytest.approx(2 / 3 + 3 * (1 / 3) * (2 / 3) / 4)
    # Evidence for the target alone is no evidence against it.
    free = losses.evidential_loss([9.0, 0.0, 0.0], 0, annealing=0.0)
    assert losses.evidential_loss([9.0, 0.0, 0.0], 0, annealing=1.0) == pytest.approx(free)


def test_the_functions_around_log_gamma():
    special = pytest.importorskip("scipy.special")
    from normx.losses import evidential

    x = np.concatenate([np.linspace(1, 40, 401), [1e3, 1e6, 1e15]])
    want = special.gammaln(x)
    assert (abs(evidential._log_gamma(np, x) - want) <= 2e-14 * np.maximum(1.0, want)).all()
    np.testing.assert_allclose(
        evidential._digamma(np, x), special.digamma(x), atol=2e-15, rtol=4e-16
    )
    np.testing.assert_allclose(evidential._trigamma(np, x), special.polygamma(1, x), rtol=1e-14)


# ------------------------------------------------------------------------- noise


def test_noise_only_ever_takes_off_and_only_where_something_is_left():
    rng = np.random.default_rng(0)
    x, w, targets = rows((50, 3)), rows((4, 3), seed=1), rng.integers(0, 4, 50)
    call = lambda alpha, x=x, **k: losses.noisy_cross_entropy(  # noqa: E731
        x, w, targets, alpha=alpha, rng=np.random.default_rng(2), reduction="none", **k
    )
    plain = cross_entropy(x @ w.T, targets, reduction="none").loss
    np.testing.assert_array_equal(call(0.0), plain)
    assert (call(0.5) >= plain).all() and (call(0.5) > plain).any()
    np.testing.assert_allclose(call(0.5, w[targets] * 3.0), call(0.0, w[targets] * 3.0), rtol=1e-12)
    assert (call(0.5, noise="negative") <= plain).all()


def test_noise_has_the_mean_that_the_formula_says():
    x, w = np.broadcast_to([2.0, 1.0], (100_000, 2)), np.array([[1.0, 2.0]])
    from normx.losses import noisy

    batch = _rows.batch_of(
        "f",
        x[:, :1],
        np.zeros(len(x), int),
        axis=-1,
        where=None,
        ignore_index=None,
        reduction="mean",
    )
    xi = 0.3 * noisy._normal(batch, np.random.default_rng(0))
    noise = noisy._Noise(numpy_library, "annealed", x, np.broadcast_to(w, x.shape), xi).amount()
    assert noise.mean() == pytest.approx(0.3 * 5.0 * 0.2 * math.sqrt(2.0 / math.pi), rel=0.01)


def test_features_and_weights_of_zeros_give_no_noise_and_no_nan():
    loss, pullback = normx.vjp(
        losses.noisy_cross_entropy,
        np.array([[0.0, 0.0], [1.0, 2.0]]),
        np.array([[1.0, 1.0], [0.0, 0.0]]),
        [0, 1],
        alpha=1.0,
        rng=np.random.default_rng(0),
    )
    assert np.isfinite(loss)
    assert all(np.isfinite(part).all() for part in pullback(1.0).values())


def test_an_ignored_row_does_not_reach_the_weights():
    x, w = np.array([[NAN, INF], [1.0, 2.0]]), rows((3, 2))
    keywords = {"alpha": 0.2, "ignore_index": -100}
    _, pullback = normx.vjp(
        losses.noisy_cross_entropy, x, w, [-100, 1], rng=np.random.default_rng(0), **keywords
    )
    gradients = pullback(1.0)
    assert np.isfinite(gradients["weights"]).all() and not gradients["x"][0].any()


# ------------------------------------------------------------- continual learning


def test_a_masked_step_leaves_the_other_classes_to_the_bit():
    """Multiplying by 0 would not, where a weight decays or a score is infinite."""
    x = rows((6, 5))
    task = np.array([False, False, True, True, True])
    x[:, 0] = INF
    _, pullback = normx.vjp(losses.masked_cross_entropy, x, [2, 3, 4, 2, 3, 4], where=task)
    gradient = pullback(1.0)["x"]
    assert np.all(gradient[:, :2] == 0.0) and np.isfinite(gradient).all()


def test_a_masked_loss_grows_with_the_fill_and_never_overflows():
    x, task = rows((1, 5)), np.array([False, False, True, True, True])
    fills = (-INF, -1e308, -5.0, 0.0, 3.0, 1e4, 1e300)
    values = [losses.masked_cross_entropy(x, [3], where=task, fill=fill) for fill in fills]
    assert np.all(np.diff(values) >= 0.0) and np.isfinite(values).all()
    part = cross_entropy(x[:, 2:], [1]).loss
    np.testing.assert_allclose(values[0], part, rtol=1e-14)


def test_two_ways_to_evaluate():
    """Among all classes without a mask; among those of the task."""
    x = np.array([[0.0, 3.0, 2.0, 1.0], [5.0, 0.0, 1.0, 2.0], [9.0, 0.0, 1.0, 2.0]])
    targets, task = [2, 3, -1], np.array([False, False, True, True])
    options = {"ignore_index": -1}
    assert losses.class_incremental_accuracy(x, targets, **options) == 0.0
    seen = np.array([False, True, True, True])
    assert losses.class_incremental_accuracy(x, targets, seen=seen, **options) == 0.5
    assert losses.task_incremental_accuracy(x, targets, where=task, **options) == 1.0


def test_forgetting_counts_from_when_a_task_was_learnt():
    accuracies = [[0.9, NAN, NAN], [0.6, 0.8, 0.99], [0.5, 0.7, 0.95]]
    assert losses.average_accuracy(accuracies) == pytest.approx((0.5 + 0.7 + 0.95) / 3)
    assert losses.forgetting(accuracies) == pytest.approx((0.4 + 0.1) / 2)
    assert losses.forgetting([[0.7]]) == 0.0
    with pytest.raises(ValueError, match="square"):
        losses.forgetting([[0.5, 0.5]])
    with pytest.raises(ValueError, match="NaN for a task that was learnt"):
        losses.forgetting([[0.5, NAN], [NAN, 0.5]])


# ---------------------------------------------------------------------- cross-entropy


#: All classes but the target of each row.
OTHERS = ([1, 2], [1, 2], [0, 2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loss_near_0_has_its_digits(dtype):
    """log1p of the rest, not the difference of two numbers that are alike."""
    x = np.array([[50.0, 0.0, 3.0], [1000.0, 970.0, 0.0], [9.0, 9.0, -4.0]], dtype)
    found = cross_entropy(x, [0, 0, 1], reduction="none")
    wide = x.astype(np.longdouble)
    top = wide - wide.max(-1, keepdims=True)
    rest = np.array([np.exp(row[others]).sum() for row, others in zip(top, OTHERS, strict=True)])
    want = np.log1p(rest)
    logs = top - want[:, None]
    entropy = -(np.exp(logs) * logs).sum(-1)
    assert error_in_ulp(found.loss, want, dtype).max() <= 4
    np.testing.assert_allclose(
        found.entropy[1:], entropy[1:].astype(dtype), rtol=1e-6 if dtype == "float32" else 1e-12
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_parts_of_long_rows_merge(dtype, monkeypatch):
    """Blocks of any size give the same; and the loss of shifted logits is the same."""
    x = rows((5, 300), 4.0).astype(dtype)
    x[1, ::3], x[2, :250], x[3, 7] = -INF, -INF, -INF
    targets, weight = np.array([0, 1, 299, 8, 131]), np.linspace(0.5, 2, 300)
    keywords = {"label_smoothing": 0.1, "weight": weight}
    cotangent = CrossEntropy(np.ones(5), None, np.ones(5), np.ones(5))
    found = {}
    for block in (1 << 16, 300, 299, 64, 7):
        monkeypatch.setattr(_fused, "BLOCK", block)
        plain = cross_entropy(x, targets, reduction="none")
        smooth, pullback = normx.vjp(cross_entropy, x, targets, reduction="none", **keywords)
        found[block] = (*plain, smooth.loss, pullback(cotangent)["x"])
    working = "float32" if dtype == "float16" else dtype
    for block, results in found.items():
        for got, want in zip(results[:-1], found[1 << 16][:-1], strict=True):
            assert got.dtype == working
            assert error_in_ulp(got, want.astype(np.longdouble), working).max() <= 8, block
        gap = np.abs(results[-1].astype(float) - found[1 << 16][-1].astype(float)).max()
        assert gap <= 8 * np.finfo(dtype).eps
    if dtype == "float64":
        shifted = cross_entropy(x + 2.0**30, targets, reduction="none").loss
        np.testing.assert_allclose(shifted, found[64][0], rtol=1e-6)


def drawn(rng):
    """Logits with anything in them, targets, and keywords."""
    shape = rng.integers(1, 6, rng.integers(1, 4))
    axis = int(rng.integers(len(shape)))
    shape[axis] = rng.choice([1, 2, 5, 40])
    x = rng.normal(0.0, rng.choice([0.1, 3.0, 50.0]), shape)
    for value in (-INF, INF, NAN):
        if rng.random() < 0.3:
            x[rng.random(x.shape) < 0.1] = value
    targets = rng.integers(0, shape[axis], np.delete(shape, axis))
    where = rng.random(x.shape) < 0.7
    np.put_along_axis(where, np.expand_dims(targets, axis), True, axis)
    choices = {
        "label_smoothing": 0.3,
        "weight": rng.uniform(0.0, 2.0, shape[axis]),
        "softcap": 2.5,
        "z_loss": 0.1,
        "where": where,
        "ignore_index": 0,
    }
    keywords = {name: value for name, value in choices.items() if rng.random() < 0.4}
    keywords |= {"axis": axis, "reduction": str(rng.choice(["mean", "sum", "none"]))}
    return x.astype(rng.choice(["float16", "float32", "float64"])), targets, keywords


def test_blocks_and_formula_agree_on_anything(monkeypatch):
    """Values and gradients of every field, NaN and infinities included."""
    rng = np.random.default_rng(0)
    for turn in range(200):
        x, targets, keywords = drawn(rng)
        tolerance = {"float16": 2e-3, "float32": 3e-5, "float64": 1e-10}[x.dtype.name]

        def both_ways(x=x, targets=targets, keywords=keywords):
            found, pullback = normx.vjp(cross_entropy, x, targets, **keywords)
            cotangent = (np.full(np.shape(part), 0.3 + i) for i, part in enumerate(found))
            return (*found, pullback(CrossEntropy(*cotangent))["x"])

        with monkeypatch.context() as patched:
            patched.setattr(_fused, "BLOCK", int(rng.choice([1 << 16, 3, 17])))
            got = both_ways()
            patched.setattr(type(numpy_library), "fused", lambda *_: None)
            patched.setattr(Entropy, "kernel", lambda _: None)
            want = both_ways()
        for a, b in zip(got, want, strict=True):
            size = np.max(np.abs(b), initial=0.0, where=np.isfinite(b))
            np.testing.assert_allclose(
                a, b, rtol=0, atol=tolerance * (1.0 + size), err_msg=f"{turn}: {keywords}"
            )


def test_narrow_logits_have_the_loss_of_wide_ones():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = rows((3, 5000), 3.0)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        narrow = x.astype(dtype)
        want = cross_entropy(narrow.astype(np.float32), [1, 2, 3])
        got, pullback = normx.vjp(cross_entropy, narrow, [1, 2, 3])
        assert got.loss == want.loss and got.loss.dtype == np.float32
        assert pullback(1.0)["x"].dtype == dtype


@pytest.mark.parametrize("view", ["transposed", "strided", "reversed", "channels"])
def test_any_layout(view):
    base = rows((6, 8, 10))
    x, axis = {
        "transposed": (base[0].T, -1),
        "strided": (base[::2, :, 1::3], 1),
        "reversed": (base[:, ::-1, ::-1], -1),
        "channels": (base, 1),
    }[view]
    plain = np.ascontiguousarray(x)
    before = base.copy()
    shape = np.delete(np.array(x.shape), axis)
    targets = np.random.default_rng(0).integers(0, x.shape[axis], shape)
    (got, pull), (want, pull_plain) = (
        normx.vjp(cross_entropy, a, targets, axis=axis) for a in (x, plain)
    )
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-14)
    np.testing.assert_allclose(pull(1.0)["x"], pull_plain(1.0)["x"], rtol=1e-12)
    np.testing.assert_array_equal(base, before)


def test_no_more_memory_than_a_block():
    """The loss needs a block of rows; the gradient is one array of the size of the logits."""
    x = rows((64, 50_257)).astype(np.float32)
    targets = np.arange(64)
    cross_entropy(x, targets)  # what is made once
    tracemalloc.start()
    try:
        found, pullback = normx.vjp(cross_entropy, x, targets)
        held, forward = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        gradient = pullback(1.0)["x"]
        _, backward = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    block = 2 * 4 * _fused.BLOCK  # what two parts of rows in float32 take
    assert forward < 1.5 * block and held < block // 8
    assert backward < gradient.nbytes + block
    assert np.isfinite(found.loss)


def test_the_kernels_run():
    from normx._dispatch import backend
    from normx.plugins import Refusal

    if isinstance(backend("native"), Refusal):
        pytest.skip("the compiled part is not installed")
    with normx.trace() as ran:
        _, pullback = normx.vjp(cross_entropy, rows().astype(np.float32), [0, 1, 2, 3])
        pullback(1.0)
    assert {event.backend for event in ran} == {"native"}
    assert "softmax" in {event.function for event in ran}
    with normx.use_backend("reference"), normx.trace() as ran:
        cross_entropy(rows(), [0, 1, 2, 3])
    assert {event.backend for event in ran} == {"reference"}


def test_means_divide_by_what_counts():
    """Rows that are ignored are in no sum; the Z-loss's mean is over rows, not weights."""
    x, targets, weight = rows((4, 3)), np.array([0, 2, -7, 1]), np.array([1.0, 2.0, 4.0])
    kept = [0, 1, 3]
    options = {"weight": weight, "label_smoothing": 0.1, "z_loss": 0.3}
    got = cross_entropy(x, targets, ignore_index=-7, **options)
    each = cross_entropy(x[kept], targets[kept], reduction="none", **options)
    penalty = each.z_loss.mean()
    np.testing.assert_allclose(got.z_loss, penalty)
    np.testing.assert_allclose(got.loss, (each.loss - each.z_loss).sum() / 7.0 + penalty)
    assert got.logsumexp[2] == got.entropy[2] == 0.0
    total = cross_entropy(x, targets, ignore_index=-7, reduction="sum", **options)
    np.testing.assert_allclose(total.loss, each.loss.sum())


def test_smoothing_is_over_the_classes_that_take_part():
    """A class that is left out, whatever it holds, gets no share: no infinite loss."""
    x, where = rows((2, 4)), np.array([True, True, False, True])
    x[:, 2] = -INF
    got = cross_entropy(x, [0, 3], where=where, label_smoothing=0.3).loss
    np.testing.assert_allclose(got, cross_entropy(x[:, where], [0, 2], label_smoothing=0.3).loss)
    assert cross_entropy(x, [0, 3], label_smoothing=0.3).loss == INF  # its target has no mass


# -------------------------------------------------------------------------- errors

X, T = np.zeros((3, 4)), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "parts"),
    [
        ((X, [0, 4, 1]), {}, ValueError, ("`targets`", "from 0 to 3", "4 of row 1", "bounds")),
        ((X, [0, -1, 1]), {}, ValueError, ("-1 of row 1", "ignore_index")),
        ((X, T * 1.0), {}, TypeError, ("`targets`", "integers", "float64", "make integers")),
        ((X, T > 0), {}, TypeError, ("integers", "bool")),
        ((X, T[:2]), {}, ValueError, ("`targets`", "(3,)", "(2,)")),
        ((X, np.eye(3, 4)), {}, TypeError, ("argmax",)),
        ((X, T), {"where": [True, True, False, True]}, ValueError, ("class 2", "row 2")),
        ((X, T), {"where": np.ones(4)}, TypeError, ("`where`", "bool")),
        ((X, T), {"where": np.ones((2, 4), bool)}, ValueError, ("`where`", "(3, 4)")),
        ((X, T), {"weight": [1.0, 2.0]}, ValueError, ("`weight`", "4 numbers", "(2,)")),
        ((X, T), {"weight": -np.ones(4)}, ValueError, ("`weight`", "at least 0")),
        ((X, T), {"weight": 2.0}, TypeError, ("`weight`", "one per class")),
        ((X, T), {"label_smoothing": 1.5}, ValueError, ("`label_smoothing`", "0 to 1")),
        ((X, T), {"label_smoothing": NAN}, ValueError, ("`label_smoothing`",)),
        ((X, T), {"z_loss": -1.0}, ValueError, ("`z_loss`", "at least 0")),
        ((X, T), {"z_loss": "much"}, TypeError, ("`z_loss`", "'much'")),
        ((X, T), {"softcap": 0.0}, ValueError, ("`softcap`",)),
        ((X, T), {"ignore_index": 1.0}, TypeError, ("`ignore_index`", "int or None")),
        ((X, T), {"reduction": "average"}, ValueError, ("`reduction`", "'mean', 'sum', 'none'")),
        ((X, T), {"normalizer": "sofmax"}, TypeError, ("`normalizer`", "'sofmax'")),
        ((X, T), {"normalizer": "budget"}, ValueError, ("`budget` has no default",)),
        ((X, T), {"normalizer": "log_softmax"}, ValueError, ("`normalizer`",)),
        ((X, T), {"axis": (0, 1)}, TypeError, ("`axis`", "an int")),
        ((X, T), {"axis": 2}, ValueError, ("`axis`",)),
        ((X, T), {"smoothing": 0.1}, TypeError, ("`smoothing`", "label_smoothing")),
        ((X[:, :0], T), {}, ValueError, ("`logits`", "at least one class")),
        ((1.0, 0), {}, ValueError, ("`logits`", "one dimension")),
        (("text", 0), {}, TypeError, ("`logits`", "'text'")),
        ((X + 1j, T), {}, TypeError, ("`logits`", "real")),
        (([[1.0], [1.0, 2.0]], [0, 0]), {}, TypeError, ("`logits`", "ragged")),
    ],
)
def test_errors_name_what_came_and_the_cure(arguments, keywords, error, parts):
    with pytest.raises(error) as told:
        cross_entropy(*arguments, **keywords)
    message = str(told.value)
    assert message.startswith("normx.cross_entropy: ") and all(part in message for part in parts)
    assert "`x`" not in message


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: losses.masked_cross_entropy(X, T), TypeError, ("where",)),
        (lambda: losses.masked_cross_entropy(X, T, where=True, fill=INF), ValueError, ("`fill`",)),
        (lambda: losses.zloss(X), TypeError, ("`targets`", "SphericalSums")),
        (lambda: losses.zloss(X, T, a=0.0), ValueError, ("`a`", "above 0")),
        (lambda: losses.zloss(SphericalSums(1.0, 1.0, 1.0, 0)), ValueError, ("o.size",)),
        (lambda: losses.zloss(SphericalSums(1.0, [1.0], 1.0, 2)), ValueError, ("o.sum", "(1,)")),
        (lambda: losses.zloss(SphericalSums(1.0, 1.0, 1.0, 2), T), TypeError, ("absent",)),
        (lambda: losses.spherical_cross_entropy(X, T, eps=-1.0), ValueError, ("`eps`",)),
        (lambda: losses.entmax_loss(X, T, alpha=0.5), ValueError, ("`alpha`", "at least 1")),
        (lambda: losses.evidential_loss(X, T, annealing=NAN), ValueError, ("`annealing`",)),
        (lambda: noisy(X, X, T, alpha=-0.1), ValueError, ("`alpha`", "at least 0")),
        (lambda: noisy(X, X[:, :2], T), ValueError, ("`weights`", "(classes, 4)")),
        (lambda: noisy(X, X, T, bias=np.zeros(2)), ValueError, ("`bias`", "(3,)")),
        (lambda: noisy(X, X, T, noise="loud"), ValueError, ("`noise`", "'annealed'")),
        (lambda: noisy(X, X, T, rng=0), TypeError, ("`rng`", "numpy.random.Generator")),
        (lambda: noisy(X, X, [0, 1, 3]), ValueError, ("`targets`", "3 of row 2")),
    ],
)
def test_errors_of_the_others(call, error, parts):
    with pytest.raises(error) as told:
        call()
    assert all(part in str(told.value) for part in parts), told.value


def noisy(*arguments, **keywords):
    options = {"alpha": 0.1, "rng": np.random.default_rng(0)} | keywords
    return losses.noisy_cross_entropy(*arguments, **options)


def test_a_cotangent_of_another_shape_is_refused():
    _, pullback = normx.vjp(cross_entropy, X, T)
    with pytest.raises(ValueError, match=r"dy.*shape \(\), that of the loss"):
        pullback(np.ones(3))
    with pytest.raises(ValueError, match=r"shape \(3,\), that of the entropy"):
        pullback(CrossEntropy(None, None, None, 1.0))
