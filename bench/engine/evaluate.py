"""Loss and accuracy over a whole split, without augmentation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bench.engine import ranks
from bench.engine.device_data import DeviceSplit
from bench.engine.execution import Execution
from bench.experiment import Recipe

# Images at a time. A GPU waits for the launches of a small batch: 250 of them, each longer in coming than in being done.
BATCH = {"cpu": 500, "cuda": 2500}


@torch.no_grad()
def evaluate(network: nn.Module, split: DeviceSplit, recipe: Recipe, execution: Execution) -> dict[str, Any]:
    """Return ``loss`` (mean cross-entropy without smoothing, in nats), ``correct`` and ``images`` (counts).

    Reads from the device once, at the end.
    """
    network.eval()
    device = split.labels.device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for i, (images, labels) in enumerate(split.batches(BATCH[device.type])):
        if i % ranks.size() != ranks.rank():  # each batch is one process's
            continue
        with execution.precision(device, recipe.precision), as_written(execution):
            logits = network(images)
        loss += functional.cross_entropy(logits.float(), labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    loss, correct = ranks.total(loss), ranks.total(correct)
    return {"loss": loss.item() / len(split), "correct": int(correct.item()), "images": len(split)}


def as_written(execution: Execution) -> AbstractContextManager[Any]:
    """Within it, blocks that were compiled run as they were written: their code is for the shapes of training."""
    return torch.compiler.set_stance("force_eager") if execution.compiled else nullcontext()
