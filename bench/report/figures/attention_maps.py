"""Figure 4: where the two attention blocks of the dual model look, on images that it classifies correctly and incorrectly."""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import functional

from bench.report.figures.attention_file import Examined
from bench.report.figures.examples import Example
from bench.report.figures.pictures import OF_RECORDS
from bench.report.figures.style import INK, LARGE, MEDIUM, QUIET, SITE_COLOURS, SMALL, WIDTH, new_figure

TITLE = OF_RECORDS["attention_maps"].title

COLOURS = colormaps["viridis"]  # even steps of lightness, for every kind of colour vision
OPACITY = 0.55  # of a map over its image


def relative(received: NDArray[np.float64]) -> NDArray[np.float64]:
    """A map ``[H, W]`` of sum 1 as multiples of 1/(H W), what each position of a uniform map has."""
    return received * received.size


def upsampled(grid: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """A map ``[h, w]`` at ``[side, side]``, bilinearly, the outermost positions continued to the edge."""
    tensor = torch.from_numpy(grid)[None, None]
    result: NDArray[np.float64] = functional.interpolate(tensor, size=(side, side), mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
    return result


def overlay(image: NDArray[np.uint8] | None, grid: NDArray[np.float64], scale: Normalize) -> NDArray[np.float64]:
    """The colours of a map over the grey of its image: ``[H, W, 3]`` in 0 to 1, from ``[H, W, C]`` uint8 and a map of any size.

    Without an image the upsampled map alone, ``[PIXELS, PIXELS, 3]``.
    """
    if image is None:
        return np.asarray(COLOURS(scale(upsampled(grid, PIXELS)))[..., :3])
    grey = image.mean(axis=2, keepdims=True) / 255
    heat = COLOURS(scale(upsampled(grid, image.shape[0])))[..., :3]
    mixed: NDArray[np.float64] = (1 - OPACITY) * grey + OPACITY * heat
    return mixed


# ---- drawing, in inches ----------------------------------------------------------------------------------------------------

PANEL_SIDE, GAP, TEXT, LEFT, TOP, BOTTOM = 0.74, 0.05, 0.27, 0.12, 0.82, 0.82
HALF = WIDTH / 2 + 0.04  # from the left edge of the correct examples to that of the others
PIXELS = 128  # of the side of a panel as it is stored; a viewer would blur 8x8 pixels


def draw(examined: Examined) -> Figure:
    """Draw the figure: correct examples on the left, incorrect ones on the right, one in each line."""
    halves = [[e for e in examined.examples if e.correct], [e for e in examined.examples if not e.correct]]
    values = [relative(received) for example in examined.examples for received in example.maps.values()]
    scale = PowerNorm(0.5, vmin=0, vmax=max(1, *(value.max() for value in values)))
    height = TOP + max(map(len, halves)) * (TEXT + PANEL_SIDE) + BOTTOM
    figure = new_figure(height)
    figure.set_layout_engine("none")
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, height))
    canvas.set_axis_off()
    canvas.text(LEFT, height - 0.14, TITLE, fontsize=LARGE, fontweight="bold", va="top")
    for half, (examples, word) in enumerate(zip(halves, ("classified correctly", "classified incorrectly"), strict=True)):
        left = LEFT + half * HALF
        canvas.text(left, height - 0.46, word if examples else f"none {word}", fontsize=MEDIUM, fontweight="bold", va="top")
        for line, example in enumerate(examples):
            _line(canvas, left, height - TOP - (line + 1) * (TEXT + PANEL_SIDE), example, scale, named=line == 0)
    _colour_bar(canvas, scale)
    canvas.text(LEFT, 0.1, _note(examined), fontsize=SMALL, color=QUIET, va="bottom", linespacing=1.3)
    return figure


def _line(canvas: Axes, left: float, bottom: float, example: Example, scale: Normalize, *, named: bool) -> None:
    """One example: the image, then for each site its map and the map over the image; ``named``: with the columns' names above.

    The image's place holds its number in the test split where it was left out.
    """
    shown, over = (None, "upsampled") if example.image is None else (_enlarged(example.image / 255), "overlaid")
    panels = [(shown, "image", INK)]
    for site, received in sorted(example.maps.items()):
        grid, colour = relative(received), SITE_COLOURS[site]
        panels.append((_enlarged(COLOURS(scale(grid))[..., :3]), f"{site}, {grid.shape[0]}×{grid.shape[1]}", colour))
        panels.append((_enlarged(overlay(example.image, grid, scale)), f"{site}, {over}", colour))
    for column, (pixels, name, colour) in enumerate(panels):
        x = left + column * (PANEL_SIDE + GAP)
        if pixels is None:
            words = f"test image\n{example.index}"
            canvas.text(x + PANEL_SIDE / 2, bottom + PANEL_SIDE / 2, words, ha="center", va="center", fontsize=SMALL, color=QUIET)
        else:
            extent = (x, x + PANEL_SIDE, bottom, bottom + PANEL_SIDE)
            canvas.imshow(pixels, extent=extent, interpolation="none", aspect="auto")
        if named:
            canvas.text(x + PANEL_SIDE / 2, bottom + PANEL_SIDE + TEXT, name, ha="center", fontsize=SMALL, color=colour)
    guess = "predicted" if example.correct else f"taken for {example.predicted.replace('_', ' ')}"
    words = f"{example.label.replace('_', ' ')}, {guess} with {100 * example.confidence:.0f} %"
    canvas.text(left, bottom + PANEL_SIDE + 0.05, words, fontsize=SMALL)


def _enlarged(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours ``[h, w, C]`` as ``[PIXELS, PIXELS, 3]``, each pixel a square; grey becomes colour."""
    times = PIXELS // pixels.shape[0]
    coloured = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return coloured.repeat(times, axis=0).repeat(times, axis=1)


def _colour_bar(canvas: Axes, scale: Normalize) -> None:
    """The colour scale at the lower right, with its unit."""
    left, bottom, width = WIDTH - 2.22, 0.62, 2.1
    canvas.imshow(COLOURS(np.linspace(0, 1, 256))[None, :, :3], extent=(left, left + width, bottom, bottom + 0.1), aspect="auto")
    assert scale.vmax is not None
    for value, side in ((0, "left"), (1, "center"), (scale.vmax, "right")):
        canvas.text(left + width * scale(value), bottom - 0.04, f"{value:.3g}", ha=side, va="top", fontsize=SMALL)
    canvas.text(left - 0.1, bottom + 0.05, "attention received (1: as all others)", ha="right", va="center", fontsize=SMALL)


def _note(examined: Examined) -> str:
    run, test = examined.run, examined.test
    return (
        f"profile {run['profile']}, {run['experiment']}, seed {run['seed']}, weights of epoch {examined.epoch}, "
        f"{100 * test['correct'] / test['images']:.2f} % of {test['images']:,} test images correct.\n"
        f"Examples: {examined.rule}."
        + (
            ""
            if examined.with_images
            else "\nThe images are left out, for CIFAR-100 states no licence: the numbers are their places in the run's test split."
        )
    )
