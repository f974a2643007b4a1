"""bf16 on processors without bf16 units: operands rounded to bf16, products summed in fp32, results rounded to bf16.

That is what the units themselves do, so that the two differ only in the order of fp32 sums. Libraries emulate the missing
instructions one by one instead: on two such cores a training step of ConvNeXt-Tiny takes three times as long in bf16 as in fp32.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from models.attention import attention_products
from models.depthwise import matrix_product, pairs

_COMPUTED_IN_FP32 = (torch.conv2d, functional.scaled_dot_product_attention, attention_products, pairs, matrix_product)


class Bf16InFp32(TorchFunctionMode):
    """While it is on, linear layers, convolutions and attention compute in fp32 on operands rounded to bf16, and give bf16.

    It stands where autocast casts operands to bf16, so it wraps an autocast region.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func in _COMPUTED_IN_FP32:
            with torch.autocast("cpu", enabled=False):
                rounded = {name: _rounded(value) for name, value in kwargs.items()}
                return func(*map(_rounded, args), **rounded).bfloat16()
        return func(*args, **kwargs)


def _rounded(value: Any) -> Any:
    """The nearest bf16 values, held in fp32; anything but a tensor of floats stays as it is."""
    return value.bfloat16().float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _Linear.apply(input, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


class _Linear(torch.autograd.Function):
    """Autograd through :func:`_rounded` would round the fp32 weight gradient to bf16 and back: two passes over all weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x, weight = _rounded(x), _rounded(weight)
            ctx.save_for_backward(x, weight)
            return functional.linear(x, weight, _rounded(bias)).bfloat16()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradients[0].float().flatten(0, -2)
        return (
            (rows @ weight).bfloat16().view_as(x) if of_x else None,
            rows.mT @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
