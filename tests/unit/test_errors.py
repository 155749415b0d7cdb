"""Wrong input: the error names the function, the argument, what came and the cure."""

import numpy as np
import pytest

import normx
from normx._libraries import numpy_library
from normx._record import record_of, registry

X = np.arange(6.0).reshape(2, 3)
FUNCTIONS = [record.function for record in registry().values()]
NORMALIZERS = [record.function for record in registry().values() if record.kind == "normalizer"]


def required(f):
    """Values for the keywords that have no default."""
    return record_of(f).example_for(numpy_library)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("axis", [2, -3, (0, 5), 10**20])
def test_axis_out_of_range(f, axis):
    with pytest.raises(
        IndexError, match=rf"normx.{f.__name__}: `axis` must be between -2 and 1"
    ) as caught:
        f(X, axis=axis, **required(f))
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("axis", [(0, 0), (1, -1)])
def test_axis_named_twice(f, axis):
    with pytest.raises(ValueError, match=r"`axis` must name each axis once"):
        f(X, axis=axis, **required(f))


@pytest.mark.parametrize("axis", ["0", 1.0, True, [0]])
def test_axis_of_a_wrong_kind(axis):
    with pytest.raises(TypeError, match=r"`axis` must be an int, a tuple of ints or None"):
        normx.softmax(X, axis=axis)


def test_axis_of_a_number():
    assert normx.softmax(3.0, axis=0) == normx.softmax(3.0, axis=-1) == 1.0
    with pytest.raises(IndexError, match=r"normx.softmax: `axis`"):
        normx.softmax(3.0, axis=1)


@pytest.mark.parametrize(
    ("x", "came", "cure"),
    [
        (X + 1j, "complex128", "real part"),
        (np.array([1.0, None]), "object", "cast"),
        (np.array(["a", "b"]), "<U1", "cast"),
        (np.zeros(2, [("a", "f4")]), "'a'", "cast"),
        (np.zeros(2, "M8[s]"), "datetime64", "cast"),
        (np.ma.masked_array(X, X > 2), "masked array", "where=~numpy.ma.getmaskarray"),
        (X.view(np.matrix), "matrix", "numpy.asarray"),
        (np.zeros(3, np.longdouble), "float128", "cast"),
    ],
)
def test_scores_that_are_no_real_numbers(x, came, cure):
    with pytest.raises(TypeError, match=r"normx.softmax: `x` must be") as caught:
        normx.softmax(x)
    assert came in str(caught.value) and cure in str(caught.value)


@pytest.mark.parametrize("x", [None, "abc", {1: 2}, object(), [[1.0, 2.0], [3.0]], ["a"]])
def test_scores_that_are_no_array(x):
    with pytest.raises(TypeError, match=r"normx.softmax: `x` must be"):
        normx.softmax(x)


@pytest.mark.parametrize("temperature", [-1.0, np.nan, -np.inf, np.float32(-2)])
def test_temperature_below_zero(temperature):
    with pytest.raises(
        ValueError, match=r"normx.softmax: `temperature` must be .* at least 0"
    ) as caught:
        normx.softmax(X, temperature=temperature)
    assert "negate the scores" in str(caught.value)


def test_temperature_array_below_zero_even_when_the_plan_is_cached():
    normx.softmax(X, temperature=np.array([[1.0], [2.0]]))
    for bad in (-1.0, np.nan):
        with pytest.raises(ValueError, match=r"`temperature` must be"):
            normx.softmax(X, temperature=np.array([[1.0], [bad]]))


@pytest.mark.parametrize("temperature", ["1", 1j, None, [1.0, "a"]])
def test_temperature_of_a_wrong_kind(temperature):
    if temperature is None:
        assert np.array_equal(normx.softmax(X, temperature=None), normx.softmax(X))
        return
    with pytest.raises(TypeError, match=r"normx.softmax: `temperature`"):
        normx.softmax(X, temperature=temperature)


def test_temperature_of_a_wrong_shape():
    with pytest.raises(
        ValueError, match=r"`temperature` must be broadcastable against shape \(2, 1\).*keepdims"
    ):
        normx.softmax(X, temperature=np.ones((2, 3)))


@pytest.mark.parametrize("softcap", [0.0, -1.0, np.nan])
def test_softcap_not_positive(softcap):
    with pytest.raises(ValueError, match=r"normx.softmax: `softcap` must be a number above 0"):
        normx.softmax(X, softcap=softcap)


def test_unknown_keyword_lists_the_known_ones():
    with pytest.raises(TypeError, match=r"unknown keyword `temprature`; known are .*temperature"):
        normx.softmax(X, temprature=2.0)
    with pytest.raises(TypeError, match=r"unknown keyword `softcap`"):
        normx.logsumexp(X, softcap=2.0)


def test_unknown_choices():
    with pytest.raises(
        ValueError, match=r"`empty` must be one of 'zero', 'nan', 'uniform', not 'one'"
    ):
        normx.softmax(X, empty="one")
    with pytest.raises(ValueError, match=r"`backend` must be one of reference, .*not 'cuda'"):
        normx.softmax(X, backend="cuda")
    with (
        pytest.raises(ValueError, match=r"unknown backend 'cuda'; known are reference"),
        normx.use_backend("cuda"),
    ):
        pass


@pytest.mark.parametrize("dtype", ["int32", complex, "nothing", np.bool_])
def test_dtype_of_a_wrong_kind(dtype):
    with pytest.raises(TypeError, match=r"normx.softmax: `dtype` must be a floating dtype"):
        normx.softmax(X, dtype=dtype)


@pytest.mark.parametrize("where", [np.ones(3), "yes", 1, np.ones((2, 3), np.int8)])
def test_mask_of_a_wrong_kind(where):
    with pytest.raises(TypeError, match=r"normx.softmax: `where` must be an array of bool"):
        normx.softmax(X, where=where)


@pytest.mark.parametrize("shape", [(4,), (3, 3), (5, 2, 3)])
def test_mask_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"`where` must be broadcastable against shape \(2, 3\)"):
        normx.softmax(X, where=np.ones(shape, bool))


def _read_only():
    out = np.empty_like(X)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    ("out", "kind"),
    [
        (np.empty((3, 2)), ValueError),
        (np.empty((2, 3), np.float32), ValueError),
        (_read_only(), ValueError),
        ([[0.0] * 3] * 2, TypeError),
        ("out", TypeError),
    ],
)
def test_out_that_does_not_fit(out, kind):
    x = X.copy()
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises(kind, match=r"normx.softmax: `out` must be"):
        normx.softmax(x, out=out)
    assert np.array_equal(x, X)
    if before is not None:
        assert np.array_equal(out, before, equal_nan=True)


@pytest.mark.parametrize("f", NORMALIZERS, ids=lambda f: f.__name__)
def test_nothing_is_written_when_a_later_argument_is_wrong(f):
    out = np.full_like(X, 7.0)
    for wrong in (
        {"temperature": -1.0},
        {"backend": "cuda"},
        {"where": np.ones(5, bool)},
        {"axis": 9},
    ):
        with pytest.raises((TypeError, ValueError)):
            f(X, out=out, **wrong)
        with pytest.raises((TypeError, ValueError)):
            f(out, out=out, **wrong)
    assert np.all(out == 7.0)


def test_sink_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"`sink` must be broadcastable"):
        normx.softmax(X, sink=np.ones((5, 1)))
    with pytest.raises(TypeError, match=r"`sink` must be a number or an array"):
        normx.softmax(X, sink="a")


def test_mixed_libraries_are_refused_by_name():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(
        TypeError,
        match=r"`where` must be an array of numpy, the library of `x`, not an array of array_api",
    ):
        normx.softmax(X, where=strict.asarray([True, True, False]))
    with pytest.raises(TypeError, match=r"`temperature` must be an array of array_api_strict"):
        normx.softmax(strict.asarray([1.0, 2.0]), temperature=np.ones(1))


def test_an_array_that_cannot_be_written_has_no_out():
    strict = pytest.importorskip("array_api_strict")
    x = strict.asarray([1.0, 2.0])
    with pytest.raises(TypeError, match=r"`out` must be absent for arrays of array_api_strict"):
        normx.softmax(x, out=x)


def test_an_explicit_backend_never_falls_back():
    strict = pytest.importorskip("array_api_strict")
    if not normx.backends()["native"].usable:
        pytest.skip("the native backend is not built")
    x = strict.asarray([1.0, 2.0])
    with pytest.raises(
        TypeError,
        match=r"normx.softmax: `backend` must be one that takes this call, not native: reads",
    ):
        normx.softmax(x, backend="native")
    with normx.use_backend("native"), pytest.raises(TypeError, match=r"native: reads"):
        normx.softmax(x)


def test_flags_are_true_or_false():
    with pytest.raises(
        TypeError, match=r"normx.logsumexp: `keepdims` must be True or False, not 1"
    ):
        normx.logsumexp(X, keepdims=1)


def test_vjp_refuses_what_has_no_gradient():
    with pytest.raises(TypeError, match=r"is not a function of normx; known are softmax"):
        normx.vjp(np.exp, X)
    with pytest.raises(TypeError, match=r"normx.vjp: `out` must be absent"):
        normx.vjp(normx.softmax, X, out=np.empty_like(X))
    with pytest.raises(TypeError, match=r"normx.vjp: `f` must be a real function"):
        normx.vjp(normx.logsumexp, X, return_sign=True)
    _, pullback = normx.vjp(normx.softmax, X)
    with pytest.raises(
        ValueError, match=r"normx.vjp: `dy` must be a real array of numpy of shape \(2, 3\)"
    ):
        pullback(np.ones(3))


def test_an_out_that_changed_since_the_plan_was_made():
    out = np.empty_like(X)
    normx.softmax(X, out=out)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"`out` must be writable"):
        normx.softmax(X, out=out)
    folded = np.lib.stride_tricks.as_strided(np.zeros(6), (2, 3), (8, 8))
    with pytest.raises(ValueError, match=r"`out` must be .*share memory"):
        normx.softmax(X, out=folded)


def test_more_wrong_values():
    with pytest.raises(ValueError, match=r"`backend` must be one of"):
        normx.softmax(X, backend="")
    with pytest.raises(TypeError, match=r"`temperature` must be a number"):
        normx.softmax(X, temperature=np.str_("2"))
    with pytest.raises(ValueError, match=r"`sink` must be .* not too large a number"):
        normx.softmax(X, sink=10**400)
    with pytest.raises(TypeError, match=r"`dtype` must be None for complex scores"):
        normx.logsumexp(X + 1j, dtype="float32")
    with pytest.raises(IndexError, match=r"between -1 and 0"):
        normx.softmax(3.0, axis=1)
    _, pullback = normx.vjp(normx.softmax, X)
    with pytest.raises(ValueError, match=r"`dy` must be a real array"):
        pullback(X + 1j)
    with pytest.raises(ValueError, match=r"from 1 to 4096"):
        normx.set_num_threads(2**40)


def test_threads():
    with pytest.raises(
        ValueError, match=r"normx.set_num_threads: `count` must be from 1 to 4096, not 0"
    ):
        normx.set_num_threads(0)
    for count in (1.5, "2", True, None):
        with pytest.raises(
            TypeError, match=r"normx.set_num_threads: `count` must be a whole number"
        ):
            normx.set_num_threads(count)
