"""``normx plot FUNCTION``: its weights on one common row, and what growing rows do to them."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from normx import laws
from normx._record import Record, record_of, registry
from normx.cli import picture, samples, screen

#: The common row: scores that are evenly spaced, so that the bars are the function's shape.
_ROW = np.linspace(-2.5, 3.0, 12)
#: The growing rows: one score leads all others.
_LEADER, _OTHER = 4.0, 1.0
_LENGTHS = 2 ** np.arange(2, 13)
#: How often a function that draws random numbers is drawn.
_DRAWS = 64


def record_named(name: str) -> Record:
    """The function of that name."""
    known = registry()
    if name not in known:
        raise screen.allowed("function", name, known)
    return known[name]


def keywords(record: Record, shape: tuple[int, ...]) -> dict[str, Any]:
    """Values for the keywords without a default; a mask leaves out every third score."""
    given = samples.keywords(record, shape)
    return given | {"where": np.arange(shape[-1]) % 3 != 1} if "where" in given else given


def apply(record: Record, x: NDArray[Any]) -> NDArray[Any]:
    """The function on rows along the last axis."""
    return np.asarray(record.function(x, axis=-1, **keywords(record, x.shape)))


def draw(record: Record, to: Path | IO[bytes]) -> None:
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
        summary = record.doc.partition("\n")[0].replace("``", "")
        paper = f"{record.papers[0]}" if record.papers else ""
        picture.headline(fig, f"normx.{record.name}", f"{summary}\n{paper}".rstrip())
    picture.save(fig, to)


def _beside(record: Record) -> Record | None:
    """Softmax to compare with, where that makes sense."""
    return None if record.name == "softmax" or record.log_space else record_of("softmax")


def _label(record: Record) -> str:
    """The name, and what was passed that could not be left to a default."""
    given = keywords(record, (1,))
    said = [f"{name} = {value:g}" for name, value in given.items() if isinstance(value, float)]
    said += ["every third score left out"] * ("where" in given)
    return f"{record.name} ({', '.join(said)})" if said else record.name


def _quantity(record: Record) -> str:
    if record.log_space:
        return "log weight"
    shares = {laws.within_unit_interval, laws.non_negative}
    return "weight" if shares & set(record.laws) else "result"


def _weights(ax: Any, record: Record) -> None:
    other = _beside(record)
    if other is not None:
        ax.bar(_ROW, apply(other, _ROW), 0.44, color=picture.FAINT, label="softmax")
    ax.bar(_ROW, apply(record, _ROW), 0.24, color=picture.COLOURS[0], label=_label(record))
    ax.axhline(0.0, color=picture.GREY, lw=0.8)
    if other is not None:
        ax.legend(loc="best")
    ax.set_xticks(np.arange(-2, 4))
    ax.set_xlabel("score")
    ax.set_ylabel(_quantity(record))
    ax.set_title(f"On one row of {_ROW.size} evenly spaced scores")
    picture.quiet(ax)


def _largest(ax: Any, record: Record) -> None:
    other = _beside(record)
    rows = _growing(record)
    low, middle, high = _growth(record, rows)
    if other is not None:
        ax.plot(_LENGTHS, _growth(other, rows)[1], color=picture.FAINT, lw=5, label="softmax")
    if not record.log_space:
        ax.plot(_LENGTHS, 1.0 / _LENGTHS, color=picture.GREY, lw=1, ls="--", label="1/n")
        ax.set_yscale("log")
    if record.random:
        name = f"quartiles of {_DRAWS} draws"
        ax.fill_between(_LENGTHS, low, high, color=picture.COLOURS[0], alpha=0.18, lw=0, label=name)
    ax.plot(_LENGTHS, middle, "o-", ms=3.5, color=picture.COLOURS[0], label=_label(record))
    if not record.log_space:
        ax.legend(loc="best")
    ax.set_ylabel(f"largest {_quantity(record)}")
    _lengths(ax, rows)


def _growing(record: Record) -> list[NDArray[Any]]:
    """Rows of every length in which one score leads: is the largest, or counts as such."""
    sign = -1.0 if record.negated else 1.0
    rows = [np.where(np.arange(n) == 0, sign * _LEADER, sign * _OTHER) for n in _LENGTHS]
    return [np.stack([row] * (_DRAWS if record.random else 1)) for row in rows]


def _growth(record: Record, rows: list[NDArray[Any]]) -> NDArray[Any]:
    """Quartiles of the largest result, over lengths."""
    largest = [apply(record, x).max(axis=-1) for x in rows]
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
    rows = _growing(record)
    above = [apply(record, x)[0] - x.max() for x in rows]
    ax.plot(_LENGTHS, np.log(_LENGTHS), color=picture.GREY, lw=1, ls="--", label="log n")
    ax.plot(_LENGTHS, above, "o-", ms=3.5, color=picture.COLOURS[0], label=record.name)
    ax.legend()
    ax.set_ylabel("value above the largest score")
    _lengths(ax, rows)


def _lengths(ax: Any, rows: list[NDArray[Any]]) -> None:
    leader, other = rows[0][0, :2]
    ax.set_title(f"As the row grows: one score of {leader:g}, all others {other:g}")
    ax.set_xscale("log", base=2)
    ax.set_xticks(_LENGTHS[::2], [str(n) for n in _LENGTHS[::2]])
    ax.set_xlabel("length n of the row")
    picture.quiet(ax)
