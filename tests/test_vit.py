"""ViT: counts, arithmetic done by hand, torch's and torchvision's transformers with the same weights, and the matched size."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer

from models import vit

CONVNEXT_TINY = 27_897_028


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def randomised(network: nn.Module) -> nn.Module:
    """Give every parameter other values than its start's, so that a zero or a one hides nothing."""
    torch.manual_seed(4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def block_names(source: str, target: str, *, linears: tuple[str, str], norms: tuple[str, str]) -> dict[str, str]:
    """From the names of torch's or torchvision's transformer layer to those of our block."""
    names = {"self_attention.in_proj_": "attention.qkv.", "self_attention.out_proj.": "attention.projection."}
    names |= {
        f"{norms[0]}.": "attention_norm.",
        f"{norms[1]}.": "mlp_norm.",
        f"{linears[0]}.": "mlp.0.",
        f"{linears[1]}.": "mlp.2.",
    }
    return {f"{source}{a}{leaf}": f"{target}{b}{leaf}" for a, b in names.items() for leaf in ("weight", "bias")}


def test_parameter_count() -> None:
    assert count(vit.vit(classes=100)) == vit.parameter_count(classes=100, width=192) == 5_380_132


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_count_in_closed_form(heads: int) -> None:
    sizes = {"classes": 7, "width": 32, "depth": 3, "patch": 8, "mlp_ratio": 3, "side": 48}
    assert count(vit.vit(heads=heads, **sizes)) == vit.parameter_count(**sizes)


def test_multiply_adds() -> None:
    tokens, width, hidden = 8 * 8 + 1, 192, 768
    linears = tokens * (3 * width * width + width * width + 2 * width * hidden)
    products = 2 * tokens * tokens * width  # of queries with keys and of the matrices with values, over all heads
    by_hand = 64 * 3 * 4 * 4 * width + 12 * (linears + products) + width * 100
    # the mathematical backend: torch counts nothing for the CPU's fused kernel
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        vit.vit(classes=100)(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * by_hand
    assert by_hand == 365_124_864


@pytest.mark.parametrize("heads", [1, 3])
def test_block_is_torchs_encoder_layer(heads: int) -> None:
    ours = randomised(vit.Block(width=24, heads=heads, hidden=48).double())
    theirs = nn.TransformerEncoderLayer(
        24, heads, 48, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = block_names("", "", linears=("linear1", "linear2"), norms=("norm1", "norm2"))
    theirs.load_state_dict({a.replace("self_attention", "self_attn"): ours.state_dict()[b] for a, b in names.items()})
    tokens = torch.randn(3, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_network_is_torchvisions() -> None:
    ours = randomised(vit.vit(classes=10, width=24, depth=2, heads=3))
    theirs = VisionTransformer(32, 4, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=96, num_classes=10).eval()
    names = {"class_token": "class_token", "encoder.pos_embedding": "positions"}
    for a, b in {"conv_proj": "patches", "encoder.ln": "norm", "heads.head": "head"}.items():
        names |= {f"{a}.{leaf}": f"{b}.{leaf}" for leaf in ("weight", "bias")}
    for i in range(2):
        source, target = f"encoder.layers.encoder_layer_{i}.", f"blocks.{i}."
        names |= block_names(source, target, linears=("mlp.0", "mlp.3"), norms=("ln_1", "ln_2"))
    assert sorted(names.values()) == sorted(ours.state_dict())
    theirs.load_state_dict({their: ours.state_dict()[our] for their, our in names.items()})
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    network = vit.vit(classes=100)
    for name, parameter in network.named_parameters():
        values: Tensor = parameter.detach()
        if name.endswith("bias"):
            assert torch.all(values == 0), name
        elif "norm" in name:
            assert torch.all(values == 1), name
        else:
            deviation = 48**-0.5 if name == "patches.weight" else 0.02
            assert values.std().item() == pytest.approx(deviation, rel=0.2 if name == "class_token" else 0.05), name


# ---- the matched size ----------------------------------------------------------------------------------------------------


def test_matched_size() -> None:
    size = vit.matched_size(target=CONVNEXT_TINY, classes=100)
    assert size == (440, 5, 28_042_620)
    assert size.parameters / CONVNEXT_TINY == pytest.approx(1.005, abs=5e-4)
    with torch.device("meta"):
        assert count(vit.vit(classes=100, width=size.width, heads=size.heads)) == size.parameters


@pytest.mark.parametrize("target", [1, 1_000_000, 5_380_132, 10**8])
def test_no_other_width_is_closer(target: int) -> None:
    size = vit.matched_size(target=target, classes=100)
    counts = {width: vit.parameter_count(classes=100, width=width) for width in range(8, 2048, 8)}
    assert all(a < b for a, b in pairwise(counts.values()))
    assert abs(size.parameters - target) == min(abs(found - target) for found in counts.values())
    assert counts[size.width] == size.parameters
    assert size.width % (8 * size.heads) == 0


def test_the_search_finds_vit_tiny_again() -> None:
    assert vit.matched_size(target=5_380_132, classes=100) == (192, 3, 5_380_132)


def test_bad_arguments_are_refused() -> None:
    for arguments, message in [
        ({"classes": 0}, "classes: expected a positive number, found 0"),
        ({"classes": 10, "depth": 0}, "depth: expected a positive number, found 0"),
        ({"classes": 10, "heads": 5}, "heads: expected a divisor of the width 192, found 5"),
        ({"classes": 10, "patch": 5}, "patch: expected a divisor of the side 32, found 5"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            vit.vit(**arguments)
    with pytest.raises(ValueError, match=r"^target: expected a positive number, found 0$"):
        vit.matched_size(target=0, classes=10)
    network = vit.vit(classes=10, width=24, depth=1)
    with pytest.raises(ValueError, match=r"^images: expected shape \(3, 32, 32\), found \(3, 16, 64\)$"):
        network(torch.zeros(1, 3, 16, 64))
