"""Attention on the array libraries: NumPy's numbers, and the gradients of `normx.vjp`."""

import numpy as np
import pytest

import normx
from normx._dispatch import library as library_named
from normx.attention import (
    AttentionState,
    CosformerState,
    _cosformer,
    _tiles,
    attention,
    cosformer,
    gated_attention_unit,
)

LIBRARIES = ("array_api_strict", "dask", "jax", "mlx", "torch")
RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(2, h, 6, d)) for h, d in ((4, 4), (2, 4), (2, 3)))
DY = RNG.normal(size=(2, 4, 6, 3))
WHERE = RNG.random((2, 4, 6, 6)) < 0.8
S = np.linspace(0.2, 0.5, 4).reshape(4, 1, 1)
TOLERANCE = 3e-6  # in float32, which some libraries have alone


def in_pieces(q, k, v):
    state = AttentionState(q)
    for a, b in ((0, 2), (2, 6)):
        state = state.update(k[..., a:b, :], v[..., a:b, :])
    return state.output()


def in_steps(q, k, v):
    y, state = CosformerState(max_len=9).step(k[..., :2, :], k[..., :2, :], v[..., :2, :])
    y, state = state.step(k[..., 2:, :], k[..., 2:, :], v[..., 2:, :])
    return y + state.attend(k[..., 2:, :])


CALLS = {
    "attention": (attention, {}),
    "causal": (attention, {"causal": True}),
    "masked": (attention, {"where": WHERE, "causal": True}),
    "scaled": (attention, {"normalizer": "ssmax", "s": S, "causal": True}),
    "sigmoid": (attention, {"normalizer": "sigmoid", "where": WHERE}),
    "sparse": (attention, {"normalizer": "sparsemax", "causal": True}),
    "cosformer": (cosformer, {}),
    "causal cosformer": (cosformer, {"causal": True, "where": WHERE[:, 0, :2, :].all(1)[:, None]}),
    "pieces": (in_pieces, {}),
    "steps": (in_steps, {}),
}
GRADIENTS = [name for name, (f, _) in CALLS.items() if f in (attention, cosformer)]


@pytest.fixture(autouse=True)
def many_tiles(monkeypatch):
    monkeypatch.setattr(_tiles, "TILE", 4 * 8 * 6)
    monkeypatch.setattr(_tiles, "LEAST_ROWS", 2)
    monkeypatch.setattr(_cosformer, "CHUNK", 2)


def home_of(name):
    if name == "array_api_strict":
        return pytest.importorskip(name).asarray, np.asarray
    pytest.importorskip({"mlx": "mlx.core", "dask": "dask.array"}.get(name, name))
    return library_named(name).from_numpy, library_named(name).to_numpy


def narrow(x):
    return x.astype(np.float32) if x.dtype == np.float64 else x


def moved(to, keywords):
    return {n: to(narrow(x)) if isinstance(x, np.ndarray) else x for n, x in keywords.items()}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("what", CALLS)
def test_the_numbers_of_numpy(library, what):
    to, back = home_of(library)
    f, keywords = CALLS[what]
    arrays = [narrow(x) for x in (Q, K, V)]
    got = f(*map(to, arrays), **moved(to, keywords))
    assert type(got).__module__.partition(".")[0] in (library, "jaxlib")
    want = f(*arrays, **moved(np.asarray, keywords))
    np.testing.assert_allclose(back(got), want, atol=TOLERANCE)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_gated_unit(library):
    to, back = home_of(library)
    arrays = [narrow(x) for x in (V, V, Q[:, :2], K)]
    got = back(gated_attention_unit(*map(to, arrays)))
    np.testing.assert_allclose(got, gated_attention_unit(*arrays), atol=TOLERANCE)


def torch_gradients(f, arrays, dy, keywords):
    torch = pytest.importorskip("torch")
    leaves = {
        n: torch.tensor(x, requires_grad=x.dtype.kind == "f")
        for n, x in (arrays | keywords).items()
        if isinstance(x, np.ndarray)
    }
    given = keywords | leaves
    q, k, v = (given.pop(name) for name in "qkv")
    (f(q, k, v, **given) * torch.tensor(dy)).sum().backward()
    return {n: x.grad.numpy() for n, x in leaves.items() if x.requires_grad}


def jax_gradients(f, arrays, dy, keywords):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        numeric = {
            n: jax.numpy.asarray(x)
            for n, x in (arrays | keywords).items()
            if isinstance(x, np.ndarray) and x.dtype.kind == "f"
        }
        rest = {n: x for n, x in keywords.items() if n not in numeric}
        rest = {n: jax.numpy.asarray(x) if n == "where" else x for n, x in rest.items()}

        def loss(given):
            q, k, v = (given[name] for name in "qkv")
            own = {n: x for n, x in given.items() if n not in arrays}
            return (f(q, k, v, **own, **rest) * dy).sum()

        found = jax.jit(jax.grad(loss))(numeric)
        return {name: np.asarray(x) for name, x in found.items()}


@pytest.mark.parametrize(
    ("library", "what"),
    # XLA compiles that of sparsemax, inside of a loop and once more for the rest, for a minute.
    [(n, what) for n in ("jax", "torch") for what in GRADIENTS if (n, what) != ("jax", "sparse")],
)
def test_gradients_are_those_of_vjp(library, what):
    f, keywords = CALLS[what]
    arrays = {"q": Q, "k": K, "v": V}
    gradients_of = {"jax": jax_gradients, "torch": torch_gradients}[library]
    found = gradients_of(f, arrays, DY, keywords)
    _, pullback = normx.vjp(f, Q, K, V, **keywords)
    want = pullback(DY)
    assert set(found) == set(want)
    for name, x in want.items():
        np.testing.assert_allclose(found[name], x, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("library", ["torch"])
def test_the_gradient_keeps_no_scores(library):
    torch = pytest.importorskip(library)
    q, k, v = (torch.tensor(x, requires_grad=True) for x in (Q, K, V))
    sizes = []

    def kept(x):
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
        attention(q, k, v)
    assert max(sizes, default=0) <= Q.size


@pytest.mark.parametrize("library", ["jax"])
def test_steps_of_a_compiled_loop(library):
    jax = pytest.importorskip(library)
    k, v = (jax.numpy.asarray(narrow(x)) for x in (K, V))
    state = CosformerState(max_len=9).update(k[..., :1, :], v[..., :1, :])

    def step(state, token):
        y, state = state.step(token[0], token[0], token[1])
        return state, y

    tokens = tuple(jax.numpy.moveaxis(x[..., 1:, :], -2, 0)[..., None, :] for x in (k, v))
    _, parts = jax.lax.scan(step, state, tokens)
    want = cosformer(narrow(K), narrow(K), narrow(V), causal=True, max_len=9)[..., 1:, :]
    np.testing.assert_allclose(np.moveaxis(parts[..., 0, :], 0, -2), want, atol=TOLERANCE)


@pytest.mark.parametrize("library", ["jax"])
@pytest.mark.parametrize(
    "own", [{}, {"normalizer": "spherical_softmax", "temperature": S}], ids=["softmax", "spherical"]
)
def test_a_compiled_step_of_decoding(library, own):
    jax = pytest.importorskip(library)
    q, k, v = (jax.numpy.asarray(narrow(x)) for x in (Q, K, V))
    own = moved(jax.numpy.asarray, own)
    empty = AttentionState(q, **own)
    compiled = []

    @jax.jit
    def step(state, k, v):
        compiled.append(k)
        return state.update(k, v)

    state, other = empty, empty.update(k[..., 5:, :], v[..., 5:, :])
    for t in range(5):
        state = step(state, k[..., t : t + 1, :], v[..., t : t + 1, :])
    assert len(compiled) == 2  # with nothing before, and with something
    got = jax.jit(lambda a, b: a.merge(b).output())(state, other)
    np.testing.assert_allclose(got, attention(q, k, v, **own), atol=TOLERANCE)
    other = jax.tree.map(lambda x: x + 0, other)
    np.testing.assert_array_equal(state.merge(other).output(), other.merge(state).output())


@pytest.mark.parametrize("library", ["jax", "torch"])
@pytest.mark.parametrize("what", ["causal", "causal cosformer"])
def test_what_is_compiled_or_mapped_is_the_same(library, what):
    to, back = home_of(library)
    f, _ = CALLS[what]
    arrays = [narrow(x) for x in (Q, np.repeat(K, 2, 1), np.repeat(V, 2, 1))]
    for name, mode in library_named(library).modes().items():
        if name == "sharded":  # which is for rows, by functions of rows
            continue
        joined = to(np.concatenate(arrays, -1))

        def of_joined(x):
            return f(x[..., :4], x[..., 4:8], x[..., 8:], causal=True)

        got = back(mode(of_joined)(joined))
        np.testing.assert_allclose(got, f(*arrays, causal=True), atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("library", ["array_api_strict", "jax", "mlx", "torch"])
def test_a_value_reaches_only_the_queries_that_see_it(library):
    to, back = home_of(library)
    v = narrow(V)
    v[..., 3, 0], v[..., 5, 1], v[1, 0, 4, 2] = np.nan, np.inf, -np.inf
    arrays, keywords = [narrow(Q), narrow(K), v], {"where": WHERE, "causal": True}
    got = back(attention(*map(to, arrays), **moved(to, keywords)))
    want = attention(*arrays, **keywords)
    np.testing.assert_allclose(got, want, atol=TOLERANCE)
    assert np.isfinite(want[..., :3, :]).all() and np.isnan(want).any() and np.isinf(want).any()


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_gradients_do_not_feel_what_is_not_seen(library):
    pytest.importorskip(library)
    gradients_of = {"jax": jax_gradients, "torch": torch_gradients}[library]
    k, v, dy = K.copy(), V.copy(), DY.copy()
    v[..., 3, 0], k[..., 4, 1], v[..., 5, 1] = np.nan, np.inf, np.inf
    dy[..., 3:, :] = 0.0
    found = gradients_of(attention, {"q": Q, "k": k, "v": v}, dy, {"causal": True})
    arrays = {"q": Q[..., :3, :], "k": K[..., :3, :], "v": V[..., :3, :]}
    want = gradients_of(attention, arrays, DY[..., :3, :], {"causal": True})
    for name, x in want.items():
        np.testing.assert_allclose(found[name][..., :3, :], x, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("library", ["jax"])
def test_a_compiled_call_looks_at_the_values_when_it_runs(library):
    jax = pytest.importorskip(library)

    def of_joined(x):
        return attention(x[..., :4], x[..., 4:8], x[..., 8:], causal=True)

    q, k, v = narrow(Q), np.repeat(narrow(K), 2, 1), np.repeat(narrow(V), 2, 1)
    v[0, :, 4] = np.nan
    want = of_joined(np.concatenate([q, k, v], -1))
    for f in (jax.jit(of_joined), jax.vmap(of_joined), jax.jit(jax.vmap(of_joined))):
        np.testing.assert_allclose(f(np.concatenate([q, k, v], -1)), want, atol=TOLERANCE)
