"""Attention: the formula with all scores in memory is the definition."""

import tracemalloc

import numpy as np
import pytest

import normx
from normx._record import registry
from normx.attention import (
    AttentionState,
    _tiles,
    attention,
    entropy_invariant_attention,
    gated_attention_unit,
    layer_scale,
    sigmoid_attention,
    ssmax_attention,
)

WEIGHTS = [r for r in registry().values() if r.kind == "normalizer" and not r.log_space]
PLAIN = [record for record in WEIGHTS if not record.random]


@pytest.fixture(params=[_tiles.TILE, 60], ids=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(_tiles, "TILE", request.param)
    monkeypatch.setattr(_tiles, "LEAST_ROWS", min(request.param, 16) // 4)


def drawn(q_heads=4, k_heads=4, queries=7, keys=7, batch=(2,), seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((q_heads, queries, 3), (k_heads, keys, 3), (k_heads, keys, 2))
    return [rng.normal(size=(*batch, *shape)) for shape in shapes]


def seen(queries, keys, shape=(2, 4), seed=1):
    return np.random.default_rng(seed).random((*shape, queries, keys)) < 0.7


def by_definition(q, k, v, *, normalizer="softmax", causal=False, where=None, scale=None, **own):
    group = q.shape[-3] // k.shape[-3] if q.ndim > 2 else 1
    if group > 1:
        k, v = np.repeat(k, group, -3), np.repeat(v, group, -3)
    x = q @ np.swapaxes(k, -1, -2) * (scale or q.shape[-1] ** -0.5)
    kept = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    if causal:
        kept = kept & np.tril(np.ones(x.shape[-2:], bool), x.shape[-1] - x.shape[-2])
    return getattr(normx, normalizer)(x, where=kept, **own) @ v


def changed(x, index, step):
    x = x.copy()
    x[index] += step
    return x


def slopes(f, x, dy, step=1e-6):
    """Central differences of ``sum(f(x) * dy)``."""
    found = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        found[i] = np.sum((f(changed(x, i, step)) - f(changed(x, i, -step))) * dy) / (2 * step)
    return found


@pytest.mark.parametrize("record", PLAIN, ids=lambda record: record.name)
@pytest.mark.parametrize("causal", [False, True])
def test_every_normalizer_in_tiles_is_the_definition(record, causal, tiles):
    own = dict(record.example) | {"normalizer": record.name}
    own.pop("where", None)
    for q_heads, k_heads, queries, keys in ((4, 2, 7, 7), (4, 1, 3, 8), (4, 4, 8, 3)):
        q, k, v = drawn(q_heads, k_heads, queries, keys)
        for where in (None, seen(queries, keys), seen(1, keys, (2, 1))):
            if where is None and not causal and "where" in record.example:
                continue
            got = attention(q, k, v, causal=causal, where=where, **own)
            want = by_definition(q, k, v, causal=causal, where=where, **own)
            np.testing.assert_allclose(got, want, atol=1e-12)


def test_noise_is_drawn_once_for_all_scores(tiles):
    q, k, v = drawn()
    rngs = [np.random.default_rng(5) for _ in range(2)]
    got = attention(q, k, v, normalizer="gumbel_softmax", rng=rngs[0])
    want = by_definition(q, k, v, normalizer="gumbel_softmax", rng=rngs[1])
    np.testing.assert_allclose(got, want, atol=1e-14)


@pytest.mark.parametrize("causal", [False, True])
def test_lengths_before_heads(causal, tiles):
    q, k, v = drawn(4, 2, 5, 8)
    a, b, c = (np.swapaxes(x, -2, -3).copy() for x in (q, k, v))
    got, weights = attention(a, b, c, causal=causal, layout="blhd", return_weights=True)
    want = attention(q, k, v, causal=causal)
    np.testing.assert_allclose(np.swapaxes(got, -2, -3), want, atol=1e-14)
    alone = attention(a, b, c, causal=causal, layout="blhd")
    np.testing.assert_allclose(alone, got, atol=1e-14)
    assert weights.shape == (2, 4, 5, 8)


def test_weights_are_returned_as_the_normalizer_makes_them():
    q, k, v = drawn(4, 2)
    y, weights = attention(q, k, v, causal=True, return_weights=True)
    np.testing.assert_allclose(weights @ np.repeat(v, 2, -3), y, atol=1e-14)
    np.testing.assert_allclose(weights.sum(-1), 1.0)
    assert not np.triu(weights[0, 0], 1).any()


def test_one_parameter_per_head_or_per_query(tiles):
    q, k, v = drawn(4, 2)
    s, temperature = np.array([0.1, 0.2, 0.3, 0.4]), np.linspace(0.5, 2.0, 7)
    got = attention(
        q, k, v, normalizer="ssmax", s=s.reshape(4, 1, 1), temperature=temperature[:, None]
    )
    for head in range(4):
        one = by_definition(
            q[:, head], k[:, head // 2], v[:, head // 2],
            normalizer="ssmax", s=s[head], temperature=temperature[:, None],
        )  # fmt: skip
        np.testing.assert_allclose(got[:, head], one, atol=1e-13)


def test_values_may_have_axes_that_scores_lack():
    q, k, _ = drawn(batch=())
    v = np.random.default_rng(2).normal(size=(3, 4, 7, 2))
    want = np.stack([attention(q, k, part) for part in v])
    np.testing.assert_allclose(attention(q, k, v), want, atol=1e-14)


@pytest.mark.parametrize("name", ["ssmax", "entropy_invariant_softmax", "sigmoid"])
def test_length_under_a_causal_mask_is_that_of_each_query(name):
    """So what a query gets does not depend on what comes after it."""
    q, k, v = drawn(queries=6, keys=6)
    whole = attention(q, k, v, causal=True, normalizer=name)
    start = attention(q[..., :4, :], k[..., :4, :], v[..., :4, :], causal=True, normalizer=name)
    np.testing.assert_allclose(whole[..., :4, :], start, atol=1e-14)
    late = attention(q[..., 4:, :], k, v, causal=True, normalizer=name)
    np.testing.assert_allclose(whole[..., 4:, :], late, atol=1e-14)


def test_the_formula_of_the_papers():
    """The reference functions that the papers' formulas were checked with."""
    q, k, v = drawn(1, 1, 5, 8, batch=())
    q, k, v = q[0], k[0], v[0]
    x = q @ k.T / np.sqrt(3)
    kept = np.tril(np.ones((5, 8), bool), 3)
    c = 0.43 * np.log(kept.sum(1)) + 0.1
    e = np.where(kept, np.exp(c[:, None] * x), 0.0)
    want = e / e.sum(1, keepdims=True) @ v
    np.testing.assert_allclose(ssmax_attention(q, k, v, b=0.1, causal=True), want, atol=1e-13)
    np.testing.assert_allclose(sigmoid_attention(q, k, v), 1 / (1 + 8 * np.exp(-x)) @ v, atol=1e-13)
    p = np.where(kept, 1 / (1 + np.exp(-x + 7.62)), 0.0)
    got = sigmoid_attention(q, k, v, bias=-7.62, causal=True)
    np.testing.assert_allclose(got, p @ v, atol=1e-13)
    got = entropy_invariant_attention(q, k, v, n_min=16)
    e = np.exp(np.log(16) / np.log(512) * x)
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True) @ v, atol=1e-13)


GOLDEN = {
    "softmax": (0.0889468173, 0.2417825172, 0.6572330228, 0.0120376427),
    "ssmax": (0.1559344496, 0.2830269999, 0.5137048478, 0.0473337027),
    "entropy_invariant_softmax": (0.2247366379, 0.2806620961, 0.3505045412, 0.1440967248),
    "adaptive_softmax": (0.0792186548, 0.2320160733, 0.6795300732, 0.0092351987),
    "sigmoid": (0.4046096752, 0.6487856443, 0.8339252302, 0.0842238084),
    "squared_relu": (0.25, 1.0, 2.25, 0.0),
    "normalized_squared_relu": (0.0714285714, 0.2857142857, 0.6428571429, 0.0),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_weights(name):
    k = np.array([[1.0], [2.0], [3.0], [-1.0]])
    got = attention(np.ones((1, 1)), k, np.eye(4), normalizer=name)
    np.testing.assert_allclose(got[0], GOLDEN[name], atol=5.1e-11)


@pytest.mark.parametrize(
    ("n", "softmax", "ssmax"),
    [(10, 0.942826, 0.940101), (1000, 0.129346, 0.999646), (100000, 0.001482, 0.999998)],
)
def test_the_maximum_fades_under_softmax_and_stays_under_ssmax(n, softmax, ssmax):
    k = np.full((n, 1), -2.0)
    k[-1] = 3.0
    v = np.zeros((n, 1))
    v[-1] = 1.0
    for f, want in ((attention, softmax), (ssmax_attention, ssmax)):
        np.testing.assert_allclose(f(np.ones((1, 1)), k, v), want, atol=5.1e-7)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("softmax", {"sink": np.full((4, 1, 1), 0.3), "temperature": np.full((5, 1), 0.7)}),
        ("ssmax", {"s": np.full((4, 1, 1), 0.3), "b": 0.1}),
        ("sigmoid", {"bias": -1.0}),
        ("entmax15", {}),
        ("adaptive_softmax", {"differentiate_temperature": True}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
def test_gradients_are_the_finite_differences(name, own, tiles):
    q, k, v = drawn(4, 2, 5, 6, batch=())
    own = dict(own) | {"normalizer": name, "causal": True, "where": seen(5, 6, (4,))}
    y, pullback = normx.vjp(attention, q, k, v, **own)
    np.testing.assert_array_equal(y, attention(q, k, v, **own))
    dy = np.random.default_rng(3).normal(size=y.shape)
    found = pullback(dy)
    arrays = {"q": q, "k": k, "v": v}
    numeric = {w: x for w, x in own.items() if w in ("sink", "temperature", "s", "b", "bias")}
    assert set(found) == {*arrays, *numeric}
    for word, x in (arrays | numeric).items():

        def f(x, word=word):
            given = arrays | own | {word: x if np.ndim(x) else float(x)}
            q, k, v = (given.pop(name) for name in "qkv")
            return attention(q, k, v, **given)

        want = slopes(f, np.asarray(x), dy)
        np.testing.assert_allclose(found[word], want, atol=1e-7, err_msg=word)


def test_gradients_of_shared_and_broadcast_arrays():
    q, k, v = drawn(4, 2, 5, 6)
    k, v = k[:1], v[0]
    a, b, c = (np.swapaxes(x, -2, -3) for x in (q, k, v))
    y, pullback = normx.vjp(attention, a, b, c, layout="blhd")
    dy = np.random.default_rng(3).normal(size=y.shape)
    found = pullback(dy)
    mixed = np.swapaxes(dy, -2, -3)
    for word, x, got in zip("qkv", (q, k, v), found.values(), strict=True):
        want = slopes(
            lambda x, w=word: attention(*({"q": q, "k": k, "v": v} | {w: x}).values()), x, mixed
        )
        np.testing.assert_allclose(np.swapaxes(got, -2, -3), want, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_dtypes_are_computed_wide_and_rounded_once(dtype):
    kind = normx._libraries.numpy_library.dtype(dtype)
    q, k, v = (x.astype(kind) for x in drawn(queries=40, keys=300))
    want = by_definition(*(x.astype(np.float64) for x in (q, k, v)))
    got = attention(q, k, v)
    assert got.dtype == kind
    bound = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 0.0}[dtype]
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=1.1 * bound, atol=1e-6)


def test_lists_and_integers_are_arrays_of_numpy():
    got = attention([[1, 0]], [[4, 0], [0, 4]], [[1], [0]])
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [[0.9441929]], atol=1e-7)
    assert attention(np.ones((1, 2), np.float16), [[1.0, 2.0]], [[1.0]]).dtype == np.float64


def test_keys_that_no_query_sees_have_no_effect():
    q, k, v = drawn(keys=9)
    padding = np.arange(9) < 7
    want = attention(q, k[..., :7, :], v[..., :7, :])
    k[..., 7:, :], v[..., 7:, :] = np.nan, np.inf
    for where in (padding, np.broadcast_to(padding, (2, 1, 7, 9))):
        np.testing.assert_allclose(attention(q, k, v, where=where), want, atol=1e-14)
        _, pullback = normx.vjp(attention, q, k, v, where=where)
        found = pullback(np.ones_like(want))
        assert not found["k"][..., 7:, :].any() and not found["v"][..., 7:, :].any()
        assert all(np.isfinite(x).all() for x in found.values())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["softmax", "sparsemax", "zscore"])
def test_a_value_reaches_only_the_queries_that_see_it(name, causal, tiles):
    q, k, v = drawn(keys=9)
    where = seen(7, 9)
    v[..., 3, 0], v[..., 5, 1], v[1, ..., 8, :], v[0, 2, 1, 1] = np.nan, np.inf, -np.inf, np.inf
    q[1, 2, 6, 0] = np.nan
    own = {"normalizer": name, "causal": causal, "where": where}
    y, weights = attention(q, k, v, **own, return_weights=True)
    kept = where & np.tril(np.ones((7, 9), bool), 2) if causal else where
    with np.errstate(invalid="ignore"):
        products = weights[..., None] * v[..., None, :, :]
        want = np.sum(products, -2, where=kept[..., None])
    np.testing.assert_allclose(attention(q, k, v, **own), want, atol=1e-12)
    np.testing.assert_allclose(y, want, atol=1e-12)
    assert np.isfinite(want).any() and np.isnan(want).any() and np.isinf(want).any()


def test_gradients_do_not_feel_values_that_are_not_seen(tiles):
    q, k, v = drawn(keys=9)
    k[..., 5, 0], v[..., 3, 0], v[..., 8, 1] = np.inf, np.nan, np.inf
    where = np.ones((7, 9), bool)
    where[:4, [3, 5, 8]] = False
    y, pullback = normx.vjp(attention, q, k, v, where=where)
    found = pullback((np.arange(7) < 4)[:, None] * np.ones_like(y))
    few = [0, 1, 2, 4, 6, 7]
    y, pullback = normx.vjp(attention, q[..., :4, :], k[..., few, :], v[..., few, :])
    want = pullback(np.ones_like(y))
    np.testing.assert_allclose(found["q"][..., :4, :], want["q"], atol=1e-12)
    for name in "kv":
        np.testing.assert_allclose(found[name][..., few, :], want[name], atol=1e-12)


def test_a_query_that_sees_nothing_gets_zeros(tiles):
    q, k, v = drawn(queries=7, keys=3)
    assert not attention(q, k, v, causal=True)[..., :4, :].any()
    assert not attention(q, k[..., :0, :], v[..., :0, :]).any()
    assert attention(q[..., :0, :], k, v).shape == (2, 4, 0, 2)
    where = np.zeros((7, 3), bool)
    assert np.isnan(attention(q, k, v, where=where, empty="nan")).all()
    got = attention(q, k, v, where=where, empty="uniform")
    np.testing.assert_allclose(got, np.broadcast_to(v.mean(-2, keepdims=True), got.shape))


def test_inputs_are_not_changed(tiles):
    arrays = drawn()
    copies = [x.copy() for x in arrays]
    attention(*arrays, causal=True)
    for x, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


def peak(f):
    tracemalloc.start()
    f()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_that_of_the_result_and_one_tile(causal):
    rng = np.random.default_rng(0)
    found = {}
    for length in (4096, 8192):
        q, k, v = (rng.normal(size=(length, 64)).astype(np.float32) for _ in range(3))
        found[length] = peak(lambda q=q, k=k, v=v: attention(q, k, v, causal=causal))
        assert found[length] < v.nbytes + 4 * _tiles.TILE + 2**21
    assert found[8192] < 2.2 * found[4096]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("softmax", {}),
        ("softmax", {"sink": np.full((4, 1, 2), 0.3), "softcap": 2.0}),
        ("softmin", {"temperature": 0.5}),
        ("inhibited_softmax", {"alpha": 1.0}),
        ("ssmax", {"n": 9}),
        ("entropy_invariant_softmax", {"n": 9}),
        ("sigmoid", {"bias": -1.0, "normalize": True}),
        ("sigmoid", {"n": 9}),
        ("taylor_softmax", {"order": 4}),
        ("spherical_softmax", {}),
        ("squared_relu", {"n": 9}),
        ("normalized_squared_relu", {}),
        ("expm1_relu", {}),
        ("nonnegative_softmax", {}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
def test_keys_in_pieces_are_the_keys_at_once(name, own):
    q, k, v = drawn(4, 2, 5, 9)
    where = seen(5, 9)
    where[0, 0, :2] = False
    where[:, :, 2, :4] = False
    want = attention(q, k, v, normalizer=name, where=where, **own)
    empty = AttentionState(q, normalizer=name, **own)
    cuts = [(0, 4), (4, 5), (5, 9)]
    pieces = [(k[..., a:b, :], v[..., a:b, :], where[..., a:b]) for a, b in cuts]
    one_by_one = empty
    for key, value, mask in pieces:
        one_by_one = one_by_one.update(key, value, where=mask)
    np.testing.assert_allclose(one_by_one.output(), want, atol=1e-13)
    a, b, c = (empty.update(key, value, where=mask) for key, value, mask in pieces)
    np.testing.assert_allclose(c.merge(a).merge(empty).merge(b).output(), want, atol=1e-13)


def test_states_of_equal_queries_merge():
    q, k, v = drawn()
    q[..., 0, :] = np.nan
    a, b = (AttentionState(q.copy()).update(k[..., i, :], v[..., i, :]) for i in ([0, 1], [2]))
    want = attention(q, k[..., :3, :], v[..., :3, :])
    np.testing.assert_allclose(a.merge(b).output(), want, atol=1e-12)


def test_pieces_go_through_the_kernels():
    q, k, v = drawn()
    with normx.trace() as ran:
        AttentionState(q).update(k, v)
    assert [call.backend for call in ran] == [normx.explain("softmax", q).candidates[-1].backend]


def test_scores_of_all_sizes_come_in_pieces():
    for row in ([np.inf, 1, 2], [1, np.inf, np.inf], [np.nan, 1, 2], [-np.inf, 0, 1], [1e30, 2, 3]):
        q, k, v = np.ones((1, 1)), np.array(row)[:, None], np.array([[1.0], [2.0], [4.0]])
        state = AttentionState(q)
        for i in range(3):
            state = state.update(k[i : i + 1], v[i : i + 1])
        np.testing.assert_allclose(state.output(), attention(q, k, v))


def test_gated_attention_unit():
    u, v = np.random.default_rng(4).normal(size=(2, 6, 5))
    z_q, z_k = np.random.default_rng(5).normal(size=(2, 6, 3))
    got = gated_attention_unit(u, v, z_q, z_k, normalizer="squared_relu")
    a = np.maximum(z_q @ z_k.T / np.sqrt(3), 0) ** 2 / 6
    np.testing.assert_allclose(got, u * (a @ v), atol=1e-14)
    given = {"u": u, "v": v, "z_q": z_q, "z_k": z_k}
    _, pullback = normx.vjp(gated_attention_unit, *given.values(), causal=True)
    dy = np.ones_like(u)
    for word, x in given.items():
        want = slopes(
            lambda x, w=word: gated_attention_unit(*(given | {w: x}).values(), causal=True), x, dy
        )
        np.testing.assert_allclose(pullback(dy)[word], want, atol=1e-7)


def test_layer_scale():
    np.testing.assert_allclose(layer_scale([[1.0, 2.0]]), [[1e-4, 2e-4]])
    np.testing.assert_allclose(layer_scale([[1.0, 2.0]], gamma=[0.5, 2.0]), [[0.5, 4.0]])


Q, K, V = drawn(4, 2)
WRONG = {
    "size": (lambda: attention(Q, K[..., :2], V), ValueError, "`k` must be with as many numbers"),
    "length": (lambda: attention(Q, K, V[..., :3, :]), ValueError, "`v` must be with one value"),
    "heads": (lambda: attention(Q[:, :3], K, V), ValueError, "divides that of `q`, 3"),
    "heads of v": (lambda: attention(Q, K, drawn()[2]), ValueError, "as many heads as `k`"),
    "batch": (lambda: attention(Q, np.ones((3, 2, 7, 3)), V), ValueError, "before the heads"),
    "layout": (lambda: attention(Q, K, V, layout="bhdl"), ValueError, "'bhld' or 'blhd'"),
    "axes": (lambda: attention(Q[0, 0], K, V, layout="blhd"), ValueError, "length, heads, size"),
    "vector": (lambda: attention(Q[0, 0, 0], K, V), ValueError, "length, size"),
    "name": (lambda: attention(Q, K, V, normalizer="softmaxx"), TypeError, "known are softmax"),
    "kind": (lambda: attention(Q, K, V, normalizer="logsumexp"), TypeError, "a row normalizer"),
    "log": (lambda: attention(Q, K, V, normalizer=normx.log_softmax), TypeError, "are weights"),
    "keyword": (lambda: attention(Q, K, V, s=1.0), TypeError, "unknown keyword `s`; softmax takes"),
    "axis": (lambda: attention(Q, K, V, axis=0), TypeError, "unknown keyword `axis`"),
    "where": (lambda: attention(Q, K, V, where=seen(7, 6)), ValueError, "against the scores"),
    "mask": (lambda: attention(Q, K, V, where=np.ones((7, 7))), TypeError, "an array of bool"),
    "growing": (lambda: attention(Q, K, V, where=seen(7, 7, (5, 1, 1))), ValueError, "`where`"),
    "per head": (
        lambda: attention(Q, K, V, temperature=np.ones((2, 1, 1))), ValueError, "`temperature`"
    ),
    "scale": (lambda: attention(Q, K, V, scale="1"), TypeError, "`scale` must be a real number"),
    "infinite": (lambda: attention(Q, K, V, scale=np.inf), ValueError, "`scale`"),
    "causal": (lambda: attention(Q, K, V, causal=1), TypeError, "`causal` must be True or False"),
    "complex": (lambda: attention(Q * 1j, K, V), TypeError, "`q` must be an array of real"),
    "ragged": (lambda: attention([[1], [1, 2]], K, V), TypeError, "a ragged list"),
    "backend": (lambda: attention(Q, K, V, backend="gpu"), ValueError, "`backend`"),
    "parameter": (
        lambda: attention(Q, K, V, temperature=-1.0), ValueError, "`temperature` must be"
    ),
    "empty": (lambda: AttentionState(Q, empty="nan"), ValueError, "`empty`"),
    "whole": (lambda: AttentionState(Q, normalizer="sparsemax"), TypeError, "all keys at once"),
    "counted": (lambda: AttentionState(Q, normalizer="ssmax").update(K, V), ValueError, "`n` must"),
    "entropy": (
        lambda: AttentionState(Q, normalizer="adaptive_softmax").update(K, V), TypeError, "at once"
    ),
    "nothing": (lambda: AttentionState(Q).output(), ValueError, "no keys have come"),
    "other": (
        lambda: AttentionState(Q).merge(AttentionState(Q + 1.0)), ValueError, "the same queries"
    ),
    "cotangent": (lambda: normx.vjp(attention, Q, K, V)[1](V), ValueError, "`dy`"),
    "gates": (lambda: gated_attention_unit(V, V, Q, K), ValueError, "`u`"),
    "gamma": (lambda: layer_scale(Q, gamma=np.ones(2)), ValueError, "`gamma`"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_named(what):
    call, kind, message = WRONG[what]
    with pytest.raises(kind, match=r"normx\.") as raised:
        call()
    assert message in str(raised.value)
