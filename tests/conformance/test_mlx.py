"""Arrays of MLX: kernels on a CPU, gradients of its own, evaluated no earlier than needed."""

import io

import numpy as np
import pytest

import normx
from normx import _dispatch as dispatch
from normx._libraries import numpy_library
from normx._record import registry

RECORDS = [record for record in registry().values() if not record.random]
MASK = np.array([True, True, False, True, True])


@pytest.fixture(autouse=True)
def only_if_asked(request):
    if "mlx" not in (request.config.getoption("--library") or ()):
        pytest.skip("runs with --library mlx")


def mlx_graph(x):
    """What MLX still has to compute for an array, as text; evaluated, it has one line."""
    mx = pytest.importorskip("mlx.core")
    text = io.StringIO()
    mx.export_to_dot(text, x)
    return text.getvalue()


def test_lazy_arrays_are_evaluated_only_for_a_kernel():
    mx = pytest.importorskip("mlx.core")
    x = mx.arange(8.0) + 1.0
    y = normx.softmax(x, backend="reference")
    assert "Add" in mlx_graph(x) and "Add" in mlx_graph(y)
    assert "Add" not in mlx_graph(normx.softmax(x)) and "Add" not in mlx_graph(x)


def test_arrays_are_read_where_they_are():
    mx = pytest.importorskip("mlx.core")
    library = dispatch.library("mlx")
    for dtype in (mx.float16, mx.float32, mx.float64, mx.bfloat16):
        x = mx.ones((3, 4)).astype(dtype, stream=mx.cpu)
        views = [library.host_view(x) for _ in range(2)]
        assert np.shares_memory(*views) and not views[0].flags.owndata
        assert views[0].dtype.name == str(dtype).rpartition(".")[2]


def test_large_results_are_written_where_they_stay():
    mx = pytest.importorskip("mlx.core")
    library = dispatch.library("mlx")
    for dtype in ("float32", "bfloat16"):
        memory = library.host_empty((1 << 12, 1 << 10), numpy_library.dtype(dtype))
        assert memory.dtype.name == dtype
        memory[...] = 1.0
        x = library.host_adopt(memory)
        assert x.dtype == getattr(mx, dtype) and np.shares_memory(library.host_view(x), memory)
        assert mx.all(x == 1.0).item()
    x = mx.random.normal((1 << 12, 1 << 10))
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        y = normx.softmax(x.astype(dtype))
        want = normx.softmax(x[:2].astype(dtype))
        assert y.dtype == dtype and mx.array_equal(y[:2], want)


def test_out_is_a_value_and_not_a_place():
    """What shares the memory of `out` stays what it was, as everywhere in MLX."""
    mx = pytest.importorskip("mlx.core")
    base = mx.zeros((2, 6))
    view = base.reshape(3, 4)
    mx.eval(base, view)
    normx.softmax(mx.ones((3, 4)), out=view)
    assert mx.all(view == 0.25).item() and mx.all(base == 0.0).item()


@pytest.mark.parametrize("axis", [0, 1, (0, 1), None])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_the_axis_never_changes_the_dtype(record, dtype, axis):
    mx = pytest.importorskip("mlx.core")
    x = mx.ones((3, 4)).astype(getattr(mx, dtype), stream=mx.cpu)
    assert record.function(x, axis=axis, **record.example).dtype == x.dtype


def test_compiled_and_mapped_functions_are_the_formula():
    mx = pytest.importorskip("mlx.core")
    x = mx.random.normal((3, 5))
    for transformed in (mx.compile(normx.softmax), mx.vmap(normx.softmax)):
        with normx.trace() as ran:
            y = transformed(x)
        assert ran[0].backend == "reference" and mx.allclose(y, normx.softmax(x)).item()
    with normx.trace() as ran:
        normx.softmax(x)
    assert ran[0].backend == "native"
    said = []
    mx.compile(lambda a: said.append(normx.explain(normx.softmax, a)) or a)(x)
    assert [each.taken for each in said[0].candidates] == [False, False, True]
    with pytest.raises(TypeError, match=r"`backend` must be .* not native"):
        mx.compile(lambda a: normx.softmax(a, backend="native"))(x)


def test_only_the_parameter_may_be_traced():
    mx = pytest.importorskip("mlx.core")
    x, t = mx.random.normal((3, 5)), mx.array([0.5, 1.0, 2.0])
    got = mx.vmap(lambda b: normx.softmax(x, temperature=b))(t)
    want = mx.stack([normx.softmax(x, temperature=b) for b in t])
    assert mx.allclose(got, want, rtol=1e-6).item()


def test_only_what_is_followed_gets_a_node_in_the_graph():
    mx = pytest.importorskip("mlx.core")
    x, t = mx.random.normal((3, 5)), mx.array([[0.5], [1.0], [2.0]])

    def evaluated(x, t):
        graph = mlx_graph(normx.softmax(x, temperature=t, backend="native"))
        return "CustomTransforms" not in graph

    assert [evaluated(x, t) for _ in range(2)][1]
    found = []

    def loss(a, b):
        found.append([evaluated(a, t), evaluated(x, b), evaluated(x, t)])
        return (a * b).sum()

    twice = mx.grad(lambda a, b: mx.grad(loss)(a, b).sum())
    for transformed in (mx.grad(loss, [0, 1]), twice):
        transformed(x, t)
    mx.jvp(loss, [x, t], [x, t])
    assert found == [[False, False, True]] * 3


def test_on_another_device_the_formula_runs(monkeypatch):
    mx = pytest.importorskip("mlx.core")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    with normx.trace() as ran:
        normx.softmax(mx.ones((2, 3)))
    assert ran[0].backend == "reference"


def mlx_cases(record):
    """Options with arrays among them, each of which has a gradient where the record says so."""
    rng = np.random.default_rng(2)
    yield {}
    yield {"where": MASK}
    yield {"temperature": np.array([[0.7], [1.3], [2.0]], np.float32)}
    for spec in record.parameters:
        shape = {"elements": (3, 5), "along": (3, 2), "row": (3, 1)}[spec.shape]
        value = np.abs(rng.normal(size=shape)).astype(np.float32) + 0.3
        yield {spec.name: value + np.float32((spec.minimum or 0.0) + (spec.above or 0.0))}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_gradients_are_those_of_the_formula(record):
    """The kernels' gradients, first and second, forward and backward, against the formula's."""
    mx = pytest.importorskip("mlx.core")
    if record.vjp is None:
        pytest.skip(f"{record.name} has no gradient")
    rng = np.random.default_rng(0)
    x, dx = (mx.array(rng.normal(size=(3, 5)).astype(np.float32)) for _ in range(2))
    for case in mlx_cases(record):
        keywords = {**record.example, **case}
        if not set(keywords) <= set(record.keywords):
            continue
        arrays = {k: mx.array(v) if isinstance(v, np.ndarray) else v for k, v in keywords.items()}
        moving = [k for k, v in arrays.items() if isinstance(v, mx.array) and k != "where"]

        def f(x, *values, arrays=arrays, moving=moving):
            return record.function(
                x, axis=-1, **{**arrays, **dict(zip(moving, values, strict=False))}
            )

        weights = mx.array(rng.normal(size=f(x).shape).astype(np.float32))

        def loss(*arguments, f=f, weights=weights):
            y = f(*arguments)
            return mx.sum(mx.where(mx.isfinite(y), y, 0.0) * weights)

        arguments = [x, *(arrays[name] for name in moving)]
        everything = list(range(len(arguments)))

        def steep(*arguments, loss=loss, everything=everything):
            return sum(mx.sum(g * g) for g in mx.grad(loss, everything)(*arguments))

        asked = [mx.grad(loss, everything), mx.grad(steep, everything)]
        asked.append(lambda *a, f=f: mx.jvp(f, list(a), [dx, *map(mx.ones_like, a[1:])])[1])
        for transformed in asked:
            with normx.trace() as ran:
                got = transformed(*arguments)
                mx.eval(got)
            with normx.use_backend("reference"):
                want = transformed(*arguments)
            backends = {event.backend for event in ran if event.function == record.name}
            said = normx.explain(record.name, x, axis=-1, **arrays)
            assert backends == {c.backend for c in said.candidates if c.taken}
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(
                    np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-5, err_msg=str(case)
                )


def test_the_gradient_is_the_kernels():
    mx = pytest.importorskip("mlx.core")
    with normx.trace() as ran:
        mx.eval(mx.grad(lambda x: normx.softmax(x)[0])(mx.arange(4.0)))
    assert [(event.function, event.backend) for event in ran] == [
        ("softmax", "native"),
        ("vjp(softmax)", "native"),
    ]
