"""The project's targets: what was wanted of normx, and what it reaches here.

A target is a ratio of two times, both of contestants in the same interleaved rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

import normx
from normx._record import record_of
from normx.cli import screen
from normx.cli.bench import Case, Result, Settings, run_case
from normx.cli.peers import (
    COPY,
    ENTMAX,
    MLX,
    NORMX,
    ONNXRUNTIME,
    TORCH,
    Entry,
    Job,
    Peer,
    torch_with,
)

#: Largest number of scores of a target that a quick run measures.
QUICK = 1 << 17


@dataclass(frozen=True, slots=True)
class Target:
    """A wanted ratio of times.

    Attributes
    ----------
    wanted : float
        The least ratio: time of `theirs` over that of `ours`.
    function : str
    case : Case
    theirs, ours : Peer
    """

    wanted: float
    function: str
    case: Case
    theirs: Peer
    ours: Peer = NORMX

    def __str__(self) -> str:
        ours = self.function if self.ours is NORMX else f"{self.function}, {self.ours.name}"
        return f"{ours} · {self.case}"


@dataclass(frozen=True, slots=True)
class Reached:
    """A target and its measured ratio, or why there is none."""

    target: Target
    ratio: float | None
    reason: str = ""

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "not measured"
        return "met" if self.ratio >= self.target.wanted else "missed"


# ---------------------------------------------------------- special contestants


def _each(job: Job, call: Callable[[Any, Any], object], output: str = "fresh") -> Entry:
    """One call per set of buffers, of the scores and the output."""
    pairs = zip(job.inputs, job.outputs, strict=True)
    return Entry([functools.partial(call, x, out) for x, out in pairs], None, output)


def _read_then_copy(job: Job) -> Entry:
    def call(x: Any, out: Any) -> None:
        x.max()
        np.copyto(out, x)

    return _each(job, call, "ready")


def _rows(job: Job) -> Entry:
    return _each(job, lambda x, out: job.record.function(x, axis=-1, out=out), "ready")


def _topk(job: Job) -> Entry:
    return _each(job, lambda x, out: normx.softmax_topk(x, 8))


def _topk_torch(job: Job) -> Entry:
    torch = torch_with(job.threads, job.undo)
    return _each(job, lambda x, out: torch.topk(torch.softmax(torch.from_numpy(x), -1), 8))


def _padding(job: Job) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A mask that leaves each row a beginning of its own."""
    rows, n = job.inputs[0].shape
    lengths = np.random.default_rng(0).integers(1, n, (rows, 1), endpoint=True)
    return np.arange(n) < lengths


def _masked(job: Job) -> Entry:
    where = _padding(job)
    return _each(job, lambda x, out: job.record.function(x, where=where, out=out), "ready")


def _masked_torch(job: Job) -> Entry:
    torch = torch_with(job.threads, job.undo)
    left_out = torch.from_numpy(~_padding(job))

    def call(x: Any, out: Any) -> None:
        scores = torch.from_numpy(x).masked_fill(left_out, -torch.inf)
        torch.softmax(scores, -1, out=torch.from_numpy(out))

    return _each(job, call, "ready")


def _on_mlx(job: Job) -> Entry:
    import mlx.core as mx

    arrays = [mx.array(x) for x in job.inputs]
    calls = [functools.partial(lambda x: mx.eval(job.record.function(x)), x) for x in arrays]
    return Entry(calls, None, "fresh")


def _with_threads(job: Job, count: int) -> Entry:
    def call(x: Any, out: Any) -> None:
        normx.set_num_threads(count)
        job.record.function(x, out=out)
        normx.set_num_threads(job.threads)

    return _each(job, call, "ready")


def _with_algorithm(job: Job, algorithm: str, target: str) -> Entry:
    import normx_native as native

    def call(x: Any, out: Any) -> None:
        with ExitStack() as forced:
            forced.enter_context(native.use_target(target))
            forced.enter_context(native.use_algorithm(algorithm))
            job.record.function(x, out=out, backend="native")

    entry = _each(job, call, "ready")
    with normx.trace() as ran:
        entry.calls[0]()
    if ran[0].target != target or algorithm not in ran[0].kernel:
        raise screen.CommandError(f"{ran[0].kernel} on {ran[0].target} ran")
    return entry


def _algorithm(algorithm: str, target: str) -> Peer:
    prepare = functools.partial(_with_algorithm, algorithm=algorithm, target=target)
    return Peer(f"{algorithm} on {target}", "normx_native", prepare)


def _threads(count: int) -> Peer:
    name = f"{count} thread{'s' if count > 1 else ''}"
    return Peer(name, "normx", functools.partial(_with_threads, count=count))


_READ_THEN_COPY = Peer("reading, then copying", "numpy", _read_then_copy)
_AXIS_1 = Peer("axis 1", "normx", _rows)
_TOP_8 = Peer("its 8 largest", "normx", _topk)
_TORCH_TOP_8 = Peer("torch, then topk", "torch", _topk_torch)
_MASKED = Peer("with a mask", "normx", _masked)
_TORCH_MASKED = Peer("torch, masked_fill first", "torch", _masked_torch)
_ON_MLX = Peer("of MLX's arrays", "mlx", _on_mlx)

_IN_CACHE = Case((64, 1024))
_SHORT, _LONG, _VOCABULARY = Case((8192, 4096)), Case((1024, 32768)), Case((256, 50257))
_CALL = Case((1, 64), ready=False)
_COLUMNS = Case((4096, 4096), axis=0)
_ONE_ROW = Case((1, 1 << 26))
_FEW = Case((16, 50257))
_FRESH = Case((1024, 4096), ready=False)
_MASKS = Case((1024, 4096))

TARGETS = (
    Target(0.95, "softmax", _SHORT, COPY),
    Target(0.85, "softmax", _LONG, COPY),
    Target(0.85, "softmax", _VOCABULARY, COPY),
    *(Target(1.25, "softmax", case, ONNXRUNTIME) for case in (_SHORT, _LONG, _VOCABULARY)),
    *(Target(1.6, "softmax", case, TORCH) for case in (_SHORT, _LONG, _VOCABULARY)),
    Target(1.7, "softmax", _IN_CACHE, ONNXRUNTIME),
    Target(3.0, "softmax", _IN_CACHE, TORCH),
    Target(0.95, "softmax", _ONE_ROW, _READ_THEN_COPY),
    *(
        Target(wanted, "softmax", _ONE_ROW, _algorithm("recompute", on), _algorithm("twopass", on))
        for on, wanted in (("avx512", 1.28), ("avx2", 1.18))
    ),
    Target(1.0, "softmax", _CALL, TORCH),
    Target(1.0, "softmax", _MASKS, _TORCH_MASKED, _MASKED),
    Target(1 / 1.3, "softmax", _COLUMNS, _AXIS_1),
    Target(7.0, "logsumexp", _VOCABULARY, TORCH),
    Target(10.0, "softmax", _VOCABULARY, _TORCH_TOP_8, _TOP_8),
    Target(30.0, "sparsemax", _FEW, ENTMAX),
    Target(30.0, "entmax15", _FEW, ENTMAX),
    Target(15.0, "softmax", _FRESH, MLX, _ON_MLX),
    Target(1.7, "softmax", _SHORT, _threads(1), _threads(2)),
)
#: What has no place in this table, and where it is held instead.
ELSEWHERE = (
    "Targets measured elsewhere: at most 4 ULP in float32 (the test suite and docs/accuracy.md), "
    "and row operations on GPUs."
)


def chosen(quick: bool) -> dict[tuple[str, Case], list[Target]]:
    """The targets by what is timed together; a quick run leaves out the large arrays."""
    together: dict[tuple[str, Case], list[Target]] = {}
    for target in TARGETS:
        if not quick or np.prod(target.case.shape) <= QUICK:
            together.setdefault((target.function, target.case), []).append(target)
    return together


def measure(
    function: str,
    case: Case,
    targets: Sequence[Target],
    repeats: int,
    step: Callable[[str], object],
) -> list[Reached]:
    """Time what the targets of one case compare, in float32 and on one thread."""
    step(f"targets of {function}, {case}")
    peers = dict.fromkeys(
        [NORMX, COPY, *(peer for target in targets for peer in (target.ours, target.theirs))]
    )
    result = run_case(
        record_of(function),
        case,
        Settings(repeats=repeats),
        tuple(peers),
        lambda text: None,
        checked=False,
    )
    return [_reached(target, result) for target in targets]


def _reached(target: Target, result: Result) -> Reached:
    medians = {score.name: score.median for score in result.scores}
    for name in (target.ours.name, target.theirs.name):
        if name not in medians:
            return Reached(target, None, f"{name}: {result.left_out[name]}")
    return Reached(target, medians[target.theirs.name] / medians[target.ours.name])


def table(reached: Sequence[Reached]) -> Any:
    """What was wanted beside what was reached."""
    shown = screen.table("the project's targets · float32", caption=ELSEWHERE)
    for header in ("what", "compared with"):
        shown.add_column(header)
    for header in ("wanted", "reached", ""):
        shown.add_column(header, justify="right")
    for it in reached:
        shown.add_row(
            str(it.target),
            it.target.theirs.name,
            f"≥ {it.target.wanted:.2f}×",
            it.reason if it.ratio is None else f"{it.ratio:.2f}×",
            it.verdict,
            style={"met": "green", "missed": "red"}.get(it.verdict),
        )
    return shown


def as_json(reached: Sequence[Reached]) -> list[dict[str, Any]]:
    """The same for a file."""
    return [
        {
            "what": str(it.target),
            "compared_with": it.target.theirs.name,
            "wanted": it.target.wanted,
            "reached": it.ratio,
            "verdict": it.verdict,
            "reason": it.reason,
        }
        for it in reached
    ]
