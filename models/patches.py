"""Convolutions over patches that do not overlap, as linear layers.

A k x k convolution with stride k and no padding gives each k x k patch of the map one output, a linear function of its pixels:

    y[n, :, i, j] = b + W x[n, :, ki : ki + k, kj : kj + k]        W [out, in * k^2], the convolution's own weight

ConvNeXt's default stem and its three downsampling layers are of this kind, and so are the patch embeddings of ViT and Mixer. As one
matrix product the function, the parameters and, to rounding, all gradients are the same. Libraries take their general way through
the backward pass of a convolution, which on small maps is far slower: on two CPU cores (AVX2, fp32, batch 128) forward and backward
of the last downsampling layer, 2x2 on a 2x2 map with 384 channels, fall from 56 ms to 11, of the one before it from 22 to 8.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from models.shapes import Call

PatchMethod = Literal["convolution", "matrix"]


class PatchLayer(NamedTuple):
    """The shape of a convolution over patches, and of the map that it sees."""

    side: int  # of the square map, in pixels
    channels: int
    width: int  # channels that it gives out
    patch: int  # side of a patch


class PatchConv2d(nn.Conv2d):
    """A convolution over patches that computes as chosen; parameters and names are ``nn.Conv2d``'s."""

    method: PatchMethod

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, width, H // patch, W // patch]``; what is over at the right and the bottom is left out."""
        if self.method == "convolution":
            return super().forward(x_NCHW)
        return product(x_NCHW, self.weight, self.bias)


def product(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution as a linear layer: ``[N, C, H, W]`` and ``[width, C, k, k]`` to ``[N, width, H // k, W // k]``."""
    k = weight.shape[-1]
    n, channels, height, width = x_NCHW.shape
    rows, columns = height // k, width // k
    x_NHWC = x_NCHW.permute(0, 2, 3, 1)[:, : rows * k, : columns * k]
    patches = x_NHWC.reshape(n, rows, k, columns, k, channels).transpose(2, 3).reshape(n, rows, columns, k * k * channels)
    return functional.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def compute_patches_by(network: nn.Module, method: PatchMethod) -> int:
    """Let every convolution of ``network`` over patches compute by a method, in place, and return how many there are.

    Parameters, their names and their values stay as they are.
    """
    found = [module for module in network.modules() if isinstance(module, nn.Conv2d) and takes_patches(module)]
    for convolution in found:
        convolution.__class__ = PatchConv2d  # the state of the two classes is the same but for ``method``
        convolution.method = method  # type: ignore[assignment]
    return len(found)


def patch_layers(seen: Iterable[Call]) -> set[PatchLayer]:
    """Every convolution over patches on a square map, among the calls of a network's convolutions."""
    layers: set[PatchLayer] = set()
    for _, layer, given, gave in seen:
        if isinstance(layer, nn.Conv2d) and takes_patches(layer) and given[2] == given[3]:
            layers.add(PatchLayer(side=given[2], channels=given[1], width=gave[1], patch=layer.kernel_size[0]))
    return layers


def takes_patches(convolution: nn.Conv2d) -> bool:
    """Whether it is a convolution over square patches that do not overlap."""
    side = convolution.kernel_size[0]
    return (
        side > 1
        and convolution.kernel_size == convolution.stride == (side, side)
        and convolution.groups == 1
        and convolution.dilation == (1, 1)
        and convolution.padding in ((0, 0), 0)
    )
