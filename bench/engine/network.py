"""From a model's description to a network on the device, with its parameters by part."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.experiment import Model
from models import convnext, load_backbone


def build(model: Model, *, classes: int, seed: int, initial: dict[str, Tensor] | None) -> nn.Module:
    """Build the network on the CPU, from random weights that depend on the seed alone, or from pretrained ones.

    Args:
        initial: a pretrained state dict; its classifying layer is not used. None: random weights everywhere.

    Raises:
        WeightsError: ``initial`` does not fit the network.
    """
    torch.manual_seed(seed)
    network: nn.Module = convnext.convnext_tiny(classes=classes, stem=model.stem)
    if initial is not None:
        load_backbone(network, initial)
    return network


def part_namer(model: Model) -> Callable[[str], str]:
    """Return the function from a parameter's name to its part, for the model's family."""
    return {"convnext_tiny": convnext.part_of}[model.family]


def by_part(network: nn.Module, part_of: Callable[[str], str]) -> dict[str, list[nn.Parameter]]:
    """Return all parameters of the network, grouped by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        parts.setdefault(part_of(name), []).append(parameter)
    return parts
