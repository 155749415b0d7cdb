"""Calls of every kind, drawn at random: the kernels against the formula in float64.

Records, targets, dtypes and options come from the registry and from what the backend says that it
takes, so that a new kernel is in here by being one.
"""

from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import normx
from normx import _dispatch as dispatch
from normx import laws
from normx._libraries import numpy_library
from normx._plan import EMPTY, FLOATS, TEMPERATURE
from normx._record import record_of
from normx.testing.conformance import axes_of, check, with_scale
from normx.testing.plugin import Case, records_of
from normx.testing.samples import LENGTHS

TARGETS = dispatch.backend("native").targets()

#: Not the random ones: their noise depends on the dtype.
RECORDS = records_of("native", numpy_library)

#: Beside any length up to 300: a row of several chunks; rows enough for several threads.
SIZES = (*LENGTHS, 0, 300, 1000, 16_385, 40_000, 70_000)
#: Beside normal scores: infinities, and in some dtype subnormal or at the edge of the range.
SPECIAL = (
    *(np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -6e-8, 1e-310, 5e-324, 1e-38),
    *(6e4, -6e4, 3e38, -3e38, 1.7e308, -1.7e308),
)
#: Those beside which no gradient is lost in the rounding of others.
TAME = (np.nan, np.inf, -np.inf, 0.0, -0.0)


@st.composite
def shapes(draw):
    room = draw(st.sampled_from((300, 5000, 150_000)))
    shape = []
    for _ in range(draw(st.sampled_from((2, 1, 3, 4, 0)))):
        known = st.sampled_from([size for size in SIZES if size <= room])
        shape.append(draw(known | st.integers(0, min(room, 300))))
        room //= max(shape[-1], 1)
    return tuple(draw(st.permutations(shape)))


@st.composite
def scores(draw, shape, tame):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spreads = (1.0, 10.0) if tame else (1.0, 0.0, 1e-3, 10.0, 100.0, 1e4, 1e30)
    offsets = (0.0, 1.0, -9.0) if tame else (0.0, 1.0, -90.0, 4095.0, -4097.0, 1e6)
    spread, offset = draw(st.sampled_from(spreads)), draw(st.sampled_from(offsets))
    x = rng.normal(offset, spread, shape)
    if draw(st.booleans()):
        x = np.round(x)  # entries that are equal
    special = draw(st.lists(st.sampled_from(TAME if tame else SPECIAL), max_size=4))
    if special:
        often = draw(st.sampled_from((0.01, 0.1, 0.5, 1.0)))
        x = np.where(rng.random(shape) < often, rng.choice(special, shape), x)
    return x


@st.composite
def memories(draw, shape, dtype, *, writable=False):
    """An array of any strides, at any byte of memory that holds other things as well."""
    dtype = numpy_library.dtype(dtype)
    strides, origin, extent = [0] * len(shape), draw(st.integers(0, 64)), dtype.itemsize
    for axis in draw(st.permutations(range(len(shape)))):
        step = draw(st.sampled_from((1, -1, 2, -3) if writable else (1, -1, 2, -3, 0)))
        gap = draw(st.sampled_from((0, 0, 0, 1, dtype.itemsize, 64)))
        strides[axis] = step * extent + np.sign(step) * gap
        reach = abs(strides[axis]) * max(shape[axis] - 1, 0)
        origin += reach * (step < 0)
        extent += reach
    memory = np.full(origin + extent + 64, 0x5A, np.uint8)
    return np.ndarray(shape, dtype, memory, origin, strides)


@st.composite
def arrays(draw, values, dtype):
    x = draw(memories(values.shape, dtype))
    with np.errstate(over="ignore"):
        x[...] = numpy_library.cast(values, dtype)
    return x


@st.composite
def masks(draw, shape):
    ones = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    form = tuple(1 if one else size for one, size in zip(ones, shape, strict=True))
    form = form[draw(st.integers(0, len(form))) :]
    often = draw(st.sampled_from((0.5, 0.0, 0.9, 1.0)))
    seed = draw(st.integers(0, 2**32 - 1))
    return draw(arrays(np.random.default_rng(seed).random(form) < often, "bool"))


@st.composite
def parameters(draw, spec, shape, axis, dtype):
    """A number, which float32 has, or an array of the form that the parameter wants."""
    least = spec.minimum if spec.minimum is not None else spec.above
    choices = (0.25, 0.5, 1.0, 1.5, 3.0, 2.0**-7, 100.0, *((0.0,) if spec.above is None else ()))
    choices = tuple((least or 0.0) + value for value in choices)
    choices += (-0.75,) if least is None else ()
    if draw(st.booleans()):
        return draw(st.sampled_from(choices))
    reduced = range(len(shape)) if axis is None else np.ravel(axis) % max(len(shape), 1)
    form = tuple(1 if spec.shape == "row" and a in reduced else n for a, n in enumerate(shape))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return draw(arrays(rng.choice(choices, form), dtype))


def numbers(record):
    return (*record.parameters, TEMPERATURE)


def taken(record, x, **keywords):
    asked = {**record.example, **keywords}
    (native,) = normx.explain(record.function, x, backend="native", **asked).candidates
    return native.taken


@cache
def options(record):
    """The keywords that the backend takes, each alone."""
    x = np.zeros((2, 3), np.float32)
    found = {"dtype": "float64", "where": x == 0, "out": x, "empty": "nan", "softcap": 30.0}
    found |= {c.name: True for c in record.constants if c.wanted == "True or False"}
    found |= {spec.name: 2.0 for spec in numbers(record)}
    return [
        name
        for name, value in found.items()
        if name in record.keywords and taken(record, x, **{name: value})
    ]


@st.composite
def calls(draw, record, *, tame=False):
    """The scores and keywords of a call; not more than three keywords at a time."""
    shape, dtype = draw(shapes()), draw(st.sampled_from(("float32", *FLOATS)))
    x = draw(arrays(draw(scores(shape, tame)), dtype))
    axis = draw(st.sampled_from(axes_of(x.ndim)))
    chosen = draw(st.lists(st.sampled_from(options(record)), unique=True, max_size=3))
    keywords = {"axis": axis}
    if "dtype" in chosen:
        keywords["dtype"] = draw(st.sampled_from(FLOATS))
    specs = {spec.name: spec for spec in numbers(record)}
    for name in chosen:
        if name in specs:
            keywords[name] = draw(parameters(specs[name], shape, axis, dtype))
        elif name == "where":
            keywords[name] = draw(masks(shape))
        elif name == "empty":
            keywords[name] = draw(st.sampled_from(EMPTY))
        elif name == "softcap":
            keywords[name] = draw(st.sampled_from((30.0, 1e4) if tame else (30.0, 0.125, 1e4)))
        elif name == "out":
            own = 0 not in x.strides and "dtype" not in keywords and draw(st.booleans())
            wanted = keywords.get("dtype", dtype)
            keywords[name] = x if own else draw(memories(shape, wanted, writable=True))
        elif name != "dtype":
            keywords[name] = draw(st.booleans())
    return x, keywords


def in_float64(record, x, keywords):
    """The keywords of the formula for the same call; numbers have the precision of the scores."""
    defaults = {name: keyword.default for name, keyword in record.keywords.items()}
    given = defaults | dict(record.example) | keywords | {"dtype": None, "backend": "reference"}
    if "float64" not in (x.dtype.name, keywords.get("dtype")):
        for spec in numbers(record):
            if isinstance(given.get(spec.name), float):
                given[spec.name] = float(np.float32(given[spec.name]))
    return given


def budget(record, dtype):
    """In last places, against the formula in float64, which may err as well."""
    return record.ulp[dtype] * (2 if dtype == "float64" else 1)


def rounded_scores(record, x, keywords):
    """Scores where float64 rounds them on the way, as the documentation says, and by how much.

    Returned are the scores, capped and, for a threshold, less their maximum; the keywords of
    the formula that are left to be applied; and the size of the rounding.
    """
    narrow = "float64" not in (x.dtype.name, keywords.get("dtype"))
    x, wide, off = x.astype(np.float64), in_float64(record, x, keywords), 0.0
    axis, kept = keywords["axis"], keywords.get("where", True)
    if cap := wide.get("softcap"):
        x, wide["softcap"], off = cap * np.tanh(x / cap), None, cap
    beside = "sink" in keywords or record.name == "inhibited_softmax"
    if beside and ("temperature" in keywords or len(record.parameters) > 1):
        off = off + finite(x)  # scaled, beside what is not
    elif laws.standardizes in record.laws and narrow:  # else the mean has two words
        off = off + np.max(finite(x), axis=axis, keepdims=True, where=kept, initial=0.0)
    elif laws.nothing_at_the_threshold in record.laws and record.parameters:
        within = np.isfinite(x) & kept
        x = x - np.max(x, axis=axis, keepdims=True, where=within, initial=np.finfo(x.dtype).min)
        alpha = np.asarray(wide["alpha"], np.float64)
        general = (alpha != 1.0) & (alpha != 2.0) & (alpha != record.keywords["alpha"].default)
        off = off + general * np.asarray(keywords.get("temperature", 1.0), np.float64)
    return x, wide, 2.0 * np.finfo(np.float64).eps * off


def agree(case, got, exact, dtype, budget, x, keywords, formula):
    """Within a budget of the formula, or of what it makes of scores that are rounded on the way."""
    try:
        check(case, got, exact, dtype, budget)
    except AssertionError:
        with np.errstate(over="ignore", invalid="ignore"):  # where there are infinities
            x, wide, off = rounded_scores(case.record, x, keywords)
            if not np.any(off):
                raise
            still = formula(x, wide)
            moves = np.random.default_rng(0).uniform(-4.0, 4.0, (8, *x.shape)) * off
            most = np.max([np.abs(formula(x + move, wide) - still) for move in moves], axis=0)
            within = np.nan_to_num(np.clip(got - exact[0], -most, most))
        check(case, got, (exact[0] + within, exact[1]), dtype, budget)


def finite(x):
    """The sizes of what is finite, 0 for the rest."""
    return np.nan_to_num(np.abs(np.asarray(x, np.float64)), posinf=0.0)


def memory_of(x):
    """All of the memory that `memories` made for an array."""
    return x.base


def place_of(x):
    """The offset and strides of an array in its memory."""
    start = x.__array_interface__["data"][0] - x.base.__array_interface__["data"][0]
    return start, x.strides


def same_bits(a, b):
    return np.array_equal(*(np.ascontiguousarray(y).reshape(-1).view(np.uint8) for y in (a, b)))


@contextmanager
def using_threads(count):
    before = normx.get_num_threads()
    normx.set_num_threads(count)
    try:
        yield
    finally:
        normx.set_num_threads(before)


@pytest.mark.parametrize("name", RECORDS)
@given(data=st.data())
def test_the_kernels_agree_with_the_formula(name, data):
    """Within the error budget; the same bits in every layout; nothing else is written to."""
    record = record_of(name)
    x, keywords = data.draw(calls(record))
    case = Case(record, numpy_library, "native", "eager", None)
    if not taken(record, x, **keywords):
        with pytest.raises(TypeError, match="native"):
            case.run(x, **keywords)
        return
    out = keywords.get("out")
    pure = {k: v for k, v in keywords.items() if k != "out"}
    scores, around = np.array(x), None if out is None else memory_of(out).copy()

    def formula(x, wide):
        return np.asarray(record.function(x, **wide))

    want = formula(scores.astype(np.float64), in_float64(record, x, pure))
    kept = np.where(keywords["where"], scores, 0) if "where" in keywords else scores
    exact = with_scale(record, kept, want, keywords["axis"])
    dtype = keywords.get("dtype", x.dtype.name)
    threads = data.draw(st.integers(1, 3))
    for target in TARGETS:
        case = replace(case, target=target)
        before = memory_of(x).copy()
        with using_threads(threads):
            got = case.run(x, **keywords)
        result = np.array(got)
        agree(case, result, exact, dtype, budget(record, dtype), scores, pure, formula)
        if out is not None:
            assert got is out
            out[...] = np.ndarray(out.shape, out.dtype, around, *place_of(out))
            assert np.array_equal(memory_of(out), around), "written beside out"
        assert np.array_equal(memory_of(x), before), "the scores were written to"
        with using_threads(1):
            apart = case.run(scores, **pure)
        assert same_bits(result, apart), "other bits in another layout"


@pytest.mark.parametrize("name", RECORDS)
@given(data=st.data())
def test_gradients_agree_with_those_of_the_formula(name, data):
    """Of the scores, in last places of the greatest one of a row, or of the cotangent."""
    record = record_of(name)
    x, keywords = data.draw(calls(record, tame=True))
    keywords = {k: v for k, v in keywords.items() if k not in ("out", "dtype")} | record.example
    dtype = x.dtype.name
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    case = Case(record, numpy_library, "native", "eager", data.draw(st.sampled_from(TARGETS)))
    with case.forced():
        try:
            y, pullback = normx.vjp(record.function, x, backend="native", **keywords)
        except TypeError:  # the backend does not differentiate this
            return
        dy = rng.choice((-1.0, 0.25, 0.0, 3.0), np.shape(y))
        got = pullback(numpy_library.cast(dy, dtype))["x"]

    def formula(x, wide):
        return normx.vjp(record.function, x, **wide)[1](dy)["x"]

    want = formula(np.array(x, np.float64), in_float64(record, x, keywords))
    # Terms of the size of the cotangent, or of its product with the result, may cancel.
    terms = 3.0 * np.max(finite(y), initial=1.0)
    largest = np.max(finite(want), axis=keywords["axis"], keepdims=True, initial=terms)
    # A row that is NaN has no gradient to speak of.
    kept = np.where(keywords.get("where", True), x, 0)
    lost = np.isnan(kept).any(axis=keywords["axis"], keepdims=True)
    exact = np.where(lost, got, want), np.broadcast_to(largest, want.shape)
    # No budget says how right a float64 gradient is, whose sums are of float64 as well.
    slack = 1000.0 if dtype == "float64" else 0.0
    agree(case, got, exact, dtype, budget(record, dtype) + slack, np.array(x), keywords, formula)
