"""ViT: a transformer over the patches of an image.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, https://arxiv.org/abs/2010.11929.

    z = [class token; patches(image)] + positions             [N, 1 + L, C]
    z = z + attention(LN(z));  z = z + mlp(LN(z))             depth times
    logits = linear(LN(z)_0)                                  from the class token

Letters in shapes: N images, C width, L = (side / patch)^2 patches, D = mlp_ratio * C.

    network                                     width   depth   heads   parameters, 100 classes   multiply-adds at 32x32
    ViT-Tiny, patch 4                           192     12      3       5,380,132                 365.1 M
    closest to ConvNeXt-Tiny (matched_size)     440     12      5       28,042,620                1,858.1 M
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.attention import SelfAttention

_HEAD_WIDTH = 64  # of every ViT of the paper


def vit(
    *,
    classes: int,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    patch: int = 4,
    mlp_ratio: int = 4,
    side: int = 32,
) -> "VisionTransformer":
    """Build a ViT, ViT-Tiny unless told otherwise, with random weights drawn from torch's global generator.

    Weights, positions and class token start as a normal distribution of deviation 0.02, truncated, and biases at zero: Touvron
    et al., "Training data-efficient image transformers", ICML 2021, https://arxiv.org/abs/2012.12877. The patches' convolution
    starts with deviation 1 / sqrt(fan-in) instead, as in the paper's code, so that patches enter at the scale of pixels.

    Args:
        classes: the number of logits.
        width: channels C of a token.
        depth: the number of blocks.
        heads: heads per block, a divisor of the width.
        patch: side of a patch in pixels, a divisor of ``side``.
        mlp_ratio: hidden width of a block's MLP over C.
        side: side of an image in pixels.

    Returns:
        A network from ``[N, 3, side, side]`` to ``[N, classes]``.

    Raises:
        ValueError: a number is not positive, ``heads`` does not divide ``width``, or ``patch`` does not divide ``side``.
    """
    _require_positive(classes=classes, width=width, depth=depth, heads=heads, patch=patch, mlp_ratio=mlp_ratio, side=side)
    if side % patch:
        raise ValueError(f"patch: expected a divisor of the side {side}, found {patch}")
    network = VisionTransformer(
        classes=classes, width=width, depth=depth, heads=heads, patch=patch, hidden=mlp_ratio * width, side=side
    )
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(network.patches.weight, std=1 / math.sqrt(3 * patch**2))
    nn.init.zeros_(network.patches.bias)  # type: ignore[arg-type]
    nn.init.trunc_normal_(network.class_token, std=0.02)
    nn.init.trunc_normal_(network.positions, std=0.02)
    return network


class VisionTransformer(nn.Module):
    """The network; :func:`vit` checks its sizes and draws its weights."""

    def __init__(self, *, classes: int, width: int, depth: int, heads: int, patch: int, hidden: int, side: int) -> None:
        super().__init__()
        self.image_shape = (3, side, side)
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width=width, heads=heads, hidden=hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """From ``[N, 3, side, side]`` to logits ``[N, classes]``."""
        # 16x64 pixels hold as many patches as 32x32: without this they would pass
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images: expected shape {self.image_shape}, found {tuple(images.shape[1:])}")
        patches = self.patches(images).flatten(2).transpose(1, 2)  # [N, L, C]
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return logits


class Block(nn.Module):
    """One layer with the norms before the branches: attention mixes the tokens, an MLP with GELU each token's channels.

    Args:
        width: channels C of a token.
        heads: a divisor of the width.
        hidden: D, the width between the two linear layers of the MLP.
    """

    def __init__(self, *, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width=width, heads=heads)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """From ``[N, L, C]`` to ``[N, L, C]``."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        out: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return out


# ---- parts and sizes -----------------------------------------------------------------------------------------------------


def part_of(parameter: str) -> str:
    """Name the part that a parameter belongs to, by its name in the state dict.

    ``head`` is the last norm and the classifier, as in ConvNeXt. A ViT has no stages, and its attention is the backbone rather
    than added to it: all the rest is one part, ``early_stages``.

    Raises:
        ValueError: no ViT parameter has this name.
    """
    if parameter.startswith(("norm.", "head.")):
        return "head"
    if parameter in ("class_token", "positions") or parameter.startswith(("patches.", "blocks.")):
        return "early_stages"
    raise ValueError(f"{parameter!r} is not a parameter of ViT")


def parameter_count(*, classes: int, width: int, depth: int = 12, patch: int = 4, mlp_ratio: int = 4, side: int = 32) -> int:
    """The number of scalars in a ViT's parameters, without building it; the number of heads does not change it.

    (4 + 2 mlp_ratio) C^2 + (9 + mlp_ratio) C for a block: norms 4C, attention 4C^2 + 4C, MLP 2 mlp_ratio C^2 + mlp_ratio C + C.
    """
    block = (4 + 2 * mlp_ratio) * width**2 + (9 + mlp_ratio) * width
    patches = 3 * patch**2 * width + width
    class_token_and_positions = (2 + (side // patch) ** 2) * width
    norm_and_head = 2 * width + width * classes + classes
    return patches + class_token_and_positions + depth * block + norm_and_head


class Size(NamedTuple):
    """A width and number of heads that a search found, with the network's parameters."""

    width: int
    heads: int
    parameters: int


def matched_size(*, target: int, classes: int, depth: int = 12, patch: int = 4, mlp_ratio: int = 4, side: int = 32) -> Size:
    """Search the width and the heads of the ViT whose parameter count is closest to ``target``.

    Fused attention wants heads whose width is a multiple of 8, so the candidates are all widths that are: 8, 16, and so on until
    the count passes the target. The closest count wins, the smaller network where two are equally close. Heads do not change the
    count; of those that cut the width into multiples of 8, the ones nearest in ratio to the paper's head width of 64 are taken.

    Raises:
        ValueError: ``target`` is not positive.
    """
    _require_positive(target=target)
    candidates: list[tuple[int, int]] = []  # (width, parameters)
    while not candidates or candidates[-1][1] < target:
        width = 8 * (len(candidates) + 1)
        count = parameter_count(classes=classes, width=width, depth=depth, patch=patch, mlp_ratio=mlp_ratio, side=side)
        candidates.append((width, count))
    width, count = min(candidates, key=lambda candidate: abs(candidate[1] - target))
    head_widths = [head_width for head_width in range(8, width + 1, 8) if width % head_width == 0]
    head_width = min(head_widths, key=lambda head_width: abs(math.log(head_width / _HEAD_WIDTH)))
    return Size(width, width // head_width, count)


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}: expected a positive number, found {number}")
