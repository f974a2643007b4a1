"""From a model's description to a network, with its parameters by part. A new model family is one more row of FAMILIES."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.experiment import Model
from models import convnext, load_backbone


class Family(NamedTuple):
    """How a family builds its network, and how it sorts its parameters' names into parts."""

    build: Callable[[Model, int], nn.Module]  # from the description and the number of classes
    part_of: Callable[[str], str]


FAMILIES = {
    "convnext_tiny": Family(
        build=lambda model, classes: convnext.convnext_tiny(classes=classes, stem=model.stem),
        part_of=convnext.part_of,
    ),
}


def build(model: Model, *, classes: int, seed: int, initial: dict[str, Tensor] | None = None) -> nn.Module:
    """Build the network on the CPU, from random weights that depend on the seed alone, or from pretrained ones.

    Args:
        initial: a pretrained state dict; its classifying layer is not used. None: random weights everywhere.

    Raises:
        WeightsError: ``initial`` does not fit the network.
    """
    torch.manual_seed(seed)
    network = FAMILIES[model.family].build(model, classes)
    if initial is not None:
        load_backbone(network, initial)
    return network


def by_part(network: nn.Module, part_of: Callable[[str], str]) -> dict[str, list[nn.Parameter]]:
    """Return all parameters of the network, grouped by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        parts.setdefault(part_of(name), []).append(parameter)
    return parts
