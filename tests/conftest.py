"""What several tests share: a network of the real one's shape but a thousandth of its size, and a run to train it on."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import configuration
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import data
from bench import grid
from bench.cluster import VARIABLES
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.execution import Execution
from bench.engine.train import put_on_device, train
from bench.environment import seed_for
from bench.experiment import Experiment, Model, Recipe, Run
from bench.machine import make_deterministic
from bench.settings import DEFAULTS

CPU = torch.device("cpu")

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # the source tree may be read-only


@pytest.fixture(autouse=True)
def pinned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One thread and deterministic algorithms, so that numbers can be compared; no variable of the user's reaches a test."""
    for name in (*DEFAULTS, *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEPTHWISE", "reference")  # a choice by measurement may come out otherwise the next time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def small_network(classes: int = 10, seed: int = 0) -> nn.Module:
    """ConvNeXt with widths 8 to 64 and one block a stage: the parameter names of ConvNeXt-Tiny, 80 thousand parameters."""
    torch.manual_seed(seed_for(seed, "weights"))
    settings = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 32, 1), CNBlockConfig(32, 64, 1), CNBlockConfig(64, None, 1)]
    network: nn.Module = ConvNeXt(settings, stochastic_depth_prob=0.1, num_classes=classes)
    return network.to(memory_format=torch.channels_last)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a network of a thousandth of the size."""
    monkeypatch.setattr(grid, "build_network", lambda run, classes, initial, device: small_network(classes, run.seed))


def small_run(seed: int = 0, **recipe: Any) -> Run:
    """Three epochs of four steps on 40 images."""
    experiment = Experiment(
        name="test/small",
        table="tests",
        dataset="tiny_fashion_mnist",
        model=Model(),
        weights="none",
        regime=recipe.pop("regime", "full"),
        selection=recipe.pop("selection", "best_test"),
        recipe=replace(Recipe(epochs=3, batch_size=10, precision="fp32"), **recipe),
        train_images=40,
        test_images=20,
    )
    return Run(experiment=experiment, profile="smoke", seed=seed)


class Recorder:
    """An observer that remembers what it was told, and may stop the run."""

    def __init__(self, stop_at: tuple[int, int] | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.epochs: list[int] = []
        self.resumed_after: int | None = None
        self._stop_at = stop_at

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.steps.append((epoch, step))
        if (epoch, step) == self._stop_at:
            raise KeyboardInterrupt

    def epoch(self, entry: dict[str, Any], timing: dict[str, Any]) -> None:
        self.epochs.append(entry["epoch"])

    def resumed(self, entries: list[dict[str, Any]], timings: list[dict[str, Any]]) -> None:
        self.resumed_after = len(entries)


def train_small(
    run: Run,
    folder: Path,
    observer: Recorder | None = None,
    network: nn.Module | None = None,
    execution: Execution = Execution(),  # noqa: B008 - frozen
    **options: Any,
) -> dict[str, Any]:
    """Train the small network and return the results part of its record."""
    dataset = data.load(run.experiment.dataset)
    results, _ = train(
        run,
        splits=put_on_device(run, dataset, CPU),
        network=network or small_network(seed=run.seed),
        checkpoint=CheckpointFolder(folder),
        observer=observer or Recorder(),
        execution=execution,
        **options,
    )
    return results
