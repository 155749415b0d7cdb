"""``normx bench cross_entropy`` and ``normx bench SphericalHead``: steps of training.

Each is one interleaved run, like the others.  What is compared is said in the title, and every
time stands beside that of the first contestant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import normx
from normx import losses
from normx.cli import machine, screen
from normx.cli.bench import Settings, scores
from normx.cli.bench_report import finite
from normx.cli.peers import torch_with
from normx.cli.timing import Contestant, interleave

Array = NDArray[Any]
Step = Callable[[str], object]

#: Of the One Billion Word benchmark (de Brébisson and Vincent, 2016): the vocabulary, the features
#: of the last hidden layer, and the rows of a batch.
VOCABULARY, FEATURES, BATCH = 793_471, 512, 200
#: Vocabularies over which the cost of the layer is shown not to grow.
SIZES = (49_592, 198_368, VOCABULARY)
#: What an optimizer's step is, in either layer.
RATE = 1e-3


@dataclass(frozen=True, slots=True)
class Line:
    """One contestant of one case.

    Attributes
    ----------
    case, name : str
    median, spread : float
        In seconds, and relative.
    ratio : float
        The time over that of normx in the same case.
    busy_threads : float
    """

    case: str
    name: str
    median: float
    spread: float
    ratio: float
    busy_threads: float


@dataclass(frozen=True, slots=True)
class Study:
    """A comparison with a name.

    Attributes
    ----------
    title : str
    run : callable
        ``run(settings, quick, step)``: its lines.
    steps : callable
        ``steps(settings, quick)``: how often `step` is called.
    note : str
        What was compared.
    """

    title: str
    run: Callable[[Settings, bool, Step], list[Line]]
    steps: Callable[[Settings, bool], int]
    note: str


def _timed(
    case: str, contestants: Sequence[Contestant], settings: Settings, step: Step
) -> list[Line]:
    interleave(contestants, settings.repeats, lambda text: step(f"{case}: {text}"))
    least = contestants[0].median
    return [
        Line(case, who.name, who.median, who.spread, who.median / least, who.threads)
        for who in contestants
    ]


# ---------------------------------------------------------------- cross-entropy


def _cross_entropy(settings: Settings, quick: bool, step: Step) -> list[Line]:
    lines = []
    with ExitStack() as undo:
        undo.callback(normx.set_num_threads, normx.get_num_threads())
        normx.set_num_threads(settings.threads)
        for rows, classes in _shapes(quick):
            x = scores((rows, classes), np.float32, 0)
            targets = np.random.default_rng(1).integers(0, classes, rows)
            contestants = [Contestant("normx, of NumPy's arrays", [_both_ways(x, targets)])]
            contestants += _of_torch(x, targets, settings, undo)
            lines += _timed(f"{rows}x{classes}", contestants, settings, step)
    return lines


def _shapes(quick: bool) -> Sequence[tuple[int, int]]:
    return ((16, 128),) if quick else ((256, 50257), (4096, 1000))


def _both_ways(x: Array, targets: Array) -> Callable[[], Any]:
    def call() -> Any:
        _, pullback = normx.vjp(losses.cross_entropy, x, targets)
        return pullback(1.0)

    return call


def _of_torch(x: Array, targets: Array, settings: Settings, undo: ExitStack) -> list[Contestant]:
    try:
        torch = torch_with(settings.threads, undo)
    except ImportError:
        return []
    tensor, classes = torch.from_numpy(x).requires_grad_(), torch.from_numpy(targets)

    def both_ways(loss: Callable[[Any, Any], Any]) -> Callable[[], Any]:
        def call() -> None:
            tensor.grad = None
            loss(tensor, classes).backward()

        return call

    return [
        Contestant(
            "normx, of torch's tensors", [both_ways(lambda x, t: losses.cross_entropy(x, t).loss)]
        ),
        Contestant(f"torch {torch.__version__}", [both_ways(torch.nn.functional.cross_entropy)]),
    ]


# ---------------------------------------------------------------- output layers


def _spherical_head(settings: Settings, quick: bool, step: Step) -> list[Line]:
    features, rows, sizes = (16, 8, (64, 256)) if quick else (FEATURES, BATCH, SIZES)
    needed = 4 * max(sizes) * (2 * features + rows)
    if needed > 0.8 * machine.memory():
        raise screen.CommandError(
            f"two layers of {max(sizes)} outputs need {screen.size(needed)}; "
            f"this machine has {screen.size(machine.memory())}; --quick takes small ones"
        )
    lines = []
    for size in sizes:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, features), np.float32)
        targets = rng.integers(0, size, rows)
        weights = rng.standard_normal((size, features), np.float32)
        weights *= np.float32(features**-0.5)
        head = losses.SphericalHead(weights.copy(), copy=False)
        contestants = [
            Contestant("SphericalHead", [partial(head.step, x, targets, learning_rate=RATE)]),
            Contestant("its stabiliser", [head.stabilize]),
            Contestant("dense log-softmax", [partial(_dense, weights, x, targets)]),
        ]
        lines += _timed(f"{size}x{features}, {rows} rows", contestants, settings, step)
    return lines


def _dense(weights: Array, x: Array, targets: Array) -> Array:
    """A step of the dense layer with the log-softmax: the gradient of the features."""
    rows = np.arange(len(x))
    p = x @ weights.T
    normx.softmax(p, out=p)
    p[rows, targets] -= 1.0
    p *= np.float32(1.0 / len(x))
    gradient: Array = p @ weights
    block = 1 << 13  # no second array as large as the weights
    for begin in range(0, len(weights), block):
        part = slice(begin, begin + block)
        weights[part] -= np.float32(RATE) * (p[:, part].T @ x)
    return gradient


# --------------------------------------------------------------------- what is shown


STUDIES: Mapping[str, Study] = {
    "cross_entropy": Study(
        "cross_entropy, forward and backward · float32",
        _cross_entropy,
        lambda settings, quick: len(_shapes(quick)) * settings.repeats,
        "The loss and the gradient of the logits; torch's is torch.nn.functional.cross_entropy.",
    ),
    "SphericalHead": Study(
        "SphericalHead, one step · float32",
        _spherical_head,
        lambda settings, quick: (2 if quick else len(SIZES)) * settings.repeats,
        "A step is the loss, the gradient of the features and the new weights. The stabiliser runs "
        "once in a hundred steps. Both layers use NumPy's BLAS, and the dense one normx.softmax.",
    ),
}


def table(study: Study, lines: Sequence[Line], settings: Settings) -> Any:
    """The lines, by case."""
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    shown = screen.table(f"{study.title} · {threads}", caption=study.note)
    for header in ("case", "contestant"):
        shown.add_column(header)
    for header in ("median", "±", "÷ normx", "busy threads"):
        shown.add_column(header, justify="right")
    before = ""
    for line in lines:
        shown.add_row(
            line.case if line.case != before else "",
            line.name,
            screen.seconds(line.median),
            "–" if np.isnan(line.spread) else f"{100 * line.spread:.0f} %",
            f"{screen.figures(line.ratio)}×",
            f"{line.busy_threads:.1f}",
            style="bold" if line.ratio == 1.0 else None,
        )
        before = line.case
    return shown


def as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The same for a file."""
    return [finite(asdict(line)) for line in lines]
