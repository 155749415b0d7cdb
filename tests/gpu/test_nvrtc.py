"""Every CUDA text becomes machine code, with rows in registers: no GPU is needed to see that."""

import subprocess
import sys

import pytest
from normx_gpu import nvrtc, source

if nvrtc.unusable():
    pytest.skip(nvrtc.unusable(), allow_module_level=True)


def in_registers(kernel, architecture):
    code = nvrtc.compiled(kernel, architecture)
    assert code.size > 0 and code.registers * kernel.geometry.block <= 65536
    assert code.kept and code.spilled <= nvrtc.MOST_SPILLED, (kernel.name, architecture, code)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", nvrtc.NAMES)
def test_every_program_compiles(name, backward):
    in_registers(nvrtc.kernel(name, "float32", 64, backward=backward, options=True), "sm_90")


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_every_architecture(architecture):
    lengths = nvrtc.LENGTHS if architecture == "sm_90" else (64, nvrtc.FULLEST)
    for kernel in nvrtc.every(["softmax"], ["float32"], lengths):
        in_registers(kernel, architecture)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype(dtype):
    for backward in (False, True):
        in_registers(nvrtc.kernel("softmax", dtype, 1024, backward=backward), "sm_90")


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_the_text_for_mlx_compiles(backward):
    for dtype in ("float32", "float16", "bfloat16"):
        kernel = nvrtc.kernel("ssmax", dtype, 1024, backward=backward, options=True)
        made = source.cuda_handed(kernel)
        assert made.name.encode() in nvrtc.machine_code(made.text, made.name, "sm_90")


def test_errors_have_the_compilers_words(monkeypatch):
    kernel = nvrtc.kernel("softmax", "float32", 64, backward=False)
    monkeypatch.setattr(nvrtc.source, "cuda", lambda _: "__global__ void f() { wrong; }")
    with pytest.raises(nvrtc.CompileError, match=r"float32_16x1 for sm_80: .*wrong"):
        nvrtc.compiled(kernel, "sm_80")


def test_the_command_prints_a_table():
    arguments = ["--program", "logsumexp", "--dtype", "float32", "--arch", "sm_80"]
    command = [sys.executable, "-m", "normx_gpu.nvrtc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "compiled, for sm_80" in done.stdout and "| logsumexp, backward |" in done.stdout
