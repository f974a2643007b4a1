"""Loss and accuracy over a whole split, without augmentation."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bench.engine.device_data import DeviceSplit
from bench.engine.execution import Execution
from bench.experiment import Recipe

BATCH = 500


@torch.no_grad()
def evaluate(network: nn.Module, split: DeviceSplit, recipe: Recipe, execution: Execution) -> dict[str, Any]:
    """Return ``loss`` (mean cross-entropy without smoothing, in nats), ``correct`` and ``images`` (counts).

    Reads from the device once, at the end.
    """
    network.eval()
    device = split.labels.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in split.batches(BATCH):
        with execution.precision(device, recipe.precision):
            logits = network(images)
        loss += functional.cross_entropy(logits.float(), labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return {"loss": loss.item() / len(split), "correct": int(correct.item()), "images": len(split)}


def accuracy(counts: dict[str, Any]) -> float:
    """Percent correct."""
    return float(100 * counts["correct"] / counts["images"])
