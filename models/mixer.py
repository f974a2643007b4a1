"""MLP-Mixer: a network over the patches of an image that has nothing but MLPs.

Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS 2021, https://arxiv.org/abs/2105.01601.

    z = patches(image) + positions                            [N, L, C]
    z = z + token_mlp(LN(z)^T)^T                              one MLP from L to L, shared by all channels
    z = z + channel_mlp(LN(z))                                one MLP from C to C, shared by all tokens; both depth times
    logits = linear(mean_L(LN(z)))

Letters in shapes: N images, C width, L = (side / patch)^2 tokens.

    network               width   depth   token MLP   channel MLP   parameters, 100 classes   multiply-adds at 32x32
    Mixer-Tiny, patch 4   192     12      288         576           3,160,612                 255.4 M

The paper's network has no positions: its token MLP tells tokens apart by itself. The study's count of 3.16 M is met with learned
positions and these two widths, which the study does not give.
"""

import math

import torch
from torch import Tensor, nn


def mixer(
    *,
    classes: int,
    width: int = 192,
    depth: int = 12,
    token_hidden: int = 288,
    channel_hidden: int = 576,
    patch: int = 4,
    side: int = 32,
) -> "MlpMixer":
    """Build an MLP-Mixer, Mixer-Tiny unless told otherwise, with random weights drawn from torch's global generator.

    Weights and positions start as in :func:`models.vit.vit`: a normal distribution of deviation 0.02, truncated, biases at zero,
    and the patches' convolution with deviation 1 / sqrt(fan-in).

    Args:
        classes: the number of logits.
        width: channels C of a token.
        depth: the number of blocks.
        token_hidden: hidden width of the MLP over the tokens.
        channel_hidden: hidden width of the MLP over the channels.
        patch: side of a patch in pixels, a divisor of ``side``.
        side: side of an image in pixels.

    Returns:
        A network from ``[N, 3, side, side]`` to ``[N, classes]``.

    Raises:
        ValueError: a number is not positive, or ``patch`` does not divide ``side``.
    """
    sizes = {"classes": classes, "width": width, "depth": depth, "patch": patch, "side": side}
    for name, number in {**sizes, "token_hidden": token_hidden, "channel_hidden": channel_hidden}.items():
        if number < 1:
            raise ValueError(f"{name}: expected a positive number, found {number}")
    if side % patch:
        raise ValueError(f"patch: expected a divisor of the side {side}, found {patch}")
    network = MlpMixer(token_hidden=token_hidden, channel_hidden=channel_hidden, **sizes)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(network.patches.weight, std=1 / math.sqrt(3 * patch**2))
    nn.init.zeros_(network.patches.bias)  # type: ignore[arg-type]
    nn.init.trunc_normal_(network.positions, std=0.02)
    return network


class MlpMixer(nn.Module):
    """The network; :func:`mixer` checks its sizes and draws its weights."""

    def __init__(
        self, *, classes: int, width: int, depth: int, token_hidden: int, channel_hidden: int, patch: int, side: int
    ) -> None:
        super().__init__()
        tokens = (side // patch) ** 2
        self.image_shape = (3, side, side)
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.Sequential(
            *(Block(width=width, tokens=tokens, token_hidden=token_hidden, channel_hidden=channel_hidden) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """From ``[N, 3, side, side]`` to logits ``[N, classes]``."""
        # 16x64 pixels hold as many patches as 32x32: without this they would pass
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images: expected shape {self.image_shape}, found {tuple(images.shape[1:])}")
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions  # [N, L, C]
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


class Block(nn.Module):
    """One layer: an MLP with GELU mixes the tokens, another the channels, each after a norm and beside a skip connection.

    Args:
        width: channels C of a token.
        tokens: L, fixed, since the token MLP's weights depend on it.
        token_hidden: hidden width of the MLP over the tokens.
        channel_hidden: hidden width of the MLP over the channels.
    """

    def __init__(self, *, width: int, tokens: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width, eps=1e-6)
        self.token_mlp = nn.Sequential(nn.Linear(tokens, token_hidden), nn.GELU(), nn.Linear(token_hidden, tokens))
        self.channel_norm = nn.LayerNorm(width, eps=1e-6)
        self.channel_mlp = nn.Sequential(nn.Linear(width, channel_hidden), nn.GELU(), nn.Linear(channel_hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """From ``[N, L, C]`` to ``[N, L, C]``."""
        tokens = tokens + self.token_mlp(self.token_norm(tokens).transpose(1, 2)).transpose(1, 2)
        out: Tensor = tokens + self.channel_mlp(self.channel_norm(tokens))
        return out


def part_of(parameter: str) -> str:
    """Name the part that a parameter belongs to, by its name in the state dict.

    ``head`` is the last norm and the classifier, as in ConvNeXt. A Mixer has no stages: all the rest is ``early_stages``.

    Raises:
        ValueError: no Mixer parameter has this name.
    """
    if parameter.startswith(("norm.", "head.")):
        return "head"
    if parameter == "positions" or parameter.startswith(("patches.", "blocks.")):
        return "early_stages"
    raise ValueError(f"{parameter!r} is not a parameter of MLP-Mixer")
