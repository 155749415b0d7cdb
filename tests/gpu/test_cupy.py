"""The CuPy backend: what it tells a device, on one that is emulated in a process of its own."""

import subprocess
import sys

import normx_gpu.emulator
import pytest
from normx_cupy import _driver

import normx
from normx._dispatch import backend
from normx.plugins import Refusal

if normx_gpu.emulator.emulator.unusable():
    pytest.skip(normx_gpu.emulator.emulator.unusable(), allow_module_level=True)

PREAMBLE = """
import numpy as np
from normx_gpu import emulated
emulated.install()
import cupy, normx
launched = emulated.launched
rng = np.random.default_rng(0)
def normal(*shape, dtype="float32"):
    return cupy.asarray(rng.normal(size=shape).astype(dtype))
"""

ON_TORCH = (
    PREAMBLE
    + """
import torch, normx_torch
Library = normx_torch.TorchLibrary
Library.on_host = lambda self, x: False
Library.on_cuda = lambda self, x: True
Library.cuda_stream = lambda self, x: 7
Library.cuda_empty = lambda self, shape, dtype, device: torch.empty(shape, dtype=self.dtype(dtype))
"""
)


def run(code, preamble=PREAMBLE):
    """Run what would make this process take an emulated device for one."""
    done = subprocess.run(
        [sys.executable, "-c", preamble + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_missing_is_named(monkeypatch):
    found = {"cupy": True, "driver": True, "devices": 1}
    find_spec = _driver.importlib.util.find_spec
    monkeypatch.setattr(
        _driver.importlib.util,
        "find_spec",
        lambda name: (found["cupy"] or None) if name == "cupy" else find_spec(name),
    )
    monkeypatch.setattr(_driver, "_loaded", lambda name: object() if found["driver"] else None)
    monkeypatch.setattr(_driver, "_devices", lambda: found["devices"])
    for what, value, said in (
        ("devices", 0, "no CUDA device"),
        ("driver", False, "no CUDA driver"),
        ("cupy", False, "CuPy is not installed: pip install"),
    ):
        found[what] = value
        _driver.missing.cache_clear()
        assert said in _driver.missing()
        answer = backend("cupy")
        assert isinstance(answer, Refusal) and said in answer.reason
        assert said in str(normx.backends()["cupy"])
        with pytest.raises(TypeError, match=said):
            normx.softmax([1.0, 2.0], backend="cupy")
    _driver.missing.cache_clear()


def test_arrays_elsewhere_are_refused():
    run("""
try:
    normx.softmax(np.zeros((2, 3)), backend="cupy")
except TypeError as error:
    assert "reads the memory of a CUDA device, and these arrays of numpy are not" in str(error)
else:
    raise AssertionError
""")


def test_forward_and_gradients_are_launches():
    run("""
for dtype in ("float16", "bfloat16", "float32", "float64"):
    x = normal(3, 5, 37).astype(normx._libraries.numpy_library.dtype(dtype))
    for view in (x, x[:, ::-1], x[..., ::2], x.transpose(2, 0, 1)):
        for axis in (-1, 0, (0, 2)):
            with normx.trace() as ran:
                y = normx.softmax(view, axis=axis, temperature=0.5)
            assert type(y) is cupy.ndarray and y.dtype == x.dtype
            assert ran[0].backend == "cupy" and ran[0].target == "sm_90"
            want = normx.softmax(view.get(), axis=axis, temperature=0.5)
            gap = np.abs(y.get().astype(float) - want.astype(float))
            assert gap.max() <= 2e-7 if dtype in ("float32", "float64") else gap.max() < 1e-2
x, t = normal(4, 50), cupy.asarray(np.float32(0.7))
mask = cupy.asarray(rng.random((4, 50)) > 0.3)
y, pullback = normx.vjp(normx.softmax, x, temperature=t, where=mask)
with normx.trace() as ran:
    found = pullback(x)
assert ran[0].kernel.startswith("normx_softmax_backward_float32")
want = normx.vjp(normx.softmax, x.get(), temperature=t.get(), where=mask.get())[1](x.get())
for name, gradient in found.items():
    assert np.allclose(gradient.get(), want[name], rtol=1e-5, atol=1e-7), name
""")


def test_the_largest_weights_are_found_on_the_device():
    run("""
x = normal(5, 300)
with normx.trace() as ran:
    found = normx.softmax_topk(x, 7)
assert ran[0].backend == "cupy" and "topk" in ran[0].kernel, ran
want = normx.softmax_topk(x.get(), 7)
assert np.array_equal(found.indices.get(), want.indices)
assert np.allclose(found.values.get(), want.values, rtol=1e-6, atol=0)
""")


LOSSES = """
from normx.losses import cross_entropy
x, t = rng.normal(size=(4, 3, 52)).astype("float32"), rng.integers(0, 3, (4, 52))
w = rng.random(3).astype("float32")
t[1, 3] = -5
given = dict(axis=1, z_loss=1e-2, label_smoothing=0.1, softcap=4.0, ignore_index=-5)
want, pullback = normx.vjp(cross_entropy, x, t, weight=w, **given)
dx = pullback(1.0)["x"]
"""


def test_losses_are_a_launch_each_way():
    run(
        LOSSES
        + """
on_device = cupy.from_dlpack(w)
with normx.trace() as ran:
    found, pullback = normx.vjp(
        cross_entropy, cupy.from_dlpack(x), cupy.from_dlpack(t), weight=on_device, **given
    )
    gradient = pullback(1.0)["x"]
names = [(event.function, event.backend, event.kernel.split("_float32")[0]) for event in ran]
assert names == [
    ("cross_entropy", "cupy", "normx_cross_entropy_forward"),
    ("vjp(cross_entropy)", "cupy", "normx_cross_entropy_backward"),
], ran
for got, exact in zip(found, want):
    assert np.allclose(got.get(), exact, rtol=1e-6, atol=5e-7)
assert np.allclose(gradient.get(), dx, rtol=1e-5, atol=1e-9)
"""
    )


def test_losses_of_tensors_are_differentiated_by_their_kernel():
    pytest.importorskip("torch")
    run(
        LOSSES
        + """
x = torch.tensor(x, requires_grad=True)
def loss(x):
    return cross_entropy(x, torch.tensor(t), weight=torch.tensor(w), **given).loss
with normx.trace() as ran:
    loss(x).backward()
assert [event.backend for event in ran] == ["cupy", "cupy"], ran
assert np.allclose(x.grad.numpy(), dx, rtol=1e-5, atol=1e-9)
(again,) = torch.autograd.grad(loss(x), x, create_graph=True)  # by the formula
assert torch.allclose(again, x.grad, rtol=1e-4, atol=1e-7) and again.requires_grad
""",
        ON_TORCH,
    )


def test_long_rows_have_several_blocks():
    run("""
from normx_gpu import call
from normx_gpu.launch import Geometry
asked = []
def four_blocks(n, dtype, *, resident, **_):
    asked.append(resident)
    return Geometry(lanes=32, rows=1, steps=2, vector=4, parts=4, resident=resident)
call.launch_of.__kwdefaults__["choose"] = four_blocks
x = normal(3, 1000)
with normx.trace() as ran:
    y = normx.softmax(x)
assert asked == [emulated.Device.attributes["MultiProcessorCount"]]
assert ran[0].kernel.endswith("_in4") and launched[-1].kernel.geometry.parts == 4
assert np.allclose(y.get(), normx.softmax(x.get()), rtol=1e-6, atol=0)
""")


def test_out_is_written_where_it_is():
    run("""
x = normal(6, 40)
place = cupy.zeros((12, 40), dtype="float32")
before = place.memory.ctypes.data
y = normx.softmax(x, out=place[::2])
assert y.memory.ctypes.data == before and np.array_equal(place.get()[1::2], np.zeros((6, 40)))
assert np.array_equal(place.get()[::2], normx.softmax(x).get())
normx.softmax(x, out=x)
assert np.array_equal(x.get(), y.get())
for wrong in (cupy.broadcast_to(place[:1], (6, 40)),):
    try:
        normx.softmax(x, out=wrong)
    except ValueError as error:
        assert "share memory" in str(error)
    else:
        raise AssertionError
""")


def test_a_form_is_planned_and_compiled_once():
    run("""
from normx_cupy import _launch
from normx_gpu import call
planned, plan = [], call.launch_of
call.launch_of = lambda *args, **keywords: planned.append(1) or plan(*args, **keywords)
x = normal(8, 64)
for _ in range(5):
    normx.softmax(x, temperature=0.5)
assert len(planned) == 1 and _launch.compiled.cache_info().currsize == 1
normx.softmax(x, temperature=0.25)
assert len(planned) == 2 and _launch.compiled.cache_info().currsize == 1
a, b = launched[-2:]
assert a.kernel == b.kernel
""")


def test_tensors_of_torch_go_through_in_their_stream():
    pytest.importorskip("torch")
    run(
        """
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    x = torch.tensor(rng.normal(size=(3, 40))).to(dtype)
    with normx.trace() as ran:
        y = normx.softmax(x)
    assert ran[0].backend == "cupy" and y.dtype == dtype and type(y) is torch.Tensor
    assert launched[-1].stream == 7
    assert torch.allclose(y.float(), torch.softmax(x.float(), -1), atol=5e-3)
x = torch.tensor(rng.normal(size=(3, 40)), dtype=torch.float32, requires_grad=True)
t = torch.tensor(0.7, requires_grad=True)
out = torch.empty(3, 40)
assert normx.softmax(x.detach(), out=out) is out
assert torch.allclose(out, torch.softmax(x.detach(), -1), atol=1e-7)
g = torch.tensor(rng.normal(size=(3, 40)), dtype=torch.float32)
with normx.trace() as ran:
    found = torch.autograd.grad(normx.softmax(x, temperature=t), (x, t), g)
assert [event.backend for event in ran] == ["cupy", "cupy"], ran
want = torch.autograd.grad(torch.softmax(x / t, -1), (x, t), g)
for a, b in zip(found, want):
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
compiled = torch.compile(lambda a: normx.softmax(a) * 2, backend="aot_eager", fullgraph=True)
with normx.trace() as ran:
    y = compiled(x.detach())
assert {event.backend for event in ran} == {"cupy"}
""",
        ON_TORCH,
    )


def test_arrays_of_jax_that_have_come_go_through():
    pytest.importorskip("jax")
    run("""
import jax, normx_jax, normx_jax._primitives as primitives
primitives.on_host = lambda x: False
primitives.on_cuda = lambda x: True
normx_jax.JaxLibrary.cuda_adopt = lambda self, fresh: jax.numpy.asarray(fresh.get())
x = jax.numpy.asarray(rng.normal(size=(3, 40)).astype("float32"))
with normx.trace() as ran:
    y = normx.softmax(x)
assert ran[0].backend == "cupy" and np.allclose(y, jax.nn.softmax(x), atol=1e-7)
with normx.trace() as ran:
    jax.jit(normx.softmax)(x)
    jax.grad(lambda t: normx.softmax(x, temperature=t).max())(0.5)
assert {event.backend for event in ran} == {"reference"}
""")
