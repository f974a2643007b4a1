"""From a model's description to a network: what the seed alone decides."""

import pytest
import torch
from torch import Tensor, nn

from bench.catalog import find
from bench.engine import network as networks
from bench.experiment import Model
from models.convnext import convnext_tiny

DUAL = find("cifar100/A_dual").model


def built(model: Model, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The weights, and what the generators draw next."""
    network = networks.build(model, classes=10, seed=seed)
    return network.state_dict(), torch.rand(3), torch.get_rng_state()


@pytest.mark.parametrize("model", [Model(), DUAL, find("cifar100/scratch_vit_tiny").model], ids=["plain", "dual", "vit"])
def test_a_network_is_the_same_whatever_was_built_before_it(model: Model) -> None:
    networks._drawn.cache_clear()
    weights, drawn, state = built(model, seed=3)
    for value in weights.values():
        value.add_(1)  # as training does
    networks._drawn.cache_clear()
    first, *generators = built(model, seed=3)
    built(Model(), seed=3)
    built(model, seed=4)
    torch.rand(5)
    again, *later = built(model, seed=3)
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip((drawn, state), generators, later, strict=True))
    assert all(torch.equal(weights[name], first[name] + 1) for name in first)


def test_attention_comes_on_top_of_the_plain_network() -> None:
    """The same draws as when ConvNeXt is built with it at once."""
    torch.manual_seed(5)
    assert DUAL.attention and DUAL.sites
    at_once: nn.Module = convnext_tiny(classes=10, attention=dict.fromkeys(DUAL.sites, DUAL.attention))
    state = torch.get_rng_state()
    weights, _, _ = built(DUAL, seed=5)
    networks.build(DUAL, classes=10, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in at_once.state_dict().items())


def test_a_description_of_shapes_alone_is_no_network_to_train() -> None:
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in networks.build(DUAL, classes=10, seed=0).parameters())
    assert not any(parameter.is_meta for parameter in networks.build(DUAL, classes=10, seed=0).parameters())
