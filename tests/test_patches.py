"""A convolution over patches and its matrix product are one function: outputs, gradients, parameters."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from bench.engine.execution import layers_of
from models import mixer
from models.convnext import convnext_tiny
from models.patches import PatchConv2d, PatchLayer, compute_patches_by, patch_layers
from models.vit import vit
from tests.test_depthwise import outputs_and_gradients


def reference(patch: int, *, dtype: torch.dtype = torch.float64, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(6, 10, patch, stride=patch, bias=bias).to(dtype)


def rewritten(convolution: nn.Conv2d) -> nn.Conv2d:
    other = copy.deepcopy(convolution)
    assert compute_patches_by(other, "matrix") == 1
    return other


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("patch", "height", "width"), [(2, 2, 2), (2, 8, 8), (4, 32, 32), (2, 4, 6), (2, 5, 7), (3, 8, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_convolution_in_float64(patch: int, height: int, width: int, layout: torch.memory_format, bias: bool) -> None:
    convolution = reference(patch, bias=bias).to(memory_format=layout)
    x = torch.randn(5, 6, height, width, dtype=torch.float64).to(memory_format=layout)
    expected, found = (outputs_and_gradients(each, x) for each in (convolution, rewritten(convolution)))
    assert len(found) == len(expected) == 3 + bias
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_an_image_needs_no_gradient_and_a_frozen_weight_gets_none() -> None:
    convolution = rewritten(reference(2))
    convolution.weight.requires_grad_(False)
    y = convolution(torch.randn(2, 6, 4, 4, dtype=torch.float64))
    y.sum().backward()
    assert convolution.weight.grad is None
    assert convolution.bias is not None and convolution.bias.grad is not None and (convolution.bias.grad == 8).all()


def test_the_output_is_channels_last_as_the_next_layer_wants_it() -> None:
    y = rewritten(reference(2))(torch.randn(2, 6, 4, 4, dtype=torch.float64))
    assert y.shape == (2, 10, 2, 2) and y.is_contiguous(memory_format=torch.channels_last)
    assert type(y.grad_fn).__name__ == "PermuteBackward0", "it was the convolution"


def test_autocast_agrees_to_its_precision() -> None:
    convolution = reference(2, dtype=torch.float32)
    x = torch.randn(16, 6, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = (outputs_and_gradients(each, x) for each in (convolution, rewritten(convolution)))
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


CONVNEXT = {PatchLayer(8, 96, 192, 2), PatchLayer(4, 192, 384, 2), PatchLayer(2, 384, 768, 2)}


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (lambda: convnext_tiny(classes=10), {PatchLayer(32, 3, 96, 4)} | CONVNEXT),
        # the CIFAR stem's patches overlap
        (lambda: convnext_tiny(classes=10, stem="cifar"), {layer._replace(side=2 * layer.side) for layer in CONVNEXT}),
        (lambda: vit(classes=10, width=24, depth=1, heads=3), {PatchLayer(32, 3, 24, 4)}),
        (lambda: mixer.mixer(classes=10, width=24, depth=1), {PatchLayer(32, 3, 24, 4)}),
    ],
)
def test_the_layers_of_every_family(build: Callable[[], nn.Module], layers: set[PatchLayer]) -> None:
    """All of them are found, none else, and the whole network computes the same with the same parameters."""
    torch.manual_seed(0)
    network = build().eval()
    assert patch_layers(layers_of(network)) == layers
    network.double()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plain = network(images)
    assert compute_patches_by(network, "matrix") == len(layers)
    assert sum(isinstance(module, PatchConv2d) for module in network.modules()) == len(layers)
    torch.testing.assert_close(network(images), plain, rtol=1e-10, atol=1e-10)
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    compute_patches_by(network, "convolution")
    assert torch.equal(network(images), plain)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 7, padding=3, groups=4),
        nn.Conv2d(3, 8, 4, stride=2, padding=1),
        nn.Conv2d(4, 8, 2, stride=2, groups=2),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 2, stride=2, dilation=2),
    ],
)
def test_other_convolutions_are_left_alone(other: nn.Conv2d) -> None:
    assert compute_patches_by(other, "matrix") == 0 and type(other) is nn.Conv2d
