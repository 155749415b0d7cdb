"""Calls that were seen before are answered by compiled code, with the bits of the long way."""

import gc
import inspect
import threading

import numpy as np
import pytest
from normx_native import _core

import normx
from normx import _dispatch as dispatch
from normx._record import registry
from normx.testing.samples import random_rows

NAMES = ("numpy", "torch")
DTYPES = ("float16", "bfloat16", "float32", "float64")
#: Those that need no mask and no noise.
RECORDS = [
    record
    for record in registry().values()
    if not (record.random or record.keywords["where"].default is inspect.Parameter.empty)
]
FORMS = (
    {"axis": -1},
    {"axis": 1},
    {"axis": -3},
    {"axis": -1, "temperature": 0.7},
    {"temperature": 2, "softcap": 2.5, "axis": -1},
    {"axis": 2, "empty": "nan", "where": None},
)


@pytest.fixture(autouse=True)
def nothing_is_known():
    dispatch.forget_plans()


@pytest.fixture(params=NAMES)
def library(request):
    pytest.importorskip(request.param)
    return dispatch.library(request.param)


def scores(library, dtype="float32", shape=(3, 4, 10)):
    rows = random_rows(shape[-1], int(np.prod(shape[:-1])), 3.0).reshape(shape)
    return library.cast(library.from_numpy(rows), dtype)


def answered(f, x, **keywords):
    """What compiled code answers by itself; None if it leaves the call."""
    cache = dispatch._kept[f.__name__].get(type(x))
    return None if cache is None else cache.run(x, keywords)


def same(library, a, b):
    a, b = library.to_numpy(a), library.to_numpy(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_answers_are_those_of_the_long_way(record, dtype, library):
    f = record.function
    x = scores(library, dtype)
    for form in FORMS:
        keywords = {**record.example, **form}
        if not keywords.keys() <= record.keywords.keys():
            continue
        with normx.trace() as ran:
            want = f(x, **keywords)
        assert [event.backend for event in ran] == ["native"]
        got = answered(f, x, **keywords)
        assert got is not None and type(got) is type(x) and same(library, got, want)
        if "out" in record.keywords:
            out = library.full(tuple(want.shape), 7.0, dtype, x)
            assert answered(f, x, out=out, **keywords) is out and same(library, out, want)


def test_the_long_way_is_taken_for_everything_else(library):
    xp = library.namespace()
    x = scores(library)
    other = scores(library, shape=(4, 3, 10))
    normx.softmax(x)
    assert answered(normx.softmax, x) is not None
    wide = xp.concat([x, x], axis=-1)
    for left in (other, wide[..., :10], library.cast(x, "float64"), xp.reshape(x, (12, 10))):
        assert answered(normx.softmax, left) is None
    normx.softmax(x, axis=1)
    assert answered(normx.softmax, x, axis=1) is not None
    for axis in (0, None, (1,), True, 1.0, 2**70, np.int64(1)):
        assert answered(normx.softmax, x, axis=axis) is None
    many = {f"word{i}": i for i in range(20)}
    assert answered(normx.softmax, x, **many) is None
    normx.softmax(x, temperature=0.5)
    assert answered(normx.softmax, x, temperature=0.5) is not None
    tensor = library.full((1, 1, 1), 0.5, "float32", x)
    for temperature in (0.25, 1, "0.5", np.float64(0.5), tensor):
        assert answered(normx.softmax, x, temperature=temperature) is None
    with pytest.raises(ValueError, match="temperature"):
        normx.softmax(x, temperature=-0.5)
    normx.logsumexp(x, axis=-1, keepdims=True)
    for keywords in ({"axis": -1, "keepdims": True}, {"axis": -1, "ax": -1}):
        assert answered(normx.logsumexp, x, **keywords) is None
    for keywords in ({"where": None}, {"backend": "native"}, {"axis": 1, "ax": -1}):
        assert answered(normx.softmax, x, **keywords) is None
    assert _core.CallCache(type(x), [], [], [], []).run([], {}) is None


def test_results_that_do_not_fit_are_left_and_refused(library):
    xp = library.namespace()
    x = scores(library)
    want = library.to_numpy(normx.softmax(x))
    memory = library.full((4, 4, 10), 0.0, "float32", x)
    for out in (
        library.full((4, 3, 10), 0.0, "float32", x),
        library.full((3, 4, 10), 0.0, "float64", x),
        xp.permute_dims(library.full((10, 4, 3), 0.0, "float32", x), (2, 1, 0)),
        library.to_numpy(x).tolist(),
    ):
        assert answered(normx.softmax, x, out=out) is None
    with pytest.raises(ValueError, match="out"):
        normx.softmax(x, out=library.full((4, 3, 10), 0.0, "float32", x))
    # In place is well; a part of the same memory is to be copied.
    memory[:3] = x
    assert answered(normx.softmax, memory[:3], out=memory[1:]) is None
    normx.softmax(memory[:3], out=memory[1:])
    np.testing.assert_array_equal(library.to_numpy(memory[1:]), want)
    memory[:3] = x
    own = memory[:3]
    assert answered(normx.softmax, own, out=own) is own
    np.testing.assert_array_equal(library.to_numpy(own), want)


def test_a_keyword_that_a_function_does_not_have_is_refused_after_it_was_seen(library):
    x, y = scores(library), scores(library, shape=(3, 4))
    normx.logsumexp(x)
    for out in (y, None):
        with pytest.raises(TypeError, match="unknown keyword `out`"):
            normx.logsumexp(x, out=out)


def test_read_only_results_are_refused():
    x = scores(dispatch.numpy_library)
    normx.softmax(x)
    out = np.zeros_like(x)
    out.flags.writeable = False
    assert answered(normx.softmax, x, out=out) is None
    with pytest.raises(ValueError, match="read-only"):
        normx.softmax(x, out=out)
    x.flags.writeable = False
    assert answered(normx.softmax, x) is not None
    assert answered(normx.softmax, x.astype(">f4")) is None


def test_rows_that_a_program_leaves_are_left(library):
    x = scores(library)
    want = normx.sparsemax(x)
    assert same(library, answered(normx.sparsemax, x), want)
    assert answered(normx.sparsemax, x, out=x) is None  # the rows that are left are read again
    x[0, 1, 2] = float("nan")
    assert answered(normx.sparsemax, x) is None
    got = library.to_numpy(normx.sparsemax(x))
    assert np.isnan(got[0, 1]).all()
    got[0, 1] = library.to_numpy(want)[0, 1]
    np.testing.assert_array_equal(got, library.to_numpy(want))


def test_rows_of_nothing_are_left(library):
    for f in (normx.softmax, normx.sparsemax):
        for shape in ((0, 3), (3, 0)):
            x = library.full(shape, 0.0, "float32", library.from_numpy(np.zeros(1)))
            assert f(x).shape == shape and answered(f, x) is None


def test_larger_results_come_from_where_they_are_kept(library):
    x = scores(library, shape=(1, 2**20))
    assert same(library, normx.softmax(x), normx.softmax(x))
    assert answered(normx.softmax, x) is None
    assert answered(normx.logsumexp, x, axis=-1) is None  # not seen yet
    normx.logsumexp(x, axis=-1)
    assert answered(normx.logsumexp, x, axis=-1) is not None


def test_choices_and_traces_are_seen(library):
    x = scores(library)
    normx.softmax(x)
    with normx.trace() as ran:
        normx.softmax(x)
    assert [event.backend for event in ran] == ["native"]
    with normx.use_backend("reference"):
        assert answered(normx.softmax, x) is None
        dispatch.forget_plans()
        normx.softmax(x)
        assert not dispatch._kept["softmax"]
    normx.softmax(x, backend="reference")
    assert answered(normx.softmax, x) is None


def test_many_threads_at_once(library):
    rows = [scores(library, shape=(2, n)) for n in range(2, 40)]
    wanted = [library.to_numpy(normx.softmax(x, backend="native")) for x in rows]
    wrong = []

    def work(turn):
        for i in range(400):
            k = (i * turn) % len(rows)
            if i % 97 == 0:
                dispatch.forget_plans()
            if not np.array_equal(library.to_numpy(normx.softmax(rows[k])), wanted[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_forms_beyond_the_limit_are_forgotten():
    rows = [np.zeros((1, n), np.float32) for n in range(1, 1030)]
    for x in rows:
        normx.softmax(x)
    assert answered(normx.softmax, rows[0]) is None
    assert answered(normx.softmax, rows[-1]) is not None


def test_what_a_cache_is_made_of():
    class Array:
        pass

    for kind, context in ((Array, []), (int, []), (np.ndarray, [1])):
        with pytest.raises(TypeError):
            _core.CallCache(kind, context, [], [], [])
    with pytest.raises(AttributeError):
        _core.CallCache(np.ndarray, [], [], [], ["nothing"])
    with pytest.raises(TypeError):
        _core.CallCache(np.ndarray, [], [], [(1, "x", 1)], [])


# ------------------------------------------------------------------------------ torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # by forward_ad itself
def test_tensors_with_more_than_their_memory_go_the_long_way(torch):
    from torch.autograd import forward_ad
    from torch.utils._python_dispatch import TorchDispatchMode

    x = torch.randn(2, 3)
    normx.softmax(x)
    assert answered(normx.softmax, x) is not None
    learned = x.clone().requires_grad_()
    parameter = torch.nn.Parameter(x)
    normx.softmax(parameter)
    for left in (learned, parameter, torch._neg_view(x), x.to("meta"), x.to_sparse()):
        assert answered(normx.softmax, left) is None
    assert normx.softmax(learned).requires_grad and normx.softmax(parameter).requires_grad
    assert answered(normx.softmax, x, out=torch.empty(2, 3, requires_grad=True)) is None
    assert answered(normx.softmax, x, out=torch._neg_view(torch.empty(2, 3))) is None

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
            seen.append(str(operator))
            return operator(*arguments, **(keywords or {}))

    seen = []
    with Seen():
        assert answered(normx.softmax, x) is None
        normx.softmax(x)
    assert "normx.call.default" in seen
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert answered(normx.softmax, dual) is None
        assert forward_ad.unpack_dual(normx.softmax(dual)).tangent is not None
    assert answered(normx.softmax, x) is not None


def test_transformations_see_what_they_wrapped(torch):
    x, t = torch.randn(5, 2, 3), torch.randn(2, 3)
    normx.softmax(t)

    def f(x):
        assert answered(normx.softmax, x) is None
        return normx.softmax(x) * normx.softmax(t)  # and what they did not is a constant

    want = torch.softmax(x, -1) * torch.softmax(t, -1)
    torch.testing.assert_close(torch.func.vmap(f)(x), want)
    got = torch.func.grad(lambda x: f(x).sum())(x[0])
    want = torch.func.grad(lambda x: (torch.softmax(x, -1) * torch.softmax(t, -1)).sum())(x[0])
    torch.testing.assert_close(got, want)


def test_results_are_tensors_like_others(torch):
    x = torch.randn(6, 50)
    normx.softmax(x)
    y = answered(normx.softmax, x)
    assert y.is_contiguous() and y.is_leaf and not y.requires_grad and y.data_ptr() % 64 == 0
    y += 1.0
    view, copy = y[2:4], y[2:4].clone()
    del y
    gc.collect()
    for _ in range(100):
        normx.softmax(x)
    assert torch.equal(view, copy)
    w = torch.ones(6, 50, requires_grad=True)
    (normx.softmax(x) * w).sum().backward()
    assert torch.equal(w.grad, normx.softmax(x))
    with torch.inference_mode():
        assert normx.softmax(x).is_inference()
