"""How long runs will take on this device, from a few timed steps.

An estimate serves a person who decides whether to wait; it is never written into a record.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from bench.engine import network as networks
from bench.engine.evaluate import BATCH
from bench.engine.regime import ADDED, EVERYTHING, release, trained_parts
from bench.experiment import Model, Run

TIMED_STEPS = 3  # after one that warms up; their median


class Estimator:
    """Seconds of a run, by timing each distinct network once, frozen and not, and evaluating it once.

    Args:
        device: where the runs will train.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._per_image: dict[tuple[Model, int, bool], tuple[float, float]] = {}

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
            training, evaluating = self._seconds_per_image(run.experiment.model, recipe.batch_size, trained <= ADDED, classes)
            total += training * images["train"] + evaluating * (images["test"] + images["validation"])
        return total

    def _seconds_per_image(self, model: Model, batch_size: int, frozen: bool, classes: int) -> tuple[float, float]:
        key = (model, batch_size, frozen)
        if key not in self._per_image:
            self._per_image[key] = self._measure(model, batch_size, frozen, classes)
        return self._per_image[key]

    def _measure(self, model: Model, batch_size: int, frozen: bool, classes: int) -> tuple[float, float]:
        network = networks.build(model, classes=classes, seed=0)
        network = network.to(device=self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        parts = networks.by_part(network, networks.FAMILIES[model.family].part_of)
        release(parts, ADDED if frozen else EVERYTHING)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16)
        images = torch.randn(max(batch_size, BATCH), 3, 32, 32, device=self._device).to(memory_format=torch.channels_last)
        labels = torch.zeros(batch_size, dtype=torch.int64, device=self._device)

        def step() -> None:
            with autocast:
                logits = network(images[:batch_size])
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        @torch.no_grad()
        def evaluation() -> None:
            with autocast:
                network(images[:BATCH])

        training = statistics.median(self._timed(step) for _ in range(1 + TIMED_STEPS))
        network.eval()
        return training / batch_size, min(self._timed(evaluation) for _ in range(2)) / BATCH

    def _timed(self, work: Callable[[], None]) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        started = time.perf_counter()
        work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
