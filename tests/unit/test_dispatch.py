"""Who computes: choice, refusal, explanation, proof."""

import inspect
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import normx
from normx import _dispatch as dispatch
from normx._options import RowOptions, SharedOptions, options_of
from normx._record import registry
from normx.plugins import Backend, Refusal

X = np.arange(6.0, dtype=np.float32).reshape(2, 3)
FUNCTIONS = [record.function for record in registry().values()]


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_a_plan_is_made_once_per_form(monkeypatch):
    dispatch.clear_caches()
    made = []
    prepare = dispatch.prepare
    monkeypatch.setattr(dispatch, "prepare", lambda *a: made.append(1) or prepare(*a))
    for x in (X, X + 1, X.copy()):
        normx.softmax(x)
        normx.softmax(x, axis=0)
        normx.softmax(x, where=x > 0)
        normx.softmax(x, temperature=np.ones((2, 1), np.float32))
    assert len(made) == 4
    normx.softmax(X.astype(np.float64))
    normx.softmax(X[:1])
    normx.softmax(X, axis=True - 1)
    assert len(made) == 6


def test_a_cached_plan_does_not_confuse_true_with_one():
    normx.logsumexp(X, keepdims=True)
    with pytest.raises(TypeError):
        normx.logsumexp(X, keepdims=1)


@pytest.mark.parametrize(
    ("f", "right", "wrong"),
    [
        (normx.softmax, {"axis": (0, 1)}, {"axis": (False, True)}),
        (normx.softmax, {"axis": (0, 1)}, {"axis": (0.0, 1.0)}),
        (normx.softmax, {"where": (True, False, True)}, {"where": (1, 0, 1)}),
        (normx.adaptive_softmax, {"coefficients": (0, 1)}, {"coefficients": (False, True)}),
    ],
)
def test_a_cached_plan_does_not_confuse_entries_that_are_equal(f, right, wrong):
    x = np.ones((2, 3), np.float32)
    f(x, **right)
    with pytest.raises(TypeError):
        f(x, **wrong)


def test_plans_do_not_pile_up():
    for n in range(1, 2500):
        normx.softmax(np.zeros(n, np.float32))
    assert max(map(len, dispatch.caches)) <= 1024


def test_explain_says_who_and_why():
    explained = normx.explain(normx.softmax, X)
    assert [c.backend for c in explained.candidates][-1] in normx.backends()
    assert explained.candidates[-1].taken and not any(c.taken for c in explained.candidates[:-1])
    assert str(explained).startswith("softmax on an array of numpy:")
    weighted = normx.explain("logsumexp", X, b=3.0)
    assert weighted.candidates[-1].backend == "reference"
    if normx.backends()["native"].usable:
        assert "no b" in weighted.candidates[0].reason and "no b" in str(weighted)


def test_explain_refuses_what_the_call_refuses():
    with pytest.raises(IndexError):
        normx.explain(normx.softmax, X, axis=5)
    with pytest.raises(TypeError, match=r"known are softmax"):
        normx.explain("softmux", X)


def test_trace_nests_and_ends():
    with normx.trace() as outer:
        normx.softmax(X)
        with normx.trace() as inner:
            normx.logsumexp(X)
        normx.log_softmax(X)
    normx.softmax(X)
    assert [r.function for r in outer] == ["softmax", "logsumexp", "log_softmax"]
    assert [r.function for r in inner] == ["logsumexp"]


def test_use_backend_holds_inside_only():
    with normx.use_backend("reference"), normx.trace() as ran:
        normx.softmax(X)
        if normx.backends()["native"].usable:
            normx.softmax(X, backend="native")
            assert ran[1].backend == "native"
    assert ran[0].backend == "reference"
    assert dispatch.chosen_backend() == os.environ.get("NORMX_BACKEND")


def test_use_backend_is_per_thread():
    with normx.use_backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(dispatch._chosen.get).result() is None


def test_environment_chooses_the_backend():
    code = "import normx\nwith normx.trace() as t: normx.softmax([1.0])\nprint(t[0].backend)"
    assert run(code, NORMX_BACKEND="reference").stdout.strip() == "reference"
    wrong = run(code, NORMX_BACKEND="fastest")
    assert wrong.returncode and "NORMX_BACKEND is 'fastest'; known are reference" in wrong.stderr


class Loopback(Backend):
    """Computes as the reference does, and says that it was there."""

    name = "loopback"

    def unusable(self):
        return None

    def implementation(self, plan):
        if plan.softcap is not None:
            return Refusal("no softcap")
        inner = dispatch.reference_backend.implementation(plan)
        return lambda *a: (inner(*a)[0], f"{plan.record.name}_loop__mirror")


@pytest.fixture
def plugins(monkeypatch):
    """Plugins of a third party, as entry points would bring them."""

    class Entry:
        def __init__(self, value):
            self.value = value

        def load(self):
            if isinstance(self.value, Exception):
                raise self.value
            return self.value

    entries = {
        "normx.backends": {
            "loopback": Entry(Loopback()),
            "broken": Entry(ImportError("no driver")),
        },
        "normx.libraries": {},
    }
    dispatch.clear_caches()
    monkeypatch.setattr(dispatch, "_plugins", lambda group: entries[group])
    monkeypatch.setattr(
        dispatch.numpy_library, "preference", ("broken", "loopback", "reference"), raising=False
    )
    monkeypatch.setattr(dispatch, "_loaded", lambda group, name: entries[group][name].load())
    yield
    dispatch.forget_plans()


def test_a_third_party_backend_is_no_different(plugins):
    with normx.trace() as ran:
        got = normx.softmax(X)
        normx.softmax(X, softcap=2.0)
    assert [r.backend for r in ran] == ["loopback", "reference"]
    assert ran[0].kernel == "softmax_loop" and ran[0].target == "mirror"
    assert np.array_equal(got, normx.softmax(X, backend="reference"))
    explained = str(normx.explain(normx.softmax, X, softcap=2.0))
    assert "broken     refused: cannot be loaded: no driver" in explained
    assert "loopback   refused: no softcap" in explained
    with pytest.raises(TypeError, match=r"not loopback: no softcap"):
        normx.softmax(X, softcap=2.0, backend="loopback")
    assert not normx.backends()["broken"].usable
    assert "no driver" in str(normx.backends()["broken"])


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_signature_and_help_spell_the_options_out(f):
    record = registry()[f.__name__]
    options = RowOptions if record.kind == "normalizer" else SharedOptions
    parameters = inspect.signature(f).parameters
    assert next(iter(parameters.values())).kind is inspect.Parameter.POSITIONAL_ONLY
    for name, option in options_of(options).items():
        if name not in record.example:  # or it is the record's own
            assert parameters[name].default == option.default
            assert f"\n{name} : {option.type}" in f.__doc__
    for section in ("Parameters", "Returns", "Raises", "Notes", "References", "Examples"):
        assert f"\n{section}\n---" in f.__doc__, section
    marks = ("{x}", "{axis}", "{n}", "{options}", "{returns}", "{raises}", "{papers}")
    assert not any(mark in f.__doc__ for mark in marks)
    for parameter in parameters:
        assert f"\n{parameter} :" in f.__doc__, parameter


def test_functions_are_functions():
    for f in FUNCTIONS:
        assert inspect.isfunction(f) and getattr(normx, f.__name__) is f
        assert pickle.loads(pickle.dumps(f)) is f
        assert f.__module__.startswith("normx.")


def test_capabilities_are_what_runs():
    rows = normx.capabilities()
    assert {row.function for row in rows} == set(registry())
    for row in rows:
        if row.library == "numpy":
            x = dispatch.numpy_library.cast(X, row.dtype)
            record = registry()[row.function]
            required = record.example_for(dispatch.numpy_library)
            if row.supported:
                with normx.trace() as ran:
                    record.function(x, backend=row.backend, **required)
                assert ran[0].backend == row.backend
            else:
                with pytest.raises(TypeError):
                    record.function(x, backend=row.backend, **required)


def test_extras_and_plugins_agree():
    """Every library plugin has an extra that installs the library."""
    tomllib = pytest.importorskip("tomllib")
    path = Path(__file__).parents[2] / "pyproject.toml"
    if not path.exists():
        pytest.skip("the installed package is tested, without its pyproject.toml")
    project = tomllib.loads(path.read_text())["project"]
    libraries = set(project["entry-points"]["normx.libraries"]) - dispatch._ALIASES
    assert libraries <= set(project["optional-dependencies"])


def test_many_threads_may_call_at_once():
    x = np.random.default_rng(0).normal(size=(64, 513)).astype(np.float32)
    want = normx.softmax(x)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: normx.softmax(x), range(200)):
            assert np.array_equal(got, want)


def test_modules_above_the_row_are_imported_when_they_are_asked_for():
    code = """
import sys, normx
above = [name for name in dir(normx) if f"normx.{name}" not in sys.modules and name[0] != "_"]
above = [name for name in above if name not in vars(normx)]
print(*above)
print(normx.attention.attention([[0.0]], [[1.0]], [[2.0]])[0, 0], "normx.losses" in sys.modules)
print(*(getattr(normx, name).__name__ for name in above), hasattr(normx, "lossy"))
print(*sorted({"torch", "jax", "scipy", "sklearn"} & {*sys.modules}))
"""
    names = "attention calibration losses regression uncertainty"
    modules = " ".join(f"normx.{name}" for name in names.split())
    assert run(code).stdout == f"{names}\n2.0 False\n{modules} False\n\n"
