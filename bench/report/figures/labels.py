"""Labels that stand beside what they name, in place of a legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bench.report.figures.style import QUIET, SMALL


def spread(wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Positions as near as may be to the wanted ones, in their order, at least ``gap`` apart, and within the bounds if they fit.

    Neighbours that are too close form a block around the mean of what they wanted; blocks that touch merge.
    """
    blocks: list[tuple[float, list[int]]] = []  # the centre of a block, and which positions it holds from the lowest up

    def block(members: list[int]) -> tuple[float, list[int]]:
        reach = gap * (len(members) - 1) / 2
        centre = sum(wanted[index] for index in members) / len(members)
        return max(min(centre, high - reach), low + reach), members

    for index in sorted(range(len(wanted)), key=lambda i: (wanted[i], i)):
        blocks.append(block([index]))
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (len(blocks[-1][1]) + len(blocks[-2][1])) / 2:
            upper, lower = blocks.pop(), blocks.pop()
            blocks.append(block(lower[1] + upper[1]))
    placed = [0.0] * len(wanted)
    for centre, members in blocks:
        for rank, index in enumerate(members):
            placed[index] = centre + gap * (rank - (len(members) - 1) / 2)
    return placed


@dataclass(frozen=True)
class Label:
    """A word and the point, in the units of the axes, that it names."""

    x: float
    y: float
    text: str
    colour: str


def settle(figure: Figure) -> None:
    """Let the layout give all axes their place. The labels that follow are placed by what is where."""
    figure.draw_without_rendering()


def label_ends(axes: Axes, labels: Sequence[Label], *, size: float = SMALL) -> None:
    """Write each label to the right of the last point of its line; lines that end close together share out the space.

    Call it when the figure is settled.
    """
    points = 72 / _dpi(axes)
    heights = [points * float(axes.transData.transform((label.x, label.y))[1]) for label in labels]
    places = spread(heights, 1.25 * size, points * axes.bbox.y0, points * axes.bbox.y1)
    for label, height, place in zip(labels, heights, places, strict=True):
        axes.annotate(
            label.text,
            (label.x, label.y),
            (12, place - height),
            textcoords="offset points",
            color=label.colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops=_LINE | {"color": label.colour, "shrinkB": 3, "relpos": (0, 0.5)},
        )


def label_points(axes: Axes, labels: Sequence[Label], avoid: Sequence[tuple[float, float]], *, size: float = SMALL) -> None:
    """Write each label beside its point, at the first place around it that is free of points and of earlier labels.

    Call it when the figure is settled; the texts take no part in the layout.

    Args:
        avoid: points ``(x, y)`` that no label may cover, in the units of the axes.
    """
    radius = 0.06 * _dpi(axes)  # of a dot
    covered = [tuple(map(float, point)) for point in axes.transData.transform(list(avoid))] if avoid else []
    taken: list[Bbox] = []
    for label in labels:
        text = axes.annotate(label.text, (label.x, label.y), (0, 0), textcoords="offset points", color=label.colour, fontsize=size)
        text.set_in_layout(False)
        for dx, dy, horizontal, vertical in _PLACES:
            text.set(position=(dx, dy), ha=horizontal, va=vertical)
            box = text.get_window_extent().padded(radius)
            free = not box.count_overlaps(taken) and not any(box.contains(x, y) for x, y in covered)
            if free and _inside(box, axes.bbox):
                break
        taken.append(text.get_window_extent())
        if math.hypot(dx, dy) > 10:  # points; too far for the eye
            axes.annotate("", (label.x, label.y), (dx, dy), textcoords="offset points", arrowprops=_LINE | {"color": QUIET})


def _dpi(axes: Axes) -> float:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure.dpi


def _inside(box: Bbox, frame: Bbox) -> bool:
    return bool(box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1)


_LINE: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}

# offsets in points from the point to the text, with the text's alignment: the nearest first, beside before above and below
_PLACES = [
    (dx, dy, {-1: "right", 0: "center", 1: "left"}[sign], "center" if dy == 0 else "bottom" if dy > 0 else "top")
    for reach in (7, 14, 24, 36, 50)
    for dy in (0, reach, -reach)
    for sign in (1, -1, 0)
    for dx in (sign * reach,)
    if (dx, dy) != (0, 0)
]
