"""What is seen of a run while it trains: its line, TensorBoard's curves and hyper-parameters, other trackers."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from bench import progress
from bench.experiment import Run
from bench.progress import METRICS, Watcher, each_epoch, hyper_parameters, scalars
from tests.records import run_of

DUAL, VIT = run_of("cifar100/A_dual"), run_of("cifar100/scratch_vit_tiny")
TIMING = {"train_seconds": 4.0, "evaluation_seconds": 1.0}


def entry(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train": {"loss": 2.0, "correct": 100, "images": 1000},
        "validation": None,
        "test": {"loss": 1.0, "correct": 10 * epoch, "images": 100},
        "gates": {"P2": -0.01 * epoch},
        "learning_rate_factor": 0.5,
    }


@pytest.fixture(autouse=True)
def _no_tracker_stays() -> Iterator[None]:
    yield
    progress._trackers.clear()


def watch(run: Run, folder: Path, epochs: int = 2) -> None:
    with Watcher(run, folder, "3/12") as watcher:
        watcher.resumed([entry(1)], [TIMING])
        for epoch in range(2, epochs + 1):
            watcher.epoch(entry(epoch), TIMING)


def test_a_line_says_which_run_where_how_good_how_fast_and_how_long_still(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch(DUAL, tmp_path, epochs=4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3/12 cifar100/A_dual seed 0  continues after epoch 1"
    assert lines[1] == (
        "3/12 cifar100/A_dual seed 0  epoch 2/4  loss 2.000  train 10.00 %  test 20.00 %  alpha P2 -0.0200  250 images/s  5.0 s  "
        "10 s left"
    )
    assert lines[3].endswith("250 images/s  5.0 s"), "the last epoch leaves nothing"


def test_curves_have_every_epoch_once(tmp_path: Path) -> None:
    watch(DUAL, tmp_path, epochs=3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("accuracy/test")] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert set(events.Tags()["scalars"]) == scalars(entry(1), TIMING).keys()


def test_curves_are_begun_anew_in_a_folder_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, while somebody looks at the curves of the interrupted run."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    watch(DUAL, tmp_path, epochs=2)
    (earlier,) = tmp_path.iterdir()
    earlier.rename(earlier.with_suffix(".1"))  # of another second
    (tmp_path / ".nfs0001").touch()
    monkeypatch.setattr(os, "rmdir", refuse)
    watch(DUAL, tmp_path, epochs=3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("accuracy/test")] == [1, 2, 3]


def test_hyper_parameters_stand_in_the_runs_own_file(tmp_path: Path) -> None:
    watch(DUAL, tmp_path)
    assert len(list(tmp_path.rglob("*tfevents*"))) == 1, "a second folder would be a second run"
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    content = {
        tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()
    }  # fmt: skip
    assert set(content) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    given = content["_hparams_/session_start_info"].session_start_info.hparams
    assert set(given) == set(hyper_parameters(DUAL))
    assert given["attention"].string_value == "mhsa" and given["head_lr"].number_value == 0.001
    shown = {info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos}
    assert shown == set(METRICS) and "accuracy/test" in shown


def test_all_runs_have_the_same_hyper_parameters() -> None:
    assert hyper_parameters(DUAL).keys() == hyper_parameters(VIT).keys()
    assert {type(value) for run in (DUAL, VIT) for value in hyper_parameters(run).values()} <= {str, int, float, bool}


def test_a_run_that_breaks_has_no_end(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Watcher(DUAL, tmp_path):
        raise KeyboardInterrupt
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "_hparams_/session_end_info" not in events.PluginTagToContent("hparams")


def test_a_tracker_hears_of_every_epoch(tmp_path: Path) -> None:
    heard = []

    @each_epoch
    def log(run: Run, epoch: int, values: dict[str, float]) -> None:
        heard.append((run.key, epoch, values["accuracy/test"], values["images_per_second"]))

    watch(DUAL, tmp_path, epochs=3)
    assert heard == [(DUAL.key, epoch, 10.0 * epoch, 250.0) for epoch in (1, 2, 3)]


def test_a_tracker_that_fails_is_named_and_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    @each_epoch
    def broken(run: Run, epoch: int, values: dict[str, float]) -> None:
        calls.append(epoch)
        raise ConnectionError("no network")

    watch(DUAL, tmp_path, epochs=3)
    lines = capsys.readouterr().out.splitlines()
    assert calls == [1] and sum("goes on without" in line and "ConnectionError: no network" in line for line in lines) == 1
    assert any("epoch 3/4" in line for line in lines)
