"""From a model's description to a network, with its parameters by part. A new model family is one more row of FAMILIES."""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import ConvNeXt

from bench.experiment import Model
from models import convnext, mixer, vit
from models.weights import load_backbone


class Family(NamedTuple):
    """How a family builds its network, and how it sorts its parameters' names into parts."""

    build: Callable[[Model, int], nn.Module]  # from the description, attention left out, and the number of classes
    part_of: Callable[[str], str]


def _convnext(model: Model, classes: int) -> nn.Module:
    assert model.stem is not None
    network: nn.Module = convnext.convnext_tiny(classes=classes, stem=model.stem)
    return network


def _matched_vit(model: Model, classes: int) -> nn.Module:
    with torch.device("meta"):  # shapes alone: nothing is allocated or drawn
        target = sum(parameter.numel() for parameter in convnext.convnext_tiny(classes=classes).parameters())
    size = vit.matched_size(target=target, classes=classes)
    return vit.vit(classes=classes, width=size.width, heads=size.heads)


FAMILIES = {
    "convnext_tiny": Family(_convnext, convnext.part_of),
    "vit_tiny": Family(lambda model, classes: vit.vit(classes=classes), vit.part_of),
    "mixer_tiny": Family(lambda model, classes: mixer.mixer(classes=classes), mixer.part_of),
    "matched_vit": Family(_matched_vit, vit.part_of),
}


def build(model: Model, *, classes: int, seed: int, initial: dict[str, Tensor] | None = None) -> nn.Module:
    """Build the network on the CPU, from random weights that depend on the seed alone, or from pretrained ones.

    Args:
        initial: a pretrained state dict; its classifying layer is not used. None: random weights everywhere.

    Raises:
        WeightsError: ``initial`` does not fit the network.
    """
    torch.manual_seed(seed)  # the generators of GPUs too, whether the weights are drawn now or were before
    plain = replace(model, attention=None, sites=None)
    drawn, state = _drawn(FAMILIES[model.family].build, plain, classes, seed, torch.get_default_device())
    network = copy.deepcopy(drawn)
    torch.set_rng_state(state)
    if model.attention:
        convnext.insert_attention(network, dict.fromkeys(model.sites or (), model.attention))
    if initial is not None:
        load_backbone(network, initial)
    return network


@functools.lru_cache(maxsize=3)  # seeds
def _drawn(
    build: Callable[[Model, int], nn.Module], model: Model, classes: int, seed: int, _device: torch.device
) -> tuple[nn.Module, Tensor]:
    """A network without attention, on the present default device, and the state of torch's generator after its weights were drawn.

    Most runs of a study train the same one with other attention. ConvNeXt-Tiny's 28 million draws take half a second, a copy a
    tenth of that.
    """
    torch.manual_seed(seed)
    return build(model, classes), torch.get_rng_state()


def gates(network: nn.Module) -> dict[str, Tensor]:
    """Alpha of every gated attention, by site, on the network's device; empty where the network has none."""
    return {str(site): alpha for site, alpha in convnext.gates(network).items()} if isinstance(network, ConvNeXt) else {}


def by_part(network: nn.Module, part_of: Callable[[str], str]) -> dict[str, list[nn.Parameter]]:
    """Return all parameters of the network, grouped by part."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        parts.setdefault(part_of(name), []).append(parameter)
    return parts
