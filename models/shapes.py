"""The shapes that the layers of a network see."""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """What a layer was given and gave, for one image."""

    name: str  # of the layer in its network
    layer: nn.Module
    given: torch.Size  # the first of several
    gave: torch.Size


def calls(network: nn.Module, of: Callable[[nn.Module], bool], *, side: int = 32) -> list[Call]:
    """Every call, in order, of the layers that ``of`` chooses, for an image ``[1, 3, side, side]``.

    The forward pass is that of a copy on the meta device, where tensors have shapes and no values.
    """
    network = copy.deepcopy(network).to("meta").eval()
    found: list[Call] = []

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(Call(name, layer, inputs[0].shape, output.shape))

    for name, layer in network.named_modules():
        if of(layer):
            layer.register_forward_hook(partial(note, name))
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side, device="meta"))
    return found
