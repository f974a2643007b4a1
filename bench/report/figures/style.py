"""What all figures share: colours, type, a light panel, axes, deterministic files.

The panel is opaque white. On a transparent one, ink that shows on white and on near-black pages alike has a contrast of 4:1 at
best, too little for small type, and the dark blue and the yellow-orange of the palette fail on one page or the other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.ledger import write_bytes_atomically

# Okabe and Ito's palette, which stays apart under every common colour blindness: https://jfly.uni-koeln.de/color
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, QUIET, FAINT, PANEL = "#222222", "#666666", "#D9D9D9", "#FFFFFF"
SITE_COLOURS = {"P2": BLUE, "P3": VERMILION}  # in every figure

WIDTH = 8.4  # inches, of every figure
SMALL, MEDIUM, LARGE = 7.5, 8.5, 10.0  # points

_STYLE = {
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.labelsize": MEDIUM,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": MEDIUM,
    "axes.titleweight": "bold",
    "figure.facecolor": PANEL,
    "font.family": "DejaVu Sans",  # matplotlib brings it: the same glyphs on every machine
    "font.size": MEDIUM,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 160,
    "svg.fonttype": "path",  # a reader need not have the font
    "svg.hashsalt": "figures",  # else the identifiers are random
    "text.color": INK,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
    "ytick.labelsize": SMALL,
}


@contextmanager
def applied() -> Iterator[None]:
    """Draw and save under this style, whatever style the user has set."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def new_figure(height: float) -> Figure:
    """An empty figure of the common width; ``height`` in inches."""
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09))


def head(figure: Figure, title: str, note: str) -> None:
    """Set a title over the figure and, smaller, a note under it, both flush left."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=LARGE, fontweight="bold")
    figure.supxlabel(note, x=0.01, ha="left", fontsize=SMALL, color=QUIET)


def save(figure: Figure, stem: Path, title: str) -> list[Path]:
    """Write ``<stem>.svg`` and ``<stem>.png`` without dates or versions and return both paths.

    Raises:
        UserError: a file cannot be written.
    """
    paths = []
    for suffix, metadata in (
        (".svg", {"Title": title, "Date": None, "Creator": None}),
        (".png", {"Title": title, "Software": None}),
    ):
        buffer = BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata)
        path = stem.with_name(stem.name + suffix)
        write_bytes_atomically(path, buffer.getvalue())
        paths.append(path)
    return paths


def log_axis(axes: Axes) -> None:
    """A logarithmic x axis with round numbers in plain digits."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.15g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
