"""Parameters and multiply-adds against arithmetic done by hand."""

import pytest
import torch
from torch import nn

from bench.measure import cost
from models import convnext, convnext_tiny


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
