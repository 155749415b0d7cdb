"""States merge in any order to the state of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normx._libraries import numpy_library
from normx._row import Row
from normx.normalizers.softmax import _log_softmax, weights
from normx.states import MAX_SUM

scores = st.lists(
    st.floats(-200, 200) | st.sampled_from([-np.inf, 0.0, 1e-3]), min_size=1, max_size=40
)


def row(x):
    x = np.asarray(x, np.float64)[None, :]
    return Row(numpy_library, np, x, None, (1,), None, "float64")


def lift(x):
    return MAX_SUM.lift(row(x))


def assert_same(a, b):
    assert np.array_equal(a.maximum, b.maximum)
    np.testing.assert_allclose(1.0 + a.excess, 1.0 + b.excess, rtol=1e-14, atol=1e-300)


@settings(max_examples=200, deadline=None)
@given(scores, st.data())
def test_any_split_in_any_order_is_the_whole(x, data):
    cuts = sorted(data.draw(st.lists(st.integers(1, len(x)), max_size=4)))
    parts = [part for part in np.split(np.asarray(x), cuts) if part.size]
    order = data.draw(st.permutations(parts))
    merged = MAX_SUM.identity(np, np.zeros((1, 1)))
    for part in order:
        merged = MAX_SUM.merge(np, merged, lift(part))
    whole = lift(x)
    assert_same(merged, whole)
    if np.isfinite(whole.maximum).all():
        for apply in (weights, _log_softmax):
            np.testing.assert_allclose(apply(row(x), merged), apply(row(x), whole), rtol=1e-13)


def test_the_neutral_state_is_neutral():
    neutral = MAX_SUM.identity(np, np.zeros((1, 1)))
    for other in (lift([0.3, -1.0]), lift([-np.inf]), lift([np.inf, 1.0]), neutral):
        assert_same(MAX_SUM.merge(np, neutral, other), other)
        assert_same(MAX_SUM.merge(np, other, neutral), other)


def test_infinite_maxima_are_counted():
    merged = MAX_SUM.merge(np, lift([np.inf, 0.0]), lift([np.inf, np.inf]))
    assert merged.maximum == np.inf and merged.excess == 2.0


def test_nan_stays():
    assert np.isnan(MAX_SUM.merge(np, lift([np.nan]), lift([1.0])).excess)


@pytest.mark.parametrize("x", [[50.0, 0.0], [0.0, -700.0], [300.7, 0.3], [0.1, -600.7]])
def test_the_excess_keeps_the_digits_of_a_peaked_row(x):
    want = np.exp(np.longdouble(x[1]) - np.longdouble(x[0]))
    for parts in (lift(x[:1]), lift(x[1:])), (lift(x[1:]), lift(x[:1])):
        merged = MAX_SUM.merge(np, *parts)
        np.testing.assert_allclose(merged.excess, float(want), rtol=1e-15)
