"""Parameters and multiply-adds against arithmetic done by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bench.experiment import Model
from bench.measure import cost
from models import convnext
from models.convnext import convnext_tiny
from models.description import Attention
from models.mixer import mixer
from models.vit import vit


def by_hand(stem: convnext.Stem, classes: int) -> int:
    """Multiply-adds of ConvNeXt-Tiny at 32x32: stem, then per stage its downsampling and blocks, then the classifier."""
    side = {"default": 8, "cifar": 16}[stem]
    total = side**2 * 96 * 3 * 4 * 4
    for stage, (width, depth) in enumerate(zip((96, 192, 384, 768), (3, 3, 9, 3), strict=True)):
        if stage:
            side //= 2
            total += side**2 * width * (width // 2) * 2 * 2
        total += depth * side**2 * (width * 49 + 2 * width * 4 * width)
    return total + 768 * classes


@pytest.mark.parametrize(("stem", "expected"), [("default", 90_990_336), ("cifar", 363_730_944)])
def test_convnext_tiny(stem: convnext.Stem, expected: int) -> None:
    network = convnext_tiny(classes=100, stem=stem)
    assert cost.multiply_adds(network) == by_hand(stem, 100) == expected
    assert cost.parameters(network) == 27_897_028


def attention_by_hand(width: int, tokens: int) -> int:
    """Four linear maps of each token, and two products with every other token."""
    return tokens * 4 * width**2 + 2 * tokens**2 * width


@pytest.mark.parametrize(
    ("model", "parameters", "added", "maps", "multiply_adds"),
    [
        (
            Model(attention=Attention("mhsa", heads=4), sites=("P2",)),
            28_045_637,
            148_609,
            {"P2": [4, 4]},
            attention_by_hand(192, 16),
        ),
        (
            Model(attention=Attention("mhsa", heads=4), sites=("P3",)),
            28_489_157,
            592_129,
            {"P3": [2, 2]},
            attention_by_hand(384, 4),
        ),
        (
            Model(attention=Attention("mhsa", heads=8), sites=("P2", "P3"), stem="cifar"),
            28_637_766,
            740_738,
            {"P2": [8, 8], "P3": [4, 4]},
            attention_by_hand(192, 64) + attention_by_hand(384, 16),
        ),
        (Model(attention=Attention("se"), sites=("P3",)), 27_915_461, 18_433, {"P3": [2, 2]}, 2 * 384 * 24),
        (Model(attention=Attention("eca"), sites=("P3",)), 27_897_034, 6, {"P3": [2, 2]}, 384 * 5),
        (Model(attention=Attention("cbam"), sites=("P3",)), 27_915_559, 18_531, {"P3": [2, 2]}, 2 * 2 * 384 * 24 + 4 * 2 * 49),
        (Model(attention=Attention("spatial"), sites=("P3",)), 27_897_127, 99, {"P3": [2, 2]}, 4 * 2 * 49),
    ],
    ids=lambda value: value.attention.kind if isinstance(value, Model) and value.attention else None,
)
def test_attention(model: Model, parameters: int, added: int, maps: dict[str, list[int]], multiply_adds: int) -> None:
    assert model.stem is not None
    assert cost.cost_of(model, 100) == {
        "parameters": parameters,
        "attention_parameters": added,
        "attention_maps": maps,
        "multiply_adds": by_hand(model.stem, 100) + multiply_adds,
    }


@pytest.mark.parametrize(
    ("family", "parameters", "multiply_adds"),
    [("vit_tiny", 5_380_132, 365_124_864), ("mixer_tiny", 3_160_612, 255_412_992), ("matched_vit", 28_042_620, 1_858_107_680)],
)
def test_token_models(family: Any, parameters: int, multiply_adds: int) -> None:
    assert cost.cost_of(Model(family=family, stem=None), 100) == {
        "parameters": parameters,
        "attention_parameters": 0,
        "attention_maps": {},
        "multiply_adds": multiply_adds,
    }


def test_an_operator_that_no_counter_knows_stops_the_count() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).real

    with pytest.raises(cost.CostError, match=r"operators that no counter knows: aten::fft_fft"):
        cost.multiply_adds(Odd())


def test_counters_that_disagree_stop_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cost._COUNTED, "aten::linear", lambda inputs, outputs: {"linear": 1})
    with pytest.raises(cost.CostError, match="not twice as many"):
        cost.multiply_adds(convnext_tiny(classes=10))


@pytest.mark.parametrize(
    ("network", "stem"),
    [
        (lambda: convnext_tiny(classes=100), 8 * 8 * 96 * 48),
        (lambda: convnext_tiny(classes=100, stem="cifar", attention={"P2": Attention("mhsa", heads=4)}), 16 * 16 * 96 * 48),
        (lambda: convnext_tiny(classes=100, attention={"P3": Attention("cbam")}), 8 * 8 * 96 * 48),
        (lambda: vit(classes=100), 8 * 8 * 192 * 48),
        (lambda: mixer(classes=100), 8 * 8 * 192 * 48),
    ],
    ids=["convnext", "mhsa", "cbam", "vit", "mixer"],
)
def test_training_is_three_forward_passes_less_the_gradient_of_the_image(network: Callable[[], nn.Module], stem: int) -> None:
    built = network()
    assert cost.training_flops(built) == 2 * (3 * cost.multiply_adds(built) - stem)
