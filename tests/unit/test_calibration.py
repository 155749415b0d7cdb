"""Temperatures that fit, and errors of calibration."""

import numpy as np
import pytest

import normx
from normx.calibration import expected_calibration_error, fit_temperature

pytest.importorskip("scipy", reason="scipy is not installed")
INF = np.inf


def items(k=4, n=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, k)) * 3
    targets = np.array([rng.choice(k, p=p) for p in normx.softmax(x, temperature=2.5)])
    return x, targets


def nll(x, targets, t):
    return -normx.log_softmax(x, temperature=t)[np.arange(len(x)), targets].mean()


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("k", [2, 4, 30])
def test_the_temperature_is_at_the_minimum(k, unit):
    x, targets = items(k)
    t = fit_temperature(x * unit, targets)
    assert 2.0 < t / unit < 3.0
    best = nll(x * unit, targets, t)
    assert best <= min(nll(x * unit, targets, t * c) for c in (0.9, 0.999, 1.001, 1.1))
    # To the last digits: where the slope in 1/T is 0.
    p = normx.softmax(x * unit, temperature=t)
    slope = ((p * x).sum(-1) - x[np.arange(len(x)), targets]).mean()
    assert abs(slope) < 1e-12


def test_two_classes_have_a_closed_form():
    scores, targets = np.tile([2.0, 0.0], (10, 1)), np.repeat([0, 1], [9, 1])
    np.testing.assert_allclose(fit_temperature(scores, targets), 2 / np.log(9), rtol=1e-14)


def test_limits():
    assert fit_temperature([[1.0, 0.0], [0.0, 3.0]], [0, 1]) == 0
    assert fit_temperature([[1.0, 1.0, 0.0]], [0]) == 0  # never wrong
    assert fit_temperature([[1.0, 0.0]], [1]) == INF
    assert fit_temperature([[1.0, 1.0]], [1]) == INF
    assert fit_temperature([[5.0]], [0]) == INF  # all temperatures are as good


def test_classes_of_score_minus_infinity_are_left_out():
    x, targets = items(3)
    wide = np.concatenate([x, np.full((len(x), 1), -INF)], axis=1)
    np.testing.assert_allclose(fit_temperature(wide, targets), fit_temperature(x, targets))


def test_axes_and_more_of_them():
    x, targets = items()
    want = fit_temperature(x, targets)
    assert fit_temperature(x.T, targets, axis=0) == want
    assert fit_temperature(x.reshape(20, 20, 4), targets.reshape(20, 20)) == want


def test_a_fitted_temperature_calibrates():
    x, targets = items(n=4000)
    t = fit_temperature(x, targets)
    raw, fitted = (
        expected_calibration_error(normx.softmax(x, temperature=c), targets) for c in (1.0, t)
    )
    assert fitted < 0.03 and raw > 0.15


def test_error_is_its_definition():
    rng = np.random.default_rng(0)
    p = normx.softmax(rng.normal(size=(200, 5)) * 2)
    targets = rng.integers(0, 5, 200)
    confidence, right = p.max(-1), p.argmax(-1) == targets
    for bins in (1, 7, 10):
        want = 0.0
        for b in range(bins):
            held = (confidence > b / bins) & (confidence <= (b + 1) / bins)
            if held.any():
                want += held.mean() * abs(right[held].mean() - confidence[held].mean())
        got = expected_calibration_error(p, targets, bins=bins)
        np.testing.assert_allclose(got, want, rtol=1e-13)


def test_error_is_zero_where_confidence_is_accuracy():
    p = np.tile([0.75, 0.25], (8, 1))
    assert expected_calibration_error(p, [0] * 6 + [1] * 2) == 0
    assert expected_calibration_error([[1.0, 0.0]], [0]) == 0
    assert expected_calibration_error([[1.0, 0.0]], [1]) == 1
    assert expected_calibration_error(np.array([[0.0, 0.0]]), [0]) == 1  # an empty row


def test_a_bin_has_its_upper_edge():
    p = [[0.5, 0.5], [0.51, 0.49]]  # of two bins, one each
    np.testing.assert_allclose(expected_calibration_error(p, [0, 1], bins=2), (0.5 + 0.51) / 2)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_error_has_the_dtype_of_the_probabilities(dtype):
    p = np.array([[0.75, 0.25]], dtype)
    assert expected_calibration_error(p, [0]).dtype == dtype


@pytest.mark.parametrize(
    ("call", "kind", "parts"),
    [
        (lambda: fit_temperature([[1.0, 2.0]], [2]), ValueError, ("`targets`", "not 2")),
        (lambda: fit_temperature([[1.0, 2.0]], [-1]), ValueError, ("`targets`", "not -1")),
        (lambda: fit_temperature([[1.0, 2.0]], [0.0]), TypeError, ("`targets`", "ints")),
        (lambda: fit_temperature([[1.0, 2.0]], [0, 1]), ValueError, ("`targets`", "(1,)")),
        (lambda: fit_temperature([[1.0, np.nan]], [0]), ValueError, ("`x`", "NaN")),
        (lambda: fit_temperature([[1.0, -INF]], [1]), ValueError, ("`targets`", "item 0")),
        (lambda: fit_temperature(np.zeros((0, 2)), []), ValueError, ("`x`", "items")),
        (lambda: fit_temperature([[1.0]], [0], axis=None), TypeError, ("`axis`",)),
        (
            lambda: expected_calibration_error([[3.0, 1.0]], [0]),
            ValueError,
            ("`probabilities`", "between 0 and 1", "normx.softmax"),
        ),
        (lambda: expected_calibration_error([[0.5]], [0], bins=0), ValueError, ("`bins`",)),
        (lambda: expected_calibration_error([[0.5]], [0], bins=1.5), TypeError, ("`bins`",)),
        (lambda: expected_calibration_error([[0.5]], [1]), ValueError, ("`targets`", "not 1")),
    ],
)
def test_wrong_arguments(call, kind, parts):
    with pytest.raises(kind) as raised:
        call()
    assert all(part in str(raised.value) for part in parts), raised.value


def test_a_missing_scipy_is_named_with_its_extra(monkeypatch):
    def without_scipy(name, *rest, **more):
        if name.partition(".")[0] == "scipy":
            raise ModuleNotFoundError("No module named 'scipy'", name="scipy")
        return real(name, *rest, **more)

    import importlib

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", without_scipy)
    with pytest.raises(ImportError, match=r'needs scipy; pip install "normx\[learn\]"'):
        fit_temperature(*items())
