"""The conformance suite fails on broken records: each fault is caught by the test meant for it."""

from dataclasses import replace

import numpy as np
import pytest

from normx import _dispatch as dispatch
from normx import _record
from normx.normalizers import softmax as family
from normx.testing import conformance
from normx.testing.plugin import Case

SOFTMAX = _record.record_of("softmax")


@pytest.fixture
def broken(request, monkeypatch):
    """The case of a softmax with one fault, registered for the duration of a test."""
    # In the precision of the other libraries, where a fault of rounding shows.
    monkeypatch.setattr(dispatch.numpy_library, "arithmetic", "float32", raising=False)
    name = f"broken_{request.param}"

    @_record.normalizer(
        apply=SOFTMAX.apply,
        definition=SOFTMAX.definition,
        stages=SOFTMAX.stages,
        vjp=SOFTMAX.vjp,
        laws=SOFTMAX.laws,
        papers=SOFTMAX.papers,
    )
    def function(x, /, *, axis=-1, **options):
        """A softmax with a fault."""

    record = _record._REGISTRY.pop("function")
    record = replace(record, name=name, **FAULTS[request.param][0])
    record.function.__name__ = name
    entry = dispatch.entry_point(name)
    entry.__name__ = name
    record = replace(record, function=entry)
    _record._REGISTRY[name] = record
    yield Case(record, dispatch.numpy_library, "reference", "eager", None)
    del _record._REGISTRY[name]


def _naive(row, state):
    e = row.xp.exp(row.scores)
    return e / row.xp.sum(e, axis=row.axis, keepdims=True)


def _rounded_difference(row, state):
    e = row.xp.exp(row.scores - row.maximum)
    return e / row.sum(e)


def _half_sum(row, state):
    e = row.xp.exp(row.centred.relative.hi)
    return e / (row.xp.sum(e, axis=row.axis, keepdims=True) * (1 + 2e-6))


def _across_rows(row, state):
    y = family.weights(row, state)
    return y + 0 * row.xp.sum(y)


def _last_axis(row, state):
    e = row.xp.exp(row.scores - row.xp.max(row.scores, axis=-1, keepdims=True))
    return e / row.xp.sum(e, axis=-1, keepdims=True)


def _by_position(row, state):
    y = family.weights(row, state)
    return row.xp.where(row.xp.arange(y.shape[-1]) % 16 == 15, y * (1 + 1.2e-7), y)


def _without_temperature(row, state):
    cold = replace(row, temperature=None)
    return family.weights(cold, family.lift(cold))


def _writes_to_its_input(row, state):
    y = family.weights(row, state)
    np.asarray(row.scores)[...] = 0.0
    return y


def _without_factor(row, cotangent):
    gradient = SOFTMAX.vjp(row, cotangent)
    return {"x": 2.0 * gradient["x"]}


def _gradient_of_the_kept_only_by_product(row, cotangent):
    y = family.weights(row, family.lift(row))
    return {"x": y * (cotangent - row.xp.mean(y * cotangent, axis=row.axis, keepdims=True))}


def _law(name):
    law = next(law for law in SOFTMAX.laws if law.name == name)
    return lambda case: conformance.test_laws(case, law)


def _oracle(sample, dtype="float32"):
    return lambda case: conformance.test_oracle(case, sample, dtype)


FAULTS = {
    "naive": ({"apply": _naive}, _oracle("offset1e+06")),
    "rounded_difference": ({"apply": _rounded_difference}, _oracle("spread10")),
    "sum_off_by_two_in_a_million": ({"apply": _half_sum}, _oracle("n64")),
    "poisoned_by_other_rows": (
        {"apply": _across_rows},
        lambda case: conformance.test_special_values(case, "float32"),
    ),
    "deaf_to_axis": ({"apply": _last_axis}, conformance.test_axes),
    "bits_by_position": ({"apply": _by_position}, _law("equal_scores_equal_bits")),
    "deaf_to_temperature": ({"apply": _without_temperature}, _oracle("hot")),
    "writing_to_its_input": ({"apply": _writes_to_its_input}, conformance.test_input_is_unchanged),
    "gradient_twice_too_large": ({"vjp": _without_factor}, conformance.test_gradients),
    "gradient_with_a_mean_for_a_sum": (
        {"vjp": _gradient_of_the_kept_only_by_product},
        conformance.test_gradients,
    ),
}


@pytest.mark.parametrize("broken", FAULTS, indirect=True)
def test_the_suite_catches(broken, request):
    check = FAULTS[broken.record.name.removeprefix("broken_")][1]
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        check(broken)
    sound = replace(broken, record=SOFTMAX)
    check(sound)  # and the sound record passes the very same check
