"""What every function must do on every library, backend, mode and CPU target.

Import the names of this module into a test file and pytest runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import normx
from normx._libraries import numpy_library
from normx._plan import FLOATS
from normx._record import Record
from normx.laws import Law
from normx.testing.oracle import oracle
from normx.testing.plugin import Case
from normx.testing.samples import random_rows, samples, special_rows
from normx.testing.ulp import error_in_ulp

__all__ = [
    "test_axes",
    "test_broadcast_masks",
    "test_dtype_of_the_result",
    "test_empty_policies",
    "test_gradients",
    "test_input_is_unchanged",
    "test_integers",
    "test_laws",
    "test_layouts",
    "test_lengths",
    "test_masks",
    "test_oracle",
    "test_out",
    "test_special_values",
    "test_temperature_arrays",
    "test_zero_sizes",
]

Array = Any
_SAMPLES = {sample.name: sample for sample in samples()}


def only(applies: Callable[[Case], bool]) -> Callable[[Any], Any]:
    """Run a test for some cases only."""

    def mark(test: Any) -> Any:
        test.applies_to = applies
        return test

    return mark


def _is_normalizer(case: Case) -> bool:
    return case.record.kind == "normalizer"


def _takes(case: Case, keywords: Mapping[str, Any]) -> None:
    """Skip, with the reason, what the function or the backend under test does not offer."""
    for keyword in keywords:
        if keyword not in case.record.keywords:
            pytest.skip(f"{case.record.name} has no {keyword}")
    x = case.array(np.zeros((2, 3), np.float32))
    keywords = {**case.record.example, **keywords}
    explained = normx.explain(case.record.name, x, backend=case.backend, **keywords)
    if not explained.candidates[0].taken:
        pytest.skip(f"{case.backend}: {explained.candidates[0].reason}")


@cache
def _expected(record: Record, sample: str, dtype: str) -> tuple[Array, tuple[Array, Array]]:
    """The sample's scores in `dtype`, and the exact results."""
    chosen = _SAMPLES[sample]
    with np.errstate(over="ignore"):  # in half precision the largest scores are infinite
        x = numpy_library.cast(chosen.rows, dtype)
    return x, with_scale(record, x, oracle(record, x, **chosen.keywords))


def expected(case: Case, x: Array, **keywords: Any) -> tuple[Array, Array]:
    """The exact results for rows, and the values at which a last place is measured."""
    return with_scale(case.record, x, oracle(case.record, x, **keywords))


def with_scale(record: Record, x: Array, want: Array, axis: Any = -1) -> tuple[Array, Array]:
    """Results for the scores `x`, and the values at which a last place of them is measured."""
    if record.kind == "normalizer":
        return want, want
    # A logarithm of a sum is as good as its largest term allows.
    x = np.where(np.isfinite(x), x, 0).astype(np.longdouble)
    largest = np.max(np.abs(x), axis=axis, initial=0.0)
    return want, np.maximum(np.abs(want), np.reshape(largest, np.shape(want)))


def errors(case: Case, got: Array, exact: tuple[Array, Array], dtype: str) -> Array:
    """Errors in ULP; where a library flushes subnormal numbers, those are none."""
    want, scale = exact
    error = error_in_ulp(got, want, dtype, scale)
    if case.library.flushes_subnormals:
        tiny = float(np.finfo(np.float32).tiny)
        error = np.where(
            (np.abs(want) < 2 * tiny) & (np.abs(got.astype(np.float64)) < 2 * tiny), 0.0, error
        )
    return error


def check(
    case: Case, got: Array, exact: tuple[Array, Array], dtype: str, budget: float | None = None
) -> None:
    """Compare with exact values: dtype, shape, and error within a budget, the record's own."""
    want = exact[0]
    assert got.dtype.name == dtype, f"dtype {got.dtype.name} instead of {dtype}"
    assert got.shape == want.shape, f"shape {got.shape} instead of {want.shape}"
    error = errors(case, got, exact, dtype)
    worst = float(error.max(initial=0.0))
    budget = case.record.ulp[dtype] if budget is None else budget
    where = np.unravel_index(int(error.argmax()), error.shape) if error.size else ()
    assert worst <= budget, (
        f"{worst:.3g} ULP of {dtype} at {where}: {got[where]!r} instead of {want[where]!r}"
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", _SAMPLES)
def test_oracle(case: Case, name: str, dtype: str) -> None:
    """Within the error budget of the exact result, on every kind of row."""
    sample = _SAMPLES[name]
    _takes(case, sample.keywords)
    _needs(case, dtype)
    x, want = _expected(case.record, name, dtype)
    check(case, case.values(x, axis=-1, **sample.keywords), want, dtype)


def _needs(case: Case, dtype: str) -> None:
    if not case.has(dtype):
        pytest.skip(f"{case.library.name} has no {dtype} here")


@only(lambda case: case.mode == "eager")
def test_lengths(case: Case) -> None:
    """Every length from 1 to 300: every tail of every vector loop."""
    # What runs later, in tasks, runs the kernels that NumPy's arrays have been through.
    loops = case.backend != "reference" and case.library.is_concrete(case.array(np.zeros(1)))
    for n in range(1, 301, 1 if loops else 37):
        x = random_rows(n, 2, 3.0).astype(np.float32)
        check(case, case.values(x, axis=-1), expected(case, x), "float32")


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values(case: Case, dtype: str) -> None:
    """Infinities and NaN by policy, the other rows untouched."""
    _needs(case, dtype)
    x = numpy_library.cast(special_rows(), dtype)
    check(case, case.values(x, axis=-1), expected(case, x), dtype)
    vectors = (2, 7, 8, 15, 16, 31, 32, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 4097)
    for n in (1, 33, *(vectors if case.backend != "reference" else ())):
        row = numpy_library.cast(np.full((1, n), -np.inf), dtype)
        check(case, case.values(row, axis=-1), expected(case, row), dtype)


@only(_is_normalizer)
@pytest.mark.parametrize("empty", ["zero", "nan", "uniform"])
def test_empty_policies(case: Case, empty: str) -> None:
    """What a row without scores becomes, with and without a mask."""
    _takes(case, {"empty": empty})
    x = special_rows().astype(np.float32)
    masks = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 1]], bool)
    check(case, case.values(x, empty=empty), expected(case, x, empty=empty), "float32")
    for mask in masks:
        kept = np.broadcast_to(mask, x.shape)
        want = expected(case, x, where=kept, empty=empty)
        check(case, case.values(x, where=kept, empty=empty), want, "float32")


@pytest.mark.parametrize("dtype", FLOATS)
def test_masks(case: Case, dtype: str) -> None:
    """Left-out entries have no effect, whatever they hold."""
    _needs(case, dtype)
    rng = np.random.default_rng(3)
    for n in (1, 5, 16, 33, 128, 300):
        x = numpy_library.cast(random_rows(n, 6, 4.0), dtype)
        kept = rng.random(x.shape) < 0.6
        kept[0] = True
        kept[1] = False
        x[~kept] = rng.choice([np.nan, np.inf, -np.inf, 1e4], size=int((~kept).sum()))
        want = expected(case, np.where(kept, x, 0), where=kept)
        check(case, case.values(x, axis=-1, where=kept), want, dtype)


def test_broadcast_masks(case: Case) -> None:
    """Masks broadcast: fewer axes, axes of size 1, a bare True."""
    x = random_rows(24, 5, 2.0).reshape(5, 4, 6).astype(np.float32)
    flat = x.reshape(20, 6)
    for mask in (
        np.arange(6) % 2 == 0,
        (np.arange(5) % 2 == 0)[:, None, None],
        np.ones((1, 4, 1), bool),
        np.random.default_rng(1).random((4, 6)) < 0.5,
    ):
        kept = np.broadcast_to(mask, x.shape).reshape(20, 6)
        want = expected(case, flat, where=kept)
        got = case.values(x, axis=-1, where=mask)
        check(case, got.reshape(want[0].shape), want, "float32")


@only(lambda case: "temperature" in case.record.keywords)
def test_temperature_arrays(case: Case) -> None:
    """A temperature per row."""
    _takes(case, {"temperature": 2.0})
    x = random_rows(33, 3, 10.0).astype(np.float32)
    t = np.array([[0.5], [1.0], [3.0]], np.float32)
    want = np.concatenate(
        [oracle(case.record, x[i : i + 1], temperature=t[i, 0]) for i in range(3)]
    )
    check(case, case.values(x, temperature=t), (want, want), "float32")


def test_laws(case: Case, law: Law) -> None:
    """One of the record's laws, in float32 and on rows of every magnitude."""
    tolerance = case.record.ulp["float32"] * float(np.finfo(np.float32).eps)

    def f(x: Array, **keywords: Any) -> Array:
        if isinstance(keywords.get("temperature"), np.ndarray):
            keywords["temperature"] = keywords["temperature"].astype(np.float32)
        if "temperature" in keywords:
            _takes(case, {"temperature": 2.0})
        return np.asarray(case.values(np.asarray(x, np.float32), axis=-1, **keywords))

    for n, spread in ((2, 1.0), (17, 1.0), (64, 4.0), (300, 0.1)):
        law.check(f, random_rows(n, 4, spread).astype(np.float32).astype(np.float64), tolerance)


def axes_of(ndim: int) -> list[Any]:
    """Every axis and every set of axes, in several spellings."""
    every: list[Any] = [None, (), *range(-ndim, ndim)]
    for size in range(1, ndim + 1):
        for chosen in combinations(range(ndim), size):
            every.append(chosen)
            every.append(tuple(i - ndim for i in reversed(chosen)))
    return every


def _by_rows(x: Array, axis: Any) -> tuple[Array, Callable[[Array], Array]]:
    """`x` as rows of its reduced axes, and the way back."""
    ndim = x.ndim
    axes = tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(sorted(a % ndim for a in axes))
    outer = tuple(i for i in range(ndim) if i not in axes)
    moved = np.transpose(x, outer + axes)
    n = int(np.prod([x.shape[a] for a in axes], dtype=int))
    rows = moved.reshape(-1, n)

    def back(y: Array) -> Array:
        if y.ndim == 1:
            return y.reshape([x.shape[i] for i in outer])
        return np.transpose(y.reshape(moved.shape), np.argsort(outer + axes))

    return rows, back


@only(lambda case: case.mode == "eager")
def test_axes(case: Case) -> None:
    """Every axis and set of axes gives the bits of the same rows laid out last."""
    x = random_rows(60, 2, 3.0).reshape(2, 3, 4, 5).astype(np.float32)
    for axis in axes_of(4):
        rows, back = _by_rows(x, axis)
        want, scale = expected(case, rows)
        check(case, case.values(x, axis=axis), (back(want), back(scale)), "float32")
    scalar = case.values(np.array(3.0, np.float32), axis=-1)
    assert scalar.shape == () and scalar == (3.0 if case.record.kind == "reduction" else scalar)


def _strides_matter(case: Case) -> bool:
    """Only NumPy arrays reach the suite with strides of their own choosing."""
    return case.library.name == "numpy" and case.mode == "eager"


@only(_strides_matter)
def test_layouts(case: Case) -> None:
    """Views of every kind give the bits of a contiguous copy."""
    base = random_rows(40 * 40, 1, 3.0).reshape(40, 40).astype(np.float32)
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        x = numpy_library.cast(base, dtype)
        packed = np.zeros(x.nbytes + 1, np.uint8)
        misaligned = packed[1:].view(x.dtype).reshape(x.shape)
        misaligned[...] = x
        views = {
            "transposed": x.T,
            "reversed": x[::-1, ::-1],
            "stepped": x[::2, ::3],
            "narrow": x[:, 3:20],
            "fortran": np.asfortranarray(x),
            "broadcast rows": np.broadcast_to(x[:1], (7, 40)),
            "broadcast columns": np.broadcast_to(x[:, :1], (40, 9)),
            "misaligned": misaligned,
        }
        if dtype != "bfloat16":
            views["other byte order"] = x.astype(x.dtype.newbyteorder())
        for name, view in views.items():
            for axis in (0, 1, (0, 1)):
                got = case.run(view, axis=axis)
                want = case.run(np.ascontiguousarray(view).astype(x.dtype), axis=axis)
                if case.backend == "reference":
                    rows, back = _by_rows(view, axis)
                    exact, scale = expected(case, rows)
                    check(case, got, (back(exact), back(scale)), dtype)
                else:
                    assert np.array_equal(got, want), f"{name}, axis {axis}, {dtype}"


@only(lambda case: _is_normalizer(case) and case.library.mutable and case.mode == "eager")
def test_out(case: Case) -> None:
    """`out` holds the result, may be the input, and may overlap it."""
    x = random_rows(40, 6, 2.0).astype(np.float32)
    want = case.values(x)
    out = case.array(np.full_like(x, 7.0))
    assert case.run(case.array(x), out=out) is out
    assert np.array_equal(case.library.to_numpy(out), want)
    in_place = case.array(x.copy())
    assert case.run(in_place, out=in_place) is in_place
    assert np.array_equal(case.library.to_numpy(in_place), want)
    if case.library.name != "numpy":
        return
    for axis in (0, 1):
        wide = np.full((6, 80), 7.0, np.float32)
        case.run(x, axis=axis, out=wide[:, ::2])
        assert np.array_equal(wide[:, ::2], case.run(x, axis=axis)), "strided out"
        assert np.all(wide[:, 1::2] == 7.0), "written beside out"
        memory = np.concatenate([x.ravel(), np.zeros(1, np.float32)])
        expected = case.run(memory[:-1].reshape(x.shape).copy(), axis=axis)
        shifted = memory[1:].reshape(x.shape)
        case.run(memory[:-1].reshape(x.shape), axis=axis, out=shifted)
        assert np.array_equal(shifted, expected), "overlapping out"


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_of_the_result(case: Case, dtype: str) -> None:
    """The dtype stays, on every axis; `dtype` sets it."""
    _needs(case, dtype)
    x = numpy_library.cast(random_rows(12, 4), dtype)
    for axis in (0, 1, None, (0, 1)):
        assert case.values(x, axis=axis).dtype.name == dtype
    for wanted in FLOATS:
        if not case.has(wanted):
            continue
        got = case.values(x, axis=-1, dtype=wanted)
        wide = numpy_library.cast(x, wanted) if wanted == "float64" else x
        check(case, got, expected(case, wide), wanted)


@only(lambda case: case.library.name != "sparse")  # integers have no -inf for what is missing
def test_integers(case: Case) -> None:
    """Integers and booleans become the default floating dtype before any arithmetic."""
    for values in (
        np.array([[-128, 127]], np.int8),
        np.array([[0, 1]], np.uint8),
        np.array([[0, 1]], np.uint16),
        np.array([[2, 0, 1]], np.int32),
        np.array([[True, False]]),
    ):
        got = case.values(values, axis=-1)
        assert got.dtype.name == case.library.default_float()
        x = values.astype(got.dtype)
        check(case, got, expected(case, x), got.dtype.name)


def test_input_is_unchanged(case: Case) -> None:
    """No argument is written to."""
    x = special_rows().astype(np.float32)
    mask = np.isfinite(x)
    arrays = case.array(x.copy()), case.array(mask.copy())
    case.run(arrays[0], axis=-1)
    case.run(arrays[0], axis=-1, where=arrays[1])
    assert np.array_equal(case.library.to_numpy(arrays[0]), x, equal_nan=True)
    assert np.array_equal(case.library.to_numpy(arrays[1]), mask)


@only(lambda case: case.library.name != "sparse")
def test_zero_sizes(case: Case) -> None:
    """No rows, or rows of length 0: a result of the right shape, and no warning."""
    for shape, axis in (((0, 4), -1), ((4, 0), -1), ((4, 0), 0), ((2, 0, 3), (0, 1))):
        got = case.values(np.zeros(shape, np.float32), axis=axis)
        if case.record.kind == "normalizer":
            assert got.shape == shape
        else:
            dropped = axis if isinstance(axis, tuple) else (axis % len(shape),)
            assert got.shape == tuple(s for i, s in enumerate(shape) if i not in dropped)
            assert np.all(got == -np.inf)
        assert got.dtype == np.float32


def _has_gradient(case: Case) -> bool:
    x = case.array(np.zeros((1, 2)))
    try:
        normx.vjp(case.record.function, x, backend=case.backend, **case.record.example)
    except TypeError:
        return False
    return True


@only(lambda case: case.mode == "eager" and _has_gradient(case))
def test_gradients(case: Case) -> None:
    """`vjp` against central differences in float64; left-out entries and empty rows get 0."""
    _needs(case, "float64")  # differences of float32 values say nothing
    rng = np.random.default_rng(5)
    record = case.record
    x = random_rows(7, 4, 1.0)
    mask = rng.random(x.shape) < 0.7
    mask[0], mask[3] = True, False
    options: list[dict[str, Any]] = [{}, {"where": mask}]
    always = dict(record.example)
    if "differentiate_temperature" in record.keywords:
        always["differentiate_temperature"] = True  # or it is no gradient of the function
    if "temperature" in record.keywords:
        options += [
            {"temperature": np.array([[0.7], [1.3], [2.0], [0.5]])},
            {"temperature": np.array([0.8]), "softcap": 3.0, "where": mask},
        ]
    for spec in record.parameters:
        shape = {"elements": x.shape, "along": (4, 2), "row": (4, 1)}[spec.shape]
        value = np.abs(rng.normal(size=shape)) + 0.3
        value = value + (spec.minimum or 0.0) + (spec.above or 0.0)
        options += [{spec.name: value}, {spec.name: value, "where": mask}]
    x_of_library = case.array(x)
    for chosen in options:
        keywords = always | chosen
        arrays = {k: case.array(v) for k, v in keywords.items() if isinstance(v, np.ndarray)}
        passed = {**keywords, **arrays, "backend": case.backend}
        if not normx.explain(record.name, x_of_library, axis=-1, **passed).candidates[0].taken:
            continue  # the library or the backend says that it has no such parameter
        _check_gradient(case, x, keywords, rng)


def _check_gradient(case: Case, x: Array, keywords: dict[str, Any], rng: Any) -> None:
    record, library = case.record, case.library

    def f(scores: Array, others: dict[str, Any]) -> Array:
        arrays = {k: case.array(v) if isinstance(v, np.ndarray) else v for k, v in others.items()}
        y = record.function(case.array(scores), axis=-1, backend="reference", **arrays)
        return library.to_numpy(y)

    arrays = {k: case.array(v) if isinstance(v, np.ndarray) else v for k, v in keywords.items()}
    with case.forced(), normx.trace() as ran:
        passed = {**arrays, "backend": case.backend}
        y, pullback = normx.vjp(record.function, case.array(x), axis=-1, **passed)
        values = library.to_numpy(y)
        dy = rng.normal(size=values.shape)
        gradients = {k: library.to_numpy(v) for k, v in pullback(case.array(dy)).items()}
    assert ran[-1].function == f"vjp({record.name})" and ran[-1].backend == case.backend
    assert case.target in (None, ran[-1].target)
    finite = np.isfinite(values)
    numeric = {"temperature", *(parameter.name for parameter in record.parameters)}
    assert set(gradients) == {"x", *(numeric & set(keywords))}
    for name, gradient in gradients.items():
        base = x if name == "x" else keywords[name]
        if not isinstance(base, np.ndarray):
            continue
        # Every entry moved up and down, in one call: the moved copies are further rows.
        step = 1e-5
        moves = step * np.eye(base.size).reshape(-1, *(1,) * (x.ndim - base.ndim), *base.shape)
        moved = np.concatenate([base + moves, base - moves])
        scores = moved if name == "x" else np.broadcast_to(x, (len(moved), *x.shape)).copy()
        results = f(scores, keywords if name == "x" else {**keywords, name: moved})
        with np.errstate(invalid="ignore"):
            losses = np.where(finite, results * dy, 0.0).reshape(len(moved), -1).sum(axis=-1)
        slopes = (losses[: base.size] - losses[base.size :]).reshape(base.shape) / (2 * step)
        assert gradient.shape == base.shape
        np.testing.assert_allclose(
            gradient, slopes, rtol=1e-6, atol=1e-8, err_msg=f"{name} {keywords}"
        )
    if isinstance(keywords.get("where"), np.ndarray):
        assert np.all(gradients["x"][~keywords["where"]] == 0.0), "a left-out entry has a gradient"
