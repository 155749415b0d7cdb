"""Machine code without a GPU: every kernel through NVRTC, and what it takes of a multiprocessor.

``python -m normx_gpu.nvrtc`` compiles a sample of them for all architectures, which takes five
minutes on two cores, and prints a table; with ``--all`` it is every dtype in every geometry for
every architecture, eight times as long.  ``nox -s gpu_compile`` does so with NVRTC's own wheel.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from normx._dispatch import library_of
from normx._libraries import numpy_library
from normx._plan import Plan, prepare
from normx._record import Parameter, Record, record_of
from normx.plugins import Refusal
from normx_gpu import source
from normx_gpu.abi import Flag, Operand
from normx_gpu.call import View, launch, program_of
from normx_gpu.launch import SIZES
from normx_gpu.programs import CROSS_ENTROPY, PROGRAMS, Program
from normx_gpu.source import Kernel

#: Turing, Ampere, Hopper, Blackwell.
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
#: A row in part of a warp, in a warp, in a block, in as many registers as there are, in several
#: blocks, and in several passes.
LENGTHS = (64, 1024, 8192, 24576, 131072, 1 << 23)
#: The dtype and the architecture that see every geometry in a sample, and the length that takes the
#: most registers, which all others see.
SAMPLED = ("float32", "sm_90")
FULLEST = 24576
#: Bytes that a thread may spill, to the L1 cache.  The most is 80, in the gradients of entmax and
#: normmax, whose powers take many registers; softmax and its kin spill nothing.
MOST_SPILLED = 96
#: What there are kernels for.
NAMES = (*PROGRAMS, CROSS_ENTROPY.name)
_ROWS = 4096
_MULTIPROCESSORS = 132  # of an H100


class Code(NamedTuple):
    """What a kernel is once it is compiled.

    Attributes
    ----------
    size : int
        Bytes of machine code and what belongs to it.
    registers : int
        Of a thread.
    spilled : int
        Bytes that a thread writes to memory because it has too few registers.
    stack : int
        Bytes of memory that a thread has to itself.
    shared : int
        Bytes of shared memory of a block.
    """

    size: int
    registers: int
    spilled: int
    stack: int
    shared: int

    @property
    def kept(self) -> bool:
        """Whether arrays are in registers: memory beyond what is spilled is one that is not."""
        return self.stack <= self.spilled + 16


class CompileError(Exception):
    """NVRTC's words about a kernel."""


def unusable() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if _path() is None:
        return "NVRTC is not installed: pip install nvidia-cuda-nvrtc"
    return None


def _path() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    places = (spec and spec.submodule_search_locations) or ()
    found = [path for place in places for path in sorted(Path(place).glob("*/lib/libnvrtc.so.*"))]
    return found[0] if found else None


@cache
def _nvrtc() -> ctypes.CDLL:
    path = _path()
    if path is None:
        raise OSError(unusable())
    return ctypes.CDLL(str(path))


def compiled(kernel: Kernel, architecture: str) -> Code:
    """Compile a kernel to machine code, and say what that takes.

    Raises
    ------
    CompileError
        With what NVRTC has to say.
    """
    code, said = _compiled(source.cuda(kernel), kernel.name, architecture)
    return Code(
        len(code),
        _number(r"Used (\d+) registers", said),
        _number(r"(\d+) bytes spill stores", said, sum),  # in functions that it calls too
        _number(r"(\d+) bytes (?:cumulative stack size|stack frame)", said),
        _number(r"(\d+) bytes smem", said),
    )


def machine_code(text: str, name: str, architecture: str) -> bytes:
    """Compile a source; `name` is for what `CompileError` says."""
    return _compiled(text, name, architecture)[0]


def _compiled(text: str, name: str, architecture: str) -> tuple[bytes, str]:
    """Machine code, and the assembler's words."""
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    made = (ctypes.byref(program), text.encode(), b"normx.cu", 0, None, None)
    _checked(nvrtc.nvrtcCreateProgram(*made))
    try:
        options = (f"--gpu-architecture={architecture}", *source.CUDA_OPTIONS, "--ptxas-options=-v")
        handed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), handed)
        size = ctypes.c_size_t()
        _checked(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        said = log.value.decode()
        if failed:
            raise CompileError(f"{name} for {architecture}: {said}")
        _checked(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        return code.raw, said
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _checked(code: int) -> None:
    if code:
        raise CompileError(f"NVRTC failed with code {code}")


def _number(pattern: str, text: str, of: Callable[[list[int]], int] = max) -> int:
    return of([int(found) for found in re.findall(pattern, text)] or [0])


# ------------------------------------------------------------------------------- which kernels


def kernel(
    name: str, dtype: str, n: int, *, backward: bool, options: bool = False, columns: bool = False
) -> Kernel:
    """The kernel of a call: plain, or with every option that there is, arrays all of them."""
    if name == CROSS_ENTROPY.name:
        return _losses(dtype, n, backward=backward, options=options, columns=columns)
    record, program = record_of(name), PROGRAMS[name]
    shape, axis = ((n, _ROWS), 0) if columns else ((_ROWS, n), 1)
    x = np.broadcast_to(np.zeros((), numpy_library.dtype(dtype)), shape)
    keywords = _options(record, shape, axis) if options else {}
    passed = {**record.example_for(numpy_library), **keywords}
    plan = prepare(record, numpy_library, x, {**passed, "axis": axis}, library_of).plan
    found = program_of(plan, backward=backward)
    if isinstance(found, Refusal):
        raise TypeError(f"{name}: {found.reason}")
    defaults = {k: p.default for k, p in record.keywords.items()}
    parameters = {k: passed.get(k, defaults[k]) for k in plan.parameters}
    views = _views(plan, program, parameters, backward=backward)
    go = launch(
        plan,
        program,
        views,
        parameters,
        sinks=(1, 0, 0),
        backward=backward,
        resident=_MULTIPROCESSORS,
    )
    return go.kernel


def _losses(dtype: str, n: int, *, backward: bool, options: bool, columns: bool) -> Kernel:
    """The kernel of the cross-entropy of rows."""
    shape, axis = ((n, _ROWS), 0) if columns else ((_ROWS, n), 1)
    scores = View(tuple(math.prod(shape[i + 1 :]) for i in range(2)), aligned=True)
    row, classes = (
        View(tuple(int((i != axis) == of_rows) for i in range(2))) for of_rows in (1, 0)
    )
    views = {Operand.X: scores, Operand.TARGET: row}
    if options:
        views |= {Operand.WHERE: scores, Operand.WEIGHT: classes}
    views |= dict.fromkeys(list(Operand)[Operand.P0 if backward else Operand.D0 :][:3], row)
    if backward:
        views[Operand.Y] = scores
    plan = Plan(
        record_of("softmax"),
        numpy_library,
        shape,
        (axis,),
        dtype,
        where=shape if options else None,
        softcap=30.0 if options else None,
        constants={"smoothing": 0.1},
    )
    given = {name: np.zeros(()) for name in CROSS_ENTROPY.parameters if backward}
    return launch(
        plan, CROSS_ENTROPY, views, given, backward=backward, resident=_MULTIPROCESSORS
    ).kernel


def _options(record: Record, shape: tuple[int, ...], axis: int) -> dict[str, Any]:
    row = tuple(1 if i == axis else size for i, size in enumerate(shape))
    known = {
        "where": np.broadcast_to(np.True_, shape),
        "temperature": np.ones(row, np.float32),
        "softcap": 30.0,
    }
    for spec in record.parameters:
        if spec.name in {*PROGRAMS[record.name].parameters, "sink"}:
            known[spec.name] = _value(spec, row, shape)
    return {name: value for name, value in known.items() if name in record.keywords}


def _value(spec: Parameter, row: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    one = np.full((), 1.0 + (spec.minimum or spec.above or 0.0), np.float32)
    return np.broadcast_to(one, shape if spec.shape == "elements" else row)


def _views(
    plan: Plan, program: Program, parameters: Mapping[str, Any], *, backward: bool
) -> dict[Operand, View]:
    """Where the arrays of a call lie: side by side, in the order of their axes."""
    (axis,) = plan.axis
    steps = tuple(math.prod(plan.shape[i + 1 :]) for i in range(2))
    scores = View(steps, aligned=True)
    row = View(tuple(int(i != axis) for i in range(2)))
    reduces = plan.record.kind == "reduction"
    views = {Operand.X: scores, Operand.Y: row if reduces and not backward else scores}
    if backward:
        views[Operand.G] = row if reduces else scores
    if plan.where is not None:
        views[Operand.WHERE] = scores
    if program.flags & Flag.NOISY:
        views[Operand.NOISE] = scores
    for name, value in parameters.items():
        if not hasattr(value, "shape"):
            continue
        read, written = _operands(program, name)
        views[read] = scores if value.shape == plan.shape else row
        if backward:
            views[written] = views[read]
    return views


def _operands(program: Program, name: str) -> tuple[Operand, Operand]:
    if name == "temperature":
        return Operand.TEMPERATURE, Operand.DTEMPERATURE
    if name == "sink":
        return Operand.SINK, Operand.DSINK
    k = program.parameters.index(name)
    return Operand(Operand.P0 + k), Operand(Operand.D0 + k)


def every(
    names: Sequence[str] = NAMES,
    dtypes: Sequence[str] = tuple(SIZES),
    lengths: Sequence[int] = LENGTHS,
) -> Iterator[Kernel]:
    """Every function both ways, in every dtype and geometry, each kernel once; then all options."""
    seen: set[Kernel] = set()
    forms = [(n, False, False) for n in lengths]
    forms += [(lengths[0], False, True), (lengths[0], True, False)]
    for name in names:
        for backward in (False, True):
            for dtype in dtypes:
                for n, options, columns in forms:
                    made = kernel(
                        name, dtype, n, backward=backward, options=options, columns=columns
                    )
                    if made not in seen:
                        seen.add(made)
                        yield made


def sample(names: Sequence[str]) -> Iterator[tuple[Kernel, str]]:
    """Every function both ways, in every geometry, dtype and architecture: each, but not all pairs.

    One dtype for one architecture has all geometries.  The other dtypes and the other architectures
    have that with the most registers, and the architectures all options too.
    """
    usual, here = SAMPLED
    for made in every(names, [usual]):
        yield made, here
    for name in names:
        for backward in (False, True):
            for dtype in SIZES:
                if dtype != usual:
                    yield kernel(name, dtype, FULLEST, backward=backward), here
            full = kernel(name, usual, FULLEST, backward=backward)
            options = kernel(name, usual, LENGTHS[0], backward=backward, options=True)
            for architecture in ARCHITECTURES:
                if architecture != here:
                    yield full, architecture
                    yield options, architecture


def table(codes: Mapping[Kernel, Sequence[Code]]) -> str:
    """The most that the kernels of a function take, in Markdown."""
    rows = ["| kernels | registers | spilled bytes | in |", "|---|---|---|---|"]
    of: dict[str, list[tuple[Code, Kernel]]] = {}
    for made, found in codes.items():
        way = "backward" if made.flags & Flag.BACKWARD else "forward"
        of.setdefault(f"{made.program}, {way}", []).extend((code, made) for code in found)
    for label, pairs in of.items():
        registers = [code.registers for code, _ in pairs]
        most, where = max(pairs, key=lambda pair: pair[0].spilled)
        worst = f"`{where.name}`" if most.spilled else ""
        rows.append(
            f"| {label} | {min(registers)} to {max(registers)} | {most.spilled} | {worst} |"
        )
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile kernels for all architectures, and print what they take."""
    parser = argparse.ArgumentParser(prog="python -m normx_gpu.nvrtc", description=__doc__)
    parser.add_argument("--all", action="store_true", help="everything, and no sample of it")
    parser.add_argument("--program", action="append", help="a function; repeatable (default: all)")
    parser.add_argument("--dtype", action="append", help="repeatable; in every geometry")
    parser.add_argument("--arch", action="append", help="repeatable; in every geometry")
    asked = parser.parse_args(arguments)
    reason = unusable()
    if reason is not None:
        sys.stderr.write(f"{reason}\n")
        return 1
    names = asked.program or NAMES
    if asked.all or asked.dtype or asked.arch:
        kernels = every(names, asked.dtype or tuple(SIZES))
        pairs = list(itertools.product(kernels, asked.arch or ARCHITECTURES))
    else:
        pairs = list(sample(names))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda pair: compiled(*pair), pairs))
    codes: dict[Kernel, list[Code]] = {}
    wrong = set()
    for (made, architecture), code in zip(pairs, found, strict=True):
        codes.setdefault(made, []).append(code)
        if not code.kept:
            wrong.add(f"{made.name} for {architecture} has arrays in memory, meant for registers")
        if code.spilled > MOST_SPILLED:
            wrong.add(f"{made.name} for {architecture} spills {code.spilled} bytes of a thread")
    sys.stderr.write("".join(f"{line}\n" for line in sorted(wrong)))
    where = ", ".join(dict.fromkeys(architecture for _, architecture in pairs))
    counted = f"{len(codes)} kernels, {len(pairs)} times compiled, for {where}."
    sys.stdout.write(f"{counted}\n\n{table(codes)}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
