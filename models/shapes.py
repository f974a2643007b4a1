"""The shapes that the layers of a network see."""

import copy
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


def calls(network: nn.Module, *kinds: type[nn.Module], side: int = 32) -> list[Call]:
    """Every call, in order, of the layers of these kinds, for an image ``[1, 3, side, side]``.

    The forward pass is that of a copy, with the same weights: on the meta device if they lie there, else on the CPU, which computes
    an image in less time than Python takes to find the shapes alone.
    """
    if not any(isinstance(layer, kinds) for layer in network.modules()):
        return []
    tensors = (*network.parameters(), *network.buffers())
    device = "meta" if any(tensor.is_meta for tensor in tensors) else "cpu"
    with torch.no_grad():
        there = {id(tensor): tensor.to(device) for tensor in tensors}  # the same tensors, if they lie there
    network = copy.deepcopy(network, there).eval()  # which takes these for copied
    found: list[Call] = []

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(Call(name, layer, inputs[0].shape, output.shape))

    for name, layer in network.named_modules():
        if isinstance(layer, kinds):
            layer.register_forward_hook(partial(note, name))
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side, device=device))
    return found
