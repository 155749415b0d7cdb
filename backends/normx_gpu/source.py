"""The source of a kernel: what is chosen when it is compiled, the vocabulary, and the text.

Everything here is a pure function of its arguments and of the files of this package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from normx_gpu import abi
from normx_gpu.abi import INTEGERS, PARAMETERS, RESULTS, Flag, Operand
from normx_gpu.launch import Geometry
from normx_gpu.programs import CROSS_ENTROPY, EVERY, PROGRAMS, TOPK, Program

#: Products are fused into sums where the text says so, and nowhere else: the bits depend on it.
CUDA_OPTIONS = ("--std=c++17", "--fmad=false")
#: Where differences and sums carry a low word; half precision does not see it.
EXACT = ("float32", "float64")
#: What the emulator has.
_EMULATED = (*PROGRAMS.values(), TOPK, CROSS_ENTROPY)


@dataclass(frozen=True, slots=True)
class Kernel:
    """All that is fixed when a kernel is compiled; equal kernels have equal sources.

    Attributes
    ----------
    program : str
    dtype : str
        Of the storage: float16, bfloat16, float32 or float64.
    geometry : Geometry
    flags : Flag
    outer, reduced : int
        How many axes are left of the rows, and of the scores of a row.
    """

    program: str
    dtype: str
    geometry: Geometry
    flags: Flag
    outer: int
    reduced: int

    @property
    def name(self) -> str:
        """What a profile and a trace call it: the function, the dtype and the way it goes."""
        way = "backward" if self.flags & Flag.BACKWARD else "forward"
        g = self.geometry
        lanes = f"{g.lanes}x{g.steps}" if g.steps else f"{g.lanes}online"
        spread = "_columns" if g.columns else f"_in{g.parts}" if g.parts > 1 else ""
        return f"normx_{self.program}_{way}_{self.dtype}_{lanes}{spread}"


@cache
def text(name: str) -> str:
    """A file of the vocabulary or of the kernels."""
    return files("normx_gpu").joinpath(name).read_text("utf-8")


def _with_includes(source: str) -> str:
    """A text with its neighbours in place of their names."""
    lines = []
    for line in source.splitlines():
        if line.startswith('#include "'):
            lines.append(_with_includes(text(f"words/{line.split(chr(34))[1]}")))
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _choices(kernel: Kernel) -> str:
    g = kernel.geometry
    chosen = {
        "NX_S_HALF": int(kernel.dtype == "float16"),
        "NX_S_BFLOAT": int(kernel.dtype == "bfloat16"),
        "NX_DOUBLE": int(kernel.dtype == "float64"),
        "NX_EXACT": int(kernel.dtype in EXACT),
        "NX_V": g.vector,
        "NX_LANES": g.lanes,
        "NX_ROWS": g.rows,
        "NX_PARTS": g.parts,
        "NX_STEPS": g.steps,
        "NX_LOOP": int(g.loop),
        "NX_FLAGS": int(kernel.flags),
        "NX_OUTER": kernel.outer,
        "NX_REDUCED": kernel.reduced,
        "NX_NAME": kernel.name,
        "NX_RUN": entry(kernel),
    }
    return "".join(f"#define {name} {value}\n" for name, value in chosen.items())


def entry(kernel: Kernel) -> str:
    """The function of the text that computes a row."""
    way = "backward" if kernel.flags & Flag.BACKWARD else "forward"
    return f"nx_{kernel.program}_{way}"


def cuda(kernel: Kernel) -> str:
    """The whole source of a CUDA kernel, for NVRTC with `CUDA_OPTIONS`.

    The entry point is ``extern "C"`` and called `Kernel.name`.  It takes a pointer for each
    `abi.Operand`, in that order, and by value the words and the numbers, side by side.
    """
    return _choices(kernel) + abi.definitions() + _with_kernel("cuda", kernel)


def _with_kernel(flavour: str, kernel: Kernel) -> str:
    names = EVERY[kernel.program].texts
    body = "".join(text(f"kernels/{name}.gpu.h") for name in names)
    return _with_includes(text(f"words/{flavour}.h")).replace("#include NX_KERNELS\n", body)


@dataclass(frozen=True, slots=True)
class Metal:
    """What MLX's ``fast.metal_kernel`` takes.

    Attributes
    ----------
    inputs, outputs : tuple of Operand
        The arrays that the body names, in lower case, in this order; ``words`` (int64) and
        ``numbers`` (float32) are two more inputs, after them.
    header, body : str
    """

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    header: str
    body: str


@dataclass(frozen=True, slots=True)
class Handed:
    """A CUDA kernel that takes the arrays there are: MLX's ``fast.precompiled_cuda_kernel``.

    Attributes
    ----------
    inputs, outputs : tuple of Operand
        What it takes, and between them the plan: the words and the numbers in one array.
    name : str
        With a hash of the source.
    text : str
    """

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    name: str
    text: str


#: Where the context of a kernel keeps its operands.
_FIELDS = {o: f"{o.name[0].lower()}[{o.name[1]}]" for o in Operand if o.name[-1].isdigit()}


def _used(kernel: Kernel) -> tuple[tuple[Operand, ...], tuple[Operand, ...]]:
    """The operands that a kernel reads, and those that it writes; there is no scratch."""
    flags = kernel.flags
    present = {
        Operand.G: Flag.BACKWARD,
        Operand.WHERE: Flag.WHERE,
        Operand.TEMPERATURE: Flag.TEMPERATURE_ARRAY,
        Operand.SINK: Flag.SINK_ARRAY,
        Operand.NOISE: Flag.NOISY,
        Operand.WEIGHT: Flag.WEIGHTED,
        Operand.TARGET: Flag.TARGETED,
        Operand.DTEMPERATURE: Flag.DTEMPERATURE,
        Operand.DSINK: Flag.DSINK,
    }
    if kernel.program != TOPK.name:
        present[Operand.INDEX] = Flag(0)
    present |= {Operand(Operand.P0 + k): Flag(Flag.P0_ARRAY << k) for k in range(PARAMETERS)}
    present |= {Operand(Operand.D0 + k): Flag(Flag.D0 << k) for k in range(PARAMETERS)}
    used = [o for o in Operand if o != Operand.SCRATCH and (o not in present or flags & present[o])]
    read = tuple(o for o in used if o not in RESULTS)
    return read, tuple(o for o in used if o in RESULTS)


def _places(operands: Sequence[Operand], end: str) -> str:
    fields = {o: _FIELDS.get(o, o.name.lower()) for o in operands}
    return "".join(f"r.c.{field} = {o.name.lower()};{end}" for o, field in fields.items())


def metal(kernel: Kernel) -> Metal:
    """The source of a Metal kernel; there is none of float64, nor of rows in several blocks."""
    inputs, outputs = _used(kernel)
    places = _places((*inputs, *outputs), "\n")
    return Metal(
        inputs=inputs,
        outputs=outputs,
        header=_choices(kernel) + abi.definitions() + _with_kernel("metal", kernel),
        body=text("words/metal_body.h").replace("NX_OPERANDS\n", places),
    )


def cuda_handed(kernel: Kernel) -> Handed:
    """The source of a CUDA kernel for MLX, for NVRTC with `CUDA_OPTIONS`; one block per row."""
    inputs, outputs = _used(kernel)
    kinds = {Operand.WHERE: "unsigned char", **dict.fromkeys(INTEGERS, "nx_i64")}
    kinds |= dict.fromkeys((Operand.X, Operand.G, Operand.Y), "nx_s")
    arguments = [f"const {kinds.get(o, 'nx_t')}* {o.name.lower()}" for o in inputs]
    arguments.append("const nx_plan* plan")
    arguments += [f"{kinds.get(o, 'nx_t')}* {o.name.lower()}" for o in outputs]
    head = f"#define NX_ARGUMENTS {', '.join(arguments)}\n"
    head += f"#define NX_PLACES {_places((*inputs, *outputs), ' ')}\n"
    made = head + cuda(kernel)
    # MLX keeps kernels by name, and what is compiled depends on more than ours says.
    name = f"{kernel.name}_{hashlib.sha256(made.encode()).hexdigest()[:16]}"
    named = made.replace(f"#define NX_NAME {kernel.name}\n", f"#define NX_NAME {name}\n")
    return Handed(inputs, outputs, name, named)


def host(programs: Sequence[Program] = _EMULATED, more: str = "") -> str:
    """The source of the emulator: programs in single and double, in registers and looped.

    `more` is the text of programs that have no file, for tests.
    """
    names = dict.fromkeys(name for program in programs for name in program.texts)
    bodies = "\n".join([*(text(f"kernels/{name}.gpu.h") for name in names), more])
    lines = [abi.definitions(), text("words/host_machine.h")]
    for double in (0, 1):
        for loop in (0, 1):
            words = _with_includes(text("words/host.h")).replace("NX_KERNELS\n", bodies)
            space = f"{'f64' if double else 'f32'}_{'loop' if loop else 'registers'}"
            lines += [f"#define NX_DOUBLE {double}", f"#define NX_LOOP {loop}"]
            lines += [f"namespace {space} {{", words, _table(programs), "}"]
            lines += _undefined(words)
    lines.append(text("words/host_entry.h"))
    return "\n".join(lines)


def _table(programs: Sequence[Program]) -> str:
    rows = "".join(
        f'  {{"{p.name}", &nx_{p.name}_forward, &nx_{p.name}_backward}},\n' for p in programs
    )
    return (
        "struct nx_program { const char* name; void (*forward)(nx_row&), (*backward)(nx_row&); };\n"
        f"static const nx_program nx_programs[] = {{\n{rows}}};\n"
    )


def _undefined(words: str) -> list[str]:
    """The macros of a text, taken back before it is included again."""
    names = {
        line.split()[1].split("(")[0] for line in words.splitlines() if line.startswith("#define ")
    }
    return [f"#undef {name}" for name in sorted({*names, "NX_DOUBLE", "NX_LOOP"})]
