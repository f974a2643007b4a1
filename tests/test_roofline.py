"""What a device can do at most, and the time that a step cannot go below."""

import pytest
from torch import nn

from bench.measure import roofline
from models.attention import SelfAttention
from tests.conftest import CPU


def test_vendors_peaks_by_name() -> None:
    assert roofline.vendor_peak("NVIDIA H200") == {"flops_per_second": 989.4e12, "bytes_per_second": 4800e9}
    nvl, sxm = roofline.vendor_peak("NVIDIA H100 NVL"), roofline.vendor_peak("NVIDIA H100 80GB HBM3")
    assert nvl and sxm and nvl["bytes_per_second"] == 3900e9 and sxm["bytes_per_second"] == 3350e9
    small, large = roofline.vendor_peak("NVIDIA A100-PCIE-40GB"), roofline.vendor_peak("NVIDIA A100-SXM4-80GB")
    assert small and large and small["bytes_per_second"] == 1555e9 and large["bytes_per_second"] == 2039e9
    for unknown in ("AMD EPYC 9B45", "NVIDIA L40", "NVIDIA GH200 480GB", "NVIDIA GeForce RTX 3090 Ti"):
        assert roofline.vendor_peak(unknown) is None
    assert roofline.vendor_peak("NVIDIA GeForce RTX 3090") == {"flops_per_second": 71e12, "bytes_per_second": 936e9}


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic() -> None:
    peak = {"fp32_flops_per_second": 10.0, "bf16_flops_per_second": 40.0, "bytes_per_second": 100.0}
    assert roofline.least_seconds(400, 100, peak, "bf16") == 10
    assert roofline.least_seconds(400, 100, peak, "fp32") == 40
    assert roofline.least_seconds(400, 3000, peak, "bf16") == 30


@pytest.mark.parametrize("size", [2, 4])
def test_least_bytes_by_hand(size: int) -> None:
    """A linear layer keeps its input for backward, and a GELU its own; what a linear layer keeps of its weight is counted there."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5), nn.GELU(), nn.Linear(5, 7), nn.Linear(7, 2))
    parameters = (48 * 5 + 5) + (5 * 7 + 7) + (7 * 2 + 2)
    activations = 2 * (48 + 5 + 5 + 7)
    assert roofline.least_bytes(network, 2, side=4, activation_bytes=size) == 10 * 4 * parameters + 2 * size * activations


def test_fused_attention_keeps_no_scores() -> None:
    """Its tokens, then queries, keys and values, which share a tensor, and what is projected."""
    network = nn.Sequential(nn.Flatten(2), SelfAttention(width=16, heads=2))
    parameters = 4 * 16**2 + 4 * 16
    images, tokens = 2, 3
    numbers = images * tokens * (16 + 3 * 16 + 16)
    assert roofline.least_bytes(network, images, side=4, activation_bytes=2) == 10 * 4 * parameters + 2 * 2 * numbers


def test_measured_peaks_are_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "seconds_of", lambda work, device: 0.05)
    peak = roofline.measured_peak(CPU)
    assert peak["fp32_flops_per_second"] == peak["bf16_flops_per_second"] == 2 * 2048**3 / 0.05
    assert peak["bytes_per_second"] == 2 * 4 * 2**26 / 0.05


def test_a_slow_type_is_not_measured_on_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores without bf16 units take a minute for the eight products that cores with them do in a second."""
    monkeypatch.setattr(roofline, "seconds_of", lambda work, device: 13.0)
    assert roofline.measured_peak(CPU)["bf16_flops_per_second"] == 2 * 256**3 / 13.0
