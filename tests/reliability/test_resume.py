"""Resuming is an equation: interrupted and continued = uninterrupted: the record, the weights, the best weights, the curves."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import IO, Any

import pytest

from bench import stopping
from bench.engine import checkpoint
from bench.engine.execution import Execution
from bench.experiment import Run, canonical_json
from bench.ledger import write_atomically
from bench.progress import Watcher
from tests.conftest import small_run, train_small
from tests.reliability.equality import curves, same

REFERENCE = Execution()
FASTER = Execution(depthwise={1: "pairs", 2: "pairs", 4: "matrix"}, patches="matrix", attention="products", bf16="fp32")
EPOCH = 2  # of three; a regime's switch is at its start
STEP = 2  # of three or four


class Interrupted(Watcher):
    """The observer of every run, which sees to it that the run does not go on."""

    def __init__(self, run: Run, folder: Path, interruption: str) -> None:
        super().__init__(run, folder)
        self._interruption = interruption

    def step(self, epoch: int, step: int, steps: int) -> None:
        super().step(epoch, step, steps)
        if (epoch, step) == (EPOCH, STEP):
            if self._interruption == "asked to stop in an epoch":
                signal.raise_signal(signal.SIGTERM)
            if self._interruption == "killed in an epoch":
                raise KeyboardInterrupt

    def epoch(self, entry: dict[str, Any], timing: dict[str, Any]) -> None:
        super().epoch(entry, timing)
        if entry["epoch"] == EPOCH and self._interruption == "after an epoch":
            raise KeyboardInterrupt


@contextmanager
def cut_off(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt the so many-th write of the file in its middle."""
    writes = 0

    def write(path: Path, content: Any) -> None:
        nonlocal writes
        writes += path.name == name

        def half(file: IO[bytes]) -> None:
            content(file)
            file.truncate(file.tell() // 2)
            raise KeyboardInterrupt

        write_atomically(path, half if path.name == name and writes == number else content)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_atomically", write)
        yield


INTERRUPTIONS = {
    "after an epoch": ("", 0),
    "asked to stop in an epoch": ("", 0),
    "killed in an epoch": ("", 0),
    "killed while writing the checkpoint": ("last.pt", EPOCH),
    "killed while writing the best weights": ("best.pt", 1),
}
RECIPES: list[dict[str, Any]] = [
    {"regime": regime, "frozen_epochs": 0 if regime == "full" else 1, "validation_fraction": fraction, "precision": precision}
    for regime, fraction, precision in product(("full", "F0", "F1", "F2"), (0.0, 0.25), ("fp32", "bf16"))
]
RECIPES.append({"epochs": 6, "validation_fraction": 0.25, "patience": 3, "head_lr": 0.0, "backbone_lr": 0.0})  # stops early


def outcome(run: Run, folder: Path, watcher: Watcher, execution: Execution = REFERENCE) -> tuple[str, bytes, Any]:
    """Train, or go on; return the results part, which holds the hash of the weights, the best weights and the curves."""
    with watcher, stopping.heeding():
        results = train_small(run, folder / "checkpoints", watcher, execution=execution)  # type: ignore[arg-type]
    return canonical_json(results), (folder / "checkpoints/best.pt").read_bytes(), curves(folder / "curves")


@pytest.fixture
def signals() -> Iterator[None]:
    """The suite's handlers for the time of a test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopping.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: " ".join(map(str, recipe.values())))
def test_interrupted_and_continued(recipe: dict[str, Any], signals: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(recipe, REFERENCE, tmp_path, monkeypatch)


FASTER_MODES = [
    pytest.param(FASTER, id="eager"),
    pytest.param(replace(FASTER, compiled=True), id="compiled", marks=pytest.mark.slow),  # two minutes on slow cores
]


# torch's own tracer makes an instance of the autograd function that it traces, and deprecates doing so
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("execution", FASTER_MODES)
def test_interrupted_and_continued_in_the_faster_modes(
    execution: Execution, signals: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare({"regime": "F2", "frozen_epochs": 1, "precision": "bf16"}, execution, tmp_path, monkeypatch)


def compare(recipe: dict[str, Any], execution: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is never interrupted with one for each interruption, continued in the same mode."""
    run = small_run(**recipe)
    (tmp_path / "straight").mkdir()
    expected, best, points = outcome(run, tmp_path / "straight", Watcher(run, tmp_path / "straight/curves"), execution)
    assert ('"stopped_early": true' in expected) == ("patience" in recipe)
    for interruption, (name, number) in INTERRUPTIONS.items():
        folder = tmp_path / interruption
        with cut_off(name, number, monkeypatch), pytest.raises((KeyboardInterrupt, SystemExit)):
            outcome(run, folder, Interrupted(run, folder / "curves", interruption), execution)
        continued, its_best, its_points = outcome(run, folder, Watcher(run, folder / "curves"), execution)
        same(continued, expected)
        same(its_best, best)
        assert its_points == points
        assert not list(folder.rglob(".*"))
