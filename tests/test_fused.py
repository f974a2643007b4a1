"""Blocks in few kernels against their layers, in Triton's interpreter: what they compute, on a machine without a GPU."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

pytest.importorskip("triton", reason="Triton is not on this system")
from bench.engine import augment_triton
from bench.engine.device_data import draw_epoch
from bench.measure import loops
from models import convnext, fused_triton, mixer, products_triton, vit
from models.description import Attention
from models.fused import fuse
from models.rounding import Rounding
from models.stochastic_depth import give_factors, rates

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_cuda.py tests what is compiled")


def small_convnext() -> nn.Module:
    settings = [CNBlockConfig(4, 8, 1), CNBlockConfig(8, 12, 1), CNBlockConfig(12, 16, 1), CNBlockConfig(16, None, 1)]
    network = ConvNeXt(settings, stochastic_depth_prob=0.1, layer_scale=0.5, num_classes=7)
    convnext.insert_attention(network, {"P2": Attention("mhsa", heads=2), "P3": Attention("mhsa", heads=3)})
    for name, parameter in network.named_parameters():
        if name.endswith("alpha"):
            parameter.data.fill_(0.7)
    return network  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convnext": small_convnext,
    "vit": lambda: vit.vit(classes=7, width=24, depth=2, heads=3, patch=8),
    "mixer": lambda: mixer.mixer(classes=7, width=24, depth=2, token_hidden=20, channel_hidden=28, patch=8),
}


def both(name: str) -> tuple[nn.Module, nn.Module]:
    """A network in float64 with fused blocks, and the same one with layers."""
    torch.manual_seed(0)
    network = NETWORKS[name]().double().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    layers = copy.deepcopy(network)
    factors = torch.tensor([1.25, 0.0], dtype=torch.float64).expand(len(rates(network)), -1)  # an image keeps its branches, one not
    for each in (network, layers):
        give_factors(each, factors)
    return fuse(network), layers


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, dtype=torch.float64).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_all_gradients_are_the_layers(name: str) -> None:
    fused, layers = both(name)
    x = images()
    found, expected = fused(x), layers(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    upstream = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    found.backward(upstream)
    expected.backward(upstream)
    for (parameter, mine), theirs in zip(fused.named_parameters(), layers.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None, parameter
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-10, msg=parameter)


def test_frozen_parameters_get_no_gradient() -> None:
    """The first block is frozen, the others train, and the gradient goes through."""
    fused, layers = both("vit")
    for network in (fused, layers):
        network.blocks[1].requires_grad_(False)
    x = images()
    for network in (fused, layers):
        network(x).sum().backward()
    for mine, theirs in zip(fused.parameters(), layers.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-10)


def test_names_values_and_evaluation_stay() -> None:
    fused, layers = both("vit")
    assert list(fused.state_dict()) == list(layers.state_dict())
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), layers.eval()(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("rows", "channels", "width"), [(70, 40, 150), (5, 96, 64)])
def test_products_with_gelu(rows: int, channels: int, width: int) -> None:
    x, g, bias = torch.randn(rows, channels), torch.randn(rows, channels), torch.randn(width)
    up, down = torch.randn(width, channels), torch.randn(channels, width)
    hidden, active = products_triton.product_gelu(x, up, bias)
    torch.testing.assert_close(hidden, functional.linear(x, up, bias), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(active, functional.gelu(hidden), rtol=1e-5, atol=1e-5)
    gradient, shares = products_triton.product_gelu_backward(g, down, hidden)
    expected = torch.ops.aten.gelu_backward(g @ down, hidden)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shares.sum(0), expected.sum(0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 5, 17])
def test_attention_over_few_tokens(tokens: int) -> None:
    qkv = torch.randn(2, tokens, 3 * 2 * 6, dtype=torch.float64, requires_grad=True)
    queries, keys, values = qkv.view(2, tokens, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind()
    expected = functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(products_triton.attention(qkv.detach(), 2), expected, rtol=0, atol=1e-10)
    upstream = torch.randn_like(expected)
    (theirs,) = torch.autograd.grad(expected, qkv, upstream)
    torch.testing.assert_close(products_triton.attention_backward(upstream, qkv.detach(), 2), theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kib", "taken"), [(64, []), (99, [(65, 64)]), (227, [(65, 64), (65, 88), (128, 88)])])
def test_attention_that_a_gpu_has_no_room_for_is_the_librarys(
    kib: int, taken: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products_triton, "_shared_memory", lambda device: kib << 10)
    sizes = [(65, 64), (65, 88), (128, 88), (129, 16)]
    assert [size for size in sizes if products_triton.attends(*size, torch.device("cuda", 0))] == taken


def test_triton_tells_the_room_of_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(get_device_properties=lambda index: {"max_shared_mem": (99 + index) << 10})
    driver = SimpleNamespace(active=SimpleNamespace(utils=properties))
    monkeypatch.setattr("triton.compiler.compiler.driver", driver)
    assert products_triton._shared_memory.__wrapped__(torch.device("cuda", 1)) == 100 << 10


def test_a_pass_that_fails_waits_for_what_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies go on beside the first layers; a capture that they are not joined to cannot be ended."""
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(wait_stream=waited.append))

    class Failing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    network = Failing(2, 2)
    rounding = Rounding(network, [network.weight, network.bias])
    copies = rounding._pending = SimpleNamespace(device=torch.device("cuda", 0))  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError):
        network(torch.ones(2))
    assert waited == [copies] and rounding._pending is None


@pytest.mark.parametrize("rows", [1, 300, fused_triton.FEW_ROWS + 5])
def test_sums_of_columns(rows: int) -> None:
    x = torch.randn(rows, 40, dtype=torch.float64)
    torch.testing.assert_close(fused_triton.column_sums(x), x.sum(0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_in_one_kernel_is_the_same(channels: int) -> None:
    split = loops.random_split(torch.device("cpu"))
    split.images = split.images[..., :channels].contiguous()
    draws = draw_epoch(len(split), seed=0, epoch=1, padding=4, flip=True, blocks=0, device=torch.device("cpu"))
    plan = split.located(draws)[:12].view(3, 4, -1)
    for step in range(3):
        found, labels = augment_triton.batch(split.images, plan, torch.tensor([step]), split.scale, split.shift, 32)
        expected, its_labels = split.augmented(plan[step])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert found.stride() == expected.stride() and torch.equal(labels, its_labels)
