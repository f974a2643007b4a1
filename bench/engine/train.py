"""Train one run. Reads top to bottom: data, network, resume, epochs, final numbers.

1. A run always continues from its last checkpoint when there is one.
2. Everything random in an epoch is drawn from (seed, epoch): order, crops, flips, stochastic depth.
3. Nothing is read back from the device inside an epoch; losses and counts accumulate there.
4. A loss that is not finite ends the run as ``diverged``; the checkpoint of the epoch before stays.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.engine import network as networks
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.device_data import IMAGENET_MEAN, IMAGENET_STD, DeviceSplit, draw_epoch
from bench.engine.evaluate import accuracy, evaluate
from bench.engine.optimizer import adamw, cosine_with_warmup, set_learning_rates
from bench.engine.regime import release, trained_parts
from bench.engine.subset import first_per_class, stratified_split
from bench.environment import seed_for
from bench.experiment import Recipe, Run
from data import Dataset

Entry = dict[str, Any]


class Observer(Protocol):
    """Who looks on while a run trains."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """A step has been queued; both numbers count from 1."""

    def epoch(self, entry: Entry, timing: Entry) -> None:
        """An epoch has ended and its checkpoint is on disk."""

    def resumed(self, entries: list[Entry], timings: list[Entry]) -> None:
        """The run goes on from a checkpoint that holds these epochs; called before the first step."""


@dataclass
class Progress:
    """What a run has so far; all of it is in the checkpoint."""

    epochs: list[Entry]
    timings: list[Entry]
    restarts: int = 0
    diverged: bool = False


@dataclass(frozen=True)
class Splits:
    """A run's data on the device; ``validation`` is None where the recipe has none."""

    train: DeviceSplit
    validation: DeviceSplit | None
    test: DeviceSplit

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each split."""
        return {
            "train": len(self.train),
            "validation": len(self.validation) if self.validation else 0,
            "test": len(self.test),
        }


def put_on_device(run: Run, dataset: Dataset, device: torch.device) -> Splits:
    """Choose the run's images and put them on the device.

    Pixels are normalised by ImageNet's statistics with pretrained weights, else by those of the data set's whole training split.
    """
    experiment, recipe = run.experiment, run.experiment.recipe
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if experiment.weights == "imagenet1k" else (dataset.mean, dataset.std)
    chosen = first_per_class(dataset.train.labels, experiment.train_images)
    images, labels = dataset.train.images[chosen], dataset.train.labels[chosen]

    def split(images: Any, labels: Any, padding: int = 0) -> DeviceSplit:
        return DeviceSplit(images, labels, padding=padding, mean=mean, std=std, device=device)

    validation = None
    if recipe.validation_fraction:
        kept, held_out = stratified_split(labels, recipe.validation_fraction, seed_for(run.seed, "validation"))
        validation = split(images[held_out], labels[held_out])
        images, labels = images[kept], labels[kept]
    chosen = first_per_class(dataset.test.labels, experiment.test_images)
    test = split(dataset.test.images[chosen], dataset.test.labels[chosen])
    return Splits(split(images, labels, recipe.crop_padding), validation, test)


def build_network(run: Run, classes: int, initial: dict[str, Tensor] | None, device: torch.device) -> nn.Module:
    """Build the run's network on the device, channels last."""
    network = networks.build(run.experiment.model, classes=classes, seed=seed_for(run.seed, "weights"), initial=initial)
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def train(
    run: Run, *, splits: Splits, network: nn.Module, checkpoint: CheckpointFolder, observer: Observer
) -> tuple[dict[str, Any], Progress]:
    """Train ``network`` in place and return the results part of the record, and the progress with its timings.

    Args:
        splits: from :func:`put_on_device`.
        network: from :func:`build_network`; the checkpoint's weights replace its own.
        checkpoint: where the state after each epoch goes, and where an earlier one is looked for.

    Raises:
        UserError: the checkpoint cannot be read or written.
    """
    experiment, recipe = run.experiment, run.experiment.recipe
    device = splits.train.labels.device
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16")

    # ---- optimizer and schedule --------------------------------------------------------------------------------------
    part_of = networks.FAMILIES[experiment.model.family].part_of
    parts = networks.by_part(network, part_of)
    optimizer = adamw(network, recipe, part_of)
    steps_per_epoch = len(splits.train) // recipe.batch_size
    assert steps_per_epoch > 0, "a batch is larger than the training split"

    # ---- resume ------------------------------------------------------------------------------------------------------
    progress = Progress([], [])
    if state := checkpoint.load(run.configuration_sha256, device):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(state["epochs"], state["timings"], state["restarts"] + 1)
        observer.resumed(progress.epochs, progress.timings)

    # ---- epochs ------------------------------------------------------------------------------------------------------
    while len(progress.epochs) < recipe.epochs and not plateaued(progress.epochs, recipe):
        epoch = len(progress.epochs) + 1
        trained = trained_parts(experiment.regime, epoch=epoch, frozen_epochs=recipe.frozen_epochs)
        trainable = release(parts, trained)

        started = time.perf_counter()
        training = train_epoch(
            network,
            optimizer,
            splits.train,
            recipe,
            autocast,
            seed=run.seed,
            epoch=epoch,
            steps=steps_per_epoch,
            observer=observer,
        )
        trained_at = time.perf_counter()
        if training is None:
            progress.diverged = True
            break
        entry = {
            "epoch": epoch,
            "trainable_parameters": trainable,
            "learning_rate_factor": schedule(recipe, epoch * steps_per_epoch - 1, steps_per_epoch),  # at its last step
            "train": training,
            "validation": evaluate(network, splits.validation, autocast) if splits.validation else None,
            "test": evaluate(network, splits.test, autocast),
        }
        if gates := networks.gates(network):
            entry["gates"] = {site: alpha.item() for site, alpha in gates.items()}
        progress.epochs.append(entry)
        progress.timings.append({"train_seconds": trained_at - started, "evaluation_seconds": time.perf_counter() - trained_at})
        if best_epoch(progress.epochs, selecting_split(recipe)) is entry:
            checkpoint.save_best(network)
        checkpoint.save(
            {
                "configuration_sha256": run.configuration_sha256,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epochs": progress.epochs,
                "timings": progress.timings,
                "restarts": progress.restarts,
            }
        )
        observer.epoch(entry, progress.timings[-1])

    # ---- final numbers -----------------------------------------------------------------------------------------------
    return results(progress.epochs, recipe, diverged=progress.diverged, weights_sha256=sha256_of_weights(network)), progress


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: DeviceSplit,
    recipe: Recipe,
    autocast: torch.autocast,
    *,
    seed: int,
    epoch: int,
    steps: int,
    observer: Observer,
) -> Entry | None:
    """Train for one epoch.

    Returns:
        ``loss`` (mean over the images, with smoothing, in nats), ``correct`` and ``images`` (counts); None if the loss diverged.
    """
    network.train()
    torch.manual_seed(seed_for(seed, epoch, "stochastic depth"))
    device = split.labels.device
    draws = draw_epoch(len(split), seed=seed, epoch=epoch, padding=recipe.crop_padding, flip=recipe.flip, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for step, (images, labels) in enumerate(split.training_batches(draws, recipe.batch_size)):
        set_learning_rates(optimizer, schedule(recipe, (epoch - 1) * steps + step, steps))
        with autocast:
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum += loss.detach()
        correct += (logits.detach().argmax(1) == labels).sum()
        observer.step(epoch, step + 1, steps)
    mean_loss = loss_sum.item() / steps
    if not math.isfinite(mean_loss):
        return None
    return {"loss": mean_loss, "correct": int(correct.item()), "images": steps * recipe.batch_size}


def schedule(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The factor on the peak learning rates at a step, counted from 0 over the whole run."""
    steps = recipe.epochs * steps_per_epoch
    return cosine_with_warmup(step, steps=steps, warmup_steps=round(recipe.warmup_fraction * steps))


def selecting_split(recipe: Recipe) -> str:
    """The split whose accuracy chooses the epoch: validation where there is one, else (as the study does) test."""
    return "validation" if recipe.validation_fraction else "test"


def best_epoch(epochs: list[Entry], split: str) -> Entry:
    """Return the first epoch with the highest accuracy on ``split``."""
    return max(epochs, key=lambda entry: (entry[split]["correct"], -entry["epoch"]))


def plateaued(epochs: list[Entry], recipe: Recipe) -> bool:
    """Whether validation accuracy has not improved for ``patience`` epochs."""
    if recipe.patience is None or not epochs:
        return False
    return len(epochs) - int(best_epoch(epochs, "validation")["epoch"]) >= recipe.patience


def results(epochs: list[Entry], recipe: Recipe, *, diverged: bool, weights_sha256: str | None) -> dict[str, Any]:
    """Return the results part of a record: status, final accuracies in percent with their epochs, and all epochs."""

    def at(entry: Entry, split: str) -> Entry:
        return {"epoch": entry["epoch"], "accuracy": accuracy(entry[split])}

    final: dict[str, Any] | None = None
    if epochs:
        best_validation = best_epoch(epochs, "validation") if recipe.validation_fraction else None
        final = {
            "best_test": at(best_epoch(epochs, "test"), "test"),
            "last_test": at(epochs[-1], "test"),
            "best_validation": at(best_validation, "validation") if best_validation else None,
            "test_at_best_validation": at(best_validation, "test") if best_validation else None,
        }
    return {
        "status": "diverged" if diverged else "done",
        "error": f"the loss was not finite in epoch {len(epochs) + 1}" if diverged else None,
        "final": final,
        "stopped_early": not diverged and len(epochs) < recipe.epochs,
        "weights_sha256": None if diverged else weights_sha256,
        "epochs": epochs,
    }


def sha256_of_weights(network: nn.Module) -> str:
    """SHA-256 over all tensors of the state dict, in its order: equal weights have equal hashes."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
