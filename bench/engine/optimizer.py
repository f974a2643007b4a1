"""AdamW with a peak learning rate for each part, and a schedule that is a pure function of the step.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, https://arxiv.org/abs/1711.05101.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from bench.engine.regime import ADDED
from bench.experiment import Recipe
from models.beside import gradients_beside


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: only to the matrices and kernels of linear layers and convolutions.

    Norms, biases, layer scales, gates and positions set the scale of what the matrices compute; decay would fight that scale.
    """
    return name.endswith(".weight") and parameter.ndim >= 2


def adamw(network: nn.Module, recipe: Recipe, part_of: Callable[[str], str]) -> torch.optim.AdamW:
    """Build the optimizer over all parameters, in at most four groups: (head or backbone) x (decayed or not).

    Args:
        recipe: its ``head_lr`` is the peak for head and attention, its ``backbone_lr`` for all other parts.
        part_of: from a parameter's name to its part.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault((part_of(name) in ADDED, decays(name, parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak_lr": recipe.head_lr if added else recipe.backbone_lr,
                "weight_decay": recipe.weight_decay if decayed else 0.0,
            }
            for (added, decayed), parameters in sorted(groups.items())
        ],
        lr=recipe.head_lr,
        betas=recipe.betas,
        fused=True,
        capturable=next(network.parameters()).is_cuda,  # its step count lives on the device, as a captured graph needs
    )


PARTS = 8  # of the numbers that train, about: a backward pass has at most so many updates beside it


def updates_beside(optimizer: torch.optim.Optimizer, device: torch.device, *, on: bool) -> AbstractContextManager[None]:
    """Within it, gradients are computed beside a backward pass, and parameters updated as soon as a part of them have theirs.

    A step of the optimizer for the rest must follow.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]

    def update() -> list[Tensor | None]:
        gradients = [parameter.grad for parameter in parameters]
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        return gradients

    numbers = sum(parameter.numel() for parameter in parameters)
    return gradients_beside(device, on=on, update=update, after=numbers // PARTS)


def cosine_with_warmup(step: int, *, steps: int, warmup_steps: int) -> float:
    """The factor on every peak learning rate at ``step`` (from 0) of ``steps``.

    It rises linearly to 1 at the end of ``warmup_steps`` and falls to 0 along half a cosine:
    Loshchilov and Hutter, "SGDR", ICLR 2017, https://arxiv.org/abs/1608.03983, equation 5 without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
