"""Whether fused blocks compute on this device what their layers do: kernels are trusted where they have been tried.

A compiler or a GPU that nobody has tested may get a kernel wrong, and a run would not tell. So before a network's fused blocks are
first used on a device, their gradients are held against those of the library's layers, their evaluation too, and steps with
gradients and updates beside the backward pass against steps without, all at the sizes of training and evaluation.
"""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bench.engine.graphs import captured
from bench.engine.optimizer import updates_beside
from models.stochastic_depth import give_factors, rates

EVALUATED = 2500  # images at a time, as on a GPU in bench.engine.evaluate
EXACT = 16  # images at a time in float64, so that all of this needs no more memory than a step
AS_EXACT = 3.0  # times the layers' own distance from float64 is allowed, and
ALL = slice(None)
# of the value besides: roundings differ, and a single number may be exact by chance
ALLOWED = {torch.bfloat16: 0.02, torch.float32: 1e-3}
# of the largest gradient: one that is truly zero, as of a bias before a norm, is all rounding
NOTHING = {torch.bfloat16: 1e-3, torch.float32: 1e-5}


def fused_blocks_agree(
    fused: nn.Module, reference: nn.Module, images: Tensor, precision: AbstractContextManager[Any], lowest: torch.dtype
) -> bool:
    """Compare two networks of the same weights; they are trained in place.

    Args:
        reference: its layers are the library's.
        images: ``[N, 3, H, W]``, on the device.
        precision: the context to compute in; it can be entered again and again.
        lowest: the lowest precision in it.
    """
    _open(fused)
    _open(reference)
    exact = copy.deepcopy(reference).double()
    found, accepted = _gradients(fused, images, precision), _gradients(reference, images, precision)
    if not _as_near(found, accepted, _gradients(exact, images.double(), None, EXACT), lowest):
        return False
    del exact
    if images.device.type != "cuda":
        return True
    return _evaluate_alike(fused, reference, images, precision, lowest) and _steps_are_the_same(fused, images, precision)


def _open(network: nn.Module) -> None:
    """Layer scales and gates begin so near zero that what lies behind them hardly counts."""
    for parameter in network.parameters():
        if parameter.ndim == 0 or parameter.shape[1:] == (1, 1):
            parameter.data.fill_(0.5)


def _as_near(found: list[Tensor], accepted: list[Tensor], exact: list[Tensor], lowest: torch.dtype) -> bool:
    """Whether all found are about as near to the exact values as what is accepted, in sum and in the worst number."""
    for order in (2, math.inf):
        size = [torch.linalg.vector_norm(truth, order) for truth in exact]
        least = NOTHING[lowest] * max(size[1:])  # the first are logits
        for mine, theirs, truth, its_size in zip(found, accepted, exact, size, strict=True):
            off, allowed = (torch.linalg.vector_norm(each - truth, order) / (its_size + least) for each in (mine, theirs))
            if not off <= AS_EXACT * allowed + ALLOWED[lowest]:  # what is not a number fails too
                return False
    return True


def _logits(network: nn.Module, images: Tensor, precision: AbstractContextManager[Any] | None, part: slice = ALL) -> Tensor:
    count = len(rates(network))
    # a third of the branches is left out
    factors = torch.arange(count * len(images), device=images.device).remainder(3).gt(0) * 1.25
    give_factors(network, factors.view(count, len(images))[:, part])
    with precision or nullcontext():
        return network(images[part])  # type: ignore[no-any-return]


def _upstream(logits: Tensor, images: Tensor, part: slice = ALL) -> Tensor:
    upstream = torch.linspace(-1, 1, len(images) * logits.shape[1], device=logits.device).to(logits.dtype)
    return upstream.view(len(images), -1)[part]


def _gradients(
    network: nn.Module, images: Tensor, precision: AbstractContextManager[Any] | None, at_a_time: int | None = None
) -> list[Tensor]:
    """Logits, and the gradients of all parameters that train, in float64; of all images together unless ``at_a_time`` is less."""
    network.train()
    network.zero_grad(set_to_none=True)
    of_images = []
    many = at_a_time or len(images)
    for start in range(0, len(images), many):
        part = slice(start, start + many)
        logits = _logits(network, images, precision, part)
        logits.backward(_upstream(logits, images, part))  # type: ignore[no-untyped-call]
        of_images.append(logits.detach())
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad(set_to_none=True)
    return [found.detach().double() for found in (torch.cat(of_images), *gradients)]


@torch.no_grad()
def _evaluate_alike(
    fused: nn.Module, reference: nn.Module, images: Tensor, precision: AbstractContextManager[Any], lowest: torch.dtype
) -> bool:
    many = images.repeat(math.ceil(EVALUATED / len(images)), 1, 1, 1)[:EVALUATED].contiguous(memory_format=torch.channels_last)
    with precision:
        found, expected = fused.eval()(many).double(), reference.eval()(many).double()
    difference = torch.linalg.vector_norm(found - expected, dim=1) / torch.linalg.vector_norm(expected, dim=1)
    return bool(difference.max() <= 5 * ALLOWED[lowest])


def _steps_are_the_same(network: nn.Module, images: Tensor, precision: AbstractContextManager[Any]) -> bool:
    """Whether captured steps give the same weights to the bit with gradients and updates beside the backward pass as without."""
    begun = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ended = []
    for beside in (False, True):
        network.load_state_dict(begun)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), fused=True, capturable=True)

        def step(optimizer: torch.optim.Optimizer = optimizer, beside: bool = beside) -> None:
            optimizer.zero_grad(set_to_none=True)
            logits = _logits(network, images, precision)
            with updates_beside(optimizer, images.device, on=beside):
                logits.backward(_upstream(logits, images))  # type: ignore[no-untyped-call]
            optimizer.step()

        captured(step)()
        ended.append([parameter.detach().clone() for parameter in network.parameters()])
        network.zero_grad(set_to_none=True)
    return all(torch.equal(one, other) for one, other in zip(*ended, strict=True))
