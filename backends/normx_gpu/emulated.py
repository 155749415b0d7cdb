"""Devices that are none: what normx_cupy and normx_mlx use of CuPy and MLX, over the emulator.

Memory of the device is NumPy's, kernels run in `emulator`, and what CuPy would have been told
(source, grid, arguments) is taken at its word.  For tests, and no further.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np

from normx._libraries import numpy_library
from normx.plugins import dtype_name
from normx_gpu.abi import WORDS, Flag, Operand
from normx_gpu.call import Launch
from normx_gpu.emulator import Fault, emulator
from normx_gpu.launch import SIZES, Geometry
from normx_gpu.source import CUDA_OPTIONS, Kernel

Array = Any


class Launched(NamedTuple):
    """What the device was told in one launch."""

    kernel: Kernel
    stream: int
    device: int


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801  # as CuPy calls it
    """An array of the device: NumPy's, which nothing takes for NumPy's."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.memory, name)
        return _handed(found) if callable(found) else _out(found)

    def __getitem__(self, key: Any) -> Any:
        return _out(self.memory[_in(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.memory[_in(key)] = _in(value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        return _out(getattr(ufunc, method)(*_in(inputs), **_in(keywords)))

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an array of the device does not become one of NumPy's unasked")

    def __bool__(self) -> bool:
        return bool(self.memory)

    def __float__(self) -> float:
        return float(self.memory)

    def __len__(self) -> int:
        return len(self.memory)

    @property
    def device(self) -> Device:
        return Device(0)

    @property
    def data(self) -> Any:
        return _Pointer(self.memory.ctypes.data)

    def get(self) -> np.ndarray:
        return self.memory.copy()


class _Pointer(NamedTuple):
    ptr: int


class Device:
    """A device, as a context."""

    compute_capability = "90"
    attributes: ClassVar = {"MultiProcessorCount": 4}

    def __init__(self, id: int = 0) -> None:  # as CuPy calls it
        self.id = id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ExternalStream:
    """A stream of another library, as a context."""

    def __init__(self, ptr: int, device_id: int = 0) -> None:
        self.ptr, self.device_id = ptr, device_id

    def __enter__(self) -> Self:
        _streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _streams.pop()


_streams = [ExternalStream(0)]
#: Every launch, the last one last.
launched: list[Launched] = []


class RawModule:
    """A module: its text is read for what was chosen, and the emulator has the kernel."""

    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        assert options == CUDA_OPTIONS
        self.name, self.made_for = _made_for(code)

    def get_function(self, name: str) -> _Function:
        assert name == self.name
        return _Function(self.made_for)


class _Function:
    """A function of a module, as far as it is launched."""

    def __init__(self, made_for: Kernel) -> None:
        self.made_for = made_for

    def kernel(
        self,
        grid: tuple[int],
        block: tuple[int],
        arguments: tuple[Any, ...],
        shared_mem: int,
        stream: None,
        enable_cooperative_groups: bool,
    ) -> None:
        *operands, words = arguments
        made_for, geometry = self.made_for, self.made_for.geometry
        arrays = {o: a.memory for o, a in zip(Operand, operands, strict=True) if a is not None}
        tables = tuple(words["words"].tolist()), tuple(words["numbers"].tolist())
        go = Launch(made_for, *grid, *block, *tables)
        scratch = arrays.pop(Operand.SCRATCH, np.empty(0, "u1"))
        meets = geometry.parts > 1
        resident = not meets or grid[0] <= Device.attributes["MultiProcessorCount"]
        wants = block == (geometry.block,) and enable_cooperative_groups == meets and not shared_mem
        if not (wants and resident) or scratch.nbytes != go.scratch or scratch.any():
            raise Fault(f"{made_for.name}: {grid} blocks of {block}, {scratch.nbytes} of scratch")
        launched.append(Launched(made_for, _streams[-1].ptr, _streams[-1].device_id))
        emulator.emulate(go, arrays)


def _made_for(text: str) -> tuple[str, Kernel]:
    """The name that a text has, and the kernel that it was made for."""
    chosen: dict[str, str] = {}
    for line in text.splitlines():
        word, *rest = line.split(maxsplit=2)[:3] or [""]
        if word == "#define" and len(rest) == 2:
            chosen.setdefault(rest[0], rest[1])
    n = {name: int(text) for name, text in chosen.items() if text.isdigit()}
    dtypes = {"NX_S_HALF": "float16", "NX_S_BFLOAT": "bfloat16", "NX_DOUBLE": "float64"}
    dtype = next((dtype for name, dtype in dtypes.items() if n[name]), "float32")
    assert dtype in SIZES
    flags = Flag(n["NX_FLAGS"])
    columns = bool(flags & Flag.COLUMNS)
    lanes, rows, steps, vector = (n[f"NX_{name}"] for name in ("LANES", "ROWS", "STEPS", "V"))
    geometry = Geometry(lanes, rows, steps, vector, columns, n["NX_PARTS"])
    program = chosen["NX_RUN"].removeprefix("nx_").rpartition("_")[0]
    kernel = Kernel(program, dtype, geometry, flags, n["NX_OUTER"], n["NX_REDUCED"])
    return chosen["NX_NAME"], kernel


def _in(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value.memory
    if type(value) in (tuple, list):
        return type(value)(map(_in, value))
    return {k: _in(v) for k, v in value.items()} if isinstance(value, dict) else value


def _out(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    return type(value)(map(_out, value)) if type(value) in (tuple, list) else value


def _handed(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **keywords: _out(function(*_in(args), **_in(keywords)))


class _CuPy(ModuleType):
    """NumPy's functions for arrays of the device."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        return found if isinstance(found, type) or not callable(found) else _handed(found)

    def from_dlpack(self, x: Any) -> ndarray:
        if str(x.dtype).endswith("bfloat16"):  # which NumPy does not take from anybody
            import ml_dtypes

            return ndarray(np.from_dlpack(x.view(x.dtype.to_complex())).view(ml_dtypes.bfloat16))
        return ndarray(np.from_dlpack(x))

    def __array_namespace_info__(self) -> Any:
        return _Info()


class _Info:
    def dtypes(self, *, device: Any, kind: str) -> Any:
        return cast(Any, np.__array_namespace_info__()).dtypes(kind=kind)


class _Cuda(ModuleType):
    Device, ExternalStream = Device, ExternalStream

    @staticmethod
    def get_current_stream() -> Any:
        return _streams[-1]


def install() -> None:
    """Let normx_cupy find CuPy, a driver and a device, in this process."""
    import normx_cupy
    from normx_cupy import _driver

    cupy = _CuPy("cupy")
    ndarray.__module__ = "cupy"
    cast(Any, cupy).cuda = _Cuda("cupy.cuda")
    cast(Any, cupy).ndarray, cast(Any, cupy).RawModule = ndarray, RawModule
    sys.modules |= {"cupy": cupy, "cupy.cuda": cast(Any, cupy).cuda}
    normx_cupy.library._namespace = lambda: cupy
    cast(Any, _driver).missing = lambda: None
    cast(Any, normx_cupy.library).modes = _modes


def _modes() -> dict[str, Callable[[Any], Any]]:
    """What a table of outcomes says of the ways in which functions ran."""
    return {"emulated": lambda f: f}


# -------------------------------------------------------------------------------------- MLX


def install_mlx(*, cuda: bool = False) -> None:
    """Let normx_mlx find Metal, or CUDA, in this process; what it queues is computed at once."""
    import mlx.core as mx
    from normx_mlx import _backend, library

    from normx_gpu import nvrtc

    cast(Any, _backend)._is_apple = lambda: not cuda
    cast(Any, _backend)._has_cuda = lambda: cuda
    cast(Any, _backend)._nvrtc_unusable = lambda: None
    cast(Any, mx).metal.is_available = lambda: not cuda
    cast(Any, mx).cuda.is_available = lambda: cuda
    cast(Any, mx).fast.metal_kernel = _metal_kernel
    cast(Any, mx).fast.precompiled_cuda_kernel = _precompiled_cuda_kernel
    cast(Any, mx).default_device = lambda: mx.Device(mx.gpu, 0)
    capability = {"compute_capability_major": 9, "compute_capability_minor": 0}
    cast(Any, mx).device_info = lambda: capability
    cast(Any, nvrtc).machine_code = lambda text, name, architecture: text.encode()
    cast(Any, library).modes = _modes


def _metal_kernel(
    name: str, input_names: Sequence[str], output_names: Sequence[str], source: str, header: str
) -> Callable[..., list[Array]]:
    """MLX's function of that name: a function that runs a kernel."""
    own, kernel = _made_for(header)
    assert name.startswith(own)
    assert all(f"= {name};" in source for name in (*input_names, *output_names))

    def run(
        inputs: Sequence[Array],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[Any],
    ) -> list[Array]:
        if min(i.size for i in inputs) < 8:
            raise Fault(f"{name}: inputs of fewer than 8 elements, in another address space")
        *read, words, numbers = inputs
        tables = tuple(words.tolist()), tuple(numbers.tolist())
        names = (*input_names[:-2], *output_names)
        return _run(kernel, names, read, tables, grid, threadgroup, output_shapes, output_dtypes)

    return run


def _precompiled_cuda_kernel(
    *,
    name: str,
    compiled_source: bytes,
    inputs: Sequence[Array],
    output_shapes: Sequence[tuple[int, ...]],
    output_dtypes: Sequence[Any],
    scalars: Sequence[Any],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    ensure_row_contiguous: bool,
) -> list[Array]:
    """MLX's function of that name; what was compiled is the text."""
    text = compiled_source.decode()
    own, kernel = _made_for(text)
    assert own == name and ensure_row_contiguous and not scalars
    (taken,) = (line for line in text.splitlines() if line.startswith("#define NX_ARGUMENTS "))
    names = [argument.split()[-1] for argument in taken.split(", ")]
    *read, plan = inputs
    assert names.pop(len(read)) == "plan"
    handed = np.array(plan)
    tables = tuple(handed[:WORDS].tolist()), tuple(handed[WORDS:].view(np.float32).tolist())
    return _run(kernel, names, read, tables, grid, threadgroup, output_shapes, output_dtypes)


def _run(
    kernel: Kernel,
    names: Sequence[str],
    read: Sequence[Array],
    tables: tuple[tuple[int, ...], tuple[float, ...]],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    output_shapes: Sequence[tuple[int, ...]],
    output_dtypes: Sequence[Any],
) -> list[Array]:
    """Run a kernel of MLX's on copies, which lie on multiples of 16: Metal's text needs it not."""
    from normx_mlx import library

    block = kernel.geometry.block
    if threadgroup != (block, 1, 1) or grid[0] % block:
        raise Fault(f"{kernel.name}: {grid} threads in groups of {threadgroup}")
    made = [
        np.empty(shape, numpy_library.dtype(dtype_name(dtype)))
        for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
    ]
    operands = [Operand[name.upper()] for name in names]
    arrays = [*(library.to_numpy(array).copy() for array in read), *made]
    launched.append(Launched(kernel, 0, 0))
    go = Launch(kernel, grid[0] // block, block, *tables)
    emulator.emulate(go, dict(zip(operands, arrays, strict=True)))
    return [library.from_numpy(array) for array in made]
