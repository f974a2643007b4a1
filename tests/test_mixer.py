"""MLP-Mixer: counts, arithmetic done by hand, and its formula written out with einsum."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import mixer


def test_parameter_count() -> None:
    assert sum(parameter.numel() for parameter in mixer.mixer(classes=100).parameters()) == 3_160_612


def test_multiply_adds() -> None:
    tokens, width = 64, 192
    block = 2 * width * tokens * 288 + 2 * tokens * width * 576
    by_hand = tokens * 3 * 4 * 4 * width + 12 * block + width * 100
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mixer.mixer(classes=100)(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * by_hand
    assert by_hand == 255_412_992


def by_formula(weights: dict[str, Tensor], images: Tensor, *, patch: int, depth: int) -> Tensor:
    """The network from its equations, with nothing of torch.nn."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(2, keepdim=True)
        deviation = (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()
        return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    n, channels, height, width = images.shape
    grid = images.reshape(n, channels, height // patch, patch, width // patch, patch)
    z = torch.einsum("nayixj,caij->nyxc", grid, weights["patches.weight"])
    z = z.reshape(n, -1, z.shape[3]) + weights["patches.bias"] + weights["positions"]
    for i in range(depth):
        p = {name.removeprefix(f"blocks.{i}."): value for name, value in weights.items()}
        hidden = torch.einsum("nlc,hl->nhc", norm(z, f"blocks.{i}.token_norm"), p["token_mlp.0.weight"])
        hidden = gelu(hidden + p["token_mlp.0.bias"][:, None])
        z = z + torch.einsum("nhc,lh->nlc", hidden, p["token_mlp.2.weight"]) + p["token_mlp.2.bias"][:, None]
        hidden = torch.einsum("nlc,hc->nlh", norm(z, f"blocks.{i}.channel_norm"), p["channel_mlp.0.weight"])
        hidden = gelu(hidden + p["channel_mlp.0.bias"])
        z = z + torch.einsum("nlh,ch->nlc", hidden, p["channel_mlp.2.weight"]) + p["channel_mlp.2.bias"]
    return norm(z, "norm").mean(1) @ weights["head.weight"].T + weights["head.bias"]


def test_network_is_its_formula() -> None:
    network = mixer.mixer(classes=7, width=12, depth=2, token_hidden=10, channel_hidden=20, patch=8, side=24).double()
    torch.manual_seed(4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.randn(3, 3, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(network(images), by_formula(network.state_dict(), images, patch=8, depth=2))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    for name, parameter in mixer.mixer(classes=100).named_parameters():
        values: Tensor = parameter.detach()
        if name.endswith("bias"):
            assert torch.all(values == 0), name
        elif "norm" in name:
            assert torch.all(values == 1), name
        else:
            deviation = 48**-0.5 if name == "patches.weight" else 0.02
            assert values.std().item() == pytest.approx(deviation, rel=0.05), name


def test_bad_arguments_are_refused() -> None:
    for arguments, message in [
        ({"classes": 0}, "classes: expected a positive number, found 0"),
        ({"classes": 10, "token_hidden": 0}, "token_hidden: expected a positive number, found 0"),
        ({"classes": 10, "patch": 5}, "patch: expected a divisor of the side 32, found 5"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            mixer.mixer(**arguments)
    network = mixer.mixer(classes=10, width=12, depth=1)
    with pytest.raises(ValueError, match=r"^images: expected shape \(3, 32, 32\), found \(3, 64, 16\)$"):
        network(torch.zeros(1, 3, 64, 16))
