"""One row of 2^26 scores, in float32, against a sum in long double."""

import numpy as np
import pytest

import normx
from normx.testing.ulp import error_in_ulp

N = 2**26


def exact_sum(x, top):
    total = np.longdouble(0)
    for part in np.array_split(x, 64):
        total += np.sum(np.exp(part.astype(np.longdouble) - top))
    return total


@pytest.mark.parametrize("spread", [0.01, 100.0])
def test_the_longest_row(spread):
    x = np.random.default_rng(0).standard_normal(N, np.float32) * np.float32(spread)
    top = np.longdouble(x.max())
    total = exact_sum(x, top)
    some = np.r_[0:1000, int(x.argmax()), N - 1000 : N, np.argsort(x[:100_000])[-1000:]]
    distance = x[some].astype(np.longdouble) - top
    want = {
        normx.softmax: np.exp(distance) / total,
        normx.log_softmax: distance - np.log(total),
    }
    out = np.empty_like(x)
    for f, exact in want.items():
        f(x, backend="native", out=out)
        assert error_in_ulp(out[some], exact, "float32").max() <= 4.0, f.__name__
    got = normx.logsumexp(x, backend="native")
    assert error_in_ulp(got, top + np.log(total), "float32") <= 4.0
