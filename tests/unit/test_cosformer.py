"""cosFormer: the quadratic formula is the definition."""

import time
import tracemalloc

import numpy as np
import pytest

import normx
from normx.attention import CosformerState, _cosformer, cosformer


@pytest.fixture
def short(monkeypatch):
    """Chunks and segments of which a few entries make several."""
    monkeypatch.setattr(_cosformer, "CHUNK", 4)
    monkeypatch.setattr(_cosformer, "SEGMENT", 9)


def drawn(queries, keys, batch=(2,), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(*batch, n, d)) for n, d in ((queries, 5), (keys, 5), (keys, 3))]


def by_definition(q, k, v, *, max_len=None, causal=False, where=None, eps=1e-6):
    queries, keys = q.shape[-2], k.shape[-2]
    distance = np.arange(queries)[:, None] - np.arange(keys)
    a = np.maximum(q, 0) @ np.swapaxes(np.maximum(k, 0), -1, -2)
    a = a * np.cos(np.pi / 2 * distance / (max_len or max(queries, keys)))
    a = np.tril(a) if causal else a
    a = a if where is None else np.where(where[..., None, :], a, 0.0)
    return a @ v / np.maximum(a.sum(-1, keepdims=True), eps)


@pytest.mark.parametrize("max_len", [None, 5000])
@pytest.mark.parametrize(
    ("queries", "keys", "causal"),
    [(1, 1, True), (7, 7, True), (64, 64, True), (200, 200, True), (1100, 1100, True),
     (130, 77, False), (1200, 700, False)],
)  # fmt: skip
def test_linear_is_quadratic(queries, keys, causal, max_len):
    q, k, v = drawn(queries, keys)
    where = np.random.default_rng(1).random((2, keys)) < 0.8
    for mask in (None, where, where[:, None, :], where[0]):
        got = cosformer(q, k, v, causal=causal, max_len=max_len, where=mask)
        flat = mask if mask is None or mask.ndim < 3 else mask[:, 0]
        want = by_definition(q, k, v, causal=causal, max_len=max_len, where=flat)
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_the_reference_of_the_paper():
    """Six tokens, by the features of the paper written out."""
    q, k, v = drawn(6, 6, batch=())
    a = np.pi * np.arange(1, 7) / 12
    features = [
        np.concatenate([np.maximum(x, 0) * f(a)[:, None] for f in (np.sin, np.cos)], 1)
        for x in (q, k)
    ]
    weights = np.tril(features[0] @ features[1].T)
    want = weights @ v / np.maximum(weights.sum(1, keepdims=True), 1e-6)
    np.testing.assert_allclose(cosformer(q, k, v, causal=True), want, atol=1e-14)


def test_outputs_are_means_of_values_whatever_the_size_of_a_query():
    q, k, v = drawn(40, 40, batch=())
    y = cosformer(q, k, v)
    assert (y >= v.min(0) - 1e-12).all() and (y <= v.max(0) + 1e-12).all()
    np.testing.assert_allclose(cosformer(7.5 * q, k, v), y, atol=1e-13)
    far = cosformer(q, k, v, max_len=10**9)
    a = np.maximum(q, 0) @ np.maximum(k, 0).T
    np.testing.assert_allclose(far, a @ v / a.sum(1, keepdims=True), atol=1e-12)


def test_a_query_without_positive_entries_is_dead():
    q, k, v = drawn(5, 5, batch=())
    q[2] = -np.abs(q[2])
    y, pullback = normx.vjp(cosformer, q, k, v)
    assert not y[2].any()
    gradients = pullback(np.ones_like(y))
    assert not gradients["q"][2].any() and all(np.isfinite(g).all() for g in gradients.values())


def test_keys_left_out_have_no_effect_whatever_they_hold(short):
    q, k, v = drawn(11, 11)
    where = np.ones((2, 11), bool)
    where[:, 3::4] = False
    want = cosformer(q, k, v, causal=True, where=where)
    k[~where], v[~where] = np.nan, np.inf
    np.testing.assert_array_equal(cosformer(q, k, v, causal=True, where=where), want)


def test_with_max_len_a_prefix_does_not_depend_on_what_comes_after():
    q, k, v = drawn(20, 20)
    whole = cosformer(q, k, v, causal=True, max_len=32)
    part = cosformer(q[:, :12], k[:, :12], v[:, :12], causal=True, max_len=32)
    np.testing.assert_allclose(whole[:, :12], part, atol=1e-14)


def test_heads_share_keys():
    q, k, v = drawn(9, 9, batch=(2, 2))
    q = np.random.default_rng(3).normal(size=(2, 4, 9, 5))
    want = cosformer(q, np.repeat(k, 2, 1), np.repeat(v, 2, 1), causal=True)
    np.testing.assert_allclose(cosformer(q, k, v, causal=True), want, atol=1e-14)
    where = np.random.default_rng(4).random((2, 1, 9)) < 0.7
    got = cosformer(q, k, v, causal=True, where=where)
    want = cosformer(q, np.repeat(k, 2, 1), np.repeat(v, 2, 1), causal=True, where=where)
    np.testing.assert_allclose(got, want, atol=1e-14)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_the_finite_differences(causal, short):
    q, k, v = drawn(11, 11)
    given = {"q": q, "k": k, "v": v}
    options = {"causal": causal, "where": np.random.default_rng(2).random((2, 11)) < 0.8}
    y, pullback = normx.vjp(cosformer, q, k, v, **options)
    dy = np.random.default_rng(3).normal(size=y.shape)
    step = 1e-6
    for word, x in given.items():
        want = np.zeros_like(x)
        for i in np.ndindex(*x.shape):
            near = []
            for sign in (1, -1):
                moved = x.copy()
                moved[i] += sign * step
                near.append(np.sum(cosformer(*(given | {word: moved}).values(), **options) * dy))
            want[i] = (near[0] - near[1]) / (2 * step)
        np.testing.assert_allclose(pullback(dy)[word], want, atol=1e-6, rtol=1e-6)


def test_keys_in_pieces(short):
    q, k, v = drawn(21, 21)
    where = np.random.default_rng(1).random((2, 21)) < 0.8
    state, parts = CosformerState(max_len=30), []
    for a, b in ((0, 1), (1, 2), (2, 9), (9, 21)):
        y, state = state.step(q[:, a:b], k[:, a:b], v[:, a:b], where=where[:, a:b])
        parts.append(y)
    options = {"max_len": 30, "where": where}
    want = cosformer(q, k, v, causal=True, **options)
    np.testing.assert_allclose(np.concatenate(parts, 1), want, atol=1e-13)
    state = CosformerState(max_len=30).update(k, v, where=where)
    np.testing.assert_allclose(state.attend(q), cosformer(q, k, v, **options), atol=1e-13)
    np.testing.assert_allclose(state.attend(q[:, 4:6], start=4), state.attend(q)[:, 4:6])
    assert state.sums.shape == (2, 10, 4) and state.position == 21


def test_narrow_dtypes_are_added_up_wide():
    q, k, v = (x.astype(np.float16) for x in drawn(1500, 1500, batch=()))
    want = by_definition(*(x.astype(np.float64) for x in (q, k, v)), causal=True)
    got = cosformer(q, k, v, causal=True)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=2.0**-10.9, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_time_and_memory_grow_with_the_length(causal):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    rng = np.random.default_rng(0)
    spent, memory = {8192: [], 65536: []}, {}
    arrays = {n: [rng.normal(size=(n, 64)).astype(np.float32) for _ in "qkv"] for n in spent}
    with threadpoolctl.threadpool_limits(1):  # time of this process counts, and nothing else's
        for _ in range(3):
            for n, qkv in arrays.items():
                start = time.process_time()
                cosformer(*qkv, causal=causal)
                spent[n].append(time.process_time() - start)
        for n, qkv in arrays.items():
            tracemalloc.start()
            cosformer(*qkv, causal=causal)
            memory[n] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert min(spent[65536]) <= 8.5 * min(spent[8192])
    assert memory[65536] < 2.2 * arrays[65536][0].nbytes + 2**22


Q, K, V = drawn(6, 4)
WRONG = {
    "lengths": (lambda: cosformer(Q, K, V, causal=True), ValueError, "`causal` must be False"),
    "size": (lambda: cosformer(Q, K[..., :2], V), ValueError, "`k`"),
    "values": (lambda: cosformer(Q, K, V[:, :3]), ValueError, "`v` must be with one value"),
    "short": (lambda: cosformer(Q, K, V, max_len=5), ValueError, "`max_len` must be at least"),
    "float": (lambda: cosformer(Q, K, V, max_len=8.0), TypeError, "`max_len` must be an int"),
    "eps": (lambda: cosformer(Q, K, V, eps=0.0), ValueError, "`eps`"),
    "pairs": (lambda: cosformer(Q, K, V, where=np.ones((2, 6, 4), bool)), ValueError, "linear"),
    "mask": (lambda: cosformer(Q, K, V, where=np.ones(4)), TypeError, "an array of bool"),
    "state": (lambda: CosformerState(0), ValueError, "`max_len`"),
    "full": (lambda: CosformerState(3).update(K, V), ValueError, "`max_len`"),
    "step": (lambda: CosformerState(9).step(Q, K, V), ValueError, "`q`"),
    "early": (lambda: CosformerState(9).attend(Q), ValueError, "update or step first"),
    "other": (
        lambda: CosformerState(9).update(K, V).update(K[0], V[0]), ValueError, "those before"
    ),
    "query": (lambda: CosformerState(9).update(K, V).attend(Q[..., :2]), ValueError, "5 numbers"),
    "cotangent": (lambda: normx.vjp(cosformer, Q, K, V)[1](Q), ValueError, "`dy`"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_named(what):
    call, kind, message = WRONG[what]
    with pytest.raises(kind, match=r"normx\.") as raised:
        call()
    assert message in str(raised.value)
