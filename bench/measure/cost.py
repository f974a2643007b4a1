"""Parameters and multiply-adds, by two counters that must agree.

A multiply-add (MAC) is one multiplication with its addition; it is two FLOPs. Counted are convolutions, linear layers and the two
products of attention in one forward pass of one image. Norms, activations, pooling, gates and biases are left out on purpose: they
are below 1 % here, and the two counters define them differently.
"""

import copy
import functools
import math
from collections import Counter
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_jit, get_shape, linear_flop_jit
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.engine import network as networks
from bench.experiment import Model
from models.attention import Gated
from models.convnext import SITES
from models.shapes import calls


def _attention_products(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Multiply-adds of Q K^T and A V, for Q [N, h, L, d], K [N, h, M, d], V [N, h, M, e]: N h L M (d + e)."""
    (images, heads, queries, width), keys, values = (get_shape(value) for value in inputs[:3])
    return Counter({"attention": images * heads * queries * keys[2] * (width + values[3])})


_COUNTED = {
    "aten::_convolution": conv_flop_jit,
    "aten::linear": linear_flop_jit,
    "aten::scaled_dot_product_attention": _attention_products,
}
# none of these is a product of weights and activations, or of activations in attention
_LEFT_OUT = (
    "aten::adaptive_avg_pool2d",
    "aten::add",
    "aten::add_",
    "aten::amax",
    "aten::gelu",
    "aten::layer_norm",
    "aten::mean",
    "aten::mul",
    "aten::sigmoid",
)


class CostError(Exception):
    """The two counters disagree, or met an operator that none of them can count."""


@functools.cache
def cost_of(model: Model, classes: int) -> dict[str, Any]:
    """The cost section of a record: parameters, what attention adds and sees, multiply-adds of one image at 32x32.

    Raises:
        CostError: the two counters disagree, or met an operator that none of them can count.
    """
    with torch.device("meta"):  # where no weights are drawn; what they are changes no count
        network = networks.build(model, classes=classes, seed=0)
    network.to_empty(device="cpu").eval()  # fvcore traces no network on meta
    return _cost(network, _agreed(network, side=32))


@functools.cache
def cost_again(model: Model, classes: int) -> dict[str, Any]:
    """The same for a comparison with records, in a tenth of the time: nothing is drawn or computed, and torch counts alone.

    That the counters agree was asked for when a record was made.
    """
    with torch.device("meta"):
        network = networks.build(model, classes=classes, seed=0).eval()
    return _cost(network, _by_torch(network, torch.zeros(1, 3, 32, 32)) // 2)


def _cost(network: nn.Module, multiply_adds: int) -> dict[str, Any]:
    return {
        "parameters": parameters(network),
        "attention_parameters": attention_parameters(network),
        "attention_maps": attention_maps(network),
        "multiply_adds": multiply_adds,
    }


def parameters(network: nn.Module) -> int:
    """The number of scalars in all parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def attention_parameters(network: nn.Module) -> int:
    """The number of scalars that inserted attention adds, gates included."""
    prefixes = tuple(f"features.{index}.attention." for index in SITES.values())
    return sum(parameter.numel() for name, parameter in network.named_parameters() if name.startswith(prefixes))


def attention_maps(network: nn.Module, *, side: int = 32) -> dict[str, list[int]]:
    """Height and width of the map that each inserted attention sees, by site, for images of ``side`` pixels."""
    sites = {f"features.{index}.attention": site for site, index in SITES.items()}
    seen = calls(network, Gated, side=side)
    return {sites[call.name]: list(call.gave[2:]) for call in seen}


def multiply_adds(network: nn.Module, *, side: int = 32) -> int:
    """Count the multiply-adds of one forward pass on one ``[1, 3, side, side]`` image, by fvcore, checked against torch.

    Raises:
        CostError: fvcore met an operator without a handler, or torch's count is not exactly twice fvcore's.
    """
    return _agreed(copy.deepcopy(network).to("cpu", torch.float32).eval(), side)


def _agreed(network: nn.Module, side: int) -> int:
    image = torch.zeros(1, 3, side, side)
    counted = _by_fvcore(network, image)
    flops = _by_torch(network, image)
    if flops != 2 * counted:
        raise CostError(f"fvcore counts {counted} multiply-adds and torch {flops} FLOPs, which is not twice as many")
    return counted


def training_flops(network: nn.Module, *, side: int = 32) -> int:
    """Count the FLOPs of a forward and a backward pass for one ``[1, 3, side, side]`` image, with all parameters training.

    It is three times the forward pass, one each for the outputs, the gradients of the inputs and those of the weights, less the
    gradient of the image, which nobody asks for. Counted by torch on the meta device, where attention is plain products. Torch's
    own formula for the backward pass of convolutions takes grouped ones as if they were not, and is replaced here.
    """
    network = copy.deepcopy(network).to("meta").train()
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        network(torch.zeros(1, 3, side, side, device="meta")).sum().backward()
    return int(counter.get_total_flops())


def _convolution_backward_flops(
    gradient: tuple[int, ...], inputs: tuple[int, ...], weight: tuple[int, ...], *rest: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Each gradient takes as many multiply-adds as the convolution; ``weight`` is ``[out, in / groups, k, k]``."""
    of_inputs, of_weight, _ = rest[-1]  # which gradients are asked for
    multiply_adds = math.prod(gradient) * math.prod(weight[1:])
    return 2 * multiply_adds * (int(of_inputs) + int(of_weight))


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
    # on the meta device nothing is computed, and attention is counted, which it is not on the CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(image.to("meta"))
    return int(counter.get_total_flops())
