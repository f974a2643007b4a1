"""The estimate of a run's time: arithmetic on measured seconds per image."""

import pytest

from bench.engine.execution import Choices
from bench.experiment import Model, Recipe
from bench.measure.estimate import Estimator, duration
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


@pytest.mark.parametrize(("each", "times"), [(0.1, 3), (1.1, 2), (30.0, 1)])
def test_what_takes_long_is_timed_less_often(each: float, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Estimator, "_timed", lambda self, work: each)
    assert Estimator(CPU, Choices())._times(lambda: None, 3) == [each] * times


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (3600, "1 h 00 min"), (12_000, "3 h 20 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
