"""States of blocks: any cut, merged in any order, is the whole."""

import functools
import inspect
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import normx
from normx import SoftmaxState, softmax_state
from normx._dispatch import library
from normx._libraries import numpy_library
from normx.testing.ulp import error_in_ulp

INF, NAN = np.inf, np.nan
LIBRARIES = ("array_api_strict", "dask", "jax", "mlx", "torch")


def home_of(name):
    """Functions from NumPy to an array library, and back."""
    if name == "array_api_strict":
        return pytest.importorskip(name).asarray, np.asarray
    if name == "dask":
        dask = pytest.importorskip("dask.array")
        return (lambda x: dask.from_array(x, chunks=3)), np.asarray
    pytest.importorskip("mlx.core" if name == "mlx" else name)
    return library(name).from_numpy, library(name).to_numpy


def neutral(shape=(1,), dtype=np.float64):
    return SoftmaxState(np.full(shape, -INF, dtype), np.zeros(shape, dtype))


def merged(states):
    return functools.reduce(SoftmaxState.merge, states)


def assert_same(a, b, ulp=1):
    assert np.array_equal(a.maximum, b.maximum, equal_nan=True)
    np.testing.assert_array_max_ulp(np.asarray(a.sum), np.asarray(b.sum), ulp)


def test_the_numbers_of_a_row():
    maximum, sum_ = softmax_state(np.array([[1.0, 2.0, 3.0, -1.0]]))
    assert maximum.tolist() == [[3.0]]
    np.testing.assert_allclose(sum_, [[1 + np.exp(-1) + np.exp(-2) + np.exp(-4)]], rtol=1e-15)


scores = st.lists(
    st.floats(-300, 300) | st.sampled_from([-INF, 0.0, 1e-3]), min_size=1, max_size=40
)


@settings(max_examples=200, deadline=None)
@given(scores | scores.map(lambda x: [*x, INF]), st.data())
def test_any_cut_in_any_order_is_the_whole(x, data):
    x = np.asarray(x)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=5)))
    blocks = np.split(x, cuts)  # some of them empty
    order = data.draw(st.permutations(blocks))
    whole, state = softmax_state(x), merged(map(softmax_state, order))
    assert_same(state, whole, ulp=len(blocks))
    np.testing.assert_allclose(state.logsumexp()[0], normx.logsumexp(x), rtol=1e-15, atol=1e-15)
    for f in (normx.softmax, normx.log_softmax):
        of_block = getattr(state, f.__name__)
        np.testing.assert_allclose(
            np.concatenate([of_block(block) for block in blocks]), f(x), rtol=4e-15
        )


@settings(max_examples=200, deadline=None)
@given(scores, scores, scores, st.sampled_from([np.float32, np.float64]))
def test_merging_is_associative_and_commutative(x, y, z, dtype):
    a, b, c = (softmax_state(np.asarray(part, dtype)) for part in (x, y, z))
    assert_same(a.merge(b), b.merge(a))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))


@pytest.mark.parametrize("x", [[0.3, -1.0], [-INF, -INF], [INF, 1.0], [50.0, 0.0], [NAN, 1.0]])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_neutral_state_is_neutral(x, dtype):
    state = softmax_state(np.asarray(x, dtype))
    nothing = neutral(dtype=state.maximum.dtype)
    for both in (state.merge(nothing), nothing.merge(state)):
        assert_same(both, state, ulp=0)
        assert both.sum.dtype == state.sum.dtype
        np.testing.assert_array_equal(both.logsumexp(), state.logsumexp())


def test_nothing_and_nothing_is_nothing():
    maximum, sum_ = neutral().merge(neutral())
    assert maximum.tolist() == [-INF] and sum_.tolist() == [0.0]
    assert neutral().logsumexp().tolist() == [-INF]
    for empty in (softmax_state(np.ones((1, 0))), softmax_state(np.ones((1, 3)), where=False)):
        assert empty.maximum.tolist() == [[-INF]] and empty.sum.tolist() == [[0.0]]
        assert empty.softmax(np.full((1, 2), -INF)).tolist() == [[0.0, 0.0]]
        assert empty.log_softmax(np.full((1, 2), -INF)).tolist() == [[-INF, -INF]]


def test_infinite_scores_share():
    state = softmax_state([INF, 0.0]).merge(softmax_state([INF, INF]))
    assert state.maximum.tolist() == [INF] and state.sum.tolist() == [3.0]
    assert state.softmax([0.0, INF, -INF]).tolist() == [0.0, 1 / 3, 0.0]
    np.testing.assert_allclose(state.log_softmax([0.0, INF]), [-INF, -np.log(3)])
    assert state.logsumexp().tolist() == [INF]


def test_nan_stays_in_its_row():
    state = softmax_state(np.array([[NAN, 1.0], [0.0, 0.0]]))
    state = state.merge(softmax_state(np.array([[2.0], [0.0]])))
    assert np.isnan(state.sum[0]) and np.isnan(state.maximum[0])
    weights = state.softmax(np.array([[2.0], [0.0]]))
    assert np.isnan(weights[0]) and weights[1] == 1 / 3


def test_masks():
    x = np.array([[1.0, NAN, 3.0], [INF, 0.0, 0.0]])
    where = np.array([[True, False, True], [False, True, True]])
    state = softmax_state(x, where=where)
    np.testing.assert_allclose(state.softmax(x, where=where), normx.softmax(x, where=where))
    logarithms = state.log_softmax(x, where=where.tolist())
    assert logarithms[0, 1] == -INF and logarithms[1, 0] == -INF


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (1, 0), None, ()])
def test_axes_are_kept_with_size_1(axis):
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    state = softmax_state(x, axis=axis)
    assert state.maximum.shape == state.sum.shape == x.max(axis=axis, keepdims=True).shape
    want = normx.softmax(x, axis=axis)
    np.testing.assert_allclose(state.softmax(x), want, rtol=1e-15)
    want = normx.logsumexp(x, axis=axis, keepdims=True)
    np.testing.assert_allclose(state.logsumexp(), want, rtol=1e-15)


def test_a_number_is_a_row():
    state = softmax_state(2.0)
    assert state.maximum == 2.0 and state.sum == 1.0
    assert state.softmax(2.0) == 1.0 and state.log_softmax(2.0) == 0.0


def test_peaked_rows_keep_their_digits():
    for x in ([50.0, 0.0], [0.0, -700.0]):
        state = merged(softmax_state([score]) for score in x)
        np.testing.assert_allclose(state.log_softmax(x), normx.log_softmax(x), rtol=1e-15)
        kept = pickle.loads(pickle.dumps(state))
        np.testing.assert_array_equal(kept.log_softmax(x), state.log_softmax(x))
    tail = softmax_state([0.0]).merge(softmax_state([-40.0])).logsumexp()
    np.testing.assert_allclose(tail, [np.exp(-40)], rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_and_errors(dtype):
    x = np.random.default_rng(1).normal(0.0, 9.0, (3, 400))
    x[:, 7] += 50.0
    x = numpy_library.cast(x, dtype)
    state = merged(softmax_state(block) for block in np.split(x, 40, axis=-1))
    assert state.maximum.dtype == state.sum.dtype == state.logsumexp().dtype
    assert state.sum.dtype == ("float64" if dtype == "float64" else "float32")
    weights = state.softmax(x)
    assert weights.dtype == state.log_softmax(x).dtype == x.dtype
    distance = x.astype(np.longdouble) - x.max(-1, keepdims=True)
    others = np.where(distance == 0, 0, np.exp(distance))
    logarithms = distance - np.log1p(others.sum(-1, keepdims=True))  # one maximum each
    assert error_in_ulp(weights, np.exp(logarithms), dtype).max() <= 4.0
    assert error_in_ulp(state.log_softmax(x), logarithms, dtype).max() <= 4.0


def test_integers_are_cast():
    state = softmax_state([[1, 2], [3, 4]])
    assert state.sum.dtype == np.float64 and state.softmax([[1, 2], [3, 4]]).dtype == np.float64


def test_dtypes_meet_in_the_wider():
    both = softmax_state(np.float32([1.0])).merge(softmax_state(np.float64([2.0])))
    assert both.sum.dtype == np.float64


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_libraries_agree(name, dtype):
    if dtype != "float32" and name == "array_api_strict":
        pytest.skip("has no narrow dtypes")
    to, back = home_of(name)
    x = np.random.default_rng(2).normal(0.0, 5.0, (5, 12)).astype(np.float32)
    x[0], x[1, 3], x[2, 4], x[3, [2, 8]] = -INF, NAN, -INF, INF
    x = numpy_library.cast(x, dtype)
    want = softmax_state(x)
    state = merged(softmax_state(to(x[:, i : i + 3].copy())) for i in range(0, 12, 3))
    np.testing.assert_array_equal(back(state.maximum), want.maximum)
    np.testing.assert_allclose(back(state.sum), want.sum, rtol=1e-6)
    np.testing.assert_allclose(back(state.logsumexp()), want.logsumexp(), rtol=1e-6)
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6}[dtype]
    for method in ("softmax", "log_softmax"):
        got = getattr(state, method)(to(x))
        assert type(got) is type(to(x)) and str(got.dtype).endswith(dtype)
        with np.errstate(invalid="ignore"):
            found = back(got).astype(np.float64)
        wanted = getattr(want, method)(x).astype(np.float64)
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=1e-7)


def test_jax_compiled():
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(2, 8)), dtype="float32")
    halves = jax.jit(softmax_state)(x[:, :4]), jax.jit(softmax_state)(x[:, 4:])
    state = jax.jit(lambda a, b: a.merge(b))(*halves)
    assert isinstance(state, SoftmaxState)
    weights = jax.jit(lambda state, x: state.softmax(x))(state, x)
    np.testing.assert_allclose(weights, normx.softmax(np.asarray(x)), rtol=1e-6)
    peaked = jax.jit(softmax_state)(jax.numpy.asarray([50.0, 0.0]))
    np.testing.assert_allclose(peaked.log_softmax(jax.numpy.asarray([50.0])), -np.exp(-50.0))


def test_jax_states_of_two_numbers_compile_too():
    jax = pytest.importorskip("jax")
    state = SoftmaxState(jax.numpy.asarray([-INF]), jax.numpy.asarray([0.0]))
    assert jax.jit(lambda state: state.logsumexp())(state).tolist() == [-INF]


def test_torch_gradient():
    torch = pytest.importorskip("torch")
    x = torch.tensor(np.random.default_rng(1).normal(size=(2, 6)), requires_grad=True)

    def through_blocks(x):
        state = softmax_state(x[:, :2]).merge(softmax_state(x[:, 2:]))
        return state.softmax(x), state.logsumexp()

    assert torch.autograd.gradcheck(through_blocks, (x,))
    cotangent = torch.tensor(np.random.default_rng(2).normal(size=(2, 6)))
    (blocks,) = torch.autograd.grad(through_blocks(x)[0], (x,), cotangent)
    (whole,) = torch.autograd.grad(normx.softmax(x), (x,), cotangent)
    np.testing.assert_allclose(blocks, whole, atol=1e-14)


def test_input_is_not_touched():
    x = np.array([1.0, NAN, -INF])
    softmax_state(x, where=x > 0).softmax(x)
    np.testing.assert_array_equal(x, [1.0, NAN, -INF])


STATE = softmax_state(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: STATE.merge(softmax_state(np.ones((3, 2)))), ValueError,
         r"SoftmaxState.merge: `other` must be of shape \(2, 1\), that of this state, not"),
        (lambda: STATE.merge(STATE.sum), TypeError, "SoftmaxState.merge: `other` must be a Soft"),
        (lambda: STATE.softmax(np.ones(2)), ValueError,
         r"SoftmaxState.softmax: `x` must be scores that a state of shape \(2, 1\) broadcasts"),
        (lambda: STATE.log_softmax(np.ones((3, 2))), ValueError, "SoftmaxState.log_softmax: `x`"),
        (lambda: STATE.softmax("ab"), TypeError, "SoftmaxState.softmax: `x` must be an array"),
        (lambda: STATE.softmax(np.ones((2, 3)), where=np.ones(3)), TypeError, "`where` must be"),
        (lambda: SoftmaxState("a", 1.0), TypeError, "SoftmaxState: `maximum` must be an array"),
        (lambda: SoftmaxState(np.ones(2), np.ones(2, int)), TypeError, "`sum` must be an array of"),
        (lambda: SoftmaxState(np.ones(2), np.ones(3)), ValueError, r"`sum` must be of shape \(2,"),
        (lambda: softmax_state([1.0], axis=1), IndexError, "softmax_state: `axis` must be between"),
        (lambda: softmax_state([1.0], where=[1]), TypeError, "softmax_state: `where` must be"),
        (lambda: softmax_state([1j]), TypeError, "softmax_state: `x` must be an array of real"),
        (lambda: softmax_state([1.0], keepdims=True), TypeError, "keyword `keepdims`; known are"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_other_libraries_are_refused():
    strict = pytest.importorskip("array_api_strict")
    other = softmax_state(strict.asarray(np.ones((2, 3))))
    with pytest.raises(TypeError, match="must be of numpy, the library of this state"):
        STATE.merge(other)
    with pytest.raises(TypeError, match="an array of numpy, the library of the state"):
        STATE.softmax(strict.asarray(np.ones((2, 3))))


def test_a_chosen_backend_is_kept_to():
    with normx.use_backend("reference"), normx.trace() as ran:
        softmax_state([1.0])
    assert [(event.function, event.backend) for event in ran] == [("softmax_state", "reference")]
    if normx.backends()["native"].usable:
        with normx.use_backend("native"), pytest.raises(TypeError, match="`backend` must be 'ref"):
            softmax_state([1.0])


def test_a_state_is_made_from_two_numbers():
    assert list(inspect.signature(SoftmaxState).parameters) == ["maximum", "sum"]
