"""Blocks of ConvNeXt, ViT and Mixer in few kernels, for CUDA: same parameters, same function to rounding, same gradients.

At 32x32 a GPU waits for launches more than for arithmetic. Between the matrix products, most of which stay the library's, a block's
operators are few kernels of :mod:`models.fused_triton` and :mod:`models.products_triton`; its backward pass is written out, so that
gradients of parameters can be computed beside it (:mod:`models.beside`). Weights are rounded to the lower precision together, once
in a forward pass. On an H100 a step of ConvNeXt-Tiny in bf16, batch 128, takes half the time of the same step layer by layer (both
in a graph).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import ConvNeXt
from torchvision.models.convnext import CNBlock, LayerNorm2d

from models import fused_triton as kernels
from models import mixer, vit
from models import products_triton as products
from models.attention import SelfAttention
from models.beside import gradients_of
from models.depthwise_triton import gradient_of_map, taps_of, weight_gradients
from models.patches import takes_patches
from models.rounding import Rounding, lowered, product_dtype


def fuse(network: nn.Module) -> nn.Module:
    """Let the blocks of ``network`` compute in few kernels, in place; parameters, their names and their values stay.

    Args:
        network: on the device where it will compute, and from then on it stays there. It cannot be copied any more, and all
            parameters of a block train, or none does.
    """
    layers: list[Any] = []
    for module in list(network.modules()):
        if isinstance(module, CNBlock):
            module.__class__ = _ConvNextBlock
            layers += [module.block[3], module.block[5]]
        elif isinstance(module, LayerNorm2d) and module is not _last_norm(network):
            module.__class__ = _MapNorm
        elif isinstance(module, nn.Conv2d) and takes_patches(module):
            module.__class__ = _Patches
            layers.append(module)
        elif isinstance(module, SelfAttention):
            module.__class__ = _SelfAttention
            layers += [module.qkv, module.projection]
        elif isinstance(module, vit.Block | mixer.Block):
            layers += [layer for mlp in _mlps(module) for layer in (mlp[0], mlp[2])]
    if isinstance(network, vit.VisionTransformer):
        network.blocks.__class__ = _VitBlocks
    if isinstance(network, mixer.MlpMixer):
        network.blocks.__class__ = _MixerBlocks
    if isinstance(network, ConvNeXt):  # what a map is normalised for: convolutions in the lower precision, or blocks
        for index in (2, 4, 6):
            network.features[index][0].feeds_products = True
    Rounding(network, [parameter for layer in layers for parameter in (layer.weight, layer.bias)])
    return network


def _last_norm(network: nn.Module) -> nn.Module | None:
    return network.classifier[0] if isinstance(network, ConvNeXt) else None


def _mlps(block: nn.Module) -> list[nn.Sequential]:
    return [child for child in block.children() if isinstance(child, nn.Sequential)]


# ---- linear --------------------------------------------------------------------------------------------------------------


def _linear(x: Tensor, layer: Any, *, biased: bool = True) -> Tensor:
    """The layer's product over the last axis; a convolution's weight ``[out, C, k, k]`` takes patches in rows of ``k k C``.

    Args:
        biased: else the layer's bias is for the caller to add.
    """
    weight = lowered(layer.weight)
    bias = (layer.bias, lowered(layer.bias)) if biased else (None, None)
    if weight.ndim == 4:
        weight = weight.permute(0, 2, 3, 1).flatten(1)
    return _Linear.apply(x.to(weight.dtype), layer.weight, bias[0], weight, bias[1])  # type: ignore[no-untyped-call, no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: nn.Parameter, bias: nn.Parameter | None, rounded: Tensor, rounded_bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, rounded)
        ctx.parameters = weight, bias
        return functional.linear(x, rounded, rounded_bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g = gradients[0].contiguous()
        x, rounded = ctx.saved_tensors
        weight, bias = ctx.parameters
        of_x, of_weight, *_ = ctx.needs_input_grad
        found: Sequence[Tensor | None] = (None, None)
        if of_weight and bias is None:
            found = (*gradients_of((weight,), lambda: (_outer(g, x, weight),), (g, x)), None)
        elif of_weight:
            found = gradients_of((weight, bias), lambda: (_outer(g, x, weight), kernels.column_sums(g.flatten(0, -2))), (g, x))
        return (g @ rounded if of_x else None), *found, None, None


class _Mlp(torch.autograd.Function):
    """``gelu(x W1^T + b1) W2^T``; ``b2`` is for the caller to add."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: nn.Parameter, bias: nn.Parameter, second: nn.Parameter, up: Tensor, up_bias: Tensor,
        down: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.parameters = first, bias, second
        if x.dtype == torch.bfloat16:
            hidden, active = products.product_gelu(x.contiguous(), up, up_bias)
        else:  # products in full precision are the library's
            hidden = functional.linear(x, up, up_bias)
            active = functional.gelu(hidden)
        ctx.save_for_backward(x, hidden, active, up, down)
        return functional.linear(active, down)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g = gradients[0].contiguous()
        x, hidden, active, up, down = ctx.saved_tensors
        first, bias, second = ctx.parameters
        of_x, of_weights = ctx.needs_input_grad[:2]
        of_second: Sequence[Tensor | None] = (None,)
        of_first: Sequence[Tensor | None] = (None, None)
        if of_weights:
            of_second = gradients_of((second,), lambda: (_outer(g, active, second),), (g, active))
        if x.dtype == torch.bfloat16:
            of_hidden, shares = products.product_gelu_backward(g, down, hidden)
        else:
            of_hidden = torch.ops.aten.gelu_backward(g @ down, hidden)
            shares = of_hidden.flatten(0, -2)
        if of_weights:
            of_first = gradients_of(
                (first, bias), lambda: (_outer(of_hidden, x, first), kernels.column_sums(shares)), (of_hidden, x, shares)
            )
        return of_hidden @ up if of_x else None, *of_first, *of_second, None, None, None


def _mlp(x: Tensor, first: Any, second: Any) -> Tensor:
    """Two linear layers with GELU between them, but for the bias of the second."""
    parameters = first.weight, first.bias, second.weight
    rounded = [lowered(parameter) for parameter in parameters]
    return _Mlp.apply(x.to(rounded[0].dtype), *parameters, *rounded)  # type: ignore[no-untyped-call, no-any-return]


def _outer(g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight, in its own shape and precision; it is not rounded to that of the operands."""
    g_RD, x_RC = g.flatten(0, -2), x.flatten(0, -2)
    if g_RD.is_cuda and g_RD.dtype != weight.dtype:
        product = torch.mm(g_RD.t(), x_RC, out_dtype=weight.dtype)
    else:
        product = (g_RD.t() @ x_RC).to(weight.dtype)
    if weight.ndim == 4:
        width, channels, k, _ = weight.shape
        return product.view(width, k, k, channels).permute(0, 3, 1, 2)
    return product


# ---- norms ---------------------------------------------------------------------------------------------------------------


class _Norm(torch.autograd.Function):
    """From x and what a branch adds to it, ``added + added_bias`` (or None), to ``LN`` of the sum, and the sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor | None, added_bias: nn.Parameter | None, weight: nn.Parameter, bias: nn.Parameter,
        eps: float, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        added = added if added is None else added.contiguous()
        h, total = kernels.norm(x.contiguous(), added, added_bias, weight, bias, eps, dtype)
        ctx.save_for_backward(total)
        ctx.parameters, ctx.eps, ctx.added = (weight, bias, added_bias), eps, None if added is None else added.dtype
        return h, total if added is not None else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        weight, bias, added_bias = ctx.parameters
        of_x, _, of_added_bias, of_weight, *_ = ctx.needs_input_grad
        of_h, of_total = gradients
        copy = ctx.added if ctx.added not in (None, x.dtype) else None
        dx, copied, shares = _of_norm(of_h, x, weight, ctx.eps, of_total, x.dtype, copy)
        norms = (weight, bias) if of_weight else (None, None)
        found = _of_columns(shares, (*norms, added_bias if of_added_bias else None))
        of_added = None if ctx.added is None else dx if copied is None else copied
        return dx if of_x else None, of_added, found[2], *found[:2], None, None


def _of_norm(
    of_h: Tensor, x: Tensor, weight: Tensor, eps: float, of_x: Tensor | None, dtype: torch.dtype, copy: torch.dtype | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    of_x = of_x if of_x is None else of_x.contiguous()
    return kernels.norm_backward(of_h.contiguous(), x, weight, eps, of_x, dtype, copy)


def _of_columns(shares: Tensor, parameters: Sequence[nn.Parameter | None]) -> list[Tensor | None]:
    """The sums of shares ``[S, P C]`` as gradients of P parameters of C numbers; None where one has none."""
    wanted = [parameter for parameter in parameters if parameter is not None]
    if not wanted:
        return [None] * len(parameters)

    def compute() -> list[Tensor]:
        sums = kernels.column_sums(shares).chunk(len(shares[0]) // wanted[0].numel())
        return [sum_.view_as(parameter) for sum_, parameter in zip(sums, parameters, strict=False) if parameter is not None]

    found = iter(gradients_of(wanted, compute, (shares,)))
    return [None if parameter is None else next(found) for parameter in parameters]


def _normed(
    x: Tensor, added: Tensor | None, added_bias: nn.Parameter | None, norm: Any, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    return _Norm.apply(x, added, added_bias, norm.weight, norm.bias, norm.eps, dtype or product_dtype(x))  # type: ignore[no-untyped-call, no-any-return]


class _MapNorm(LayerNorm2d):  # type: ignore[misc]
    feeds_products = False  # then it gives out the lower precision, else what autocast gives

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        dtype = product_dtype(x_NCHW) if self.feeds_products else kernels.wide(x_NCHW.dtype)
        return _normed(x_NHWC, None, None, self, dtype)[0].permute(0, 3, 1, 2)


class _Patches(nn.Conv2d):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        k = self.kernel_size[0]
        n, channels, height, width = x_NCHW.shape
        rows, columns = height // k, width // k
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)[:, : rows * k, : columns * k]
        patches = x_NHWC.reshape(n, rows, k, columns, k, channels).transpose(2, 3)
        patches = patches.to(product_dtype(x_NCHW), memory_format=torch.contiguous_format)
        return _linear(patches.reshape(n, rows, columns, k * k * channels), self).permute(0, 3, 1, 2)


# ---- ConvNeXt ------------------------------------------------------------------------------------------------------------


class _ConvNextBlock(CNBlock):  # type: ignore[misc]
    def forward(self, x_NCHW: Tensor) -> Tensor:
        convolution, _, norm, widening, _, narrowing, _ = self.block
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        dtype = product_dtype(x_NCHW)
        h, x_NHWC = _MixedNorm.apply(x_NHWC, convolution.weight, convolution.bias, norm.weight, norm.bias, norm.eps, dtype)  # type: ignore[no-untyped-call]
        branch = _mlp(h, widening, narrowing)
        factor = getattr(self.stochastic_depth, "factor", None) if self.training else None
        total = _ScaledSum.apply(x_NHWC, branch, narrowing.bias, self.layer_scale, factor)  # type: ignore[no-untyped-call]
        return total.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class _MixedNorm(torch.autograd.Function):
    """From x ``[N, H, H, C]`` to the norm of its depthwise convolution, and x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: nn.Parameter, bias: nn.Parameter, gain: nn.Parameter, offset: nn.Parameter, eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        assert x.shape[1] == x.shape[2], "the kernels are for square maps"
        x = x.contiguous()
        taps_TC = taps_of(weight, x.shape[1])
        y, h = kernels.mixed_norm(x, taps_TC, bias, gain, offset, eps, dtype)
        ctx.save_for_backward(x, y, taps_TC)
        ctx.parameters, ctx.eps = (weight, bias, gain, offset), eps
        return h, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, taps_TC = ctx.saved_tensors
        weight, bias, gain, offset = ctx.parameters
        of_x, of_weight, _, of_gain, *_ = ctx.needs_input_grad
        of_h, of_total = gradients
        of_y, _, shares = _of_norm(of_h, y, gain, ctx.eps, None, y.dtype, None)
        dx = None
        if of_x:
            of_total = of_total if of_total is None else of_total.contiguous()
            dx = gradient_of_map(of_y, taps_TC, of_total, x.dtype)
        of_taps: Sequence[Tensor | None] = (None, None)
        if of_weight:
            of_taps = gradients_of((weight, bias), lambda: weight_gradients(x, of_y, weight), (x, of_y))
        of_norm = _of_columns(shares, (gain, offset) if of_gain else (None, None))
        return dx, *of_taps, *of_norm, None, None


class _ScaledSum(torch.autograd.Function):
    """``x + factor scale (branch + bias)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, bias: nn.Parameter, scale: nn.Parameter, factor: Tensor | None) -> Tensor:
        ctx.save_for_backward(branch, factor)
        ctx.parameters = scale, bias
        return kernels.scaled_sum(x.contiguous(), branch.contiguous(), bias, scale, factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        branch, factor = ctx.saved_tensors
        scale, bias = ctx.parameters
        of_x, of_branch, of_bias, of_scale, _ = ctx.needs_input_grad
        g = gradients[0].contiguous()
        found, shares = kernels.scaled_sum_backward(g, branch, bias, scale, factor)
        for_scale, for_bias = _of_columns(shares, (scale if of_scale else None, bias if of_bias else None))
        return g if of_x else None, found if of_branch else None, for_bias, for_scale, None


# ---- ViT and Mixer -------------------------------------------------------------------------------------------------------


class _SelfAttention(SelfAttention):
    def forward(self, tokens: Tensor) -> Tensor:
        return _linear(_mixed(self, tokens), self.projection)


def _mixed(attention: SelfAttention, tokens: Tensor) -> Tensor:
    """Self-attention up to its projection."""
    qkv = _linear(tokens, attention.qkv)
    width = qkv.shape[2] // 3 // attention.heads
    if qkv.dtype == torch.bfloat16 and products.attends(tokens.shape[1], width, qkv.device):  # in fp32 the library's is faster
        return _Attention.apply(qkv, attention.heads)  # type: ignore[no-untyped-call, no-any-return]
    mixed = attention.mixing(*qkv.reshape(*qkv.shape[:2], 3, attention.heads, -1).permute(2, 0, 3, 1, 4).unbind())
    return mixed.transpose(1, 2).flatten(2)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.heads = heads
        return products.attention(qkv.contiguous(), heads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (qkv,) = ctx.saved_tensors
        return products.attention_backward(gradients[0].contiguous(), qkv, ctx.heads), None


# Tokens ``[N, L, C]``, what is to be added to them first, and a bias for all of them: given to a block, and given on to the next.
_Added = tuple[Tensor, Tensor | None, nn.Parameter | None]


def _vit_block(block: Any, tokens: Tensor, added: Tensor | None, bias: nn.Parameter | None) -> _Added:
    h, tokens = _normed(tokens, added, bias, block.attention_norm)
    projection = block.attention.projection
    mixed = _linear(_mixed(block.attention, h), projection, biased=False)
    h, tokens = _normed(tokens, mixed, projection.bias, block.mlp_norm)
    return tokens, _mlp(h, block.mlp[0], block.mlp[2]), block.mlp[2].bias


def _mixer_block(block: Any, tokens: Tensor, added: Tensor | None, bias: nn.Parameter | None) -> _Added:
    h, tokens = _normed(tokens, added, bias, block.token_norm)
    mixed = _linear(functional.gelu(_linear(h.transpose(1, 2).contiguous(), block.token_mlp[0])), block.token_mlp[2])
    h, tokens = _normed(tokens, mixed.transpose(1, 2), None, block.channel_norm)
    return tokens, _mlp(h, block.channel_mlp[0], block.channel_mlp[2]), block.channel_mlp[2].bias


class _Blocks(nn.Sequential):
    """What a block adds to its tokens is added by the first kernel of the next."""

    one: Callable[[Any, Tensor, Tensor | None, nn.Parameter | None], _Added]

    def forward(self, tokens: Tensor) -> Tensor:
        added: Tensor | None = None
        bias: nn.Parameter | None = None
        for block in self:
            tokens, added, bias = self.one(block, tokens, added, bias)
        return tokens if added is None or bias is None else tokens + (added + bias)


class _VitBlocks(_Blocks):
    one = staticmethod(_vit_block)


class _MixerBlocks(_Blocks):
    one = staticmethod(_mixer_block)
