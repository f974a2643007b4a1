"""What attention blocks look at: a few test images, the network's verdict on each, and the attention that each position receives.

    received_j = mean over queries i of mean over heads h of A_h[i, j]        A_h [L, L], every row of which sums to 1

so the map of an image sums to 1, and a block that attends to everything alike gives 1/L everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models import ConvNeXt

from bench.engine.device_data import DeviceSplit
from bench.engine.evaluate import BATCH
from bench.engine.execution import Execution
from bench.environment import seed_for
from bench.experiment import Precision
from models.convnext import attention_matrices

PER_OUTCOME, SEED = 4, 0
RULE = (
    f"the test images in an order drawn from seed {SEED}; of these the first {PER_OUTCOME} that are classified correctly and the "
    f"first {PER_OUTCOME} that are not, no class twice"
)


@dataclass(frozen=True)
class Example:
    """A test image and what the network made of it."""

    index: int  # in the test split of the run
    image: NDArray[np.uint8] | None  # [32, 32, C]; None in what was published without the images
    label: str
    predicted: str
    confidence: float  # the softmax of the prediction, 0 to 1
    maps: dict[str, NDArray[np.float64]]  # by site: the attention that each position receives [H, W], of sum 1

    @property
    def correct(self) -> bool:
        """Whether the prediction is the label."""
        return self.predicted == self.label


def received(matrices: Tensor) -> Tensor:
    """The attention that each token receives: ``[N, L]`` from matrices ``[N, heads, L, L]``, the mean over heads and queries."""
    return matrices.mean(dim=(1, 2))


def choose(labels: Sequence[int], predictions: Sequence[int], *, per_outcome: int = PER_OUTCOME, seed: int = SEED) -> list[int]:
    """Indices of the examples by :data:`RULE`: the correct ones first, each outcome in the order in which it was met.

    There are fewer where the network has too few of an outcome.
    """
    order = np.random.Generator(np.random.PCG64(seed_for(seed, "attention examples"))).permutation(len(labels))
    chosen: dict[bool, list[int]] = {True: [], False: []}
    shown: set[int] = set()
    for index in map(int, order):
        outcome = chosen[predictions[index] == labels[index]]
        if len(outcome) < per_outcome and labels[index] not in shown:
            outcome.append(index)
            shown.add(labels[index])
    return chosen[True] + chosen[False]


@torch.no_grad()
def examine(
    network: ConvNeXt, split: DeviceSplit, classes: Sequence[str], *, precision: Precision, execution: Execution
) -> tuple[list[Example], dict[str, int]]:
    """Classify a whole split and return the chosen examples with their maps, and the counts ``correct`` and ``images``.

    Args:
        classes: the name of each label.
        precision, execution: the run's, for the predictions; the maps are computed in float32.
    """
    network.eval()
    probabilities = []
    for images, _ in split.batches(BATCH[split.labels.device.type]):
        with execution.precision(images.device, precision):
            logits = network(images)
        probabilities.append(logits.float().softmax(1))
    confidences, predictions = torch.cat(probabilities).max(1)
    labels, predicted = split.labels.tolist(), predictions.tolist()
    chosen = choose(labels, predicted)
    maps = {site: _as_maps(received(matrices)) for site, matrices in attention_matrices(network, _images(split, chosen)).items()}
    examples = [
        Example(
            index=index,
            image=split.images[index].cpu().numpy(),
            label=classes[labels[index]],
            predicted=classes[predicted[index]],
            confidence=confidences[index].item(),
            maps={str(site): of_all[place] for site, of_all in maps.items()},
        )
        for place, index in enumerate(chosen)
    ]
    correct = sum(label == guess for label, guess in zip(labels, predicted, strict=True))
    return examples, {"correct": correct, "images": len(labels)}


def _images(split: DeviceSplit, indices: Sequence[int]) -> Tensor:
    """Some images of a split as the network sees them, ``[N, 3, 32, 32]``."""
    return torch.cat([images for images, _ in split.batches(BATCH[split.labels.device.type])])[list(indices)]


def _as_maps(tokens: Tensor) -> NDArray[np.float64]:
    """``[N, H, W]`` from ``[N, L]``, for a square map."""
    side = round(tokens.shape[1] ** 0.5)
    maps: NDArray[np.float64] = tokens.double().cpu().numpy().reshape(-1, side, side)
    return maps
