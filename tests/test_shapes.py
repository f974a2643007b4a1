"""The shapes that layers see are those of a forward pass, which leaves no trace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.shapes import calls


def test_calls_come_in_order_and_the_network_stays_as_it_is() -> None:
    shrinking = nn.MaxPool2d(2)
    network = nn.Sequential(shrinking, nn.Conv2d(3, 5, 3), shrinking, nn.BatchNorm2d(5), nn.Dropout()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = calls(network, nn.MaxPool2d, nn.Conv2d, side=12)
    assert [(name, type(layer), tuple(given), tuple(gave)) for name, layer, given, gave in found] == [
        ("0", nn.MaxPool2d, (1, 3, 12, 12), (1, 3, 6, 6)),
        ("1", nn.Conv2d, (1, 3, 6, 6), (1, 5, 4, 4)),
        ("0", nn.MaxPool2d, (1, 5, 4, 4), (1, 5, 2, 2)),
    ]
    assert network.training and not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_on_the_meta_device_nothing_is_computed() -> None:
    convolution = nn.Conv2d(3, 5, 3, device="meta")
    (call,) = calls(nn.Sequential(convolution), nn.Conv2d, side=12)
    assert call.gave == (1, 5, 10, 10)
    assert next(call.layer.parameters()).is_meta


def test_weights_of_another_device_are_copied_and_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here they lie on the CPU, and are copied as those of a GPU would be."""
    moved: list[tuple[int, Any]] = []
    monkeypatch.setattr(Tensor, "to", lambda tensor, device: moved.append((id(tensor), device)) or tensor.detach().clone())
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    before = {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    (call,) = calls(network, nn.Conv2d, side=12)
    assert call.gave == (1, 5, 10, 10) and call.layer is not network[0]
    assert sorted(moved) == sorted((of, "cpu") for of in before.values())
    assert before == {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
