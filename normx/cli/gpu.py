"""``normx bench --device gpu``: normx beside its peers on a CUDA device, in one interleaved run.

All contestants compute on arrays of torch's, or on JAX's of the same values, and write into fresh
memory of their library's.  A timing is of many calls and of waiting for the last one; the sets of
buffers together are larger than any cache.  What a time is compared to is a copy on the device, of
the same array in the same rounds: it reads and writes every score once, and nothing is faster.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

import normx
from normx._record import Record, record_of
from normx.cli import picture, screen
from normx.cli.timing import Contestant, interleave

#: Lengths of rows, short to huge, in as many rows as make `SCORES`.
LENGTHS = tuple(2**k for k in range(5, 23))
QUICK = (32, 4096)
#: Scores of a case: 256 MiB of float32, five times the cache of an H100.
SCORES = 1 << 26
#: Of rows that are few and huge.
HUGE = ((1, 1 << 24), (4, 1 << 24), (1, 1 << 26))
DTYPES = ("float32", "float16", "bfloat16")
#: Rows of a vocabulary, of which the largest weights are wanted.
TOPK = ((256, 50257), (8192, 4096))
K = 8
COPY, NORMX, TORCH = "copy", "normx", "torch"


@dataclass(frozen=True, slots=True)
class Case:
    """Rows to time."""

    function: str
    dtype: str
    rows: int
    n: int
    k: int = 0

    def __str__(self) -> str:
        largest = f" + top {self.k}" if self.k else ""
        return f"{self.function}{largest}, {self.dtype}, {self.rows}x{self.n}"


@dataclass(slots=True)
class Result:
    """Median seconds by contestant, what normx ran, and who was left out and why."""

    case: Case
    medians: dict[str, float] = field(default_factory=dict)
    ran: str = ""
    left_out: dict[str, str] = field(default_factory=dict)

    def share(self, name: str) -> float:
        """The part of a copy's bandwidth that a contestant reaches."""
        return self.medians[COPY] / self.medians[name]

    @property
    def over_torch(self) -> float | None:
        """How many times as fast as torch normx is."""
        theirs = self.medians.get(TORCH)
        return None if theirs is None else theirs / self.medians[NORMX]


def refusal() -> str | None:
    """What is missing for a comparison; None if nothing is."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; pip install torch"
    import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    answer = normx.backends()["cupy"]
    return None if answer.usable else f"the backend cupy is not usable: {answer.reason}"


def check() -> None:
    """Refuse a machine without what is needed."""
    reason = refusal()
    if reason is not None:
        raise screen.CommandError(f"--device gpu: {reason}")


def cases(record: Record | None, dtype: str, *, quick: bool) -> list[Case]:
    """All of softmax, or one function and dtype."""
    lengths, scores = (QUICK, 1 << 16) if quick else (LENGTHS, SCORES)
    shapes = [(max(scores // n, 1), n) for n in lengths]
    if record is not None:
        return [Case(record.name, dtype, *shape) for shape in shapes]
    largest = () if quick else TOPK
    shapes += () if quick else HUGE
    found = [Case("softmax", each, *shape) for each in DTYPES for shape in shapes]
    return found + [Case("softmax", each, *shape, K) for each in DTYPES for shape in largest]


# ------------------------------------------------------------------- contestants

#: A function of a tensor of scores.
Call = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Device:
    """Where it is computed; a test has another one.

    Attributes
    ----------
    name : str
        As torch calls it.
    backend : str or None
        Who computes for normx.
    wait : callable
        Returns when all that was queued is done.
    """

    name: str
    backend: str | None
    wait: Callable[[], object]


def cuda() -> Device:
    """The CUDA device that torch has chosen."""
    import torch

    return Device("cuda", "cupy", torch.cuda.synchronize)


def _ours(case: Case, device: Device) -> Call:
    function = record_of(case.function).function
    if case.k:
        return lambda x: normx.softmax_topk(x, case.k, backend=device.backend)
    return lambda x: function(x, backend=device.backend)


def _theirs(case: Case) -> Call:
    import torch

    known: dict[str, Call] = {
        "softmax": lambda x: torch.softmax(x, -1),
        "softmin": lambda x: torch.softmax(-x, -1),
        "log_softmax": lambda x: torch.log_softmax(x, -1),
        "logsumexp": lambda x: torch.logsumexp(x, -1),
    }
    if case.function not in known:
        raise LookupError("has no such function")
    plain = known[case.function]
    return (lambda x: torch.topk(plain(x), case.k)) if case.k else plain


def _compiled(case: Case) -> Call:
    import torch

    made: Call = torch.compile(_theirs(case), dynamic=False)
    return made


def _jax(case: Case) -> Call:
    import jax

    known: dict[str, Call] = {
        "softmax": lambda x: jax.nn.softmax(x, -1),
        "log_softmax": lambda x: jax.nn.log_softmax(x, -1),
        "logsumexp": lambda x: jax.nn.logsumexp(x, -1),
    }
    if jax.default_backend() != "gpu":
        raise LookupError("finds no GPU")
    if case.function not in known:
        raise LookupError("has no such function")
    plain = known[case.function]
    made = jax.jit((lambda x: jax.lax.top_k(plain(x), case.k)) if case.k else plain)
    return lambda x: made(jax.dlpack.from_dlpack(x))


def _liger(case: Case) -> Call:
    from liger_kernel.transformers.functional import liger_softmax

    if case.function != "softmax" or case.k:
        raise LookupError("has no such function")
    call: Call = liger_softmax
    return call


def _quack(case: Case) -> Call:
    from quack.softmax import softmax

    if case.function != "softmax" or case.k:
        raise LookupError("has no such function")
    call: Call = softmax
    return call


#: By name: the module that has to be there, and what makes a call.
PEERS: dict[str, tuple[str, Callable[[Case], Call]]] = {
    TORCH: ("torch", _theirs),
    "torch.compile": ("torch", _compiled),
    "jax": ("jax", _jax),
    "liger": ("liger_kernel", _liger),
    "quack": ("quack", _quack),
}


# --------------------------------------------------------------------------- run


def run(
    chosen: Sequence[Case], repeats: int, device: Device, step: Callable[[str], object]
) -> list[Result]:
    """Time every case; `step` is told of each round."""
    told = [functools.partial(_told, step, case) for case in chosen]
    return [run_case(case, repeats, device, tell) for case, tell in zip(chosen, told, strict=True)]


def _told(step: Callable[[str], object], case: Case, text: str) -> None:
    step(f"{case}: {text}")


def run_case(case: Case, repeats: int, device: Device, step: Callable[[str], object]) -> Result:
    """Time one case."""
    import torch

    result = Result(case)
    generator = torch.Generator(device.name).manual_seed(0)
    dtype = getattr(torch, case.dtype)
    size = (case.rows, case.n)
    count = max(1, min(8, 2 * SCORES // (case.rows * case.n)))
    inputs = [
        (3 * torch.randn(size, generator=generator, device=device.name)).to(dtype)
        for _ in range(count)
    ]
    place = torch.empty_like(inputs[0])
    calls: dict[str, Call] = {COPY: place.copy_, NORMX: _ours(case, device)}
    with normx.trace() as ran:
        calls[NORMX](inputs[0])
    result.ran = f"{ran[-1].kernel} on {ran[-1].target}" if ran else ""
    for name, (module, prepare) in PEERS.items():
        try:
            if importlib.util.find_spec(module) is None:
                raise LookupError("not installed")
            calls[name] = prepare(case)
            calls[name](inputs[0])
        except Exception as error:  # noqa: BLE001  # a peer that breaks must not end the others' run
            calls.pop(name, None)
            expected = isinstance(error, LookupError)
            result.left_out[name] = str(error) if expected else f"failed: {screen.one_line(error)}"
    contestants = [
        Contestant(name, [functools.partial(call, x) for x in inputs], False, wait=device.wait)
        for name, call in calls.items()
    ]
    interleave(contestants, repeats, step)
    result.medians = {it.name: it.median for it in contestants}
    return result


# ------------------------------------------------------------------------ report


def tables(results: Sequence[Result]) -> list[Table]:
    """A table per function and dtype: the part of a copy's bandwidth that everybody reaches."""
    shown = []
    for (function, dtype, k), group in groupby(results, _kind):
        found = list(group)
        left_out = {name: why for result in found for name, why in result.left_out.items()}
        caption = "; ".join(f"left out {name}: {why}" for name, why in left_out.items())
        title = f"{function}{f' + top {k}' if k else ''}, {dtype}: time of a copy ÷ time"
        table = screen.table(title, caption=caption)
        names = _names(found)
        for header in ("rows", "n", "copy", *names, "torch ÷ normx"):
            table.add_column(header, justify="right")
        for result in found:
            ratio = result.over_torch
            table.add_row(
                f"{result.case.rows:,}",
                f"{result.case.n:,}",
                screen.seconds(result.medians[COPY]),
                *(f"{100 * result.share(n):.0f} %" if n in result.medians else "–" for n in names),
                "–" if ratio is None else f"{screen.figures(ratio)}×",
            )
        shown.append(table)
    return shown


def _kind(result: Result) -> tuple[str, str, int]:
    return result.case.function, result.case.dtype, result.case.k


def _names(results: Sequence[Result]) -> list[str]:
    """Everybody but the copy, in the order of the contestants."""
    known = (NORMX, *PEERS)
    return [name for name in known if any(name in result.medians for result in results)]


def footnote(results: Sequence[Result], repeats: int) -> str:
    """How the numbers came about, and the least that normx reached."""
    rows = [result for result in results if not result.case.k and 256 <= result.case.n <= 1 << 18]
    ratios = [r.over_torch for r in results if r.over_torch is not None]
    how = f"Medians of {repeats} interleaved rounds, on {machine_line()}"
    said = [f"{how}; 100 % is the speed of copying the array on the device, in the same rounds."]
    if rows:
        least = min(result.share(NORMX) for result in rows)
        said.append(f"Least of normx for n from 256 to 262,144: {100 * least:.0f} %.")
    if ratios:
        middle = statistics.median(ratios)
        said.append(f"torch ÷ normx: {middle:.2f}× in the middle, {min(ratios):.2f}× at least.")
    return " ".join(said)


def machine_line() -> str:
    """The device in one line."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    about = torch.cuda.get_device_properties(0)
    return f"{about.name} · {screen.size(about.total_memory)} · torch {torch.__version__}"


def as_json(results: Sequence[Result], repeats: int) -> dict[str, Any]:
    """Everything that was measured; times in seconds."""
    from dataclasses import asdict

    return {
        "device": machine_line(),
        "repeats": repeats,
        "cases": [asdict(result) for result in results],
    }


def draw(results: Sequence[Result], repeats: int, path: Path) -> None:
    """The part of a copy's bandwidth over the length of rows, a panel per dtype."""
    drawn = [r for r in results if not r.case.k and (r.case.rows, r.case.n) not in HUGE]
    panels = [(kind, list(group)) for kind, group in groupby(drawn, _kind)]
    fig = picture.figure(4.2 * max(len(panels), 2), 3.6)
    with picture.style():
        axes = fig.subplots(1, len(panels), squeeze=False, sharey=True)
        for ax, ((_, dtype, _), found) in zip(axes.flat, panels, strict=True):
            for name, colour in zip(_names(found), picture.COLOURS, strict=False):
                points = [(r.case.n, 100 * r.share(name)) for r in found if name in r.medians]
                ax.plot(*zip(*points, strict=True), "o-", ms=3, color=colour, label=name)
            ax.axhline(100, color=picture.INK, lw=0.8, ls=(0, (3, 2)))
            ax.set_xscale("log", base=2)
            ax.set_ylim(bottom=0)
            ax.set_xlabel("scores in a row")
            ax.set_title(dtype)
            picture.quiet(ax)
        axes[0][0].set_ylabel("% of the speed of a copy")
        axes[0][0].legend(loc="lower left")
        function = results[0].case.function
        note = f"Medians of {repeats} interleaved rounds, 2^26 scores.\n{machine_line()}"
        picture.headline(fig, f"{function} on a GPU", note)
    picture.save(fig, path)
