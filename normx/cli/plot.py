"""``normx plot FUNCTION``: its weights on one common row, and what growing rows do to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normx._record import Record, record_of, registry
from normx.cli import picture, samples, screen

#: The common row: scores that are evenly spaced, so that the curve is the function's shape.
_ROW = np.linspace(-3.0, 3.0, 25)
_LENGTHS = 2 ** np.arange(1, 15)
_ROWS = 64


def record_named(name: str) -> Record:
    """The function of that name that can be drawn from scores alone."""
    known = {key: record for key, record in registry().items() if not samples.unknown(record)}
    if name not in known:
        raise screen.allowed("function", name, known)
    return known[name]


def apply(record: Record, x: NDArray[Any]) -> NDArray[Any]:
    """The function on rows along the last axis."""
    return np.asarray(record.function(x, axis=-1, **samples.keywords(record, x.shape)))


def draw(record: Record, path: Path) -> None:
    """Two panels."""
    fig = picture.figure(10.0, 4.3)
    with picture.style():
        left, right = fig.subplots(1, 2)
        if record.kind == "reduction":
            _smooth_maximum(left, record)
            _excess(right, record)
        else:
            _weights(left, record)
            _largest(right, record)
        summary = record.doc.strip().splitlines()[0]
        paper = f"{record.papers[0]}" if record.papers else ""
        picture.headline(fig, f"normx.{record.name}", f"{summary}\n{paper}")
    picture.save(fig, path)


def _beside(record: Record) -> Record | None:
    """Softmax to compare with, where that makes sense."""
    return None if record.name == "softmax" or record.log_space else record_of("softmax")


def _weights(ax: Any, record: Record) -> None:
    y = apply(record, _ROW)
    other = _beside(record)
    if other is not None:
        ax.plot(_ROW, apply(other, _ROW), "o-", ms=3, lw=1, color=picture.GREY, label="softmax")
    ax.vlines(_ROW, min(0.0, float(np.min(y))), y, color=picture.COLOURS[0], lw=1, alpha=0.35)
    ax.plot(_ROW, y, "o-", ms=4, lw=1.2, color=picture.COLOURS[0], label=record.name)
    if other is not None:
        ax.legend()
    ax.set_xlabel("score")
    ax.set_ylabel(_quantity(record))
    ax.set_title(f"On one row of {_ROW.size} evenly spaced scores")
    picture.quiet(ax)


def _largest(ax: Any, record: Record) -> None:
    other = _beside(record)
    if other is not None:
        ax.plot(_LENGTHS, _growth(other)[1], color=picture.GREY, lw=1, label="softmax")
    low, middle, high = _growth(record)
    ax.fill_between(_LENGTHS, low, high, color=picture.COLOURS[0], alpha=0.18, lw=0)
    ax.plot(_LENGTHS, middle, "o-", ms=3, color=picture.COLOURS[0], label=record.name)
    ax.set_xscale("log", base=2)
    if not record.log_space and np.all(low > 0):
        ax.set_yscale("log")
        uniform = 1.0 / _LENGTHS
        ax.plot(_LENGTHS, uniform, color=picture.GREY, lw=1, ls="--", label="1/n")
    ax.legend()
    ax.set_xlabel("length of the row")
    ax.set_ylabel(f"largest {_quantity(record)}")
    ax.set_title(f"As the row grows ({_ROWS} rows of normal scores)")
    picture.quiet(ax)


def _quantity(record: Record) -> str:
    return "log weight" if record.log_space else "weight"


def _growth(record: Record) -> NDArray[Any]:
    """Quartiles of the largest result, over lengths."""
    rng = np.random.default_rng(0)
    largest = [apply(record, rng.standard_normal((_ROWS, int(n)))).max(axis=-1) for n in _LENGTHS]
    return np.array([np.quantile(each, (0.25, 0.5, 0.75)) for each in largest]).T


def _smooth_maximum(ax: Any, record: Record) -> None:
    t = np.linspace(-5.0, 5.0, 201)
    rows = np.stack([t, np.zeros_like(t)], axis=-1)
    ax.plot(t, np.maximum(t, 0.0), color=picture.GREY, lw=1, ls="--", label="max")
    ax.plot(t, apply(record, rows), color=picture.COLOURS[0], label=record.name)
    ax.legend()
    ax.set_xlabel("t")
    ax.set_ylabel("value")
    ax.set_title("On the row (t, 0)")
    picture.quiet(ax)


def _excess(ax: Any, record: Record) -> None:
    rng = np.random.default_rng(0)
    above = []
    for n in _LENGTHS:
        x = rng.standard_normal((_ROWS, int(n)))
        above.append(np.quantile(apply(record, x) - x.max(axis=-1), (0.25, 0.5, 0.75)))
    low, middle, high = np.array(above).T
    ax.plot(_LENGTHS, np.log(_LENGTHS), color=picture.GREY, lw=1, ls="--", label="log n")
    ax.fill_between(_LENGTHS, low, high, color=picture.COLOURS[0], alpha=0.18, lw=0)
    ax.plot(_LENGTHS, middle, "o-", ms=3, color=picture.COLOURS[0], label=record.name)
    ax.set_xscale("log", base=2)
    ax.legend()
    ax.set_xlabel("length of the row")
    ax.set_ylabel("value above the largest score")
    ax.set_title(f"As the row grows ({_ROWS} rows of normal scores)")
    picture.quiet(ax)
