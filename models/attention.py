"""Attention for the feature maps of a ConvNet, behind a gate that starts closed.

    y = x + alpha * branch(x)        x, y [N, C, H, W]; alpha one scalar, 0 at the start

At alpha = 0 the network around it computes what it computed before, bit for bit. Every branch keeps the shape of its map:

    kind      branch                                            parameters with alpha, at C = 384
    mhsa      multi-head self-attention over the H*W positions  592,129, for any number of heads
    se        one factor per channel, from the channels' means  18,433
    eca       the same, from five neighbouring channels         6
    cbam      one factor per channel, then one per position     18,531
    spatial   one factor per position                           99

Letters in shapes: N images, C channels, H and W sides of the map, L = H*W tokens, h heads, d = C/h channels per head.

Means and maxima are taken over axes, not by adaptive pooling, whose backward pass is not deterministic on CUDA.
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.description import Attention, Kind
from models.shapes import Call

AttentionMethod = Literal["fused", "products"]


class Gated(nn.Module):
    """A residual branch with a learned scale: ``x + alpha * branch(x)``, alpha = 0 at the start.

    While alpha is zero the branch's own parameters receive zero gradients; alpha itself does not, and moves first.

    Args:
        branch: from ``[N, C, H, W]`` to the same shape.
    """

    def __init__(self, *, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.alpha = nn.Parameter(torch.zeros(()))  # not called weight: weight decay would pull it back to zero

    def forward(self, x: Tensor) -> Tensor:
        """Add the scaled branch to ``x`` ``[N, C, H, W]``."""
        branch: Tensor = self.branch(x)
        # In the precision of x: a bfloat16 product would round the gradient of alpha, which is reported with four digits, to three.
        return x + self.alpha * branch.to(x.dtype)


# ---- self-attention ------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Multi-head self-attention over a sequence of tokens.

        A_i = softmax(Q_i K_i^T / sqrt(d))                  [L, L], for head i of h
        out = concat(A_1 V_1, ..., A_h V_h) W^T + b         [L, C]

    where Q, K, V ``[L, C]`` are one linear map of the tokens to 3C, cut into heads of d = C/h channels. The heads share the
    channels out among themselves, so their number changes no count of parameters: 4C^2 + 4C.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, https://arxiv.org/abs/1706.03762. Weights start as a normal
    distribution of deviation 0.02, truncated (ConvNeXt's own start, and ViT's in :mod:`models.vit`), biases at zero.

    Args:
        width: channels C of a token.
        heads: h, a divisor of the width.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, found {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.mixing = ScaledDotProduct()
        self.projection = nn.Linear(width, width)
        for linear in (self.qkv, self.projection):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """From ``[N, L, C]`` to ``[N, L, C]``."""
        mixed = self.mixing(*self._by_head(tokens))
        out: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return out

    def matrices(self, tokens: Tensor) -> Tensor:
        """The attention matrices A ``[N, h, L, L]`` for ``[N, L, C]``; row: the query, column: the token that it attends to.

        Fused attention never forms A. Applied to the identity instead of V it returns A I = A.
        """
        queries, keys, _ = self._by_head(tokens)
        identity = torch.eye(tokens.shape[1], dtype=queries.dtype, device=queries.device)
        return F.scaled_dot_product_attention(queries, keys, identity.expand(*queries.shape[:2], -1, -1))

    def _by_head(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``[N, h, L, d]``."""
        qkv: Tensor = self.qkv(tokens)
        queries, keys, values = qkv.reshape(*qkv.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        return queries, keys, values


class ScaledDotProduct(nn.Module):
    """``softmax(Q K^T / sqrt(d)) V``, computed by a method; there are no parameters.

    - ``fused``: the library's operator, which never forms the matrices. The reference.
    - ``products``: two batched matrix products, with the softmax between them. In bf16 the scores are rounded once more than in the
      fused operator, which keeps them in fp32. That operator is made for long sequences, and on CPUs its backward pass in bf16 is
      slow: on two cores with bf16 units both passes over 128 images take 62 ms with 65 tokens in 3 heads of 64, and 10 by
      products; 17 ms with the 16 tokens of a 4x4 map in 4 heads of 48, and 2 by products.
    """

    method: AttentionMethod = "fused"

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """From three ``[N, h, L, d]`` to one."""
        if self.method == "products":
            return attention_products(queries, keys, values)
        return F.scaled_dot_product_attention(queries, keys, values)


def attention_products(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention of ``[N, h, L, d]`` by matrix products."""
    n, heads, _, width = queries.shape
    queries, keys, values = (of_heads.flatten(0, 1) for of_heads in (queries, keys, values))
    nothing = queries.new_zeros(())  # to add to: only this operator scales a product before it is rounded
    scores = torch.baddbmm(nothing, queries, keys.mT, beta=0, alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), values).view(n, heads, -1, width)


class AttentionLayer(NamedTuple):
    """The shape of one self-attention."""

    tokens: int
    heads: int
    width: int  # of a head


def attention_layers(seen: Iterable[Call]) -> set[AttentionLayer]:
    """Every self-attention among the calls of a network's."""
    shapes = [call.given for call in seen if isinstance(call.layer, ScaledDotProduct)]
    return {AttentionLayer(tokens, heads, width) for _, heads, tokens, width in shapes}


def compute_attention_by(network: nn.Module, method: AttentionMethod) -> int:
    """Let every self-attention of ``network`` compute by a method, in place, and return how many there are."""
    found = [module for module in network.modules() if isinstance(module, ScaledDotProduct)]
    for module in found:
        module.method = method
    return len(found)


class MultiHeadSelfAttention(nn.Module):
    """Self-attention over the positions of a feature map: ``attention(LN(tokens(x)))``, laid out as a map again.

    The positions are the tokens. There is no positional embedding: to this branch a map is a set of positions.

    Args:
        width: channels C of the map.
        heads: a divisor of the width.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """

    def __init__(self, *, width: int, heads: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)  # ConvNeXt's epsilon
        self.attention = SelfAttention(width=width, heads=heads)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, C, H, W]`` to ``[N, C, H, W]``, channels last in memory."""
        tokens: Tensor = self.attention(self._normalised_tokens(x))
        return tokens.transpose(1, 2).reshape(x.shape)

    def matrices(self, x: Tensor) -> Tensor:
        """The attention matrices ``[N, h, L, L]`` for a map ``[N, C, H, W]``; token ``i*W + j`` is position ``(i, j)``."""
        return self.attention.matrices(self._normalised_tokens(x))

    def _normalised_tokens(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.norm(x.flatten(2).transpose(1, 2))  # [N, L, C]
        return tokens


# ---- factors per channel, per position, or both --------------------------------------------------------------------------
#
# Their layers keep torch's initial weights, uniform and scaled by fan-in. At ConvNeXt's deviation of 0.02 all factors of a
# bottleneck would start within a few hundredths of 1/2, and tell channels hardly apart.


class SqueezeExcitation(nn.Module):
    """One factor per channel, from the means of all channels.

        s = sigmoid(W2 relu(W1 mean_HW(x)))        W1 [C/r, C], W2 [C, C/r], no biases
        out_c = s_c x_c

    Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018, https://arxiv.org/abs/1709.01507.

    Args:
        width: channels C of the map.
        reduction: r, a divisor of the width.

    Raises:
        ValueError: ``reduction`` does not divide ``width``.
    """

    def __init__(self, *, width: int, reduction: int = 16) -> None:
        super().__init__()
        self.excitation = _bottleneck(width, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, C, H, W]`` to ``[N, C, H, W]``."""
        factors: Tensor = self.excitation(x.mean(dim=(2, 3))).sigmoid()  # [N, C]
        return x * factors[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """One factor per channel, from the means of that channel and its neighbours.

        s = sigmoid(w * mean_HW(x))        w a kernel of k taps, * a convolution along the channels, padded with zeros
        out_c = s_c x_c

    Wang et al., "ECA-Net", CVPR 2020, https://arxiv.org/abs/1910.03151. The paper's rule for k gives 5 at C = 192 and at 384.

    Args:
        kernel: k, an odd number.

    Raises:
        ValueError: ``kernel`` is even or not positive.
    """

    def __init__(self, *, kernel: int = 5) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 1, kernel, padding=_same(kernel), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, C, H, W]`` to ``[N, C, H, W]``."""
        factors: Tensor = self.convolution(x.mean(dim=(2, 3))[:, None]).sigmoid()  # [N, 1, C]
        return x * factors[:, 0, :, None, None]


class SpatialAttention(nn.Module):
    """One factor per position, from the mean and the maximum over the channels around it: the second half of CBAM.

        s = sigmoid(w * [mean_C(x); max_C(x)])        w [1, 2, k, k] without bias, * a convolution padded with zeros
        out_ij = s_ij x_ij

    Args:
        kernel: k, an odd number.

    Raises:
        ValueError: ``kernel`` is even or not positive.
    """

    def __init__(self, *, kernel: int = 7) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, kernel, padding=_same(kernel), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, C, H, W]`` to ``[N, C, H, W]``."""
        maps = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)  # [N, 2, H, W]
        factors: Tensor = self.convolution(maps).sigmoid()  # [N, 1, H, W]
        return x * factors


class ConvolutionalBlockAttention(nn.Module):
    """CBAM: one factor per channel, then one per position.

        s = sigmoid(f(mean_HW(x)) + f(max_HW(x)))        f = W2 relu(W1 .), the same two matrices as in squeeze-excitation
        out = spatial(s x)

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, https://arxiv.org/abs/1807.06521. Without the batch norm
    that the authors' code has after the spatial convolution: the study's count leaves no room for one.

    Args:
        width: channels C of the map.
        reduction: of the channels between W1 and W2, a divisor of the width.
        kernel: side of the spatial convolution, an odd number.

    Raises:
        ValueError: ``reduction`` does not divide ``width``, or ``kernel`` is even or not positive.
    """

    def __init__(self, *, width: int, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        self.excitation = _bottleneck(width, reduction)
        self.spatial = SpatialAttention(kernel=kernel)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, C, H, W]`` to ``[N, C, H, W]``."""
        excited: Tensor = self.excitation(x.mean(dim=(2, 3))) + self.excitation(x.amax(dim=(2, 3)))  # [N, C]
        out: Tensor = self.spatial(x * excited.sigmoid()[:, :, None, None])
        return out


def _bottleneck(width: int, reduction: int) -> nn.Sequential:
    if reduction < 1 or width % reduction:
        raise ValueError(f"reduction: expected a divisor of the width {width}, found {reduction}")
    narrow = width // reduction
    return nn.Sequential(nn.Linear(width, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, width, bias=False))


def _same(kernel: int) -> int:
    """The padding that keeps the size."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel: expected an odd number, found {kernel}")
    return kernel // 2


# ---- from a description to a module --------------------------------------------------------------------------------------

_BRANCHES: dict[Kind, Callable[[int, int], nn.Module]] = {  # from the width and the number of heads
    "mhsa": lambda width, heads: MultiHeadSelfAttention(width=width, heads=heads),
    "se": lambda width, _: SqueezeExcitation(width=width),
    "eca": lambda _width, _heads: EfficientChannelAttention(),
    "cbam": lambda width, _: ConvolutionalBlockAttention(width=width),
    "spatial": lambda _width, _heads: SpatialAttention(),
}


def gated(attention: Attention, *, width: int) -> Gated:
    """Build what ``attention`` describes, for maps of ``width`` channels, with random weights from torch's global generator.

    Raises:
        ValueError: the width does not fit: heads or reduction do not divide it.
    """
    return Gated(branch=_BRANCHES[attention.kind](width, attention.heads))
