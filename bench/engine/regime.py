"""Regimes: which parts of a network train in which epochs.

A warm-up trains the head, and whatever was added to the backbone, on a frozen backbone; then F0 stays so, F1 releases the last
stage with its downsampling layer, F2 releases everything. ``full`` trains everything from the first epoch.
"""

from typing import TYPE_CHECKING

from bench.experiment import Regime

if TYPE_CHECKING:  # the names of parts are for pages too, which need not wait for torch
    from torch import nn

ADDED = frozenset({"head", "attention"})  # what the study adds to the backbone
EVERYTHING = ADDED | {"last_stage", "early_stages"}
RELEASED = {"F0": ADDED, "F1": ADDED | {"last_stage"}, "F2": EVERYTHING, "full": EVERYTHING}


def trained_parts(regime: Regime, *, epoch: int, frozen_epochs: int) -> frozenset[str]:
    """Return the parts that train in ``epoch`` (from 1); the switch is at the start of epoch ``frozen_epochs + 1``."""
    frozen = regime != "full" and epoch <= frozen_epochs
    return ADDED if frozen else RELEASED[regime]


def release(parts: "dict[str, list[nn.Parameter]]", trained: frozenset[str]) -> int:
    """Let the parameters of the ``trained`` parts require gradients, and no others; return how many scalars train.

    Autograd builds no graph before the first parameter that trains, so a frozen prefix costs a forward pass only. The optimizer
    passes over parameters without gradients: no state, no weight decay.
    """
    for part, parameters in parts.items():
        for parameter in parameters:
            parameter.requires_grad_(part in trained)
            parameter.grad = None
    return sum(p.numel() for part in trained for p in parts.get(part, []))
