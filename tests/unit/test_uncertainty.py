"""Measures of uncertainty: the papers' numbers, limits, digits, and what is chosen."""

import numpy as np
import pytest

import normx
from normx.uncertainty import (
    clip_uncertain,
    consensus_kl,
    entropy,
    evidential,
    inhibited,
    least_confidence,
    margin,
    mc_dropout,
    select,
    trust,
    trust_score,
    vote_entropy,
)

INF, NAN = np.inf, np.nan
ROW = np.array([1.0, 2.0, 3.0, -1.0])
OF_WEIGHTS = (least_confidence, margin, entropy)
OF_SCORES = (*OF_WEIGHTS, inhibited, evidential)
OF_MANY = (mc_dropout, consensus_kl)


def test_the_papers_numbers():
    np.testing.assert_allclose(vote_entropy([0, 1, 0, 1, 0]), 0.6730116670, rtol=1e-9)
    assert evidential([1.0, 2.0, -1.0]) == 0.5
    np.testing.assert_allclose(1 - inhibited(ROW), 0.9683150792, rtol=1e-9)
    np.testing.assert_allclose(1 - inhibited(ROW, alpha=np.log(1.5)), 0.9532138269, rtol=1e-9)
    np.testing.assert_allclose(entropy(ROW), 0.8875433689, rtol=1e-9)


def test_measures_of_weights_are_their_definitions():
    x = np.random.default_rng(0).normal(size=(20, 6))
    p = np.sort(normx.softmax(x), axis=-1)[:, ::-1]
    np.testing.assert_allclose(least_confidence(x), 1 - p[:, 0], rtol=1e-14)
    np.testing.assert_allclose(margin(x), 1 - p[:, 0] + p[:, 1], rtol=1e-14)
    np.testing.assert_allclose(entropy(x), -(p * np.log(p)).sum(-1), rtol=1e-14)
    three = x.reshape(4, 5, 6)
    p = normx.softmax(three)
    mean = p.mean(0)
    np.testing.assert_allclose(mc_dropout(three), 1 - mean.max(-1), rtol=1e-14)
    want = (p * np.log(p / mean)).sum((0, -1)) / 4
    np.testing.assert_allclose(consensus_kl(three), want, rtol=1e-12)


def test_what_is_nearly_certain_keeps_its_digits():
    gap = np.array([5.0, 50.0, 500.0])
    x = np.stack([gap, 0 * gap], axis=-1)
    rest = np.exp(-gap)
    exact = rest / (1 + rest)
    np.testing.assert_allclose(least_confidence(x), exact, rtol=1e-14)
    np.testing.assert_allclose(margin(x), 2 * exact, rtol=1e-14)
    np.testing.assert_allclose(mc_dropout(x[None]), exact, rtol=1e-14)
    np.testing.assert_allclose(entropy(x), np.log1p(rest) + gap * exact, rtol=1e-14)
    np.testing.assert_allclose(inhibited(x[:, :1], alpha=0.0), exact, rtol=1e-14)


@pytest.mark.parametrize("f", OF_SCORES, ids=lambda f: f.__name__)
def test_higher_is_less_certain(f):
    sure, unsure = np.array([9.0, 0.0, 0.0]), np.array([0.1, 0.0, 0.0])
    assert f(sure) < f(unsure)


def test_limits():
    for k in (1, 2, 7):
        np.testing.assert_allclose(least_confidence(np.zeros(k)), 1 - 1 / k, atol=1e-15)
        np.testing.assert_allclose(entropy(np.zeros(k)), np.log(k), atol=1e-15)
        assert evidential(np.zeros(k)) == 1
    assert margin([5.0]) == 0 and margin([5.0, 5.0]) == 1
    assert [least_confidence([INF, 0.0]), margin([INF, 0.0]), entropy([INF, 0.0])] == [0, 0, 0]
    assert least_confidence([INF, INF]) == 0.5
    assert not np.signbit([least_confidence([INF, 0.0]), entropy([INF, 0.0])]).any()
    assert inhibited([INF, 0.0]) == 0 and evidential([INF, 0.0]) == 0
    assert vote_entropy([3, 3, 3]) == 0
    assert 0 <= consensus_kl([[1.0, 2.0]] * 3) < 1e-15
    np.testing.assert_allclose(consensus_kl([[INF, 0.0], [0.0, INF]]), np.log(2))


@pytest.mark.parametrize("f", OF_SCORES, ids=lambda f: f.__name__)
def test_items_without_classes_and_items_of_nan(f):
    nothing = f([[1.0, 2.0], [3.0, 4.0]], where=[[False, False], [True, True]])
    assert nothing[0] == (0 if f is entropy else 1)
    assert np.isfinite(nothing).all()
    got = f([[NAN, 1.0], [0.0, 1.0]])
    assert np.isnan(got[0]) and np.isfinite(got[1])
    assert np.isfinite(f([NAN, 1.0, 0.0], where=[False, True, True]))


@pytest.mark.parametrize("f", [*OF_SCORES, *OF_MANY], ids=lambda f: f.__name__)
def test_left_out_classes_are_as_if_they_were_not_there(f):
    x = np.random.default_rng(1).normal(size=(3, 2, 5))
    where = np.array([True, False, True, True, False])
    np.testing.assert_allclose(f(x, where=where), f(x[..., where]), rtol=1e-14)


@pytest.mark.parametrize("f", [*OF_SCORES, *OF_MANY], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_dtypes(f, dtype):
    x = np.array([[[1, 2, 3], [0, 0, 0]]], dtype)
    got = f(x)
    assert got.dtype == ("float64" if dtype == "int64" else dtype)
    np.testing.assert_allclose(got, f(x.astype("float64")), rtol=np.finfo(got.dtype).eps * 4)


def test_temperature_orders_two_classes_alike_and_three_not():
    x = np.random.default_rng(2).normal(size=(50, 2)) * 3
    order = [np.argsort(least_confidence(x, temperature=t)).tolist() for t in (1.0, 9.0)]
    assert order[0] == order[1]
    three = np.array([[2.0, 1.9, -9.0], [2.0, 1.5, 1.5]])
    cold, hot = (least_confidence(three, temperature=t) for t in (0.1, 10.0))
    assert cold[0] > cold[1] and hot[0] < hot[1]


@pytest.mark.parametrize("f", OF_WEIGHTS, ids=lambda f: f.__name__)
def test_temperatures_at_their_limits(f):
    x = [[1.0, 3.0, 3.0], [1.0, 2.0, 3.0]]
    np.testing.assert_array_equal(f(x, temperature=0.0), f([[-INF, 0.0, 0.0], [-INF, -INF, 0.0]]))
    np.testing.assert_allclose(f(x, temperature=INF), f(np.zeros((2, 3))), rtol=1e-14)


def test_dropout_without_dropping_is_one_pass():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3))
    np.testing.assert_allclose(mc_dropout(x, rng=rng, rate=0.0), least_confidence(x), rtol=1e-14)
    again = [mc_dropout(x, rng=np.random.default_rng(5), rate=0.4) for _ in "ab"]
    np.testing.assert_array_equal(*again)
    by_column = mc_dropout(x.T, rng=np.random.default_rng(5), rate=0.4, axis=0)
    assert by_column.shape == (4,)


def test_inhibited_is_what_inhibited_softmax_leaves():
    x = np.random.default_rng(3).normal(size=(5, 4)) * 5
    alpha = np.linspace(-2, 2, 5)[:, None]
    want = 1 - normx.inhibited_softmax(x, alpha=alpha).sum(-1)
    np.testing.assert_allclose(inhibited(x, alpha=alpha), want, atol=1e-15)


def test_gradients_are_of_what_was_passed():
    _, pullback = normx.vjp(entropy, [1.0, 0.0], temperature=2.0)
    assert sorted(pullback(1.0)) == ["temperature", "x"]
    _, pullback = normx.vjp(inhibited, [[1.0, 0.0]])
    assert sorted(pullback([1.0])) == ["x"]
    for f in (entropy, mc_dropout, inhibited, evidential):
        with pytest.raises(TypeError, match="temprature"):
            normx.vjp(f, [[1.0, 0.0]], temprature=2.0)


def test_gradient_of_a_temperature_by_finite_differences():
    x, t = np.random.default_rng(4).normal(size=(3, 4)), np.array([[0.5], [1.0], [3.0]])
    for f in OF_WEIGHTS:
        _, pullback = normx.vjp(f, x, temperature=t)
        want = (f(x, temperature=t + 1e-6) - f(x, temperature=t - 1e-6)) / 2e-6
        np.testing.assert_allclose(pullback(np.ones(3))["temperature"][:, 0], want, atol=1e-8)


# --------------------------------------------------------------------- trust score


def by_the_book(x, predicted, samples, labels, k, alpha):
    """Jiang et al.: one tree per class, after its thin places were taken out."""
    sets = {}
    for c in np.unique(labels):
        own = samples[labels == c]
        apart = np.sort(np.linalg.norm(own[:, None] - own[None], axis=-1), axis=-1)
        radius = apart[:, min(k, len(own)) - 1]
        drop = int(alpha * len(own) + 1e-9)
        sets[c] = own[np.sort(np.argsort(-radius, kind="stable")[drop:])]
    nearest = {c: np.linalg.norm(x[:, None] - s[None], axis=-1).min(-1) for c, s in sets.items()}
    return np.array(
        [
            nearest[c][i] / min(d[i] for other, d in nearest.items() if other != c)
            for i, c in enumerate(predicted)
        ]
    )


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3])
def test_trust_score_is_that_of_its_paper(alpha, monkeypatch):
    rng = np.random.default_rng(0)
    samples, labels = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    x, predicted = rng.normal(size=(11, 3)), rng.integers(0, 3, 11)
    want = by_the_book(x, predicted, samples, labels, 4, alpha)
    for block in (trust._BLOCK, 500):  # at once, and in parts
        monkeypatch.setattr(trust, "_BLOCK", block)
        got = trust_score(x, predicted, samples, labels, k=4, alpha=alpha)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_trust_score_on_samples():
    samples, labels = [[0.0], [1.0], [1.0]], [0, 0, 1]
    got = trust_score([[0.0], [1.0], [1.0]], [0, 0, 1], samples, labels)
    np.testing.assert_array_equal(got, [0.0, 1.0, 1.0])
    np.testing.assert_array_equal(trust_score([[1.0]], [0], [[0.0], [1.0]], [0, 1]), [INF])
    assert trust_score([[9.0]], [0], [[0.0]], [0]) == 0  # there is no other class


def test_far_samples_lose_no_digits():
    samples = np.array([[1e8], [1e8 + 2]])
    got = trust_score(np.array([[1e8 + 0.5]]), [0], samples, [0, 1], alpha=0.0)
    assert got == 0.5 / 1.5


# ------------------------------------------------------------------ what is chosen


def test_most_uncertain_come_first_and_ties_in_order():
    u = [0.3, 0.9, 0.3, 0.1, 0.9]
    np.testing.assert_array_equal(select(u, 5), [1, 4, 0, 2, 3])
    np.testing.assert_array_equal(select(u, 0), [])


@pytest.mark.parametrize(("keep", "dropped"), [(1.0, 0), (0.8, 1), (0.81, 0), (0.4, 3), (0.01, 4)])
def test_clipping_takes_out_the_most_uncertain(keep, dropped):
    u = np.array([0.3, 0.9, 0.4, 0.1, 0.8])
    gone = np.argsort(-u)[:dropped]
    got = clip_uncertain(u, keep)
    assert (got[gone] == -INF).all()
    rest = np.setdiff1d(np.arange(5), gone)
    np.testing.assert_array_equal(got[rest], u[rest])
    if dropped < 4:
        chosen = select(u, 2, keep)
        assert not set(chosen) & set(gone)
        np.testing.assert_array_equal(chosen, select(got, 2))


def test_clipping_gives_way_where_too_few_would_be_left():
    np.testing.assert_array_equal(select([1.0, 2.0, 3.0], 2, keep=0.1), [1, 0])


def test_clipping_works_on_measures_of_any_range():
    u = np.array([5.0, -3.0, 40.0, INF])
    np.testing.assert_array_equal(select(u, 2, keep=0.75), [2, 0])


# -------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "kind", "parts"),
    [
        (lambda: least_confidence(1.0), ValueError, ("least_confidence", "`x`", "a number")),
        (lambda: least_confidence("a"), TypeError, ("uncertainty.least_confidence", "`x`")),
        (lambda: entropy(np.zeros((2, 0))), ValueError, ("entropy", "at least one class")),
        (lambda: margin([1j, 2j]), TypeError, ("margin", "`x`", "real")),
        (lambda: margin([[1.0]], axis=(0, 1)), TypeError, ("margin", "`axis`", "an int")),
        (lambda: margin([1.0], temperature=-1.0), ValueError, ("margin", "`temperature`")),
        (lambda: consensus_kl(np.ones((2, 3)), member_axis=1), ValueError, ("`member_axis`",)),
        (lambda: consensus_kl([1.0]), ValueError, ("`member_axis`", "another axis")),
        (lambda: mc_dropout(ROW, rng=0), TypeError, ("`rng`", "numpy.random.Generator")),
        (lambda: mc_dropout(ROW, rng=np.random.default_rng(), rate=1), ValueError, ("`rate`",)),
        (lambda: mc_dropout(ROW, rng=np.random.default_rng(), passes=0), ValueError, ("`passes`",)),
        (lambda: inhibited(ROW, alpha="a"), TypeError, ("inhibited", "`alpha`")),
        (lambda: inhibited(ROW, alpha=np.zeros(3)), ValueError, ("`alpha`", "per item")),
        (lambda: vote_entropy([0.5, 0.5]), TypeError, ("`votes`", "ints", "argmax")),
        (lambda: vote_entropy(np.zeros((0, 2), int)), ValueError, ("`votes`", "one member")),
        (lambda: trust_score(ROW, [0], ROW, [0]), ValueError, ("trust_score", "`x`")),
        (lambda: trust_score([[0.0]], [0], [[0.0, 1.0]], [0]), ValueError, ("`samples`",)),
        (lambda: trust_score([[0.0]], [0.5], [[0.0]], [0]), TypeError, ("`predicted`", "ints")),
        (lambda: trust_score([[0.0]], [0], [[0.0]], [0, 1]), ValueError, ("`labels`", "(1,)")),
        (lambda: trust_score([[0.0]], [2], [[0.0]], [0]), ValueError, ("`predicted`", "class 2")),
        (lambda: trust_score([[0.0]], [0], [[0.0]], [0], alpha=1), ValueError, ("`alpha`",)),
        (lambda: trust_score([[0.0]], [0], [[0.0]], [0], k=0), ValueError, ("`k`", "at least 1")),
        (lambda: select([1.0], 2), ValueError, ("select", "`n`", "at most 1")),
        (lambda: select([1.0, NAN], 1), ValueError, ("select", "`u`", "NaN")),
        (lambda: select([[1.0]], 1), ValueError, ("select", "`u`", "one dimension")),
        (lambda: clip_uncertain([1.0], 0), ValueError, ("clip_uncertain", "`keep`", "above 0")),
        (lambda: clip_uncertain([1.0], "a"), TypeError, ("clip_uncertain", "`keep`")),
        (lambda: normx.vjp(margin, ROW)[1](np.ones(2)), ValueError, ("vjp", "`dy`", "shape ()")),
    ],
)
def test_wrong_arguments(call, kind, parts):
    with pytest.raises(kind) as raised:
        call()
    assert all(part in str(raised.value) for part in parts), raised.value
