"""What a device can do at most: its measured peak in matrix products and in copies, and the time that a step cannot go below.

Williams et al., "Roofline: an insightful visual performance model for multicore architectures", CACM 2009.
"""

import copy
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure.timing import seconds_of
from models.attention import ScaledDotProduct

# Dense bf16 peak in TFLOP/s and memory bandwidth in GB/s, from NVIDIA's data sheets; by words of the device's name.
VENDOR_PEAKS = {
    "H200": (989.4, 4800),
    "H200 NVL": (835.5, 4800),
    "H100 NVL": (835.5, 3900),
    "H100 PCIe": (756.5, 2000),
    "H100": (989.4, 3350),
    "A100 PCIE 40GB": (311.9, 1555),
    "A100 SXM4 40GB": (311.9, 1555),
    "A100 80GB PCIe": (311.9, 1935),
    "A100 SXM4 80GB": (311.9, 2039),
    "L40S": (362.1, 864),
    "L4": (121.0, 300),
    "RTX 4090": (165.2, 1008),
    "RTX 3090": (71.0, 936),
}
SLOW_PRODUCT = 0.1  # seconds of a product after which no larger one is timed; the largest takes a GPU 2 ms
_ADAMW_PASSES = 10  # over the fp32 parameters: weights read forward and backward, gradient written; read p, g, m, v, write p, m, v


def vendor_peak(device_name: str) -> dict[str, float] | None:
    """FLOP/s (dense bf16) and bytes per second that the vendor states, or None for a device not in the table."""
    for name, (teraflops, gigabytes) in VENDOR_PEAKS.items():
        # what follows may tell of the memory, but an RTX 3090 Ti is no RTX 3090
        if re.fullmatch(rf"(.* )?{name}( \d+GB)?( HBM\w*)?", device_name.replace("-", " ")):
            return {"flops_per_second": teraflops * 1e12, "bytes_per_second": gigabytes * 1e9}
    return None


def measured_peak(device: torch.device) -> dict[str, float]:
    """The best of several sizes: FLOP/s of square matrix products in fp32 and bf16, bytes per second of a copy.

    fp32 products take the path that is on (with TF32 on, TF32).
    """
    return {
        "fp32_flops_per_second": _product(torch.float32, device),
        "bf16_flops_per_second": _product(torch.bfloat16, device),
        "bytes_per_second": _copy(device),
    }


def _product(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s; the larger sizes, which are the faster ones, are left out where one takes long: a CPU without the type's units."""
    best = 0.0
    for size in (4096, 8192) if device.type == "cuda" else (256, 512, 1024, 2048):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = min(seconds_of(partial(torch.mm, a, b), device) for _ in range(4))
        best = max(best, 2 * size**3 / seconds)
        if seconds > SLOW_PRODUCT:
            break
    return best


def _copy(device: torch.device) -> float:
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    seconds = min(seconds_of(lambda: target.copy_(source), device) for _ in range(4))
    return 2 * source.numel() * source.element_size() / seconds  # read and written


def least_bytes(network: nn.Module, batch_size: int, *, activation_bytes: int, side: int = 32) -> int:
    """A lower bound on the bytes that a training step moves: the parameters' passes, and what backward needs, written and read.

    Counted on the meta device. Caches can only save of what is not counted.

    Args:
        activation_bytes: of one number that is kept for the backward pass: 2 in bf16, 4 in fp32.
    """
    network = copy.deepcopy(network).to("meta").train()
    weights = {_memory(parameter) for parameter in network.parameters()}  # a linear layer keeps its weight's transpose, a view
    for layer in network.modules():
        if isinstance(layer, ScaledDotProduct):  # keeps its three inputs and no scores, as a fused operator does
            layer.forward = lambda queries, keys, values: queries * keys + values**2  # type: ignore[method-assign]
    kept: dict[int, set[Tensor]] = {}  # by the memory that they share: queries, keys and values lie in one tensor

    def note(tensor: Tensor) -> Any:
        if tensor.is_floating_point() and _memory(tensor) not in weights:
            kept.setdefault(_memory(tensor), set()).add(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(torch.zeros(batch_size, 3, side, side, device="meta"))
    saved = sum(
        min(sum(tensor.numel() for tensor in tensors), next(iter(tensors)).untyped_storage().nbytes() // 4)
        for tensors in kept.values()
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return _ADAMW_PASSES * 4 * parameters + 2 * activation_bytes * saved


def _memory(tensor: Tensor) -> int:
    identity: int = tensor.untyped_storage()._cdata
    return identity


def least_seconds(flops: float, bytes_moved: float, peak: dict[str, float], precision: str) -> float:
    """The roofline: whichever takes longer, the arithmetic at the measured peak or the traffic at the measured bandwidth."""
    best = (
        max(peak["fp32_flops_per_second"], peak["bf16_flops_per_second"]) if precision == "bf16" else peak["fp32_flops_per_second"]
    )
    return max(flops / best, bytes_moved / peak["bytes_per_second"])
