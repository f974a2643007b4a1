"""The loops that are compared: the one that a user would write, and ours, part by part.

Each is a callable that does a number of optimizer steps on images of CIFAR-100's size; all train the same network on batches of the
same size, with crop, flip and AdamW.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.engine import network as networks
from bench.engine.compiling import compile_blocks
from bench.engine.device_data import DeviceSplit, draw_epoch
from bench.engine.execution import Choices, Execution, choose
from bench.engine.graphs import captured
from bench.engine.optimizer import adamw, updates_beside
from bench.engine.regime import EVERYTHING, release
from bench.engine.step import TrainingStep
from bench.environment import seed_for
from bench.experiment import Experiment
from models.stochastic_depth import give_factors, rates

Steps = Callable[[int], None]

CLASSES, IMAGES = 100, 6_400  # of noise: as many classes as CIFAR-100 has, images for 50 of its batches
EPOCH = 50_000  # images of a CIFAR-100 epoch
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)  # of CIFAR-100; they change no speed


def random_images(count: int, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images ``[N, 32, 32, 3]`` and labels of noise: no speed here depends on what is seen."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, 32, 32, 3), np.uint8), generator.integers(0, classes, count).astype(np.uint8)


def random_split(device: torch.device) -> DeviceSplit:
    """The same images on the device, as training takes them."""
    images, labels = random_images(IMAGES, CLASSES)
    return DeviceSplit(images, labels, padding=4, mean=MEAN, std=STD, device=device)


def execution_of(experiment: Experiment, device: torch.device, choices: Choices) -> Execution:
    """The mode in which a whole run of the experiment on CIFAR-100 would compute."""
    network = networks.build(experiment.model, classes=CLASSES, seed=0)
    recipe = experiment.recipe
    return choose(network, recipe.precision, device, choices, steps=recipe.epochs * (EPOCH // recipe.batch_size))


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Deterministic algorithms, or (as torch does by itself) not: with TF32 in convolutions, and cuDNN free to search."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = torch.are_deterministic_algorithms_enabled(), convolutions.fp32_precision
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on
    if not on:
        convolutions.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        convolutions.fp32_precision = before[1]
        torch.backends.cudnn.benchmark = False


def in_mode(steps: Steps, *, on: bool) -> Steps:
    """The same steps, deterministic or not, whatever the process is set to."""

    def do(count: int) -> None:
        with deterministic(on):
            steps(count)

    return do


# ---- the conventional loop ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flags:
    """What a user may turn on in the conventional loop."""

    bf16: bool = False
    channels_last: bool = False
    fused: bool = False
    workers: int = 2


class ArrayDataset(Dataset[tuple[Tensor, int]]):
    """Images of an array through PIL transforms, as torchvision's CIFAR-100 gives them."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self._images, self._labels = images, labels
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


class Conventional:
    """The loop of torchvision's and timm's training scripts.

    DataLoader and transforms, autocast, AdamW; loss and accuracy are read at each step. While others are timed its workers fill
    their queue, two batches each, so that in short windows a part of its loading is not timed: an error in its favour.
    Another is that it shares a process which keeps freed memory (``bench/memory.py``): alone it takes 4 % longer on two Xeon cores.

    Args:
        network: it trains in place.
    """

    def __init__(
        self,
        network: nn.Module,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        *,
        batch_size: int,
        device: torch.device,
        flags: Flags = Flags(),
        learning_rate: float = 1e-3,
    ) -> None:
        self._device, self._flags = device, flags
        self._layout = torch.channels_last if flags.channels_last else torch.contiguous_format
        self._network = network.to(device=device, memory_format=self._layout).train()  # type: ignore[call-overload]
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=learning_rate, fused=flags.fused or None)
        self._loader = DataLoader(
            ArrayDataset(images, labels),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=flags.workers,
            persistent_workers=flags.workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._batches: Iterator[list[Tensor]] = iter(())
        self.loss, self.accuracy = 0.0, 0.0

    def __call__(self, steps: int) -> None:
        """Do some steps; the epoch goes on where the last call left it."""
        for _ in range(steps):
            images, labels = self._next_batch()
            images = images.to(self._device, non_blocking=True, memory_format=self._layout)
            labels = labels.to(self._device, non_blocking=True)
            with torch.autocast(self._device.type, dtype=torch.bfloat16) if self._flags.bf16 else nullcontext():
                logits = self._network(images)
                loss = functional.cross_entropy(logits, labels)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self.loss = loss.item()
            self.accuracy = (logits.argmax(1) == labels).float().mean().item()

    def _next_batch(self) -> list[Tensor]:
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self._loader)
            batch = next(self._batches)
        return batch


def eager_on_device(
    network: nn.Module, split: DeviceSplit, *, batch_size: int, device: torch.device, flags: Flags, seed: int = 0
) -> Steps:
    """The conventional loop but for its loading: the images lie on the device and are augmented there in batches."""
    layout = torch.channels_last if flags.channels_last else torch.contiguous_format
    network = network.to(device=device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=flags.fused or None)
    draws = draw_epoch(len(split), seed=seed, epoch=1, padding=4, flip=True, blocks=0, device=device)
    located = split.located(draws)
    places = torch.arange(batch_size, device=device)
    done = 0

    def do(steps: int) -> None:
        nonlocal done
        for step in range(done, done + steps):
            images, labels = split.augmented(located[(places + step * batch_size) % len(split)])
            with torch.autocast(device.type, dtype=torch.bfloat16) if flags.bf16 else nullcontext():
                logits = network(images.to(memory_format=layout))
                loss = functional.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()
        done += steps

    return do


# ---- ours --------------------------------------------------------------------------------------------------------------


def ours_alone(experiment: Experiment, device: torch.device, choices: Choices) -> Steps:
    """Our loop for a process that does nothing else: on images of noise, in the mode of a short run."""
    split = random_split(device)
    network = networks.build(experiment.model, classes=CLASSES, seed=0)
    execution = choose(network, experiment.recipe.precision, device, choices, steps=1)
    return ours(experiment, split, execution, batch_size=experiment.recipe.batch_size, classes=CLASSES, device=device)


def ours(
    experiment: Experiment,
    split: DeviceSplit,
    execution: Execution,
    *,
    batch_size: int,
    classes: int,
    device: torch.device,
    channels_last: bool = True,
    fused: bool = True,
) -> Steps:
    """The engine's own steps, epoch after epoch, as ``train`` does them.

    Args:
        channels_last: else weights and images have torch's own layout.
        fused: else the optimizer is no single kernel.
    """
    recipe = replace(experiment.recipe, batch_size=batch_size)
    network = build(experiment, classes, device, execution).train()
    if not channels_last:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        network.register_forward_pre_hook(lambda network, given: (given[0].contiguous(),))
    part_of = networks.FAMILIES[experiment.model.family].part_of
    release(networks.by_part(network, part_of), EVERYTHING)
    steps_per_epoch = len(split) // batch_size
    optimizer = adamw(network, recipe, part_of)
    step = TrainingStep(network, optimizer, split, recipe, execution, steps=steps_per_epoch)
    if not fused:
        for group in optimizer.param_groups:
            group["fused"] = None  # torch's own choice: all tensors in few kernels on a GPU, one after another on a CPU
        optimizer.found_inf = None  # type: ignore[attr-defined]  # only the fused one knows it
    done = 0

    def do(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            epoch, place = divmod(done, steps_per_epoch)
            if place == 0:
                crop, flip, blocks = recipe.crop_padding, recipe.flip, step.blocks
                draws = draw_epoch(len(split), seed=0, epoch=epoch, padding=crop, flip=flip, blocks=blocks, device=device)
                step.begin_epoch(draws, [1.0] * steps_per_epoch)
            step()
            done += 1

    return do


def bare_step(experiment: Experiment, execution: Execution, *, batch_size: int, classes: int, device: torch.device) -> Steps:
    """Forward, backward and update on one batch that never changes: what no loop around it can beat."""
    network = build(experiment, classes, device, execution).train()
    part_of = networks.FAMILIES[experiment.model.family].part_of
    optimizer = adamw(network, experiment.recipe, part_of)
    images = torch.randn(batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % classes
    give_factors(network, torch.ones(len(rates(network)), batch_size, device=device))
    if execution.compiled:
        compile_blocks(network)

    def compute() -> None:
        optimizer.zero_grad(set_to_none=True)
        with execution.precision(device, experiment.recipe.precision):
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), labels)
        with updates_beside(optimizer, device, on=execution.cuda_graph):
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    if not execution.cuda_graph:
        return _repeated(compute)
    return _repeated(captured(compute))


def _repeated(once: Callable[[], None]) -> Steps:
    def do(steps: int) -> None:
        for _ in range(steps):
            once()

    return do


def inference(experiment: Experiment, execution: Execution, *, batch_size: int, classes: int, device: torch.device) -> Steps:
    """Forward passes without a graph, on images that lie on the device."""
    network = build(experiment, classes, device, execution).eval()
    images = torch.randn(batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def do(steps: int) -> None:
        for _ in range(steps):
            with execution.precision(device, experiment.recipe.precision):
                network(images)

    return do


def build(experiment: Experiment, classes: int, device: torch.device, execution: Execution) -> nn.Module:
    """The experiment's network from random weights, on the device, in the mode."""
    network = networks.build(experiment.model, classes=classes, seed=seed_for(0, "weights"))
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    execution.use_in(network)
    return network
