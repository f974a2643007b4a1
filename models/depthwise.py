"""Depthwise convolution on small maps: as a convolution, with a faster weight gradient, as a matrix product, or in our kernels.

A k x k depthwise convolution with stride 1 and padding (k - 1) / 2 maps every channel c of an h x h map to itself:

    y[n, c, p] = b[c] + sum over q of w[c, q - p + (k - 1) / 2] x[n, c, q]

where p and q are positions (row and column), and w is zero outside of its k x k taps. ConvNeXt has k = 7, and on 32x32 images maps
of side 8, 4, 2 and 1: most taps then fall outside of the map, and libraries made for large maps spend their time on them. The
methods compute the same function of the same parameters, to rounding, with the same gradients; taps that never meet the map get a
gradient of zero.

- ``convolution``: the library's. The reference, and the one whose multiply-adds are reported.
- ``pairs``: the library's convolution forward, and for the gradient of x (a convolution of the output's gradient with the mirrored
  kernel); the gradient of w is summed from the h^2 x h^2 products of positions, g[n, c, p] x[n, c, q] over n, each of which belongs
  to the tap q - p. On two CPU cores (AVX-512, fp32, batch 128) the backward pass falls from 14.8 ms to 0.3 on a 1x1 map with 768
  channels, from 2.7 to 0.4 on a 2x2 map with 384, from 4.7 to 1.6 on a 4x4 map with 192, from 9.8 to 6.0 on an 8x8 map with 96.
- ``matrix``: a product with the h^2 x h^2 matrix M[c, p, q] = w[c, q - p + (k - 1) / 2], gathered from the taps.
- ``triton``: kernels for CUDA, :mod:`models.depthwise_triton`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.shapes import Call

Method = Literal["convolution", "pairs", "matrix", "triton"]
Computation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of x, weight, bias and joining taps
LARGEST_SIDE = 8  # pixels, for products of positions; on larger maps these outnumber the taps' by far
LARGEST_TRITON_SIDE = 16  # a row of a map lies in registers
FEW_PAIRS = 2  # up to this side all products at once take less time than the transposes before a matrix product


def methods_for(side: int, device: torch.device) -> tuple[Method, ...]:
    """The methods worth trying on square maps of ``side``, the reference first.

    ``pairs`` is for CPUs: with a launch for each position it was never the fastest on a GPU.
    """
    if device.type == "cpu":
        return ("convolution", "pairs", "matrix") if side <= LARGEST_SIDE else ("convolution",)
    by_triton = side <= LARGEST_TRITON_SIDE and triton_works()
    return ("convolution", *(("matrix",) if side <= LARGEST_SIDE else ()), *(("triton",) if by_triton else ()))


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that computes by the method chosen for its map's side; parameters and names are ``nn.Conv2d``'s.

    Sides that ``methods`` does not name, and maps that are not square, take the convolution.
    """

    methods: Mapping[int, Method]
    computations: Mapping[int, Computation]
    joining_taps: Mapping[int, Tensor]  # from :func:`tap_indices`; all by side

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C, H, W]``."""
        _, _, height, width = x_NCHW.shape
        if height != width or height not in self.computations:
            return super().forward(x_NCHW)
        bias = self.bias if self.bias is not None else self.weight.new_zeros(self.out_channels)
        return self.computations[height](x_NCHW, self.weight, bias, self.joining_taps[height])


def use_methods(network: nn.Module, methods: Mapping[int, Method]) -> int:
    """Let every depthwise convolution of ``network`` that keeps its map's size compute by ``methods``, in place.

    Parameters, their names and their values stay as they are; an empty ``methods`` is the reference.

    Args:
        network: on the device where it will compute.
        methods: from the side of a square map to the method.

    Returns:
        How many convolutions compute by it.
    """
    found = [module for module in network.modules() if isinstance(module, nn.Conv2d) and _fits(module)]
    for convolution in found:
        convolution.__class__ = DepthwiseConv2d  # the state of the two classes is the same but for ``methods``
        kernel, device = convolution.kernel_size[0], convolution.weight.device
        convolution.methods = dict(methods)  # type: ignore[assignment]
        convolution.computations = {  # type: ignore[assignment]
            side: _COMPUTATIONS[method] for side, method in methods.items() if method != "convolution"
        }
        convolution.joining_taps = {side: tap_indices(side, kernel, device) for side in methods}  # type: ignore[assignment]
    return len(found)


def depthwise_maps(seen: Iterable[Call]) -> set[tuple[int, int]]:
    """Side and channels of every square map that a fitting depthwise convolution sees, among the calls of a network's."""
    shapes = [call.gave for call in seen if isinstance(call.layer, nn.Conv2d) and _fits(call.layer)]
    return {(columns, channels) for _, channels, _, columns in shapes}


# One function for all convolutions of a network: a compiler takes them for the same code.


def _by_pairs(x_NCHW: Tensor, weight: Tensor, bias: Tensor, joining_taps: Tensor) -> Tensor:
    x_NCHW, weight, bias = _as_autocast_would(x_NCHW, weight, bias)
    return _Pairs.apply(x_NCHW, weight, bias, joining_taps)  # type: ignore[no-any-return, no-untyped-call]


def _by_matrix(x_NCHW: Tensor, weight: Tensor, bias: Tensor, joining_taps: Tensor) -> Tensor:
    x_NCHW, weight, bias = _as_autocast_would(x_NCHW, weight, bias)
    return _matrix_product(x_NCHW, weight, bias, joining_taps)


def _by_triton(x_NCHW: Tensor, weight: Tensor, bias: Tensor, joining_taps: Tensor) -> Tensor:
    from models.depthwise_triton import tiles  # here: Triton is not on every system

    (x_NCHW,) = _as_autocast_would(x_NCHW)  # weight and bias are read as they are
    return tiles(x_NCHW, weight, bias)


_COMPUTATIONS: dict[Method, Computation] = {"pairs": _by_pairs, "matrix": _by_matrix, "triton": _by_triton}


def triton_works() -> bool:
    """Whether kernels in Triton compile and run on this machine's GPU."""
    try:
        from models.depthwise_triton import works
    except ImportError:
        return False
    return works()


def _fits(convolution: nn.Conv2d) -> bool:
    side = convolution.kernel_size[0]
    return (
        convolution.groups == convolution.in_channels == convolution.out_channels
        and convolution.kernel_size == (side, side)
        and side % 2 == 1
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.padding == (side // 2, side // 2)
        and convolution.padding_mode == "zeros"
    )


def _as_autocast_would(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to the lower precision that is on for convolutions, if one is."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


# ---- pairs -------------------------------------------------------------------------------------------------------------


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight: Tensor, bias: Tensor, joining_taps: Tensor) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight, joining_taps)
        return functional.conv2d(x_NCHW, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NCHW,) = gradients
        x_NCHW, weight, joining_taps = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        mirrored = weight.flip(2, 3)
        return (
            functional.conv2d(gradient_NCHW, mirrored, None, padding=weight.shape[-1] // 2, groups=len(weight)) if of_x else None,
            weight_gradient(x_NCHW, gradient_NCHW, weight, joining_taps) if of_weight else None,
            gradient_NCHW.sum((0, 2, 3)) if of_bias else None,
            None,
        )


def weight_gradient(x_NCHW: Tensor, gradient_NCHW: Tensor, weight: Tensor, joining_taps: Tensor) -> Tensor:
    """The gradient of the ``[C, 1, k, k]`` weight from the products of positions, summed in fp32 at least."""
    wide = torch.promote_types(x_NCHW.dtype, torch.float32)
    products_CPQ = _position_products(gradient_NCHW, x_NCHW, wide)
    # a product with zeros and ones adds up each tap's pairs: one kernel, in an order that never changes
    taps = torch.arange(weight.shape[-1] ** 2, device=weight.device)
    belongs = (joining_taps.flatten()[:, None] == taps).to(wide)  # [P Q, taps]
    return (products_CPQ.flatten(1) @ belongs).reshape(weight.shape).to(weight.dtype)


def _position_products(g_NCHW: Tensor, x_NCHW: Tensor, wide: torch.dtype) -> Tensor:
    """``[C, h^2, h^2]``: each position of g with each of x, multiplied in ``wide`` and summed over the images."""
    n, channels, side, _ = x_NCHW.shape
    g_BC, x_BC = (map_.permute(0, 2, 3, 1).reshape(n * side**2, channels) for map_ in (g_NCHW, x_NCHW))
    if side <= FEW_PAIRS:
        g_NPC, x_NQC = (map_.to(wide).view(n, side**2, channels) for map_ in (g_BC, x_BC))
        return (g_NPC[:, :, None] * x_NQC[:, None]).sum(0).permute(2, 0, 1)
    # two axes transposed and cast in one copy: of all ways the fastest by far
    g_CB, x_CB = (map_.new_empty(map_.mT.shape, dtype=wide).copy_(map_.mT) for map_ in (g_BC, x_BC))
    return g_CB.view(channels, n, -1).mT @ x_CB.view(channels, n, -1)


# ---- matrix ------------------------------------------------------------------------------------------------------------


def _matrix_product(x_NCHW: Tensor, weight: Tensor, bias: Tensor, joining_taps: Tensor) -> Tensor:
    """One product per channel, ``[N, h^2] x [h^2, h^2]``."""
    n, channels, side, _ = x_NCHW.shape
    taps = functional.pad(weight.flatten(1), (0, 1))  # [C, k^2 + 1]: the last column stands for all taps outside
    matrix_CPQ = taps.index_select(1, joining_taps.flatten()).view(channels, side * side, side * side)
    x_CNQ = x_NCHW.permute(1, 0, 2, 3).reshape(channels, n, side * side)
    y_CNP = torch.baddbmm(bias[:, None, None], x_CNQ, matrix_CPQ.mT)
    return y_CNP.view(channels, n, side, side).permute(1, 0, 2, 3)


def tap_indices(side: int, kernel: int, device: torch.device) -> Tensor:
    """``[side^2, side^2]``: from an output and an input position to the tap that joins them, ``kernel^2`` where none does."""
    offsets = torch.arange(side)[None, :] - torch.arange(side)[:, None] + kernel // 2  # [output, input] along one axis
    inside = (offsets >= 0) & (offsets < kernel)
    taps = offsets[:, None, :, None] * kernel + offsets[None, :, None, :]
    joined = inside[:, None, :, None] & inside[None, :, None, :]
    return torch.where(joined, taps, kernel**2).reshape(side**2, side**2).to(device)
