"""The style of every plot: one palette, quiet axes, no state shared with a user's pyplot."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from normx.cli.screen import INSTALL, CommandError, no_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: For what is only there to compare with, and for text beside the data.
GREY = "#8A8A8A"
FAINT = "#D9D9D9"
INK = "#222222"
#: A colour map of one hue direction, even to the eye and in black and white.
MAP = "cividis"

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#B0B0B0",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def target(path: Path) -> Path:
    """The path of a picture, refused early if nothing can be written there."""
    if path.suffix.lower() != ".png":
        raise CommandError(f"a picture's name must end in .png, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise no_folder(path)
    return path


def figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure; its size in inches."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise CommandError(f"pictures need matplotlib; {INSTALL}") from None
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        return Figure(figsize=(width, height), layout="constrained", **options)


def style() -> Any:
    """A context in which axes and texts get the style."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def headline(fig: Figure, title: str, subtitle: str) -> None:
    """A title and a line below it, at the left edge."""
    fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    fig.supxlabel(subtitle, x=0.01, ha="left", fontsize=8, color="#555555")


def quiet(ax: Axes, *, grid: str = "y") -> None:
    """A light grid behind the data."""
    ax.set_axisbelow(True)
    ax.grid(True, axis=grid)  # type: ignore[arg-type]
    ax.tick_params(length=0)


def save(fig: Figure, to: Path | IO[bytes]) -> None:
    """Write the picture."""
    with style():
        fig.savefig(to, dpi=160, facecolor="white")
