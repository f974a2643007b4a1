"""Parameters and multiply-adds, by two counters that must agree.

A multiply-add (MAC) is one multiplication with its addition; it is two FLOPs. Counted are convolutions and linear layers in one
forward pass of one image. Norms, activations, pooling and biases are left out on purpose: they are below 1 % here, and the
two counters define them differently.
"""

import copy

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_jit, linear_flop_jit
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_COUNTED = {"aten::_convolution": conv_flop_jit, "aten::linear": linear_flop_jit}
_LEFT_OUT = ("aten::layer_norm", "aten::gelu", "aten::mul", "aten::add_", "aten::adaptive_avg_pool2d")


class CostError(Exception):
    """The two counters disagree, or met an operator that none of them can count."""


def parameters(network: nn.Module) -> int:
    """The number of scalars in all parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, *, side: int = 32) -> int:
    """Count the multiply-adds of one forward pass on one ``[1, 3, side, side]`` image, by fvcore, checked against torch.

    Raises:
        CostError: fvcore met an operator without a handler, or torch's count is not exactly twice fvcore's.
    """
    network = copy.deepcopy(network).to("cpu", torch.float32).eval()
    image = torch.zeros(1, 3, side, side)
    counted = _by_fvcore(network, image)
    flops = _by_torch(network, image)
    if flops != 2 * counted:
        raise CostError(f"fvcore counts {counted} multiply-adds and torch {flops} FLOPs, which is not twice as many")
    return counted


def _by_fvcore(network: nn.Module, image: torch.Tensor) -> int:
    analysis = FlopCountAnalysis(network, image).clear_op_handles().set_op_handle(**_COUNTED, **dict.fromkeys(_LEFT_OUT))
    analysis.uncalled_modules_warnings(False)  # stochastic depth is not called in evaluation
    analysis.unsupported_ops_warnings(False)  # an error below, not a warning
    with torch.no_grad():
        total = int(analysis.total())
    if unknown := dict(analysis.unsupported_ops()):
        raise CostError(f"operators that no counter knows: {', '.join(sorted(unknown))}; give them a handler or leave them out")
    return total


def _by_torch(network: nn.Module, image: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return int(counter.get_total_flops())
