"""Attention modules against independent implementations, and their insertion into ConvNeXt."""

import copy
import functools
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from bench.engine.execution import layers_of
from models import attention, convnext, vit
from models.convnext import convnext_tiny
from models.description import Attention, Kind

KINDS: list[Kind] = ["mhsa", "se", "eca", "cbam", "spatial"]
MHSA4 = Attention("mhsa", heads=4)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def open_gates(network: nn.Module) -> None:
    """Set every alpha to 0.1, so that the branches matter."""
    for module in network.modules():
        if isinstance(module, attention.Gated):
            nn.init.constant_(module.alpha, 0.1)


# ---- counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "width", "expected"),
    [
        ("mhsa", 192, 148_609),
        ("mhsa", 384, 592_129),
        ("se", 384, 18_433),
        ("eca", 384, 6),
        ("cbam", 384, 18_531),
        ("spatial", 384, 99),
    ],
)
def test_parameter_count(kind: Kind, width: int, expected: int) -> None:
    module = attention.gated(Attention(kind), width=width)
    assert count(module) == expected
    assert module.alpha.shape == () and module.alpha.item() == 0


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_heads_change_no_count(heads: int) -> None:
    both = {site: Attention("mhsa", heads=heads) for site in convnext.SITES}
    assert count(convnext_tiny(classes=100, attention=both)) == 27_897_028 + 740_738


def test_bad_descriptions_are_refused() -> None:
    for build, message in [
        (lambda: Attention("sa"), "attention: expected one of mhsa, se, eca, cbam, spatial, found 'sa'"),  # type: ignore[arg-type]
        (lambda: Attention("mhsa", heads=0), "heads: expected a positive number, found 0"),
        (lambda: Attention("se", heads=2), "heads: expected none for se, found 2"),
        (lambda: attention.gated(Attention("mhsa", heads=5), width=192), "heads: expected a divisor of the width 192, found 5"),
        (lambda: attention.gated(Attention("cbam"), width=24), "reduction: expected a divisor of the width 24, found 16"),
        (lambda: attention.SpatialAttention(kernel=4), "kernel: expected an odd number, found 4"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            build()


METHODS: tuple[attention.AttentionMethod, ...] = ("fused", "products")

# ---- the same weights in an independent implementation give the same outputs ---------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_self_attention_is_torchs(heads: int) -> None:
    ours = attention.SelfAttention(width=32, heads=heads).double()
    theirs = nn.MultiheadAttention(32, heads, batch_first=True, dtype=torch.float64)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)  # biases too, and scores far enough from zero that softmax is not flat
    names = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias"}
    names |= {"out_proj.weight": "projection.weight", "out_proj.bias": "projection.bias"}
    theirs.load_state_dict({their: ours.state_dict()[our] for their, our in names.items()})
    tokens = draw(3, 7, 32, dtype=torch.float64)
    expected, matrices = theirs(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(ours(tokens), expected)
    torch.testing.assert_close(ours.matrices(tokens), matrices)
    assert matrices.std() > 0.05


def mixed_with_gradients(method: attention.AttentionMethod, *operands: Tensor) -> list[Tensor]:
    mixing = attention.ScaledDotProduct()
    mixing.method = method
    leaves = [operand.clone().requires_grad_() for operand in operands]
    out = mixing(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize(("tokens", "heads", "width"), [(65, 3, 16), (16, 4, 48), (4, 1, 32), (1, 2, 8)])
def test_products_are_fused_attention_in_float64(tokens: int, heads: int, width: int) -> None:
    operands = 2 * draw(3, 2, heads, tokens, width, dtype=torch.float64)
    fused, products = (mixed_with_gradients(method, *operands) for method in METHODS)
    assert len(fused) == len(products) == 4
    for mine, theirs in zip(products, fused, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_products_agree_under_autocast_to_its_precision() -> None:
    operands = draw(3, 8, 3, 65, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused, products = (mixed_with_gradients(method, *operands) for method in METHODS)
    for mine, theirs in zip(products, fused, strict=True):
        assert mine.dtype == theirs.dtype == torch.bfloat16
        torch.testing.assert_close(mine, theirs, rtol=3e-2, atol=3e-2)


def test_the_self_attention_of_every_family() -> None:
    """All of it is found, and the whole network computes the same with the same parameters."""
    both = {site: Attention("mhsa", heads=4) for site in convnext.SITES}
    expected = {
        "vit": (vit.vit(classes=10, width=24, depth=2, heads=3), {(65, 3, 8)}),
        "convnext": (convnext_tiny(classes=10, attention=both), {(16, 4, 48), (4, 4, 96)}),
        "cifar": (convnext_tiny(classes=10, stem="cifar", attention=both), {(64, 4, 48), (16, 4, 96)}),
        "plain": (convnext_tiny(classes=10, attention={"P2": Attention("se")}), set()),
    }
    images = draw(2, 3, 32, 32, dtype=torch.float64)
    for name, (network, layers) in expected.items():
        assert attention.attention_layers(layers_of(network)) == layers, name
        network.double().eval()
        keys, plain = list(network.state_dict()), network(images)
        assert attention.compute_attention_by(network, "products") == len(layers) * (2 if name == "vit" else 1), name
        torch.testing.assert_close(network(images), plain, rtol=1e-10, atol=1e-10)
        assert list(network.state_dict()) == keys


def test_matrices_are_those_of_the_forward_pass() -> None:
    branch = attention.MultiHeadSelfAttention(width=32, heads=4)
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = draw(3, 32, 5, 3)
    matrices = branch.matrices(x)
    assert matrices.shape == (3, 4, 15, 15)
    torch.testing.assert_close(matrices.sum(-1), torch.ones(3, 4, 15))
    tokens = F.layer_norm(x.flatten(2).mT, (32,), branch.norm.weight, branch.norm.bias, 1e-6)
    values = branch.attention.qkv(tokens)[..., 64:].unflatten(-1, (4, 8))
    mixed = torch.einsum("nhqk,nkhd->nqhd", matrices, values).flatten(2)
    torch.testing.assert_close(branch(x), branch.attention.projection(mixed).mT.unflatten(2, (5, 3)))


def test_a_map_is_a_set_of_positions() -> None:
    branch = attention.MultiHeadSelfAttention(width=32, heads=2)
    x = draw(2, 32, 4, 4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = x.flatten(2)[:, :, order].unflatten(2, (4, 4))
    torch.testing.assert_close(branch(shuffled).flatten(2), branch(x).flatten(2)[:, :, order])


def test_squeeze_excitation_is_torchvisions() -> None:
    ours = attention.SqueezeExcitation(width=64)
    theirs = torchvision.ops.SqueezeExcitation(64, 4)
    state = {}
    for their, our in {"fc1": "excitation.0", "fc2": "excitation.2"}.items():
        weight = ours.state_dict()[f"{our}.weight"]
        state |= {f"{their}.weight": weight[:, :, None, None], f"{their}.bias": torch.zeros(len(weight))}
    theirs.load_state_dict(state)
    x = draw(3, 64, 5, 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_efficient_channel_attention_is_its_formula() -> None:
    branch = attention.EfficientChannelAttention()
    x = draw(3, 16, 5, 3)
    means = F.pad(x.sum(3).sum(2) / 15, (2, 2))
    (taps,) = branch.convolution.weight[0]
    scores = torch.stack([sum(taps[k] * means[:, channel + k] for k in range(5)) for channel in range(16)], dim=1)
    torch.testing.assert_close(branch(x), torch.einsum("nc,nchw->nchw", 1 / (1 + torch.exp(-scores)), x))


def spatial_by_formula(x: Tensor, weight: Tensor) -> Tensor:
    """The 7x7 kernel ``[1, 2, 7, 7]`` laid over the mean and the maximum of the channels, one position after the other."""
    mean = F.pad(x.sum(1) / x.shape[1], (3, 3, 3, 3))
    maximum = F.pad(x.max(1).values, (3, 3, 3, 3))
    out = torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            window = (slice(None), slice(i, i + 7), slice(j, j + 7))
            score = (weight[0, 0] * mean[window] + weight[0, 1] * maximum[window]).sum((1, 2))
            out[:, :, i, j] = x[:, :, i, j] / (1 + torch.exp(-score))[:, None]
    return out


def test_spatial_attention_is_its_formula() -> None:
    branch = attention.SpatialAttention()
    x = draw(3, 16, 9, 5)
    torch.testing.assert_close(branch(x), spatial_by_formula(x, branch.convolution.weight))


def test_cbam_is_its_formula() -> None:
    branch = attention.ConvolutionalBlockAttention(width=32)
    x = draw(3, 32, 5, 3)
    down, up = branch.excitation[0].weight, branch.excitation[2].weight
    means, maxima = x.flatten(2).sum(2) / 15, x.flatten(2).max(2).values
    scores = (means @ down.T).clamp(min=0) @ up.T + (maxima @ down.T).clamp(min=0) @ up.T
    channels = x / (1 + torch.exp(-scores))[:, :, None, None]
    torch.testing.assert_close(branch(x), spatial_by_formula(channels, branch.spatial.convolution.weight))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gate_scales_the_branch(kind: Kind) -> None:
    module = attention.gated(Attention(kind), width=32)
    x = draw(2, 32, 3, 5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(module(x), x)
    nn.init.constant_(module.alpha, -0.5)
    out = module(x)
    torch.testing.assert_close(out, x - module.branch(x) / 2)
    assert not torch.equal(out, x)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_alpha_keeps_full_precision_under_autocast(kind: Kind) -> None:
    module = attention.gated(Attention(kind), width=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(draw(2, 32, 3, 3))
    assert out.dtype == torch.float32
    out.square().sum().backward()
    assert module.alpha.grad is not None
    assert module.alpha.grad != module.alpha.grad.bfloat16()


# ---- insertion into ConvNeXt ---------------------------------------------------------------------------------------------

INSERTIONS: dict[str, Mapping[convnext.Site, Attention]] = {
    "P2": {"P2": MHSA4},
    "P3": {"P3": MHSA4},
    "dual": {"P2": MHSA4, "P3": MHSA4},
    **{kind: {"P3": Attention(kind)} for kind in KINDS[1:]},
}


@functools.cache
def plain(stem: convnext.Stem) -> torchvision.models.ConvNeXt:
    torch.manual_seed(5)
    return convnext_tiny(classes=10, stem=stem)


@pytest.mark.parametrize("stem", ["default", "cifar"])
@pytest.mark.parametrize("insertion", INSERTIONS.values(), ids=INSERTIONS)
def test_with_closed_gates_it_is_the_plain_network_bit_for_bit(
    stem: convnext.Stem, insertion: Mapping[convnext.Site, Attention]
) -> None:
    without = copy.deepcopy(plain(stem))
    torch.manual_seed(5)
    augmented = convnext_tiny(classes=10, stem=stem, attention=insertion)
    images = draw(2, 3, 32, 32)
    outputs = []
    for network in (without, augmented):
        torch.manual_seed(0)  # stochastic depth draws the same blocks
        logits = network(images)
        F.cross_entropy(logits, torch.tensor([3, 7])).backward()
        outputs.append((logits, {name: parameter.grad for name, parameter in network.named_parameters()}))
    (expected, expected_gradients), (logits, gradients) = outputs
    assert torch.equal(logits, expected)
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected_gradients.items())
    for name in gradients.keys() - expected_gradients.keys():
        assert torch.any(gradients[name] != 0) == name.endswith(".alpha"), name


def test_insertion_leaves_the_generator_and_the_plain_weights_alone() -> None:
    expected = plain("default").state_dict()
    torch.manual_seed(5)
    torchvision.models.convnext_tiny(weights=None, num_classes=10)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    weights = convnext_tiny(classes=10, attention=INSERTIONS["dual"]).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_initial_attention_is_paired_across_rows() -> None:
    def added(insertion: Mapping[convnext.Site, Attention], seed: int = 5) -> dict[str, Tensor]:
        network = copy.deepcopy(plain("default"))
        torch.manual_seed(seed)
        convnext.insert_attention(network, insertion)
        return {name: value for name, value in network.state_dict().items() if convnext.part_of(name) == "attention"}

    dual = added({"P3": MHSA4, "P2": MHSA4})
    single = added({"P2": MHSA4}) | added({"P3": Attention("mhsa", heads=1)})
    assert dual.keys() == single.keys()
    assert all(torch.equal(dual[name], single[name]) for name in dual)
    name = "attention.branch.attention.qkv.weight"
    assert not torch.equal(dual[f"features.3.{name}"][0, :96], dual[f"features.5.{name}"][0, :96])
    assert not torch.equal(dual[f"features.3.{name}"], added(INSERTIONS["dual"], seed=6)[f"features.3.{name}"])


@pytest.mark.parametrize("stem", ["default", "cifar"])
@pytest.mark.parametrize("insertion", INSERTIONS.values(), ids=INSERTIONS)
def test_plain_weights_load(stem: convnext.Stem, insertion: Mapping[convnext.Site, Attention]) -> None:
    with torch.device("meta"):
        network = convnext_tiny(classes=10, stem=stem, attention=insertion)
    missing, unexpected = network.load_state_dict(plain("default").state_dict(), strict=False, assign=True)
    assert not unexpected
    assert missing == [name for name in network.state_dict() if convnext.part_of(name) == "attention"]
    indices = {"P2": 3, "P3": 5}
    assert {name.rpartition(".attention.branch")[0] for name in missing if ".branch." in name} == {
        f"features.{indices[site]}" for site in insertion
    }


def test_gates_by_site() -> None:
    network = convnext_tiny(classes=10, attention=INSERTIONS["dual"])
    nn.init.constant_(network.features[5].attention.alpha, 0.25)
    before = convnext.gates(network)
    nn.init.constant_(network.features[5].attention.alpha, 0.5)
    assert {site: alpha.item() for site, alpha in before.items()} == {"P2": 0, "P3": 0.25}
    assert convnext.gates(plain("default")) == {}


def test_attention_matrices_by_site() -> None:
    network = convnext_tiny(classes=10, stem="cifar", attention={"P2": MHSA4, "P3": Attention("mhsa", heads=2)}).eval()
    seen = {}
    for site, index in convnext.SITES.items():
        network.features[index].attention.branch.register_forward_pre_hook(
            lambda branch, inputs, site=site: seen.update({site: branch.matrices(*inputs)})
        )
    images = draw(3, 3, 32, 32)
    with torch.no_grad():
        network(images)
        matrices = convnext.attention_matrices(network, images)
    assert {site: tuple(matrix.shape) for site, matrix in matrices.items()} == {"P2": (3, 4, 64, 64), "P3": (3, 2, 16, 16)}
    assert all(torch.equal(matrices[site], seen[site]) for site in matrices)
    assert convnext.attention_matrices(plain("default"), images) == {}


def test_bad_insertions_are_refused() -> None:
    network = copy.deepcopy(plain("default"))
    convnext.insert_attention(network, {"P3": MHSA4})
    keys = list(network.state_dict())
    for insertion, message in [
        ({"P4": MHSA4}, "attention: expected sites among P2, P3, found 'P4'"),
        ({"P2": MHSA4, "P3": MHSA4}, "attention: expected a free site, found P3 taken"),
        ({"P2": Attention("mhsa", heads=7)}, "heads: expected a divisor of the width 192, found 7"),
    ]:
        state = torch.get_rng_state()
        with pytest.raises(ValueError, match=f"^{message}$"):
            convnext.insert_attention(network, insertion)
        assert list(network.state_dict()) == keys
        assert torch.equal(torch.get_rng_state(), state)
