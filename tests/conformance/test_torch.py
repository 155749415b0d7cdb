"""What is particular to torch: autograd, its compiler, its transformations, its memory."""

import subprocess
import sys

import numpy as np
import pytest

import normx
from normx import _dispatch as dispatch
from normx._record import registry

torch = pytest.importorskip("torch")

# torch's compiler and its forward mode use what torch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")

RECORDS = [record for record in registry().values() if not record.random]
T = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
KEPT = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])


@pytest.fixture(autouse=True)
def only_if_asked(request):
    if "torch" not in (request.config.getoption("--library") or ()):
        pytest.skip("runs with --library torch")


def rows(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, dtype=torch.float64, generator=generator, **options)


def always(record):
    """The keywords without which there is no call, or no gradient of the function itself."""
    keywords = dict(record.example)
    if "differentiate_temperature" in record.keywords:
        keywords["differentiate_temperature"] = True
    return keywords


def options_of(record):
    """Constants, and tensors with gradients, that a record takes."""
    rng = np.random.default_rng(0)
    yield {}, {}
    yield {"where": KEPT}, {}
    yield {}, {"temperature": T}
    yield {"where": KEPT, "softcap": 3.0}, {"temperature": T}
    for spec in record.parameters:
        shape = {"elements": (3, 4), "along": (3, 2), "row": (3, 1)}[spec.shape]
        value = rng.random(shape) + 0.3 + (spec.minimum or 0.0) + (spec.above or 0.0)
        yield {}, {spec.name: torch.tensor(value)}
        yield {"where": KEPT}, {spec.name: torch.tensor(value)}


def native_gradient(record, x, keywords):
    """Who is to compute the gradient, and whether the function: "native" where that can."""
    passed = {**keywords, "backend": "native"}
    if not normx.explain(record.function, x, **passed).candidates[0].taken:
        return {"reference"}
    try:
        normx.vjp(record.function, x, **passed)
    except TypeError:
        return {"native", "reference"}
    return {"native"}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_gradients_forwards_backwards_and_twice(record):
    for constants, tensors in options_of(record):
        keywords = always(record) | constants
        if not set(keywords) | set(tensors) <= set(record.keywords):
            continue
        for name in tensors:
            keywords.pop(name, None)

        def f(x, *values, keywords=keywords, names=tuple(tensors)):
            y = record.function(x, axis=-1, **keywords, **dict(zip(names, values, strict=True)))
            return torch.where(torch.isfinite(y), y, 0.0)

        x = rows().requires_grad_()
        arguments = (x, *(value.clone().requires_grad_() for value in tensors.values()))
        with normx.trace() as ran:
            assert torch.autograd.gradcheck(f, arguments, check_forward_ad=True)
        assert {event.backend for event in ran} == native_gradient(
            record, x.detach(), keywords | tensors
        )
        assert torch.autograd.gradgradcheck(f, arguments)


@pytest.mark.parametrize("name", ["softmax", "logsumexp", "entmax", "masked_softmax"])
def test_operators_are_what_torch_wants_of_them(name):
    """The schema, the fake, autograd and the compiler's dispatcher, with what a call passes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    passed = []

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
            if operator.namespace == "normx":
                passed.append((operator, arguments))
            return operator(*arguments, **(keywords or {}))

    def learning(value):
        if isinstance(value, list | tuple):
            return [learning(entry) for entry in value]
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().requires_grad_(value.is_floating_point())

    record = registry()[name]
    keywords = always(record) | ({"alpha": T + 1.0} if name == "entmax" else {})
    with Listening():
        record.function(rows().requires_grad_(), axis=-1, **keywords).sum().backward()
    assert [operator.name() for operator, _ in passed] == ["normx::call", "normx::pullback"]
    for operator, arguments in passed:
        torch.library.opcheck(operator, tuple(learning(value) for value in arguments))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_compiled_into_one_graph(record, backend):
    """By torch's own compiler, with gradients; what it traces it does not compute."""
    torch.compiler.reset()
    keywords = always(record) | {"axis": -1, "backend": backend}
    # A formula of hundreds of operations takes the C++ compiler a minute: one of them is enough.
    whole = backend == "native" or record.name == "softmax"
    f = torch.compile(
        lambda x: record.function(2.0 * x, **keywords) + 1.0,
        fullgraph=True,
        backend="inductor" if whole else "aot_eager",
    )
    x, want = rows().float().requires_grad_(), rows().float().requires_grad_()
    (record.function(2.0 * want, **keywords) + 1.0).square().sum().backward()
    with normx.trace() as ran:
        f(x).square().sum().backward()
    assert {event.backend for event in ran} <= {backend, "reference"}
    torch.testing.assert_close(x.grad, want.grad, rtol=1e-5, atol=1e-6)
    if backend == "native":
        with normx.trace() as ran:
            y = f(x.detach())
        assert [(event.function, event.backend) for event in ran] == [(record.name, "native")]
        assert torch.equal(y, record.function(2.0 * x.detach(), **keywords) + 1.0)


def test_compiled_for_shapes_that_are_not_known():
    torch.compiler.reset()
    f = torch.compile(normx.softmax, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 4), (5, 7), (2, 9)):
        x = torch.randn(shape)
        assert torch.equal(f(x), normx.softmax(x))


@pytest.mark.parametrize("order", ["import normx, torch", "import torch, normx"])
@pytest.mark.parametrize("function", ["normx.ssmax", "lambda x: normx.ssmax(x)"])
def test_the_first_tensor_of_all_may_come_in_a_compiled_function(function, order):
    program = f"""{order}
f = torch.compile({function}, fullgraph=True, backend="aot_eager")
x = torch.randn(3, 4)
with normx.trace() as ran:
    y = f(x)
assert torch.equal(y, normx.ssmax(x)) and [event.backend for event in ran] == ["native"], ran
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_function_that_is_defined_later_is_compiled_too():
    from normx._record import _REGISTRY, normalizer

    normx.softmax(torch.zeros(2))  # the plugin is there

    @normalizer(apply=lambda row: row.scores + 1.0, definition=None, papers=(), laws=())
    def later(x, /, *, axis=-1, **options):
        """Add one."""

    try:
        f = torch.compile(later, fullgraph=True, backend="aot_eager")
        assert torch.equal(f(torch.zeros(2)), torch.ones(2))
    finally:
        del _REGISTRY["later"]


def test_exported_programs_keep_the_kernels_and_learn():
    class Module(torch.nn.Module):
        def forward(self, x):
            return normx.softmax(x, temperature=2.0)

    x = rows().requires_grad_()
    program = torch.export.export(Module(), (rows(1),))
    assert any("normx.call" in str(node.target) for node in program.graph.nodes)
    program.module()(x)[:, 0].sum().backward()
    want = rows().requires_grad_()
    normx.softmax(want, temperature=2.0)[:, 0].sum().backward()
    assert torch.equal(x.grad, want.grad)


def test_transformations_nest():
    x, f = rows(), lambda row: normx.softmax(row, temperature=0.7)
    g = lambda row: torch.softmax(row / 0.7, -1)  # noqa: E731
    for transform in (
        torch.func.jacrev,
        torch.func.jacfwd,
        torch.func.hessian,
        lambda h: torch.func.jacrev(torch.func.jacrev(h)),
        lambda h: torch.func.grad(lambda row: torch.func.grad(lambda r: h(r)[0])(row)[1]),
        lambda h: lambda row: torch.func.jvp(h, (row,), (row,))[1],
    ):
        torch.testing.assert_close(transform(f)(x[0]), transform(g)(x[0]))
        mapped = [torch.func.vmap(transform(h))(x) for h in (f, g)]
        torch.testing.assert_close(*mapped)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        tangents = [torch.autograd.forward_ad.unpack_dual(h(dual)).tangent for h in (f, g)]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_mapped_axes_may_be_any(record):
    x = torch.randn(4, 2, 5, 3)
    keywords = dict(record.example)
    want = torch.stack([record.function(x[:, :, i], axis=0, **keywords) for i in range(5)])
    with normx.trace() as ran:
        f = lambda part: record.function(part, axis=0, **keywords)  # noqa: E731
        got = torch.func.vmap(f, in_dims=2)(x)
    assert [event.backend for event in ran] == ["native"] and torch.equal(got, want)
    if "temperature" in record.keywords and "where" not in record.example:
        t, kept = torch.rand(5, 1, 1, 1) + 0.5, torch.rand(4, 2, 3, 5) < 0.7
        f = lambda part, t, kept: record.function(  # noqa: E731
            part, axis=0, temperature=t, where=kept, **keywords
        )
        got = torch.func.vmap(f, in_dims=(2, 0, 3))(x, t, kept)
        want = torch.stack([f(x[:, :, i], t[i], kept[..., i]) for i in range(5)])
        assert torch.equal(got, want)


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T,
    "stepped": lambda x: x[::2, ::3],
    "narrow": lambda x: x[:, 3:17],
    "of one row": lambda x: x[:1].expand(7, -1),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_read_and_write_tensors_where_they_are(layout, dtype):
    library = dispatch.library("torch")
    x = LAYOUTS[layout](torch.randn(20, 20).to(getattr(torch, dtype)))
    view = library.host_view(x)
    assert view.dtype.name == dtype and view.ctypes.data == x.data_ptr()
    for axis in (0, 1, (0, 1)):
        with normx.trace() as ran:
            y = normx.softmax(x, axis=axis)
        assert ran[0].backend == "native" and y.dtype == x.dtype
        assert torch.equal(y, normx.softmax(x.contiguous(), axis=axis))
    out = torch.empty(20, 40, dtype=x.dtype)[: x.shape[0], : 2 * x.shape[1] : 2]
    assert normx.softmax(x, out=out) is out
    assert torch.equal(out, normx.softmax(x))
    adopted = library.host_adopt(view.copy())
    assert adopted.dtype == x.dtype and torch.equal(adopted, x)


def test_results_that_cannot_be_written_are_refused():
    x = torch.zeros(2, 3)
    for out, why in (
        (torch.zeros(1, 3).expand(2, 3), "entries share memory"),
        (torch._neg_view(torch.zeros(2, 3)), "holds its negative"),
        (torch.zeros(2, 3, requires_grad=True), "requires grad"),
    ):
        with pytest.raises(ValueError, match=why):
            normx.softmax(x, out=out)
    with pytest.raises(TypeError, match=r"sparse.*to_dense"):
        normx.softmax(x.to_sparse())


def test_a_tensor_that_holds_its_negative_is_read_as_what_it_is():
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(normx.softmax(torch._neg_view(x)), normx.softmax(-x))
    assert torch.equal(normx.sigmoid(torch._neg_view(x)), normx.sigmoid(-x))


def test_a_tensor_of_halves_that_holds_its_negative_has_its_rows_and_gradients():
    x = torch.tensor([[1.0, 2.0, 2.5]], dtype=torch.bfloat16)
    y, pullback = normx.vjp(normx.sparsemax, torch._neg_view(x))
    assert torch.equal(y, normx.sparsemax(-x))
    assert torch.equal(pullback(torch._neg_view(x))["x"], pullback(-x)["x"])


def test_results_that_begin_where_a_mask_does():
    memory, mask = torch.zeros(2, 8), torch.arange(16).view(2, 8) % 2 == 0
    where = memory.view(-1).view(torch.bool)[:16].view(2, 8)
    where.copy_(mask)
    x = torch.arange(16.0).view(2, 8)
    for f in (normx.softmax, normx.entmax15):
        where.copy_(mask)
        assert torch.equal(f(x, where=where, out=memory), f(x, where=mask))


def test_subclasses_keep_their_type():
    class Named(torch.Tensor):
        pass

    x = torch.randn(2, 3).as_subclass(Named)
    assert [type(normx.softmax(x)) for _ in range(3)] == [Named] * 3


def test_layouts_that_were_not_seen_are_refused_by_name():
    x = torch.randn(2, 3)
    normx.entmax15(x)
    normx.entmax15(x)
    with pytest.raises(TypeError, match=r"sparse_coo; pass x.to_dense"):
        normx.entmax15(x.to_sparse())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which will go
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # shapes are constants
@pytest.mark.parametrize("learns", [False, True])
def test_scripts_of_what_was_seen_compute(learns):
    class Gated(torch.nn.Linear):
        def forward(self, x):
            return x * normx.softmax(super().forward(x))

    model, x, others = Gated(5, 5).requires_grad_(learns), torch.randn(3, 5), torch.randn(3, 5)
    model(x)
    script = torch.jit.trace(model, (x,))
    torch.testing.assert_close(script(others), model(others))


def test_tensors_without_data_have_results_without_data():
    from torch._subclasses import FakeTensorMode

    for name, kind in (("softmax", (3, 4)), ("entmax15", (3, 4)), ("logsumexp", (3,))):
        f = registry()[name].function
        y = f(torch.empty(3, 4, device="meta"), axis=-1)
        assert y.is_meta and y.shape == kind
        with FakeTensorMode():
            y = f(torch.empty(3, 4, dtype=torch.bfloat16), axis=-1)
            assert type(y).__name__ == "FakeTensor"
            assert y.shape == kind and y.dtype == torch.bfloat16


def test_without_gradients_nothing_stands_between_a_tensor_and_its_kernel():
    from torch.utils._python_dispatch import TorchDispatchMode

    x = rows().requires_grad_()
    with torch.no_grad():
        assert not normx.softmax(x).requires_grad
    assert normx.softmax(x).requires_grad and normx.softmax(torch.nn.Parameter(x)).requires_grad
    with torch.inference_mode():
        assert normx.softmax(rows()).is_inference()

    class Nothing(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
            return operator(*arguments, **(keywords or {}))

    with Nothing():  # a mode sees the operator, and what it gives is the same
        y = normx.softmax(x)
    assert torch.equal(y, normx.softmax(x))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_rows_of_nothing_have_gradients(record):
    for shape in ((0, 4), (4, 0)):
        x = torch.zeros(shape, requires_grad=True)
        record.function(x, axis=-1, **record.example).nan_to_num(neginf=0.0).sum().backward()
        assert x.grad.shape == shape


# ----------------------------------------------------------------------------- training

STEPS = 150


class Attention(torch.nn.Module):
    """The rows of an image attend to each other."""

    def __init__(self, normalizer):
        super().__init__()
        self.normalizer = normalizer
        self.embed, self.place = torch.nn.Linear(8, 32), torch.nn.Parameter(torch.zeros(8, 32))
        self.queries = torch.nn.Linear(32, 96)
        self.out = torch.nn.Linear(8 * 32, 10)

    def forward(self, x):
        tokens = self.embed(x) + self.place
        q, k, v = self.queries(tokens).chunk(3, dim=-1)
        weights = self.normalizer(q @ k.transpose(-1, -2) / 32**0.5)
        return self.out((tokens + weights @ v).flatten(1))


def accuracy(normalizer):
    """What share of the images that were not learned from is told apart."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 8, 8) / 16.0
    labels = torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    learn, test = order[:1300], order[1300:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Attention(normalizer)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(STEPS):
        batch = learn[torch.randint(len(learn), (256,), generator=generator)]
        loss = torch.nn.functional.cross_entropy(module(x[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((module(x[test]).argmax(-1) == labels[test]).float().mean())


@pytest.mark.parametrize("name", ["softmax", "ssmax", "sigmoid", "entmax15"])
def test_modules_learn_as_well_as_with_torch_itself(name):
    with normx.trace() as ran:
        got = accuracy(registry()[name].function)
    assert {event.backend for event in ran} == {"native"}
    assert {event.function for event in ran} == {name, f"vjp({name})"}
    want = accuracy(lambda scores: torch.softmax(scores, -1))
    assert got >= want - 0.02 and got > 0.9


@pytest.mark.parametrize("alpha", [1.0, 1.5, 1.7, 2.0])
def test_the_slope_in_alpha_where_powers_are_exact(alpha):
    x = torch.tensor([[0.3, -0.2, 0.9, 0.15]], dtype=torch.float64, requires_grad=True)
    dy = torch.tensor([[1.0, 2.0, -1.0, 0.5]], dtype=torch.float64)
    a = torch.tensor([[alpha]], dtype=torch.float64, requires_grad=True)
    y = normx.entmax(x, alpha=a, backend="reference")
    (slope,) = torch.autograd.grad((y * dy).sum(), a)
    _, pullback = normx.vjp(normx.entmax, x.detach(), alpha=a.detach())
    torch.testing.assert_close(slope, pullback(dy)["alpha"], rtol=1e-12, atol=0.0)
    if alpha > 1.0:
        assert torch.autograd.gradgradcheck(lambda x, a: normx.entmax(x, alpha=a), (x, a))


def test_out_that_shares_memory_without_a_storage():
    memory = np.arange(12.0).reshape(4, 3) ** 1.5
    want = normx.softmax(memory[:3].copy(), backend="reference")
    normx.softmax(torch.from_numpy(memory[:3]), out=torch.from_numpy(memory[1:]))
    np.testing.assert_allclose(memory[1:], want, rtol=1e-14)
    folded = torch.zeros(3, dtype=torch.float64).as_strided((2, 2), (1, 1))
    with pytest.raises(ValueError, match="a tensor whose entries share memory"):
        normx.softmax(torch.zeros(2, 2, dtype=torch.float64), out=folded)


def test_numbers_that_change_in_a_compiled_function():
    x = rows()
    cases = [("temperature", (0.5, 2.0, 3.0)), ("axis", (0, -1, 1)), ("softcap", (1.0, 2.0))]
    for keyword, values in cases:
        torch.compiler.reset()

        def f(x, value, keyword=keyword):
            return normx.softmax(x, **{keyword: value})

        compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
        for value in values:
            torch.testing.assert_close(compiled(x, value), f(x, value))


def test_out_in_a_compiled_function():
    x = rows()
    torch.compiler.reset()
    compiled = torch.compile(lambda x, out: normx.softmax(x, out=out), backend="aot_eager")
    out = torch.empty_like(x)
    assert torch.equal(compiled(x, out), normx.softmax(x)) and torch.equal(out, normx.softmax(x))
    own = x.clone()
    compiled(own, own)
    assert torch.equal(own, normx.softmax(x))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_pullbacks_are_compiled(record):
    if record.random or record.vjp is None:
        pytest.skip("has noise, or no gradient")
    x, t = rows(1), torch.tensor([[0.7], [1.5], [2.0]], dtype=torch.float64)
    for options in ({}, {"temperature": 2.0}, {"temperature": t}):
        passed = {**record.example, **options}
        if not passed.keys() <= record.keywords.keys():
            continue

        def f(x, dy, passed=passed):
            y, pullback = normx.vjp(record.function, x, axis=-1, **passed)
            return y, pullback(dy)

        dy = torch.cos(record.function(x, axis=-1, **passed))
        torch.compiler.reset()
        with normx.trace() as ran:
            y, gradients = torch.compile(f, backend="aot_eager", fullgraph=True)(x, dy)
        want_y, want = f(x, dy)
        assert torch.equal(y, want_y) and gradients.keys() == want.keys()
        assert {event.backend for event in ran} == {"native"}
        for name, gradient in want.items():
            torch.testing.assert_close(gradients[name], gradient)


def test_pullbacks_in_a_compiled_function_refuse_what_they_refuse():
    x = rows(1)
    torch.compiler.reset()
    f = torch.compile(lambda x: normx.vjp(normx.softmax, x, out=x), backend="aot_eager")
    with pytest.raises(TypeError, match="`out` must be absent"):
        f(x)
    f = torch.compile(lambda x: normx.vjp(normx.softmax, x)[1](x[:1]), backend="aot_eager")
    with pytest.raises(Exception, match="`dy` must be a real array"):
        f(x)


def test_pullbacks_are_mapped():
    x, dy = torch.randn(5, 3, 4), torch.randn(5, 3, 4)

    def pull(x, dy):
        return normx.vjp(normx.softmax, x, temperature=2.0)[1](dy)

    got, want = torch.func.vmap(pull)(x, dy), pull(x, dy)
    torch.testing.assert_close(got["x"], want["x"])
    torch.testing.assert_close(got["temperature"].sum(), want["temperature"])


def test_the_older_mapping_is_refused_by_name():
    x = rows(requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"torch\.func has"):
        torch.autograd.functional.jacobian(normx.softmax, x, vectorize=True)
