"""The figures that a ledger may have, with the words for a page that shows them, and which of them are on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.profiles import PROFILES


class Words(NamedTuple):
    """What a figure is called, and what stands below it."""

    title: str
    caption: str


# in the order of a page
OF_NO_RECORDS = {
    "architecture": Words(
        "ConvNeXt-Tiny and where attention is inserted",
        "Stages with their blocks, channels and parameters, and the map that a 32x32 image has become after each, with the "
        "default stem and with the CIFAR stem. A gated self-attention sees the map of P2, of P3, or of both: its tokens are the "
        "cells.",
    ),
    "loop_ratios": Words(
        "Our loop beside others",
        "How many times as fast our training loop is as another on the same device, both on ConvNeXt-Tiny with its own stem in "
        "batches of 128: the median over turns, and a line from the lowest to the highest. The bare step is the limit of every "
        "loop around it; the conventional loops are those of torchvision's and timm's training scripts; the reference depthwise "
        "convolution is the library's. From `make bench-throughput`; parts of a measurement are left out.",
    ),
}
OF_RECORDS = {
    "learning_curves": Words(
        "CIFAR-100: learning curves of one attention block under three regimes",
        "Test accuracy by epoch of E1 to E6, and below their gates; thin and grey, the row without attention under the same "
        "regime. The dashed line is where the regime releases more parameters; F0 releases none. With several seeds: mean, and "
        "a band of one standard deviation to each side; |α| marks the size of gates that end on either side of 0, whose sign is "
        "chance.",
    ),
    "dual": Words(
        "CIFAR-100: two attention blocks (A) against one and none",
        "Dots are seeds; the bar is their mean, the line one standard deviation to each side. The control had the schedule of "
        "the attention rows. A diamond is the study's number, shown only for rows with the study's budget and initial weights.",
    ),
    "attention_maps": Words(
        "CIFAR-100: what the attention blocks of the dual model look at (CIFAR stem)",
        "For each test image the attention that each position receives, averaged over heads and queries, as a multiple of what "
        "it would receive if all were alike: the map of P2 (8x8) beside that of P3 (4x4), each also upsampled, and laid over the "
        "image where that is shown. One colour scale for all maps, from none to the most attention among them, by its square root, "
        "for a few positions receive most of it. Above each example its class, and the prediction with its confidence.",
    ),
    "accuracy_cost": Words(
        "What accuracy costs",
        "Rows that train the whole network in the end, each with the accuracy that the study's rule selects; open markers "
        "started from random weights. Images per second are those of the evaluation passes of the runs themselves, forward "
        "only, on one device, which other work may have shared. Where a profile trains networks on different numbers of images, "
        "these stand in brackets, and only accuracies on equally many are comparable. With several seeds: means, and bars of one "
        "standard deviation to each side.",
    ),
    "gates": Words(
        "The gate α of every attention block",
        "Alpha starts at 0, where a block does nothing, and is one number for each block: blue at P2, vermilion at P3. Panels "
        "with self-attention only have one scale. The dashed line is where the regime releases more parameters. With several "
        "seeds: mean, and a band of one standard deviation to each side; |α| marks the size of gates that end on either side of 0, "
        "whose sign is chance.",
    ),
    "epoch_time": Words(
        "CIFAR-100: time of an epoch",
        "Seconds to train once on 50,000 images, evaluation apart: the median over the epochs in which the whole network "
        "trains, of all runs of a network on one device, and a line through the middle eight tenths of them: the first epoch of a "
        "run may hold a minute of compiling. Taken from the runs themselves: epochs on fewer images are scaled up, and other work "
        "may have shared the machine. A tick is the roofline, where `make bench-throughput` was run on the same device.",
    ),
}


class Picture(NamedTuple):
    """A figure on disk."""

    name: str
    words: Words
    profile: str | None  # None: of no records
    backbone: str | None  # the folder that is named after the pretrained weights
    svg: Path

    @property
    def png(self) -> Path:
        """The same as pixels."""
        return self.svg.with_suffix(".png")


def pictures(results: Path) -> list[Picture]:
    """The figures that were written for a ledger: those of no records, then by profile, backbone and figure."""
    return [picture for picture in _possible(results / "figures") if picture.svg.exists() and picture.png.exists()]


def _possible(folder: Path) -> Iterator[Picture]:
    for name, words in OF_NO_RECORDS.items():
        yield Picture(name, words, None, None, folder / f"{name}.svg")
    for profile in PROFILES:
        for backbone in sorted(path.name for path in (folder / profile).glob("*") if path.is_dir()):
            for name, words in OF_RECORDS.items():
                yield Picture(name, words, profile, backbone, folder / profile / backbone / f"{name}.svg")
