"""What every network of the study must do."""

import copy
import functools
import io
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import attention, convnext, mixer, vit
from models.convnext import convnext_tiny
from models.description import Attention
from tests.test_attention import INSERTIONS, draw, open_gates

Build = Callable[[], nn.Module]
PartOf = Callable[[str], str]


def with_attention(stem: convnext.Stem, insertion: Mapping[convnext.Site, Attention]) -> Build:
    return lambda: convnext_tiny(classes=10, stem=stem, attention=insertion)


NETWORKS: dict[str, tuple[Build, PartOf]] = {
    "convnext": (with_attention("default", {}), convnext.part_of),
    "convnext-cifar": (with_attention("cifar", {}), convnext.part_of),
    "convnext-cifar-dual": (with_attention("cifar", INSERTIONS["dual"]), convnext.part_of),
    **{f"convnext-{name}": (with_attention("default", insertion), convnext.part_of) for name, insertion in INSERTIONS.items()},
    "vit": (lambda: vit.vit(classes=10), vit.part_of),
    "mixer": (lambda: mixer.mixer(classes=10), mixer.part_of),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def built(name: str) -> nn.Module:
    """The network with open gates, in evaluation mode; not to be changed."""
    torch.manual_seed(2)
    network = NETWORKS[name][0]().eval()
    open_gates(network)
    return network


@every_network
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_logits(name: str, batch: int) -> None:
    images = draw(batch, 3, 32, 32)
    with torch.no_grad():
        logits = built(name)(images)
        alone = built(name)(images[-1:])
    assert logits.shape == (batch, 10) and logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[-1:], alone)


@every_network
@pytest.mark.parametrize(
    "trained", [{"head", "attention"}, {"head", "attention", "last_stage", "early_stages"}], ids=["F0", "full"]
)
def test_gradient_reaches_what_trains_and_nothing_else(name: str, trained: set[str]) -> None:
    network, part_of = copy.deepcopy(built(name)), NETWORKS[name][1]
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(part_of(key) in trained)
    F.cross_entropy(network(draw(3, 3, 32, 32)), torch.tensor([1, 5, 9])).backward()
    for key, parameter in network.named_parameters():
        if part_of(key) in trained:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
            assert torch.any(parameter.grad != 0), key
        else:
            assert parameter.grad is None, key


@every_network
def test_parts_are_the_regimes_parts(name: str) -> None:
    network, part_of = built(name), NETWORKS[name][1]
    parts = {part_of(key) for key, _ in network.named_parameters()}
    assert parts - {"last_stage", "attention"} == {"head", "early_stages"}
    assert ("attention" in parts) == any(isinstance(module, attention.Gated) for module in network.modules())
    with pytest.raises(ValueError, match=r"^'layer1\.weight' is not a parameter of"):
        part_of("layer1.weight")


@every_network
def test_saved_and_loaded(name: str) -> None:
    file = io.BytesIO()
    torch.save(built(name).state_dict(), file)
    file.seek(0)
    with torch.device("meta"):
        network = NETWORKS[name][0]().eval()
    network.load_state_dict(torch.load(file, weights_only=True), assign=True)
    images = draw(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), built(name)(images))


@every_network
def test_bfloat16_autocast(name: str) -> None:
    network, images = copy.deepcopy(built(name)), draw(3, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(images)
        loss = F.cross_entropy(logits, torch.tensor([1, 5, 9]))
    loss.backward()
    with torch.no_grad():
        expected = network(images)
    # 8 bits of mantissa through up to 40 layers: a few percent of the spread of the logits
    assert (logits.float() - expected).abs().max() < 0.1 * expected.std()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, key
        assert torch.isfinite(parameter.grad).all(), key


@every_network
def test_channels_last(name: str) -> None:
    images = draw(3, 3, 32, 32)
    network = copy.deepcopy(built(name)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        torch.testing.assert_close(network(images.contiguous(memory_format=torch.channels_last)), built(name)(images))
