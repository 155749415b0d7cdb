"""``normx bench``: normx beside its peers, on the same data, in one interleaved run.

Every number is printed with what it was compared to: the time of normx and of a copy
of the same array in the same rounds, and the largest error against the oracle on the
very data that was timed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normx._plan import FLOATS
from normx._record import Record, registry
from normx.cli import machine, screen
from normx.cli.exact import exact, largest_error, some_rows
from normx.cli.peers import COPY, NORMX, PEERS, Entry, Job, LeftOutError, Peer
from normx.cli.samples import keywords, unknown
from normx.cli.timing import Contestant, interleave

#: Standard deviation of the scores, which are normal: rows are neither flat nor one-hot.
SPREAD = 3.0
IN_CACHE, IN_MEMORY = "in cache", "in memory"
#: Most memory that the sets of buffers of one case may take together.
_BUFFERS = 2 << 30


@dataclass(frozen=True, slots=True)
class Case:
    """A shape to time.

    Attributes
    ----------
    shape : tuple of int
    axis : int
    ready : bool
        Whether results go into memory that exists already.
    backward : bool
        Whether the gradient of the scores is timed instead of the result.
    """

    shape: tuple[int, ...]
    axis: int = -1
    ready: bool = True
    backward: bool = False

    def __str__(self) -> str:
        direction = ", backward" if self.backward else ""
        return f"{'x'.join(map(str, self.shape))}, axis {self.axis}{direction}"


#: In cache; the cost of a call; rows of a transformer, long ones, a vocabulary; columns.
DEFAULT = (
    Case((64, 1024)),
    Case((1, 64), ready=False),
    Case((8192, 4096)),
    Case((1024, 32768)),
    Case((256, 50257)),
    Case((4096, 4096), axis=0),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to time."""

    dtype: str = "float32"
    repeats: int = 7
    threads: int = 1


@dataclass(slots=True)
class Score:
    """What one contestant did on one case; times in seconds, errors in ULP."""

    name: str
    version: str
    output: str
    ran: str
    times: list[float]
    median: float
    lower: float
    spread: float
    busy_threads: float
    ulp: float | None
    ratio_to_normx: float | None = None
    ratio_to_copy: float | None = None


@dataclass(slots=True)
class Result:
    """One case: its scores, and who was left out and why."""

    case: Case
    place: str
    scores: list[Score] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------- arguments


def record_named(name: str) -> Record:
    """The function of that name, if there are values for what must be passed."""
    known = {key: record for key, record in registry().items() if not unknown(record)}
    if name not in known:
        from normx.cli.training import STUDIES

        raise screen.allowed("function", name, (*known, *STUDIES))
    return known[name]


def parse_shape(text: str) -> tuple[int, ...]:
    """A shape written as 64x1024."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise screen.CommandError(
            f"--shape must be positive sizes joined by x, such as 64x1024, not {text!r}"
        )
    return tuple(int(part) for part in text.split("x"))


def cases(shapes: Sequence[str], axis: int | None, ready: bool | None) -> list[Case]:
    """The cases asked for, or the default set; options left out leave a case as it is."""
    chosen = [Case(parse_shape(shape)) for shape in shapes] or list(DEFAULT)
    if axis is not None:
        chosen = [replace(case, axis=axis) for case in chosen]
    if ready is not None:
        chosen = [replace(case, ready=ready) for case in chosen]
    for case in chosen:
        if not -len(case.shape) <= case.axis < len(case.shape):
            raise screen.CommandError(
                f"--axis must be from {-len(case.shape)} to {len(case.shape) - 1} for the shape "
                f"{'x'.join(map(str, case.shape))}, not {case.axis}"
            )
    return chosen


def check(settings: Settings) -> None:
    """Refuse settings that make no sense."""
    if settings.dtype not in FLOATS:
        raise screen.allowed("dtype", settings.dtype, FLOATS)
    if settings.repeats < 1:
        raise screen.CommandError(f"--repeats must be at least 1, not {settings.repeats}")
    if settings.threads < 1:
        raise screen.CommandError(f"--threads must be at least 1, not {settings.threads}")


def peers_named(names: Sequence[str]) -> tuple[Peer, ...]:
    """The peers asked for, normx and the copy always among them; all if none is named."""
    known = {peer.name: peer for peer in PEERS}
    for name in names:
        if name not in known:
            raise screen.allowed("peer", name, known)
    wanted = {NORMX.name, COPY.name, *(names or known)}
    return tuple(peer for peer in PEERS if peer.name in wanted)


# ------------------------------------------------------------------------ data


def numpy_dtype(name: str) -> Any:
    """The dtype of that name; bfloat16 comes from a package of its own."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise screen.CommandError(
                'bfloat16 needs ml_dtypes; pip install "normx[bfloat16]"'
            ) from None
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def scores(shape: tuple[int, ...], dtype: Any, seed: int) -> NDArray[Any]:
    """Normal scores, the same on every run."""
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    x *= np.float32(SPREAD)
    return x.astype(dtype, copy=False)


def buffer_sets(per_set: int) -> tuple[int, str]:
    """How many sets of buffers to go through in turn, and where the data is then.

    Up to half of the last-level cache one set stays in the cache.  Beyond, the sets
    together are four times as large as the cache, so that every call finds its data
    in memory, whoever ran before.
    """
    cache = machine.cache_size(3)
    if per_set <= cache // 2:
        return 1, IN_CACHE
    return max(1, min(-(-4 * cache // per_set), _BUFFERS // per_set)), IN_MEMORY


def _job(record: Record, case: Case, settings: Settings) -> tuple[Job, str]:
    dtype = numpy_dtype(settings.dtype)
    per_set = 2 * int(np.prod(case.shape, dtype=object)) * dtype.itemsize
    if per_set * 6 > machine.memory():
        raise screen.CommandError(
            f"--shape {'x'.join(map(str, case.shape))} needs {screen.size(per_set * 6)} for all "
            f"contestants; this machine has {screen.size(machine.memory())}"
        )
    count, place = buffer_sets(per_set)
    shape = case.shape
    if record.kind == "reduction":
        axis = case.axis % len(shape)
        shape = shape[:axis] + shape[axis + 1 :]
    first = scores(case.shape, dtype, 0)
    inputs = [first, *(first.copy() for _ in range(count - 1))]
    if case.backward:
        outputs = [scores(shape, dtype, 1) for _ in range(count)]
    else:
        outputs = [np.full(shape, 1, dtype) for _ in range(count)]
    passed = keywords(record, case.shape)
    job = Job(
        record, case.axis, case.ready, inputs, outputs, settings.threads, passed, case.backward
    )
    return job, place


# ------------------------------------------------------------------------- run


def run(
    record: Record,
    chosen: Sequence[Case],
    settings: Settings,
    peers: Sequence[Peer],
    step: Callable[[str], object],
) -> list[Result]:
    """Time every case; `step` is told of the progress, `steps_of` times."""
    return [run_case(record, case, settings, peers, _prefixed(step, str(case))) for case in chosen]


def run_case(
    record: Record,
    case: Case,
    settings: Settings,
    peers: Sequence[Peer],
    step: Callable[[str], object],
    *,
    checked: bool = True,
) -> Result:
    """Time one case, normx and the copy among the peers; `checked`: with the errors."""
    job, place = _job(record, case, settings)
    result = Result(case, place)
    with job.undo, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of peers, about dtypes and threads
        entries = _prepare(job, peers, result, step)
        errors = _errors(job, entries, result) if checked else {}
        contestants = {
            name: Contestant(name, entry.calls, warm=place == IN_CACHE)
            for name, entry in entries.items()
        }
        interleave(list(contestants.values()), settings.repeats, step)
    _tell(result, peers, entries, contestants, errors)
    return result


def _prefixed(step: Callable[[str], object], prefix: str) -> Callable[[str], object]:
    return lambda text: step(f"{prefix}: {text}")


def steps_of(chosen: Sequence[Case], settings: Settings, peers: Sequence[Peer]) -> int:
    """How often `run` calls its `step`."""
    return len(chosen) * (len(peers) + settings.repeats)


def _prepare(
    job: Job, peers: Sequence[Peer], result: Result, step: Callable[[str], object]
) -> dict[str, Entry]:
    entries = {}
    for peer in peers:
        step(f"preparing {peer.name}")
        if peer.version is None:
            result.left_out[peer.name] = "not installed"
            continue
        if job.backward and not peer.gradients:
            result.left_out[peer.name] = "is timed forward only"
            continue
        try:
            entries[peer.name] = peer.prepare(job)
        except LeftOutError as reason:
            result.left_out[peer.name] = str(reason)
        except Exception as error:  # a peer that breaks must not end the run of the others
            if peer is NORMX:
                raise
            result.left_out[peer.name] = f"failed: {screen.one_line(error)}"
    return entries


def _errors(job: Job, entries: dict[str, Entry], result: Result) -> dict[str, float]:
    """The largest error of everyone who computes something, in ULP.

    Who answers in another dtype does another thing, and is left out.
    """
    if job.backward or job.record.random:
        return {}
    rows, places = some_rows(job.inputs[0], job.axis)
    passed = dict(job.keywords)
    if "where" in passed:
        mask = np.broadcast_to(passed["where"], job.inputs[0].shape)
        passed["where"], _ = some_rows(mask, job.axis)
    want = exact(job.record, rows, passed)
    errors = {}
    for name, entry in list(entries.items()):
        if entry.result is None:
            continue
        y = np.asarray(entry.result())
        if y.dtype.name != job.dtype:
            result.left_out[name] = f"answers {job.dtype} with {y.dtype.name}"
            del entries[name]
            continue
        if job.record.kind == "reduction":
            got = y.reshape(-1)[places]
        else:
            got, _ = some_rows(y, job.axis)
        errors[name] = largest_error(got, want)
    return errors


def _tell(
    result: Result,
    peers: Sequence[Peer],
    entries: dict[str, Entry],
    contestants: dict[str, Contestant],
    errors: dict[str, float],
) -> None:
    base = {name: contestants[name].median for name in (NORMX.name, COPY.name)}
    for peer in peers:
        if peer.name not in entries:
            continue
        timed, entry = contestants[peer.name], entries[peer.name]
        result.scores.append(
            Score(
                name=peer.name,
                version=peer.version or "",
                output=entry.output,
                ran=entry.ran,
                times=timed.times,
                median=timed.median,
                lower=timed.lower,
                spread=timed.spread,
                busy_threads=timed.threads,
                ulp=errors.get(peer.name),
                ratio_to_normx=timed.median / base[NORMX.name],
                ratio_to_copy=timed.median / base[COPY.name],
            )
        )
