"""The three ways of a depthwise convolution are one function: outputs, gradients, parameters."""

import copy

import pytest
import torch
from torch import nn

from models.convnext import convnext_tiny
from models.depthwise import DepthwiseConv2d, Method, tap_indices, use_methods

FASTER: tuple[Method, ...] = ("pairs", "matrix")


def reference(channels: int, dtype: torch.dtype = torch.float64, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=bias).to(dtype)


def outputs_and_gradients(convolution: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = convolution(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y))
    assert x.grad is not None
    return [y.detach(), x.grad] + [parameter.grad for parameter in convolution.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("method", FASTER)
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_convolution_in_float64(method: Method, side: int, layout: torch.memory_format) -> None:
    convolution = reference(6)
    faster = copy.deepcopy(convolution)
    assert use_methods(faster, {side: method}) == 1
    x = torch.randn(5, 6, side, side, dtype=torch.float64).to(memory_format=layout)
    expected, found = outputs_and_gradients(convolution, x), outputs_and_gradients(faster, x)
    assert len(found) == len(expected) == 4
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", FASTER)
def test_taps_outside_the_map_have_no_gradient(method: Method) -> None:
    convolution = reference(4)
    use_methods(convolution, {1: method})
    outputs_and_gradients(convolution, torch.ones(2, 4, 1, 1, dtype=torch.float64))
    assert convolution.weight.grad is not None
    assert convolution.weight.grad[:, 0, 3, 3].all()
    assert convolution.weight.grad.count_nonzero() == 4


@pytest.mark.parametrize("method", FASTER)
def test_without_bias_and_with_a_frozen_weight(method: Method) -> None:
    convolution = reference(3, bias=False)
    plain = copy.deepcopy(convolution)
    for one in (convolution, plain):
        one.weight.requires_grad_(False)
    use_methods(convolution, {2: method})
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    for mine, theirs in zip(outputs_and_gradients(convolution, x), outputs_and_gradients(plain, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_parameters_keep_names_and_values() -> None:
    network = convnext_tiny(classes=10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert use_methods(network, {1: "matrix", 2: "pairs", 4: "pairs"}) == 18
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("method", FASTER)
def test_whole_network_agrees(method: Method) -> None:
    torch.manual_seed(1)
    network = convnext_tiny(classes=10).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plain = network(images)
    use_methods(network, {1: method, 2: method, 4: method, 8: method})
    torch.testing.assert_close(network(images), plain, rtol=1e-10, atol=1e-10)
    use_methods(network, {})
    assert torch.equal(network(images), plain)


@pytest.mark.parametrize("method", FASTER)
def test_autocast_agrees_to_its_precision(method: Method) -> None:
    """With the exact result on the same rounded operands: without bf16 units the library sums a part of its gradients in bf16."""
    convolution = reference(8, torch.float32)
    faster = copy.deepcopy(convolution)
    use_methods(faster, {4: method})
    x = torch.randn(16, 8, 4, 4).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        library, found = outputs_and_gradients(convolution, x), outputs_and_gradients(faster, x)
    assert found[0].dtype == torch.bfloat16
    exact = copy.deepcopy(convolution).bfloat16().double()
    y = exact(rounded := x.bfloat16().double().requires_grad_())
    exact.zero_grad()
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.bfloat16).double().view_as(y))
    expected = [y.detach(), rounded.grad, *(parameter.grad for parameter in exact.parameters())]
    for mine, theirs, truth in zip(found, library, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert truth is not None
        assert (mine - truth).abs().max() <= 2**-7 * truth.abs().max()  # two roundings to 8 bits


def test_only_fitting_convolutions_change() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 4, 7, padding=3, groups=4),
        nn.Conv2d(4, 4, 7, padding=3),
        nn.Conv2d(4, 8, 7, padding=3, groups=4),
        nn.Conv2d(4, 4, 7, padding=2, groups=4),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, stride=2),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 6, padding=3, groups=4),
    )
    assert use_methods(network, {2: "pairs"}) == 1
    assert [type(module) is DepthwiseConv2d for module in network] == [True] + [False] * 6


def test_a_map_that_is_not_square_takes_the_convolution() -> None:
    convolution = reference(3)
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    expected = convolution(x)
    use_methods(convolution, {2: "matrix", 4: "matrix"})
    assert torch.equal(convolution(x), expected)


def test_tap_indices_by_hand() -> None:
    # a 2x2 map and a 3x3 kernel: the tap from each output position to each input position; 9 would mean none
    expected = torch.tensor([[4, 5, 7, 8], [3, 4, 6, 7], [1, 2, 4, 5], [0, 1, 3, 4]])
    assert torch.equal(tap_indices(2, 3, torch.device("cpu")), expected)
    assert (tap_indices(3, 3, torch.device("cpu")) == 9).sum() == 81 - 49
