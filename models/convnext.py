"""ConvNeXt-Tiny: torchvision's network, with a stem that fits small images on request.

Liu et al., "A ConvNet for the 2020s", CVPR 2022, https://arxiv.org/abs/2201.03545.

Widths 96, 192, 384, 768; depths 3, 3, 9, 3. Side of the feature map after stem and stages 1 to 4 for a 32x32 image:

    stem      convolution                      after stage 1   2   3   4
    default   4x4, stride 4, padding 0                     8   4   2   1
    cifar     4x4, stride 2, padding 1                    16   8   4   2
"""

from typing import Literal

import torchvision

Stem = Literal["default", "cifar"]

WIDTHS = (96, 192, 384, 768)

# torchvision calls the stem features.0, stage s features.(2s - 1), and the downsampling before stage s features.(2s - 2)
_PARTS = {"classifier.": "head", "features.6.": "last_stage", "features.7.": "last_stage", "features.": "early_stages"}


def convnext_tiny(*, classes: int, stem: Stem = "default") -> torchvision.models.ConvNeXt:
    """Build ConvNeXt-Tiny with random weights drawn from torch's global generator.

    The CIFAR stem is the same 4x4 convolution, moved by 2 pixels instead of 4 over an image padded by 1. Its weights have
    the shape of the default stem's, so pretrained ones fit both, and both draw the same initial values.

    Args:
        classes: the number of logits.
        stem: ``default`` (stride 4) or ``cifar`` (stride 2).

    Returns:
        A network from ``[N, 3, H, W]`` to ``[N, classes]``; H and W at least 32 with the default stem.

    Raises:
        ValueError: ``classes`` is not positive or ``stem`` is unknown.
    """
    if classes < 1:
        raise ValueError(f"classes: expected a positive number, found {classes}")
    if stem not in ("default", "cifar"):
        raise ValueError(f"stem: expected 'default' or 'cifar', found {stem!r}")
    network = torchvision.models.convnext_tiny(weights=None, num_classes=classes)
    if stem == "cifar":
        convolution = network.features[0][0]
        convolution.stride, convolution.padding = (2, 2), (1, 1)
    return network


def part_of(parameter: str) -> str:
    """Name the part that a parameter belongs to, by its name in the state dict.

    ``head`` is torchvision's classifier (LayerNorm and linear), ``last_stage`` the last downsampling layer with stage 4,
    ``early_stages`` everything before. The training regimes freeze and release whole parts.

    Raises:
        ValueError: no ConvNeXt parameter has this name.
    """
    for prefix, part in _PARTS.items():
        if parameter.startswith(prefix):
            return part
    raise ValueError(f"{parameter!r} is not a parameter of ConvNeXt")
