"""What kernels are made of: the table of geometries, the names they share, and their texts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from normx_gpu import abi, source
from normx_gpu.abi import Flag, Operand, Word
from normx_gpu.launch import MOST_THREADS, SIZES, WARP, geometry
from normx_gpu.programs import EVERY, PROGRAMS
from normx_gpu.source import Kernel

from normx._record import record_of

ROOT = Path(__file__).parents[2]


@given(
    n=st.one_of(st.integers(1, 70_000), st.integers(1, 2**40)),
    dtype=st.sampled_from(sorted(SIZES)),
    columns=st.booleans(),
    heavy=st.booleans(),
    resident=st.sampled_from([0, 14, 40, 132, 1000]),
)
def test_geometries_cover_rows(n, dtype, columns, heavy, resident):
    g = geometry(n, dtype, columns=columns, heavy=heavy, resident=resident)
    assert g.vector * SIZES[dtype] == 16
    for count in (g.lanes, g.rows):
        assert count & (count - 1) == 0 and count >= 1
    assert WARP <= g.block <= MOST_THREADS and g.block % WARP == 0
    assert columns or g.rows == 1 or g.lanes <= WARP, "rows of a block share no barrier"
    assert g.lanes <= WARP * WARP, "one warp merges what the others found"
    assert g.loop or g.steps * g.lanes * g.parts * g.vector >= n, "the registers hold the row"
    assert g.parts == 1 or (g.rows == 1 and not g.columns and g.grid(7) <= resident)
    assert g.steps * g.vector <= 48 // (1 + heavy)
    assert g.loop or g.block <= 512 or g.steps * g.vector <= 16 // (1 + heavy)
    # The order of sums follows from these alone.
    other = geometry(n, dtype, columns=not columns, heavy=heavy, resident=resident)
    for alike in ("lanes", "parts", "steps", "vector"):
        assert getattr(g, alike) == getattr(other, alike)
    assert 1 <= g.grid(2**62) < 2**31


def test_programs_are_functions_with_these_keywords():
    for name, program in PROGRAMS.items():
        record = record_of(name)
        assert program.name == name and len(program.parameters) <= abi.PARAMETERS
        assert {p.name for p in record.parameters} >= set(program.parameters)
        assert {c.name for c in record.constants} >= set(program.constants)
        assert bool(program.flags & Flag.NEGATED) == record.negated
        assert bool(program.flags & Flag.LOG_SPACE) == record.log_space
        assert bool(program.flags & Flag.REDUCES) == (record.kind == "reduction")
        assert bool(program.flags & Flag.POINTWISE) == (record.at_infinity == "pointwise")
        assert bool(program.flags & Flag.FILLS) == record.fills
        assert bool(program.flags & Flag.NOISY) == record.random
        massless = program.flags & (Flag.POSITIVE | Flag.THRESHOLD)
        assert bool(massless) == (record.massless is not None)


def test_every_name_of_the_vocabulary_is_defined_once():
    names = re.findall(r"#define (\w+) (\w+)", abi.definitions())
    assert len({name for name, _ in names}) == len(names)
    assert Word.STRIDES + abi.AXES * len(Operand) == abi.WORDS


def test_the_exponentials_are_those_of_the_cpu_kernels():
    header = ROOT / "native" / "simd" / "expcoeffs.hpp"
    if not header.exists():
        pytest.skip("the installed package is tested, without the sources")
    single, double = header.read_text("utf-8").split("struct Exp<double>")
    text = source.text("words/arithmetic.h").split("NX_FN nx_t nx_exp(")[1].split("return")[0]
    numbers = {float(number) for number in re.findall(r"\d+\.\d+(?:e-?\d+)?", text)}
    for part, digits in ((single, 9), (double, 17)):
        constants = part.split("degree")[0].split("ln2_a")[0] + part.split("= {")[-1]
        for number in re.findall(r"-?0x1[.\da-f]*p[+-]\d+", constants):
            assert abs(float(f"{float.fromhex(number):.{digits}g}")) in numbers, number


def sample_kernels(name, dtypes):
    """A kernel of each kind: rows in part of a warp, in a block, too long for registers."""
    program = EVERY[name]
    everything = Flag.WHERE | Flag.TEMPERED | Flag.SCALED | Flag.SOFTCAP | Flag.EMPTY_UNIFORM
    gradients = Flag.BACKWARD | Flag.WHERE | Flag.TEMPERED | Flag.SCALED | Flag.DTEMPERATURE
    for dtype in dtypes:
        for n, flags in ((40, Flag.WIDE), (3000, everything), (10**6, gradients)):
            heavy = bool(flags & Flag.BACKWARD) or program.heavy
            chosen = geometry(n, dtype, columns=n == 3000, heavy=heavy)
            columns = Flag.COLUMNS if chosen.columns else Flag(0)
            yield Kernel(name, dtype, chosen, program.flags | flags | columns, 2, 2)


@pytest.mark.parametrize("name", EVERY)
def test_sources_are_whole_and_equal_for_equal_kernels(name):
    for kernel in sample_kernels(name, SIZES):
        text = source.cuda(kernel)
        assert text == source.cuda(Kernel(*(getattr(kernel, f) for f in kernel.__slots__)))
        assert "#include" not in text and f"#define NX_NAME {kernel.name}\n" in text
        assert source.entry(kernel) in text.partition("#define NX_RUN")[2]


def metal_unit(kernel):
    """A Metal kernel as a function that a host compiler takes."""
    made = source.metal(kernel)
    scalar = {"float16": "half", "bfloat16": "bfloat16_t"}.get(kernel.dtype, "float")

    def kind(operand):
        if operand == Operand.WHERE:
            return "bool"
        if operand in abi.INTEGERS:
            return "long"
        return scalar if operand in (Operand.X, Operand.G, Operand.Y) else "float"

    arguments = [
        *(f"const device {kind(o)}* {o.name.lower()}" for o in made.inputs),
        "const device long* words, const device float* numbers",
        *(f"device {kind(o)}* {o.name.lower()}" for o in made.outputs),
        "uint3 thread_position_in_threadgroup, uint3 threadgroup_position_in_grid",
        "uint3 threadgroups_per_grid",
    ]
    return f"{made.header}\nvoid unit({', '.join(arguments)}) {{\n{made.body}\n}}\n"


@pytest.mark.parametrize("name", EVERY)
def test_metal_text_is_cpp14(name, tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is here")
    stub = (Path(__file__).parent / "metal_stub.h").read_text("utf-8")
    units = []
    for i, kernel in enumerate(sample_kernels(name, ("float16", "bfloat16", "float32"))):
        unit = metal_unit(kernel)
        words = re.sub(r"//.*", "", unit)
        assert not re.search(r"\bdouble\b|\[&\]|\[=\]|long long", words), "no word of Metal's"
        names = re.findall(r"^ *# *define (\w+)", unit, re.MULTILINE)
        undefined = "".join(f"#undef {name}\n" for name in dict.fromkeys(names))
        units.append(f"namespace unit{i} {{\n{unit}}}\n{undefined}")
    code = tmp_path / "units.cpp"
    code.write_text(stub + "".join(units), "utf-8")
    options = ("-std=c++14", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-unknown-pragmas")
    quiet = ("-Wno-unused-function", "-Wno-unused-parameter", "-Wno-maybe-uninitialized")
    done = subprocess.run(
        [compiler, *options, *quiet, "-Werror", str(code)],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
