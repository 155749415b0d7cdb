"""The MLX backend: what it asks of MLX, with Metal emulated in a process of its own."""

import subprocess
import sys
from importlib import invalidate_caches
from importlib.metadata import PathDistribution

import normx_gpu.emulator
import pytest
from normx_mlx import _backend

from normx._dispatch import backend
from normx.plugins import Refusal

if normx_gpu.emulator.emulator.unusable():
    pytest.skip(normx_gpu.emulator.emulator.unusable(), allow_module_level=True)

PREAMBLE = """
import numpy as np
from normx_gpu import emulated
emulated.install_mlx(cuda=CUDA)
import mlx.core as mx, normx
rng = np.random.default_rng(0)
def normal(*shape):
    return mx.array(rng.normal(size=shape).astype("float32"))
"""


def run(code, *, cuda=False):
    pytest.importorskip("mlx.core")
    whole = PREAMBLE.replace("CUDA", str(cuda)) + code
    command = [sys.executable, "-c", whole]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(_backend, "_is_apple", lambda: False)
    monkeypatch.setattr(_backend, "find_spec", lambda name: object())
    answer = backend("mlx")
    assert isinstance(answer, Refusal) and "no Metal here" in answer.reason
    monkeypatch.setattr(_backend, "find_spec", lambda name: None)
    answer = backend("mlx")
    assert isinstance(answer, Refusal) and "MLX is not installed" in answer.reason


def test_cuda_is_found_by_the_name_of_its_distribution_alone(monkeypatch, tmp_path):
    """Reading what all others say of themselves took 20 ms of every `set_num_threads`."""
    read = []
    monkeypatch.setattr(PathDistribution, "read_text", lambda found, name: read.append(name))
    monkeypatch.syspath_prepend(tmp_path)
    has_cuda = _backend._has_cuda.__wrapped__  # without what it remembers
    assert not has_cuda()
    (tmp_path / "mlx_cuda_12-0.30.0.dist-info").mkdir()
    invalidate_caches()
    assert has_cuda()
    assert not read


@pytest.mark.parametrize("target", ["metal", "cuda"])
def test_results_and_gradients_are_the_kernels(target):
    code = """
for shape, axis in (((3, 40), -1), ((2, 3), -1), ((4, 5, 6), (0, 2)), ((1,), 0), ((50, 7), 0)):
    x = normal(*shape)
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        with normx.trace() as ran:
            y = normx.softmax(x.astype(dtype), axis=axis)
        assert (ran[0].backend, ran[0].target) == ("mlx", target) and y.dtype == dtype
        assert mx.allclose(y.astype(mx.float32), mx.softmax(x, axis), atol=5e-3).item()
x, t = normal(3, 40), mx.array(0.7)
mask = mx.array(rng.random((1, 40)) > 0.3)
def ours(x, t):
    return (normx.softmax(x, temperature=t, where=mask) * x).sum()
def theirs(x, t):
    return (mx.softmax(mx.where(mask, x / t, -mx.inf), -1) * x).sum()
with normx.trace() as ran:
    got = mx.grad(ours, argnums=(0, 1))(x, t)
assert [event.backend for event in ran] == ["mlx", "mlx"]
for a, b in zip(got, mx.grad(theirs, argnums=(0, 1))(x, t)):
    assert mx.allclose(a, b, rtol=1e-4, atol=1e-6).item()
sinks = mx.array([[0.5, 1.0], [0.0, 2.0], [1.0, 1.0]])
got = mx.grad(lambda s: (normx.softmax(x, sink=s) * x).sum())(sinks)
want = mx.grad(lambda s: (mx.softmax(mx.concatenate([x, s], 1), -1)[:, :40] * x).sum())(sinks)
assert mx.allclose(got, want, rtol=1e-4, atol=1e-6).item()
"""
    run(f"target = {target!r}\n{code}", cuda=target == "cuda")


@pytest.mark.parametrize("target", ["metal", "cuda"])
def test_the_largest_weights_are_found_by_a_kernel(target):
    code = """
x = normal(5, 40)
for axis in (0, 1):
    with normx.trace() as ran:
        values, indices = normx.softmax_topk(x, 3, axis=axis)
    (event,) = ran
    assert event.kernel.startswith("normx_softmax_topk") and event.target == target, event
    y = mx.softmax(x, axis)
    want = mx.argsort(-y, axis)[:3] if axis == 0 else mx.argsort(-y, axis)[:, :3]
    assert mx.array_equal(indices, want).item() and indices.dtype == mx.int32
    assert mx.allclose(values, mx.take_along_axis(y, want, axis), rtol=1e-5).item()
def ours(x):
    return (normx.softmax_topk(x, 2).values ** 2).sum()
def theirs(x):
    return (mx.sort(mx.softmax(x, -1), -1)[..., -2:] ** 2).sum()
assert mx.allclose(mx.grad(ours)(x), mx.grad(theirs)(x), rtol=1e-4, atol=1e-6).item()
for a, b in zip(mx.jvp(ours, [x], [x * x]), mx.jvp(theirs, [x], [x * x])):
    assert mx.allclose(a[0], b[0], rtol=1e-4).item()
"""
    run(f"target = {target!r}\n{code}", cuda=target == "cuda")


def test_what_metal_cannot_do_is_refused():
    run("""
import numpy
for x, why in ((np.zeros((2, 3)), "is for arrays of MLX, not of numpy"),):
    try:
        normx.softmax(x, backend="mlx")
    except TypeError as error:
        assert why in str(error), error
    else:
        raise AssertionError
mx.default_device = lambda: mx.Device(mx.cpu, 0)
try:
    normx.softmax(mx.zeros((2, 3)), backend="mlx")
except TypeError as error:
    assert "default device is the CPU" in str(error)
else:
    raise AssertionError
""")


def test_a_form_is_compiled_once():
    run("""
from normx_mlx import _kernels
for _ in range(3):
    normx.softmax(normal(8, 64), temperature=0.5)
normx.softmax(normal(8, 64), temperature=0.25)
assert _kernels._metal.cache_info().misses == 1
assert len({launch.kernel for launch in emulated.launched}) == 1
""")
