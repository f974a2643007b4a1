"""Figure 1: ConvNeXt-Tiny with its widths, depths, maps and insertion points, read from the networks themselves.

The networks stand on torch's meta device, so that an image of theirs has a shape after every layer, and nothing is computed.
"""

from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, ConvNeXt

from bench.catalog import find
from bench.engine import network as networks
from bench.engine.device_data import SIDE
from bench.experiment import Model
from bench.report.figures.pictures import OF_NO_RECORDS
from bench.report.figures.style import INK, LARGE, MEDIUM, QUIET, SITE_COLOURS, SMALL, new_figure
from data.sources import SOURCES
from models.attention import Gated
from models.convnext import SITES

TITLE = OF_NO_RECORDS["architecture"].title

SHOWN = {"default stem": "cifar100/A_dual", "CIFAR stem": "cifar100/stem_dual"}  # both have attention at both sites


@dataclass(frozen=True)
class Layer:
    """One column of the figure: a stem, a stage or an attention, and the map ``[C, H, W]`` that it gives out."""

    name: str
    blocks: int  # 0 where there are none
    channels: int
    side: int
    parameters: int
    downsampling: int  # the factor from the side of the map before to that of this one


def on_meta(model: Model, classes: int) -> ConvNeXt:
    """Build a ConvNeXt whose tensors have shapes and no values."""
    with torch.device("meta"):
        network = networks.build(model, classes=classes, seed=0).eval()
    assert isinstance(network, ConvNeXt)
    return network


def layers(network: ConvNeXt) -> list[Layer]:
    """The layers of a ConvNeXt from stem to classifier, attention included, from a forward pass of one 32x32 image.

    A stage is counted with the downsampling layer before it, an attention apart from its stage, the classifier with the pooling
    that makes one vector of the last map.

    Args:
        network: on the meta device.
    """
    sites = {index: site for site, index in SITES.items()}
    found: list[Layer] = []
    side, waiting = SIDE, 0  # the side of the last map, and parameters of a downsampling layer that counts with the next stage
    x = torch.zeros(1, 3, SIDE, SIDE, device="meta")
    with torch.no_grad():
        for index, part in enumerate(network.features):
            blocks = sum(isinstance(module, CNBlock) for module in part)
            inserted = [module for module in part if isinstance(module, Gated)]
            x = part(x)
            own = _parameters(part) - sum(map(_parameters, inserted))
            if index and not blocks:
                waiting = own
                continue
            name = f"stage {(index + 1) // 2}" if index else "stem"
            found.append(Layer(name, blocks, *_channels_and_side(x), own + waiting, side // x.shape[3]))
            side, waiting = x.shape[3], 0
            found += [Layer(sites[index], 0, *_channels_and_side(x), _parameters(module), 1) for module in inserted]
        logits = network.classifier(network.avgpool(x))
    return [*found, Layer("classifier", 0, logits.shape[1], 1, _parameters(network.classifier), side)]


# ---- drawing, in inches ----------------------------------------------------------------------------------------------------

HEIGHT, LEFT, PITCH, CELLS, BOX = 4.26, 0.12, 0.918, 0.62, 0.80
HEADER, ROWS = 3.16, (1.86, 0.62)  # the lower edges of the boxes, and of the two rows of maps
NOTE = (
    "P2 and P3: x + α · MHSA(LN(x)), α = 0 at the start; a network has one of them, both or none. k, M: parameters, a stage's "
    "with the\ndownsampling before it. Squares: the map after each layer, all of them over the whole image. ÷: what its side is "
    "divided by."
)


def draw() -> Figure:
    """Draw the figure; it depends on the networks alone, on no record."""
    classes = len(SOURCES["cifar100"].spec.classes)
    networks_by_stem = {stem: on_meta(find(experiment).model, classes) for stem, experiment in SHOWN.items()}
    figure = new_figure(HEIGHT)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, figure.get_figwidth()), ylim=(0, HEIGHT))
    axes.set_axis_off()
    for bottom, (name, network) in zip(ROWS, networks_by_stem.items(), strict=True):
        columns, stem = layers(network), network.features[0][0]
        text = "{}: {}×{} convolution, stride {}, padding {}".format(name, *stem.kernel_size, stem.stride[0], stem.padding[0])
        axes.text(LEFT, bottom + CELLS + 0.31, text, fontsize=MEDIUM, fontweight="bold", va="bottom")
        _maps(axes, columns, bottom)
    _header(axes, columns)
    axes.text(LEFT, 0.1, NOTE, fontsize=SMALL, color=QUIET, linespacing=1.3, va="bottom")
    return figure


def _header(axes: Axes, columns: list[Layer]) -> None:
    """A box for each layer, on a line that is the way of the image."""
    axes.text(LEFT, HEIGHT - 0.14, TITLE, fontsize=LARGE, fontweight="bold", va="top")
    middle = HEADER + BOX / 2 - 0.08
    axes.plot([_centre(0), _centre(len(columns))], [middle, middle], color=QUIET, linewidth=1, zorder=0)
    _box(axes, 0, "image", ["3 channels"], QUIET)
    for column, layer in enumerate(columns, 1):
        _box(axes, column, layer.name, _words(layer), SITE_COLOURS.get(layer.name, QUIET))


def _words(layer: Layer) -> list[str]:
    count = f"{layer.parameters / 1e6:.2f} M" if layer.parameters >= 100_000 else f"{layer.parameters / 1e3:.1f} k"
    if layer.name == "classifier":
        return ["pool, linear", f"{layer.channels} classes", count]
    kind = "gated MHSA" if layer.name in SITE_COLOURS else f"{layer.blocks} blocks" if layer.blocks else "convolution"
    return [kind, f"{layer.channels} channels", count]


def _box(axes: Axes, column: int, name: str, words: list[str], colour: str) -> None:
    corner, height = (_centre(column) - BOX / 2, HEADER), BOX - 0.16
    own = colour in SITE_COLOURS.values()
    axes.add_patch(
        FancyBboxPatch(
            corner,
            BOX,
            height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="white" if own else "#F2F2F2",
            edgecolor=colour,
            linewidth=1.4 if own else 0.7,
        )
    )
    x, y = _centre(column), HEADER + height
    axes.text(x, y - 0.06, name, ha="center", va="top", fontsize=MEDIUM, fontweight="bold", color=colour if own else INK)
    axes.text(x, y - 0.21, "\n".join(words), ha="center", va="top", fontsize=SMALL - 1, color=INK, linespacing=1.15)


def _maps(axes: Axes, columns: list[Layer], bottom: float) -> None:
    """The map after each layer: a square, the whole image, cut into the map's positions."""
    _map(axes, 0, bottom, SIDE, "", QUIET)
    for column, layer in enumerate(columns, 1):
        tokens = f"{layer.side**2} tokens" if layer.name in SITE_COLOURS else ""
        if layer.name != "classifier":
            _map(axes, column, bottom, layer.side, tokens, SITE_COLOURS.get(layer.name, QUIET))
        if layer.downsampling > 1:
            between = (_centre(column - 1) + _centre(column)) / 2
            axes.text(between, bottom + CELLS / 2, f"÷{layer.downsampling}", ha="center", va="center", fontsize=SMALL, color=QUIET)
    axes.text(_centre(len(columns)), bottom + CELLS / 2, "logits", ha="center", va="center", fontsize=SMALL, color=INK)


def _map(axes: Axes, column: int, bottom: float, side: int, tokens: str, colour: str) -> None:
    left, cell = _centre(column) - CELLS / 2, CELLS / side
    for line in range(side + 1):
        at, edge = line * cell, line in (0, side)
        for xs, ys in (([left + at] * 2, [bottom, bottom + CELLS]), ([left, left + CELLS], [bottom + at] * 2)):
            axes.plot(
                xs,
                ys,
                color=colour,
                linewidth=1.0 if edge else 0.8 if tokens else 0.5,
                alpha=1 if edge else min(1, 12 / side),
                solid_capstyle="projecting",
            )
    if tokens:
        axes.add_patch(Rectangle((left, bottom), CELLS, CELLS, facecolor=colour, alpha=0.15, linewidth=0))
    text = f"{side}×{side}" + (f", {tokens}" if tokens else "")
    axes.text(
        _centre(column),
        bottom + CELLS + 0.06,
        text,
        ha="center",
        va="bottom",
        fontsize=SMALL - 0.5,
        color=colour if tokens else INK,
    )


def _centre(column: int) -> float:
    return LEFT + BOX / 2 + column * PITCH


def _channels_and_side(x: Tensor) -> tuple[int, int]:
    return x.shape[1], x.shape[3]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
