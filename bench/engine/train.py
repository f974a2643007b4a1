"""Train one run. Reads top to bottom: data, network, resume, epochs, final numbers.

1. A run always continues from its last checkpoint when there is one: the end of an epoch, or wherever a signal asked it to stop.
2. Everything random in an epoch is drawn from (seed, epoch): order, crops, flips, stochastic depth.
3. Nothing is read back from the device inside an epoch; losses and counts accumulate there.
4. After a loss that is not finite no step changes the weights; the run ends with its epoch, as ``diverged``, and the checkpoint of
   an epoch before stays.
"""

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench import stopping
from bench.engine import network as networks
from bench.engine import ranks
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.device_data import IMAGENET_MEAN, IMAGENET_STD, DeviceSplit, draw_epoch
from bench.engine.evaluate import evaluate
from bench.engine.execution import Execution
from bench.engine.optimizer import adamw, cosine_with_warmup
from bench.engine.regime import release, trained_parts
from bench.engine.step import TrainingStep
from bench.engine.subset import first_per_class, stratified_split
from bench.environment import seed_for
from bench.errors import UserError
from bench.experiment import Recipe, Run
from bench.ledger import accuracy
from data import Dataset
from models.depthwise import triton_works

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

    epochs: list[Entry] = field(default_factory=list)
    timings: list[Entry] = field(default_factory=list)
    restarts: int = 0
    diverged: bool = False
    execution: Execution = field(default_factory=Execution)
    partial: dict[str, Any] | None = None  # of an epoch that was left in its middle
    processes: list[int] = field(default_factory=list)  # how many trained the run, one number for each time that it changed
    begun: str = ""  # the time at which the first session began
    session: Entry = field(default_factory=dict)  # the present one: what a record says of its environment and code
    earlier: list[Entry] = field(default_factory=list)  # those before, one for each time that it changed, and how far each came


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
    run: Run,
    *,
    splits: Splits,
    network: nn.Module,
    checkpoint: CheckpointFolder,
    observer: Observer,
    execution: Execution = Execution(),  # noqa: B008 - frozen
    checkpoint_seconds: float = 0,
    begun: str = "",
    session: Entry | None = None,
) -> tuple[dict[str, Any], Progress]:
    """Train ``network`` in place and return the results part of the record, and the progress with its timings.

    Args:
        splits: from :func:`put_on_device`.
        network: from :func:`build_network`; the checkpoint's weights replace its own.
        checkpoint: where the state after an epoch goes, and where an earlier one is looked for.
        execution: the mode, unless a checkpoint holds the one that the run began with.
        checkpoint_seconds: an epoch that ends sooner after the last checkpoint leaves none; 0: every epoch does. The state takes
            as long to write as a GPU takes for an epoch.
        begun: the time at which this session began.
        session: its environment and code.

    Raises:
        UserError: the checkpoint cannot be read or written, or was made on another type of device.
    """
    experiment, recipe = run.experiment, run.experiment.recipe
    device = splits.train.labels.device

    # ---- optimizer ---------------------------------------------------------------------------------------------------
    part_of = networks.FAMILIES[experiment.model.family].part_of
    parts = networks.by_part(network, part_of)
    optimizer = adamw(network, recipe, part_of)
    steps = len(splits.train) // recipe.batch_size
    assert steps > 0, "a batch is larger than the training split"

    # ---- resume ------------------------------------------------------------------------------------------------------
    session = session or {}
    progress = Progress(execution=execution, begun=begun, session=session)
    if state := checkpoint.load(run.configuration_sha256, device):
        if state["device"] != device.type:  # the mode of computing, and with it the result, would change in the middle of a run
            raise UserError(
                f"{checkpoint.last}: expected a checkpoint of DEVICE={device.type}, found one of {state['device']}; "
                f"set DEVICE={state['device']}, or delete it to start the run again"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        state["progress"]["execution"] = Execution(**state["progress"]["execution"])
        mode = state["progress"]["execution"]
        if (mode.blocks == "fused" or "triton" in mode.depthwise.values()) and not triton_works():
            raise UserError(
                f"{checkpoint.last}: expected Triton, with which the run began, found that it does not work here; "
                "go on where it does, or delete the checkpoint to start the run again"
            )
        progress = Progress(**state["progress"])
        progress.restarts += 1
        progress.begun = progress.begun or begun  # one from before sessions were told apart has none
        if progress.session not in ({}, session):
            progress.earlier.append(progress.session | {"epochs": len(progress.epochs)})
        progress.session = session
        observer.resumed(progress.epochs, progress.timings)
    ranks.wait_for_all()  # nobody writes a checkpoint before all have read this one
    if progress.processes[-1:] != [ranks.size()]:
        progress.processes.append(ranks.size())
    progress.execution.use_in(network)

    def save() -> None:
        checkpoint.save(
            {
                "configuration_sha256": run.configuration_sha256,
                "device": device.type,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "progress": asdict(progress),
            }
        )

    # ---- epochs ------------------------------------------------------------------------------------------------------
    best: dict[str, Tensor] | None = None  # the best epoch's weights, until they are on disk
    trained: frozenset[str] | None = None
    saved = time.monotonic()
    while len(progress.epochs) < recipe.epochs and not plateaued(progress.epochs, recipe):
        epoch = len(progress.epochs) + 1
        started = time.perf_counter() - (progress.partial["seconds"] if progress.partial else 0)
        if trained != (trained := trained_parts(experiment.regime, epoch=epoch, frozen_epochs=recipe.frozen_epochs)):
            trainable = release(parts, trained)
            step = TrainingStep(network, optimizer, splits.train, recipe, progress.execution, steps=steps)
        network.train()
        for done in steps_of(step, splits.train, recipe, seed=run.seed, epoch=epoch, steps=steps, partial=progress.partial):
            observer.step(epoch, done, steps)
            if ranks.any_of(stopping.wanted(), device):
                if best:
                    checkpoint.save_best(best)
                progress.partial = step.partial() | {"seconds": time.perf_counter() - started}
                save()
                stopping.leave()
        progress.partial = None
        loss, correct = step.end_epoch()
        trained_at = time.perf_counter()
        if not math.isfinite(loss):
            progress.diverged = True
            break
        entry = {
            "epoch": epoch,
            "trainable_parameters": trainable,
            "learning_rate_factor": schedule(recipe, epoch * steps - 1, steps),  # at its last step
            "train": {"loss": loss, "correct": correct, "images": steps * recipe.batch_size},
            "validation": evaluate(network, splits.validation, recipe, progress.execution) if splits.validation else None,
            "test": evaluate(network, splits.test, recipe, progress.execution),
        }
        if gates := networks.gates(network):
            entry["gates"] = {site: alpha.item() for site, alpha in gates.items()}
        progress.epochs.append(entry)
        progress.timings.append({"train_seconds": trained_at - started, "evaluation_seconds": time.perf_counter() - trained_at})
        if best_epoch(progress.epochs, selecting_split(recipe)) is entry:
            best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if time.monotonic() - saved >= checkpoint_seconds:
            if best:
                checkpoint.save_best(best)
                best = None
            save()
            saved = time.monotonic()
        observer.epoch(entry, progress.timings[-1])
    if best:  # since the last checkpoint
        checkpoint.save_best(best)

    # ---- final numbers -----------------------------------------------------------------------------------------------
    return results(progress.epochs, recipe, diverged=progress.diverged, weights_sha256=sha256_of_weights(network)), progress


def steps_of(
    step: TrainingStep, split: DeviceSplit, recipe: Recipe, *, seed: int, epoch: int, steps: int, partial: dict[str, Any] | None
) -> Iterator[int]:
    """Queue an epoch's steps one by one, and yield after each how many there are; a partial epoch goes on where it was left."""
    step.begin_epoch(
        draw_epoch(
            len(split),
            seed=seed,
            epoch=epoch,
            padding=recipe.crop_padding,
            flip=recipe.flip,
            blocks=step.blocks,
            device=split.labels.device,
        ),
        [schedule(recipe, (epoch - 1) * steps + i, steps) for i in range(steps)],
    )
    for done in range(step.go_on(partial) if partial else 0, steps):
        step()
        yield done + 1


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
