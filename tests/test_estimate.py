"""The estimate of a run's time: arithmetic on measured seconds per image."""

from dataclasses import replace
from typing import Any

import pytest

from bench.engine.execution import Choices
from bench.engine.regime import ADDED, EVERYTHING, release
from bench.engine.step import TrainingStep
from bench.experiment import Model, Recipe
from bench.measure import estimate
from bench.measure.estimate import Estimator, TimeLeft
from bench.words import duration
from tests.conftest import CPU, small_run

IMAGES = {"train": 1000, "validation": 100, "test": 400}


def test_frozen_epochs_and_evaluation_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(self: Estimator, model: Model, recipe: Recipe, frozen: bool, classes: int) -> tuple[float, float]:
        measured.append(frozen)
        return (0.01 if frozen else 0.03), 0.002

    monkeypatch.setattr(Estimator, "_measure", measure)
    estimator = Estimator(CPU, Choices())
    run = small_run(epochs=4, regime="F2", frozen_epochs=1, validation_fraction=0.1)
    assert estimator.seconds(run, images=IMAGES, classes=10) == pytest.approx(1 * 10 + 3 * 30 + 4 * 1)
    assert estimator.seconds(run, images=IMAGES, classes=10) == pytest.approx(104)
    assert measured == [True, False], "each network is timed once"


def test_a_network_is_timed_on_the_device() -> None:
    seconds = Estimator(CPU, Choices()).seconds(small_run(epochs=1, batch_size=2), images=IMAGES, classes=10)
    assert 0.1 < seconds < 600


@pytest.mark.parametrize(("frozen", "trained"), [(True, ADDED), (False, EVERYTHING)])
def test_what_is_timed_is_a_step_of_the_phase(frozen: bool, trained: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> None:
    released, steps = [], []

    class Counted(TrainingStep):
        def __call__(self) -> None:
            parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
            steps.append(sum(parameter.requires_grad for parameter in parameters))
            super().__call__()

    def release_and_note(parts: Any, which: Any) -> None:
        released.append(which)
        release(parts, which)

    monkeypatch.setattr(estimate, "release", release_and_note)
    monkeypatch.setattr(estimate, "TrainingStep", Counted)
    run = small_run(batch_size=2)
    Estimator(CPU, Choices())._measure(run.experiment.model, run.experiment.recipe, frozen, 10)
    assert released == [trained]
    assert len(steps) >= 2, "one to warm up"
    assert set(steps) == {4 if frozen else 182}, "the classifier's norm and linear layer, or all that there is"


@pytest.mark.parametrize(("each", "times"), [(0.1, 3), (1.1, 2), (30.0, 1)])
def test_what_takes_long_is_timed_less_often(each: float, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Estimator, "_timed", lambda self, work: each)
    assert Estimator(CPU, Choices())._times(lambda: None, 3) == [each] * times


class Clock:
    """Moves on when it is told to."""

    now = 1000.0

    def perf_counter(self) -> float:
        return self.now


def test_time_left_goes_by_the_pace_of_the_runs_that_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of 100, 100, 200, 50 and 50 s by the estimate, two at a time, that take twice as long."""
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)
    runs = [replace(small_run(), seed=seed) for seed in range(5)]
    left = TimeLeft(runs, [100.0, 100.0, 200.0, 50.0, 50.0], 2)

    def said(after: float, run: int, status: str) -> str:
        clock.now += after
        left.ended(runs[run], status)
        return capsys.readouterr().out

    left.began(runs[0])
    left.began(runs[1])
    assert said(200, 0, "done") == "1 of 5 runs, about 7 min left\n", "the longest takes 400 s"
    left.began(runs[2])
    assert said(1, 1, "failed") == "", "no pace"
    left.began(runs[3])
    assert said(100, 3, "done") == "3 of 5 runs, about 5 min left\n", "the longest has 400 - 101 s to go"
    left.began(runs[4])
    assert said(3, 4, "busy") == ""
    assert said(300, 2, "done") == "", "no run is left"
    unknown = TimeLeft(runs, [], 2)
    unknown.began(runs[0])
    unknown.ended(runs[0], "done")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (3600, "1 h 00 min"), (12_000, "3 h 20 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
