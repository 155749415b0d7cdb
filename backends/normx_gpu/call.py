"""From a plan and its arrays to a launch: which kernel, how many blocks, and the words for it.

It knows shapes, strides and addresses alone, so it serves every array library; what is refused is
refused here, for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from normx._plan import Plan
from normx._sinks import sinks_along, sinks_aside
from normx.plugins import Call, Pullback, Refusal, TopKCall
from normx_gpu.abi import (
    AXES,
    CONSTANTS,
    NUMBERS,
    SCRATCH_PER_ROW,
    WORDS,
    Flag,
    Number,
    Operand,
    Word,
)
from normx_gpu.launch import SIZES, VECTOR_BYTES, Geometry, geometry
from normx_gpu.programs import CROSS_ENTROPY, PROGRAMS, TOPK, Program
from normx_gpu.source import Kernel

Array = Any


#: How many weights are looked for, each in a round of its own: sorting is for more.
MOST_K = 64
#: Indices have to be exact in float32, among the scores.
MOST_INDEX = 2**24


class View(NamedTuple):
    """An array as a launch sees it: strides in elements, one per axis of the plan's scores."""

    strides: tuple[int, ...]
    aligned: bool = False  # whether its first element lies on a vector's boundary


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel call.

    Attributes
    ----------
    kernel : Kernel
    grid, block : int
    words : tuple of int
        64-bit, see `abi.Word`.
    numbers : tuple of float
        In the dtype of the arithmetic, see `abi.Number`.
    """

    kernel: Kernel
    grid: int
    block: int
    words: tuple[int, ...]
    numbers: tuple[float, ...]

    @property
    def scratch(self) -> int:
        """Bytes of zeros that `Operand.SCRATCH` has to point to; 0 where none are needed."""
        parts = self.kernel.geometry.parts
        return self.grid // parts * SCRATCH_PER_ROW if parts > 1 else 0


class Run(Protocol):
    """How a backend launches a kernel on its arrays."""

    def __call__(
        self,
        plan: Plan,
        program: Program,
        arrays: Mapping[Operand, Array],
        parameters: Mapping[str, Any],
        *,
        backward: bool,
    ) -> str:
        """Run it; return its name."""


def forward(plan: Plan, xp: Any, empty: Callable[..., Array], run: Run) -> Call | Refusal:
    """A backend's call of a plan, on arrays that can be written to, or why there is none.

    `xp` is their library, with NumPy's functions; ``empty(shape, dtype)`` takes names of dtypes.
    """
    program = program_of(plan)
    if isinstance(program, Refusal):
        return program
    form, reduces = form_of(plan), plan.record.kind == "reduction"

    def call(
        x: Array, where: Array | None, out: Array | None, parameters: Mapping[str, Any]
    ) -> tuple[Array, str]:
        y = empty(plan.result_shape, plan.dtype) if out is None else out
        if 0 in plan.shape:
            y[...] = -xp.inf if plan.record.log_space else 0.0
            return y, f"normx_{program.name}_nothing"
        parameters = without_nothing(parameters)
        arrays = _operands(plan, program, xp, x, where, parameters)
        arrays[Operand.Y] = xp.broadcast_to(xp.reshape(y, form), plan.shape) if reduces else y
        return y, run(plan, program, arrays, parameters, backward=False)

    return call


def backward(plan: Plan, xp: Any, empty: Callable[..., Array], run: Run) -> Pullback | Refusal:
    """The same for gradients."""
    program = program_of(plan, backward=True)
    if isinstance(program, Refusal):
        return program
    form, wide = form_of(plan), arithmetic_of(plan.dtype)

    def pullback(
        x: Array,
        where: Array | None,
        parameters: Mapping[str, Any],
        y: Array | None,
        dy: Array,
    ) -> tuple[dict[str, Array], str]:
        parameters = without_nothing(parameters)
        arrays = _operands(plan, program, xp, x, where, parameters)
        dy = dy.astype(x.dtype, copy=False)
        if plan.record.kind == "reduction":
            dy = xp.broadcast_to(xp.reshape(dy, form), plan.shape)
        arrays[Operand.G] = dy
        gradients = {"x": empty(plan.shape, plan.dtype)}
        arrays[Operand.Y] = gradients["x"]
        for name, operand in places(program, Operand.D0, Operand.DTEMPERATURE).items():
            if name in parameters:
                arrays[operand] = gradients[name] = empty(form, wide)
        sink = parameters.get("sink")
        if sink is None:
            return gradients, run(plan, program, arrays, parameters, backward=True)
        sink = sink if hasattr(sink, "shape") else xp.asarray(sink)
        count = sinks_aside(xp, sink, plan).shape[-1]
        arrays[Operand.DSINK] = aside = empty((*form, count), wide)
        kernel = run(plan, program, arrays, parameters, backward=True)
        gradients["sink"] = sinks_along(xp, plan, aside, sink)
        return gradients, kernel

    return pullback


def topk_of(plan: Plan, k: int) -> Plan | Refusal:
    """The plan of the k largest weights of each row, or why there is none."""
    if plan.dtype not in SIZES:
        return Refusal(f"has no kernel for {TOPK.name} of {plan.dtype}")
    if plan.parameters or plan.where is not None:
        return Refusal("finds the largest weights of the plain softmax alone")
    (along,) = plan.axis
    if plan.shape[along] > MOST_INDEX:
        return Refusal(f"finds them in rows of up to {MOST_INDEX} scores")
    if not 1 <= k <= MOST_K:
        return Refusal(f"finds 1 to {MOST_K} weights")
    return replace(plan, constants={"k": k})


def shape_of_topk(plan: Plan) -> tuple[int, ...]:
    """The shape of the weights that a plan of `topk_of` finds, and of their indices."""
    (along,) = plan.axis
    return (*plan.shape[:along], plan.constants["k"], *plan.shape[along + 1 :])


def topk(plan: Plan, k: int, empty: Callable[..., Array], run: Run) -> TopKCall | Refusal:
    """How the k largest weights of each row are found; `forward` says what the others are."""
    found = topk_of(plan, k)
    if isinstance(found, Refusal):
        return found
    searched, shape = found, shape_of_topk(found)

    def call(x: Array) -> tuple[Array, Array, str]:
        values, indices = empty(shape, plan.dtype), empty(shape, "int64")
        arrays = {Operand.X: x, Operand.Y: values, Operand.INDEX: indices}
        return values, indices, run(searched, TOPK, arrays, {}, backward=False)

    return call


class Losses:
    """The cross-entropy of rows: `normx.plugins.Losses` on arrays that can be written to."""

    def __init__(self, plan: Plan, xp: Any, empty: Callable[..., Array], run: Run) -> None:
        self._plan, self._xp, self._empty, self._run = plan, xp, empty, run

    def forward(
        self, x: Array, targets: Array, where: Array | None, weight: Array | None
    ) -> tuple[tuple[Array, Array, Array], str]:
        form, wide = form_of(self._plan), arithmetic_of(self._plan.dtype)
        found = tuple(self._empty(form, wide) for _ in range(3))
        arrays = self._operands(x, targets, where, weight)
        arrays |= dict(zip((Operand.D0, Operand.D1, Operand.D2), found, strict=True))
        name = self._run(self._plan, CROSS_ENTROPY, arrays, {}, backward=False)
        rows = tuple(self._xp.reshape(part, targets.shape) for part in found)
        return (rows[0], rows[1], rows[2]), name

    def pullback(
        self,
        x: Array,
        targets: Array,
        where: Array | None,
        weight: Array | None,
        cotangents: Sequence[Array | None],
    ) -> tuple[Array, str]:
        plan, xp = self._plan, self._xp
        form, wide = form_of(plan), arithmetic_of(plan.dtype)
        arrays, given = self._operands(x, targets, where, weight), {}
        for k, (name, d) in enumerate(zip(CROSS_ENTROPY.parameters, cotangents, strict=True)):
            if d is not None:
                along = xp.reshape(d.astype(wide, copy=False), form)
                given[name] = arrays[Operand(Operand.P0 + k)] = xp.broadcast_to(along, plan.shape)
        arrays[Operand.Y] = dx = self._empty(plan.shape, plan.dtype)
        return dx, self._run(plan, CROSS_ENTROPY, arrays, given, backward=True)

    def _operands(
        self, x: Array, targets: Array, where: Array | None, weight: Array | None
    ) -> dict[Operand, Array]:
        plan, xp = self._plan, self._xp
        targets = xp.reshape(targets.astype("int64", copy=False), form_of(plan))
        arrays = {Operand.X: x, Operand.TARGET: xp.broadcast_to(targets, plan.shape)}
        if where is not None:
            arrays[Operand.WHERE] = xp.broadcast_to(where, plan.shape)
        if weight is not None:
            (along,) = plan.axis
            classes = (-1, *(1,) * (len(plan.shape) - 1 - along))
            weight = xp.reshape(weight.astype(arithmetic_of(plan.dtype), copy=False), classes)
            arrays[Operand.WEIGHT] = xp.broadcast_to(weight, plan.shape)
        return arrays


def cross_entropy(
    plan: Plan, smoothing: float, xp: Any, empty: Callable[..., Array], run: Run
) -> Losses | Refusal:
    """How the cross-entropy of rows is computed; `forward` says what the others are."""
    if plan.dtype not in SIZES:
        return Refusal(f"has no kernel for {CROSS_ENTROPY.name} of {plan.dtype}")
    if len(plan.shape) > AXES:
        return Refusal(f"takes up to {AXES} axes, not {len(plan.shape)}")
    if 0 in plan.shape:
        return Refusal("needs a row, and classes in it")
    return Losses(replace(plan, constants={"smoothing": smoothing}), xp, empty, run)


def without_nothing(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters, but for sinks of which there are none."""
    return {k: v for k, v in parameters.items() if 0 not in getattr(v, "shape", ())}


def places(program: Program, first: Operand, temperature: Operand) -> dict[str, Operand]:
    """The operands of what has one value per row, from that of parameter 0 on."""
    own = {name: Operand(first + k) for k, name in enumerate(program.parameters)}
    return {"temperature": temperature, **own}


def _operands(
    plan: Plan,
    program: Program,
    xp: Any,
    x: Array,
    where: Array | None,
    parameters: Mapping[str, Any],
) -> dict[Operand, Array]:
    """The arrays that are read, with an axis for each one of the plan."""
    arrays = {Operand.X: x}
    if where is not None:
        arrays[Operand.WHERE] = xp.broadcast_to(where, plan.shape)
    for name, operand in places(program, Operand.P0, Operand.TEMPERATURE).items():
        if hasattr(parameters.get(name), "shape"):
            arrays[operand] = xp.broadcast_to(parameters[name], plan.shape)
    if "uniform" in parameters:
        arrays[Operand.NOISE] = xp.broadcast_to(parameters["uniform"], plan.shape)
    if hasattr(parameters.get("sink"), "shape"):
        aside = sinks_aside(xp, parameters["sink"], plan)
        arrays[Operand.SINK] = xp.broadcast_to(aside, (*plan.shape, aside.shape[-1]))
    return arrays


def program_of(plan: Plan, *, backward: bool = False) -> Program | Refusal:
    """The program that computes a plan, or its gradients, or why none does."""
    program = PROGRAMS.get(plan.record.name)
    if program is None or plan.dtype not in SIZES:
        return Refusal(f"has no kernel for {plan.record.name} of {plan.dtype}")
    known = {*program.parameters, "temperature", "sink"}
    extra = sorted(plan.parameters - known)
    extra += ["return_sign"] * bool(plan.constants.get("return_sign", False))
    if extra:
        return Refusal(f"its {program.name} has no {' and no '.join(extra)}")
    if len(plan.shape) > AXES:
        return Refusal(f"takes up to {AXES} axes, not {len(plan.shape)}")
    if len(_constants(plan, program)) > CONSTANTS:
        return Refusal(f"takes up to {CONSTANTS} numbers that shape a formula")
    if backward and 0 in plan.shape:
        return Refusal("needs something to differentiate")
    return program


def arithmetic_of(dtype: str) -> str:
    """The dtype of the arithmetic, of parameters and of their gradients."""
    return "float64" if dtype == "float64" else "float32"


def form_of(plan: Plan) -> tuple[int, ...]:
    """The shape of what has one value per row, along all axes."""
    return tuple(1 if i in plan.axis else size for i, size in enumerate(plan.shape))


def launch(
    plan: Plan,
    program: Program,
    views: Mapping[Operand, View],
    parameters: Mapping[str, Any],
    *,
    sinks: tuple[int, int, int] = (0, 0, 0),
    backward: bool = False,
    resident: int = 0,
    choose: Callable[..., Geometry] = geometry,
) -> Launch:
    """The launch of a program on arrays that lie as `views` say.

    `parameters` are those of the plan: numbers go into the kernel's words, arrays are among the
    views too.  `sinks` are how many there are, and their stride in `Operand.SINK` and `DSINK`.
    `resident` is how many blocks of 1024 threads run at once, where the backend can promise that.
    `choose` is for tests of other geometries.
    """
    outer, reduced = _axes(plan, views)
    n = math.prod(size for size, _ in reduced)
    columns = _has_columns(outer, reduced)
    chosen = choose(
        n, plan.dtype, columns=columns, heavy=backward or program.heavy, resident=resident
    )
    flags = _flags(plan, program, views, parameters, backward=backward)
    if chosen.columns:
        flags |= Flag.COLUMNS
    elif _is_wide(plan, program, views, outer, reduced, chosen, flags):
        flags |= Flag.WIDE
    rows = math.prod(size for size, _ in outer)
    words = [0] * WORDS
    words[Word.ROWS], words[Word.LENGTH] = rows, n
    words[Word.OUTER], words[Word.REDUCED] = len(outer), len(reduced)
    words[Word.FLAGS], words[Word.STEPS] = int(flags), chosen.steps
    words[Word.SINKS], words[Word.SINK_STRIDE], words[Word.DSINK_STRIDE] = sinks
    words[Word.CONSTANTS] = len(_constants(plan, program))
    for axis, (size, strides) in enumerate([*outer, *reduced]):
        words[Word.SIZES + axis] = size
        for operand, stride in strides.items():
            words[Word.STRIDES + AXES * operand + axis] = stride
    kernel = Kernel(program.name, plan.dtype, chosen, flags, len(outer), len(reduced))
    numbers = _numbers(plan, program, parameters, n)
    return Launch(kernel, chosen.grid(rows), chosen.block, tuple(words), numbers)


def launch_of(
    plan: Plan,
    program: Program,
    arrays: Mapping[Operand, Array],
    parameters: Mapping[str, Any],
    address: Callable[[Array], int],
    *,
    backward: bool,
    resident: int = 0,
    choose: Callable[..., Geometry] = geometry,
) -> Launch:
    """The same for arrays with NumPy's attributes, whose first entry is at ``address(array)``."""
    views = {
        operand: View(_steps(array)[: len(plan.shape)], address(array) % VECTOR_BYTES == 0)
        for operand, array in arrays.items()
    }
    sink, dsink = arrays.get(Operand.SINK), arrays.get(Operand.DSINK)
    count = 0 if "sink" not in parameters else 1 if sink is None else sink.shape[-1]
    steps = [0 if array is None else _steps(array)[-1] for array in (sink, dsink)]
    return launch(
        plan,
        program,
        views,
        parameters,
        sinks=(count, steps[0], steps[1]),
        backward=backward,
        resident=resident,
        choose=choose,
    )


def _steps(array: Array) -> tuple[int, ...]:
    """Strides in elements, 0 along axes of size 1."""
    axes = zip(array.shape, array.strides, strict=True)
    return tuple(0 if size == 1 else stride // array.itemsize for size, stride in axes)


#: One axis: its size, and each operand's stride along it.
_Axis = tuple[int, dict[Operand, int]]


def _axes(plan: Plan, views: Mapping[Operand, View]) -> tuple[list[_Axis], list[_Axis]]:
    """Outer and reduced axes, without those of size 1, neighbours folded where all operands allow.

    The reduced ones keep their order, which is that of the sums.  The outer ones come in the order
    of memory, so that neighbouring rows are neighbours there.
    """

    def axis(i: int) -> _Axis:
        return plan.shape[i], {operand: view.strides[i] for operand, view in views.items()}

    kept = [i for i, size in enumerate(plan.shape) if size != 1]
    reduced = [axis(i) for i in kept if i in plan.axis]
    outer = [axis(i) for i in kept if i not in plan.axis]
    outer.sort(key=lambda a: -abs(a[1][Operand.X]))
    return _folded(outer), _folded(reduced) or [(1, dict.fromkeys(views, 0))]


def _folded(axes: Sequence[_Axis]) -> list[_Axis]:
    folded: list[_Axis] = []
    for size, strides in axes:
        if folded and all(folded[-1][1][o] == strides[o] * size for o in strides):
            folded[-1] = folded[-1][0] * size, strides
        else:
            folded.append((size, strides))
    return folded


def _has_columns(outer: Sequence[_Axis], reduced: Sequence[_Axis]) -> bool:
    """Whether rows lie beside each other, and the scores of a row apart."""
    along = abs(reduced[-1][1][Operand.X])
    return bool(outer) and along > 1 and abs(outer[-1][1][Operand.X]) == 1


def _is_wide(
    plan: Plan,
    program: Program,
    views: Mapping[Operand, View],
    outer: Sequence[_Axis],
    reduced: Sequence[_Axis],
    chosen: Geometry,
    flags: Flag,
) -> bool:
    """Whether rows can be read and written by whole vectors."""
    if len(reduced) != 1 or reduced[0][0] % chosen.vector:
        return False
    assert chosen.vector * SIZES[plan.dtype] == VECTOR_BYTES
    moved = [Operand.X]
    reduces = bool(program.flags & Flag.REDUCES)
    if Operand.Y in views and (not reduces or Flag.BACKWARD in flags):
        moved.append(Operand.Y)
    if not reduces and Operand.G in views:
        moved.append(Operand.G)
    return all(
        views[o].aligned
        and reduced[0][1][o] == 1
        and all(strides[o] % chosen.vector == 0 for _, strides in outer)
        for o in moved
    )


def _flags(
    plan: Plan,
    program: Program,
    views: Mapping[Operand, View],
    parameters: Mapping[str, Any],
    *,
    backward: bool,
) -> Flag:
    flags = program.flags
    present = {
        Flag.WHERE: plan.where is not None,
        Flag.SOFTCAP: plan.softcap is not None,
        Flag.TEMPERED | Flag.SCALED: "temperature" in parameters,
        Flag.TEMPERATURE_ARRAY: Operand.TEMPERATURE in views,
        Flag.SINK: "sink" in parameters,
        Flag.SINK_ARRAY: Operand.SINK in views,
        Flag.DTEMPERATURE: Operand.DTEMPERATURE in views,
        Flag.DSINK: Operand.DSINK in views,
        Flag.WEIGHTED: Operand.WEIGHT in views,
        Flag.EMPTY_NAN: plan.empty == "nan" and not backward,
        Flag.EMPTY_UNIFORM: plan.empty == "uniform" and not backward,
        Flag.BACKWARD: backward,
    }
    for flag, holds in present.items():
        flags |= flag if holds else Flag(0)
    for k, name in enumerate(program.parameters):
        if name in parameters:
            flags |= Flag(Flag.P0 << k)
        if Operand(Operand.P0 + k) in views:
            flags |= Flag(Flag.P0_ARRAY << k)
        if Operand(Operand.D0 + k) in views:
            flags |= Flag(Flag.D0 << k)
    return flags


def _numbers(
    plan: Plan, program: Program, parameters: Mapping[str, Any], n: int
) -> tuple[float, ...]:
    """The numbers of a call, rounded to the arithmetic's dtype."""
    kind = np.dtype(arithmetic_of(plan.dtype)).type
    numbers = [0.0] * NUMBERS
    numbers[Number.SOFTCAP] = _softcap(plan)
    numbers[Number.LOG_LENGTH], numbers[Number.LOG_LENGTH_LOW] = _log_words(
        max(n, 1), arithmetic_of(plan.dtype)
    )
    places: dict[str, int] = {"temperature": Number.TEMPERATURE, "sink": Number.SINK}
    places |= {name: Number.P0 + k for k, name in enumerate(program.parameters)}
    for name, value in parameters.items():
        if not hasattr(value, "shape"):
            numbers[places[name]] = value
    flat = _constants(plan, program)
    numbers[Number.CONSTANTS : Number.CONSTANTS + len(flat)] = flat
    with np.errstate(over="ignore"):
        return tuple(float(kind(number)) for number in numbers)


def _constants(plan: Plan, program: Program) -> list[float]:
    """The constants of a plan in a row."""
    values = (plan.constants[name] for name in program.constants)
    return [float(v) for value in values for v in (value if isinstance(value, tuple) else (value,))]


def _softcap(plan: Plan) -> float:
    """The cap, far enough from 0 and infinity for quotients with it to be numbers."""
    if plan.softcap is None:
        return 1.0
    info = np.finfo(arithmetic_of(plan.dtype))
    return min(max(plan.softcap, float(info.tiny)), float(info.max))


@lru_cache(1024)
def _log_words(n: int, dtype: str) -> tuple[float, float]:
    """The logarithm of a length as a sum of two numbers of a dtype."""
    kind = np.dtype(dtype).type
    with localcontext(Context(prec=50)):
        exact = Decimal(n).ln()
        high = float(kind(float(exact)))
        return high, float(kind(float(exact - Decimal(high))))
