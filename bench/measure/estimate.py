"""How long runs will take on this device, from a few timed steps.

An estimate serves a person who decides whether to wait; it is never written into a record.
"""

import gc
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from bench.engine import network as networks
from bench.engine.device_data import DeviceSplit, draw_epoch
from bench.engine.evaluate import BATCH, evaluate
from bench.engine.execution import Choices, choose
from bench.engine.graphs import WARM_UP
from bench.engine.optimizer import adamw
from bench.engine.regime import ADDED, EVERYTHING, release, trained_parts
from bench.engine.step import TrainingStep
from bench.experiment import Model, Precision, Recipe, Run
from bench.words import duration

TIMED_STEPS = 3  # after some that warm up; their median
ENOUGH_SECONDS = 2.0  # of one thing's timing


class Estimator:
    """Seconds of a run, by timing each distinct network once, frozen and not, and evaluating it once.

    Args:
        device: where the runs will train.
        choices: the user's, so that the steps timed are the steps that will run.
    """

    def __init__(self, device: torch.device, choices: Choices) -> None:
        self._device = device
        self._choices = choices
        self._per_image: dict[tuple[str, str | None, int, Precision, bool], tuple[float, float]] = {}

    def seconds(self, run: Run, *, images: dict[str, int], classes: int) -> float:
        """Estimate one run.

        Args:
            images: how many the run trains on, validates on and tests on, by split.
            classes: the number of logits.
        """
        recipe = run.experiment.recipe
        total = 0.0
        for epoch in range(1, recipe.epochs + 1):
            trained = trained_parts(run.experiment.regime, epoch=epoch, frozen_epochs=recipe.frozen_epochs)
            training, evaluating = self._seconds_per_image(run.experiment.model, recipe, trained <= ADDED, classes)
            total += training * images["train"] + evaluating * (images["test"] + images["validation"])
        return total

    def _seconds_per_image(self, model: Model, recipe: Recipe, frozen: bool, classes: int) -> tuple[float, float]:
        # attention inserted into a network costs a few percent of it: not worth timing each kind of it
        key = (model.family, model.stem, recipe.batch_size, recipe.precision, frozen)
        if key not in self._per_image:
            self._per_image[key] = self._measure(model, recipe, frozen, classes)
        return self._per_image[key]

    def _measure(self, model: Model, recipe: Recipe, frozen: bool, classes: int) -> tuple[float, float]:
        gc.collect()  # a network is a cycle, and the last one holds its memory until then
        network = networks.build(model, classes=classes, seed=0)
        network = network.to(device=self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        execution = choose(network, recipe.precision, self._device, self._choices, steps=TIMED_STEPS)  # never worth compiling
        execution.use_in(network)
        part_of = networks.FAMILIES[model.family].part_of
        release(networks.by_part(network, part_of), ADDED if frozen else EVERYTHING)
        images = max(recipe.batch_size, BATCH[self._device.type])
        split = DeviceSplit(
            np.zeros((images, 32, 32, 3), np.uint8),
            np.zeros(images, np.uint8),
            padding=recipe.crop_padding,
            mean=(0.5,),
            std=(0.5,),
            device=self._device,
        )
        warm_up = 1 + WARM_UP * execution.cuda_graph
        step = TrainingStep(network, adamw(network, recipe, part_of), split, recipe, execution, steps=1)
        draws = draw_epoch(
            images, seed=0, epoch=1, padding=recipe.crop_padding, flip=recipe.flip, blocks=step.blocks, device=self._device
        )

        def from_the_start() -> None:
            step.begin_epoch(draws, [0.0])  # the same images again and again
            step()

        network.train()
        for _ in range(warm_up):
            from_the_start()
        training = statistics.median(self._times(from_the_start, TIMED_STEPS))
        evaluating = min(self._times(lambda: evaluate(network, split, recipe, execution), 2))
        return training / recipe.batch_size, evaluating / images

    def _times(self, work: Callable[[], object], most: int) -> list[float]:
        """Seconds of each repetition; fewer of what takes long, which also varies less."""
        seconds = [self._timed(work)]
        while len(seconds) < most and sum(seconds) < ENOUGH_SECONDS:
            seconds.append(self._timed(work))
        return seconds

    def _timed(self, work: Callable[[], object]) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        started = time.perf_counter()
        work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started


class TimeLeft:
    """Says after each run how long the others will take, at the pace of those that have ended; nothing without estimates.

    Args:
        estimates: seconds of each run.
        places: how many runs are under way at a time.
    """

    def __init__(self, runs: Sequence[Run], estimates: Sequence[float], places: int) -> None:
        self._left = dict(zip((run.key for run in runs), estimates, strict=False))
        self._count, self._places = len(self._left), places
        self._began: dict[str, float] = {}
        self._taken = self._estimated = 0.0  # seconds, by all that have ended
        self._one_at_a_time = threading.Lock()

    def began(self, run: Run) -> None:
        """Take a run that has."""
        with self._one_at_a_time:
            self._began[run.key] = time.perf_counter()

    def ended(self, run: Run, status: str) -> None:
        """Take a run that has. One that is not done, as it failed or another process works on it, says nothing of the pace."""
        with self._one_at_a_time:
            now, began, estimate = time.perf_counter(), self._began.pop(run.key), self._left.pop(run.key, None)
            if estimate is None or status != "done":
                return
            self._taken += now - began
            self._estimated += estimate
            pace = self._taken / self._estimated
            left = [max(0.0, pace * its - (now - self._began.get(key, now))) for key, its in self._left.items()]
            if left:
                seconds = max(*left, sum(left) / self._places)
                print(f"{self._count - len(left)} of {self._count} runs, about {duration(seconds)} left", flush=True)
