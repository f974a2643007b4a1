"""ConvNeXt-Tiny: torchvision's network, with a stem that fits small images on request.

Liu et al., "A ConvNet for the 2020s", CVPR 2022, https://arxiv.org/abs/2201.03545.

Widths 96, 192, 384, 768; depths 3, 3, 9, 3. Side of the feature map after stem and stages 1 to 4 for a 32x32 image:

    stem      convolution                      after stage 1   2   3   4
    default   4x4, stride 4, padding 0                     8   4   2   1
    cifar     4x4, stride 2, padding 1                    16   8   4   2

Attention may follow stage 2 (site P2, width 192) and stage 3 (site P3, width 384), gated as in :mod:`models.attention`.
"""

from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor

from models.attention import Gated, MultiHeadSelfAttention, gated
from models.description import Attention, Site, Stem

WIDTHS = (96, 192, 384, 768)

# torchvision calls the stem features.0, stage s features.(2s - 1), and the downsampling before stage s features.(2s - 2)
SITES: dict[Site, int] = {"P2": 3, "P3": 5}  # the index in features of the stage that the attention closes
_PARTS = {
    **{f"features.{index}.attention.": "attention" for index in SITES.values()},
    "classifier.": "head",
    "features.6.": "last_stage",
    "features.7.": "last_stage",
    "features.": "early_stages",
}


def convnext_tiny(
    *, classes: int, stem: Stem = "default", attention: Mapping[Site, Attention] | None = None
) -> torchvision.models.ConvNeXt:
    """Build ConvNeXt-Tiny with random weights drawn from torch's global generator.

    The CIFAR stem is the same 4x4 convolution, moved by 2 pixels instead of 4 over an image padded by 1. Its weights have
    the shape of the default stem's, so pretrained ones fit both, and both draw the same initial values.

    Args:
        classes: the number of logits.
        stem: ``default`` (stride 4) or ``cifar`` (stride 2).
        attention: what to insert, by site: ``{"P2": Attention("mhsa", heads=4)}``; see :func:`insert_attention`.

    Returns:
        A network from ``[N, 3, H, W]`` to ``[N, classes]``; H and W at least 32 with the default stem.

    Raises:
        ValueError: ``classes`` is not positive, ``stem`` or a site is unknown, or the heads do not divide the width.
    """
    if classes < 1:
        raise ValueError(f"classes: expected a positive number, found {classes}")
    if stem not in ("default", "cifar"):
        raise ValueError(f"stem: expected 'default' or 'cifar', found {stem!r}")
    network = torchvision.models.convnext_tiny(weights=None, num_classes=classes)
    if stem == "cifar":
        convolution = network.features[0][0]
        convolution.stride, convolution.padding = (2, 2), (1, 1)
    insert_attention(network, attention or {})
    return network


def insert_attention(network: torchvision.models.ConvNeXt, attention: Mapping[Site, Attention]) -> None:
    """Append attention to stages of a ConvNeXt of any width, in place.

    No parameter is renamed: the attention is one more child of its stage, ``features.3.attention`` at P2 and
    ``features.5.attention`` at P3, so a plain network's state dict lacks exactly these keys.

    Random draws pair the rows of a study. For the same state of torch's global generator on entry, the attention at a site starts
    from the same weights whatever stands at the other site and however many heads it has, and the generator leaves in the state
    in which it came: one seed per site is drawn from a fork of it.

    Raises:
        ValueError: a site is unknown or taken, or the heads do not divide the width of the map; the network is unchanged.
    """
    if unknown := attention.keys() - SITES.keys():
        raise ValueError(f"attention: expected sites among {', '.join(SITES)}, found {min(unknown)!r}")
    if taken := attention.keys() & gates(network).keys():
        raise ValueError(f"attention: expected a free site, found {min(taken)} taken")
    added = {}
    with torch.random.fork_rng(devices=[]):
        seeds = {site: int(torch.randint(2**62, (), device="cpu")) for site in SITES}
        for site, description in attention.items():
            torch.default_generator.manual_seed(seeds[site])  # of the CPU alone: torch.manual_seed would reach the GPUs' too
            width = network.features[SITES[site]][0].block[0].in_channels
            added[site] = gated(description, width=width)
    for site, module in added.items():
        network.features[SITES[site]].add_module("attention", module)


def gates(network: torchvision.models.ConvNeXt) -> dict[Site, Tensor]:
    """A copy of alpha by site, as scalars on the network's device (reading them there costs no synchronisation)."""
    stages = {site: network.features[index] for site, index in SITES.items()}
    return {site: stage.attention.alpha.detach().clone() for site, stage in stages.items() if hasattr(stage, "attention")}


def attention_matrices(network: torchvision.models.ConvNeXt, images: Tensor) -> dict[Site, Tensor]:
    """The matrices ``[N, heads, L, L]`` of every self-attention in the network, by site, for images ``[N, 3, H, W]``.

    Row: the query, column: the token that it attends to; token ``i*W + j`` is position ``(i, j)`` of that site's map. Put the
    network in evaluation mode first.
    """
    sites = {index: site for site, index in SITES.items()}
    matrices = {}
    x = images
    for index, stage in enumerate(network.features):
        for module in stage:
            if isinstance(module, Gated) and isinstance(module.branch, MultiHeadSelfAttention):
                matrices[sites[index]] = module.branch.matrices(x)
            x = module(x)
    return matrices


def part_of(parameter: str) -> str:
    """Name the part that a parameter belongs to, by its name in the state dict.

    ``head`` is torchvision's classifier (LayerNorm and linear), ``last_stage`` the last downsampling layer with stage 4,
    ``attention`` what was inserted, ``early_stages`` everything else. The training regimes freeze and release whole parts.

    Raises:
        ValueError: no ConvNeXt parameter has this name.
    """
    for prefix, part in _PARTS.items():
        if parameter.startswith(prefix):
            return part
    raise ValueError(f"{parameter!r} is not a parameter of ConvNeXt")
