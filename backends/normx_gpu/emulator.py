"""The GPU kernels on a CPU: a backend for NumPy's arrays that checks every access."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from normx import _dispatch as dispatch
from normx._libraries import numpy_library
from normx._plan import Plan
from normx.plugins import Backend, Call, Losses, Pullback, Refusal, TopKCall
from normx_gpu import call, source
from normx_gpu.abi import RESULTS, Flag, Operand
from normx_gpu.launch import geometry
from normx_gpu.programs import Program
from normx_gpu.source import EXACT

Array = Any

#: More blocks than this are not launched: each goes on with further rows.
_MOST_BLOCKS = 4096
STORAGE = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3, "bool": 4, "int64": 5}
OPTIONS = ("-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-shared", "-fPIC")


class Fault(AssertionError):  # noqa: N818  # what a GPU would not have told is no error of Python's
    """What a GPU would not have told."""


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("low", ctypes.c_int64),
        ("high", ctypes.c_int64),
        ("written", ctypes.c_void_p),
        ("storage", ctypes.c_int64),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("words", ctypes.c_void_p),
        ("numbers", ctypes.c_void_p),
        ("operand", _Buffer * len(Operand)),
        ("grid", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("lanes", "rows", "parts", "warp", "vector", "exact")),
        ("backwards", ctypes.c_int),
    )


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def build(text: str) -> ctypes.CDLL:
    """Compile a source of the emulator, unless that was done before."""
    compiler = _compiler()
    key = hashlib.sha256("\n".join((text, compiler, *OPTIONS)).encode()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"normx_emulator_{os.getuid()}" / f"{key}.so"
    if not place.exists():
        place.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            code, library = Path(scratch) / "emulator.cpp", Path(scratch) / "emulator.so"
            code.write_text(text, "utf-8")
            subprocess.run([compiler, *OPTIONS, "-o", str(library), str(code)], check=True)
            library.replace(place)  # another process may have been faster: the bits are the same
    built = ctypes.CDLL(str(place))
    built.nx_message.restype = ctypes.c_char_p
    return built


class Emulator(Backend):
    """Runs the kernels of normx_gpu, a lane after the other."""

    name = "gpu-emulator"

    def __init__(self, text: str | None = None) -> None:
        self._text = text
        self._library: ctypes.CDLL | None = None
        self._lock = Lock()
        #: How rows are spread over lanes, how many of them a warp has, and which one goes first.
        self.choose, self.warp, self.backwards = geometry, 32, False
        #: Every kernel that ran.
        self.ran: set[source.Kernel] = set()

    def unusable(self) -> str | None:
        if shutil.which(_compiler()) is None:
            return f"needs a C++ compiler, and {_compiler()} is not there"
        return None

    def description(self) -> str:
        return "the GPU kernels, a lane after the other on a CPU"

    def implementation(self, plan: Plan) -> Call | Refusal:
        return call.forward(plan, np, _empty, self.launch)

    def gradient(self, plan: Plan) -> Pullback | Refusal:
        return call.backward(plan, np, _empty, self.launch)

    def topk(self, plan: Plan, k: int) -> TopKCall | Refusal:
        return call.topk(plan, k, _empty, self.launch)

    def cross_entropy(self, plan: Plan, smoothing: float) -> Losses | Refusal:
        return call.cross_entropy(plan, smoothing, np, _empty, self.launch)

    def launch(
        self,
        plan: Plan,
        program: Program,
        arrays: Mapping[Operand, Array],
        parameters: Mapping[str, Any],
        *,
        backward: bool,
    ) -> str:
        """Run one kernel, with all checks."""
        arrays = {o: a if a.flags.aligned or o in RESULTS else a.copy() for o, a in arrays.items()}
        go = call.launch_of(
            plan,
            program,
            arrays,
            parameters,
            lambda array: array.ctypes.data,
            backward=backward,
            choose=self.choose,
        )
        self.emulate(go, arrays)
        return go.kernel.name

    def emulate(self, go: call.Launch, arrays: Mapping[Operand, Array]) -> None:
        """Do what a GPU would do with a launch."""
        self.ran.add(go.kernel)
        kernel, geometry = go.kernel, go.kernel.geometry
        words = np.array(go.words, np.int64)
        numbers = np.array(go.numbers, call.arithmetic_of(kernel.dtype))
        handed = _Call(
            words=words.ctypes.data,
            numbers=numbers.ctypes.data,
            grid=min(go.grid // geometry.parts, _MOST_BLOCKS),
            lanes=geometry.lanes,
            rows=geometry.rows,
            parts=geometry.parts,
            warp=self.warp,
            vector=geometry.vector,
            exact=kernel.dtype in EXACT,
            backwards=self.backwards,
        )
        written = {o: _fill(handed.operand[o], a, o in RESULTS) for o, a in arrays.items()}
        with self._lock:
            self._library = self._library or build(self._text or source.host())
            failed = self._library.nx_emulate(
                kernel.program.encode(),
                kernel.dtype == "float64",
                geometry.loop,
                bool(kernel.flags & Flag.BACKWARD),
                ctypes.byref(handed),
            )
            if failed:
                message = self._library.nx_message().decode()
                raise Fault(f"{go.kernel.name}: {message}")
        for operand, flags in written.items():
            if flags is None:
                continue
            wanted = _elements(arrays[operand])
            if int(flags.sum()) != wanted:
                raise Fault(f"{go.kernel.name}: {flags.sum()} of {wanted} {operand.name} written")


def _empty(shape: tuple[int, ...], dtype: str) -> Array:
    return np.empty(shape, numpy_library.dtype(dtype))


def _elements(array: Array) -> int:
    """How many elements an array has in memory: axes along which it was broadcast have one."""
    axes = zip(array.shape, array.strides, strict=True)
    return math.prod(size for size, stride in axes if stride != 0)


def _fill(buffer: _Buffer, array: Array, is_result: bool) -> Array | None:
    """Describe an array; of a result, keep which elements were written."""
    ends = [s // array.itemsize * (n - 1) for s, n in zip(array.strides, array.shape, strict=True)]
    buffer.base = array.ctypes.data
    buffer.low, buffer.high = sum(e for e in ends if e < 0), 1 + sum(e for e in ends if e > 0)
    buffer.storage = STORAGE[array.dtype.name]
    if array.size == 0:
        buffer.low = buffer.high = 0
    if not is_result:
        return None
    written = np.zeros(buffer.high - buffer.low, np.uint8)
    buffer.written = written.ctypes.data
    return written


emulator = Emulator()


@contextmanager
def registered() -> Iterator[None]:
    """Inside the ``with`` block, let the emulator be a backend for NumPy's arrays: for tests."""

    class Entry(EntryPoint):
        def load(self) -> Emulator:
            return emulator

    entry = Entry(emulator.name, "normx_gpu.emulator:emulator", "normx.backends")
    installed, preference = dispatch._plugins, numpy_library.preference

    def plugins(group: str) -> Mapping[str, EntryPoint]:
        found = installed(group)
        return {**found, emulator.name: entry} if group == entry.group else found

    dispatch._plugins = plugins  # type: ignore[assignment]
    numpy_library.preference = (*preference, emulator.name)  # type: ignore[assignment]
    try:
        yield
    finally:
        dispatch._plugins, numpy_library.preference = installed, preference
        dispatch.forget_plans()
