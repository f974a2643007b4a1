"""A run that is interrupted says so, and is continued to what it would have been."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench import errors, grid
from bench.engine.checkpoint import CheckpointFolder
from bench.environment import ROOT
from bench.experiment import Experiment
from bench.ledger import Ledger, Record, read_record
from bench.profiles import PROFILES, smoke
from bench.runs import plan
from tests.test_grid import chosen, records, without_timings


def test_interrupted_run_says_so_and_is_continued(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its_settings = chosen(tmp_path, ONLY="fashion_mnist/baseline")
    (run,) = plan(its_settings)
    original: Callable[..., None] = CheckpointFolder.save

    def save_and_stop(self: CheckpointFolder, state: dict[str, Any]) -> None:
        original(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointFolder, "save", save_and_stop)
    monkeypatch.setattr(grid, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        grid.execute(run, its_settings)
    monkeypatch.setattr(CheckpointFolder, "save", original)
    (record,) = records(tmp_path).values()
    assert record["results"]["status"] == "interrupted"
    continued = grid.execute(run, its_settings)
    assert continued["timings"]["restarts"] == 1
    assert "earlier" not in continued["timings"], "it was this machine and code all the time"
    straight = grid.execute(run, chosen(tmp_path / "straight"))
    assert without_timings(continued) == without_timings(straight)
    assert curve(tmp_path / "tensorboard" / run.key) == curve(tmp_path / "straight/tensorboard" / run.key)


def test_a_record_tells_of_sessions_on_other_machines_and_by_other_code(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch on a machine, the next one by other code, none on a third machine, the last two where it began."""
    monkeypatch.setitem(PROFILES, "smoke", lambda experiment: with_epochs(smoke(experiment), 4))
    monkeypatch.setattr(grid, "CHECKPOINT_SECONDS", 0)
    its_settings = chosen(tmp_path, ONLY="fashion_mnist/baseline")
    (run,) = plan(its_settings)
    describe, state, save = grid.machine.describe, grid.environment.code_state(), CheckpointFolder.save
    clock = itertools.count()
    monkeypatch.setattr(grid, "_now", lambda: f"moment {next(clock):03}")

    def interrupt() -> None:
        raise KeyboardInterrupt

    def session(torch_version: str, commit: str, epochs: int) -> Record:
        """One that is stopped after so many epochs of its own; in its first step with 0."""
        saved = itertools.count(1)

        def save_and_stop(self: CheckpointFolder, its_state: dict[str, Any]) -> None:
            save(self, its_state)
            if next(saved) == epochs:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(grid.machine, "describe", lambda device: describe(device) | {"torch": torch_version})
            patched.setattr(grid.environment, "code_state", lambda: state | {"commit": commit})
            patched.setattr(CheckpointFolder, "save", save_and_stop)
            if epochs == 0:
                patched.setattr(grid.stopping, "wanted", lambda: True)
                patched.setattr(grid.stopping, "leave", interrupt)
            return grid.execute(run, its_settings)

    for each in (("2.11", "a", 1), ("2.11", "a", 1), ("2.11", "b", 1), ("2.13", "b", 0)):
        with pytest.raises(KeyboardInterrupt):
            session(*each)
    record = session("2.11", "a", 9)
    assert record["environment"]["torch"] == "2.11" and record["code"]["commit"] == "a"
    timings = record["timings"]
    assert timings["restarts"] == 4 and timings["started"] < "moment 003"
    told = [(each["environment"]["torch"], each["code"]["commit"], each["epochs"]) for each in timings["earlier"]]
    assert told == [("2.11", "a", 2), ("2.11", "b", 3), ("2.13", "b", 3)]
    assert timings["earlier"][2]["environment"] == describe(torch.device("cpu")) | {"torch": "2.13"}
    assert [len(record[part]["epochs"]) for part in ("results", "timings")] == [4, 4]
    assert read_record(Ledger(tmp_path).path(run))["timings"] == timings


def with_epochs(experiment: Experiment, epochs: int) -> Experiment:
    return replace(experiment, recipe=replace(experiment.recipe, epochs=epochs))


def curve(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("accuracy/test")]
    assert [step for step, _ in points] == [1, 2], "no point stands twice"
    return points


def test_terminated_process_continues_to_the_same_record(tmp_path: Path) -> None:
    """A real process, the real network, a real SIGTERM after the first epoch."""
    environ = os.environ | {"PROFILE": "smoke", "DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "bench", "run", "cifar100/baseline_F1"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environ | {"RESULTS": str(tmp_path / "a")}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "epoch 1/2" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == errors.EXIT_TERMINATED
    (record,) = records(tmp_path / "a").values()
    assert record["results"]["status"] == "interrupted"
    for folder in ("a", "b"):
        subprocess.run(command, cwd=ROOT, env=environ | {"RESULTS": str(tmp_path / folder)}, check=True, capture_output=True)
    (continued,), (straight,) = records(tmp_path / "a").values(), records(tmp_path / "b").values()
    assert continued["timings"]["restarts"] == 1 and straight["timings"]["restarts"] == 0
    assert without_timings(continued) == without_timings(straight)
