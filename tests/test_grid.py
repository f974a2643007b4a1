"""Runs worked through: every one leaves a record, none stops another, and any can be interrupted."""

import hashlib
import itertools
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from bench import cli, errors, grid, workers
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.train import build_network
from bench.environment import ROOT
from bench.experiment import Run, canonical_json
from bench.ledger import Ledger, Record
from bench.measure.estimate import TimeLeft
from bench.profiles import PROFILES, smoke
from bench.runs import plan
from bench.settings import DEFAULTS, Settings, settings
from models.convnext import convnext_tiny
from tests.conftest import small_network


def chosen(results: Path, **values: str) -> Settings:
    given = DEFAULTS | {"PROFILE": "smoke", "DEVICE": "cpu", "DEPTHWISE": "reference", "RESULTS": str(results)} | values
    return settings(**{name.lower(): value for name, value in given.items()})


def records(results: Path) -> dict[str, Record]:
    found = (record for _, record in Ledger(results).records())
    return {f"{record['run']['experiment']} {record['run']['seed']}": record for record in found}


def without_timings(record: Record) -> str:
    return canonical_json({key: value for key, value in record.items() if key != "timings"})


def run_grid(results: Path, **values: str) -> int:
    its_settings = chosen(results, **values)
    return grid.work_through(plan(its_settings), its_settings)


def shared(runs: Sequence[Run], its_settings: Settings) -> list[str]:
    """The statuses of runs that processes do, however many there are."""
    onlooker = TimeLeft([], [], 1)
    return workers.share(runs, its_settings, lambda run, how: grid.status_of_the_dead(run, its_settings, how), onlooker)


def test_a_grid_leaves_a_record_for_each_run_and_does_nothing_twice(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = {"ONLY": "*/baseline cifar100/scratch_convnext", "SEEDS": "0 1"}
    assert run_grid(tmp_path, **only) == 0
    found = records(tmp_path)
    names = ["cifar100/baseline", "cifar100/scratch_convnext", "fashion_mnist/baseline"]
    assert sorted(found) == [f"{name} {seed}" for name in names for seed in (0, 1)]
    assert all(record["results"]["status"] == "done" for record in found.values())
    assert not list(tmp_path.rglob("last.pt")), "checkpoints of finished runs are removed"
    assert len(list(tmp_path.rglob("best.pt"))) == 6
    capsys.readouterr()
    assert run_grid(tmp_path, **only) == 0
    assert "6 runs, 0 due" in capsys.readouterr().out


def test_the_estimate_runs_in_deterministic_mode_too(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS reads its workspace setting when it starts, and the estimate's steps start it."""
    torch.use_deterministic_algorithms(False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []

    def estimates(due: Any, its_settings: Settings, device: torch.device) -> list[float]:
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return []

    monkeypatch.setattr(grid, "_estimates", estimates)
    run_grid(tmp_path, ONLY="fashion_mnist/baseline")
    assert seen == [(True, ":4096:8")]


def test_the_time_left_goes_by_the_pace_so_far(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run takes twice its estimate, the second is another process's, the third takes half of its own."""
    monkeypatch.setattr(grid, "_estimates", lambda *_: [60.0, 90.0, 240.0, 300.0])
    clock = {"now": 0.0}
    monkeypatch.setattr(grid.time, "perf_counter", lambda: clock["now"])
    took = iter([(120.0, "done"), (0.0, "busy"), (120.0, "done"), (1.0, "done"), (1.0, "done")])

    def status_of(run: Run, settings: Settings, position: str = "") -> str:
        seconds, status = next(took)
        clock["now"] += seconds
        return status

    monkeypatch.setattr(grid, "status_of", status_of)
    run_grid(tmp_path, ONLY="cifar100/baseline*")
    said = capsys.readouterr().out.splitlines()
    assert "about 12 min on this device, from a few timed steps" in said, "690 s"
    left = [line for line in said if line.endswith(" left")]
    assert left == ["1 of 4 runs, about 21 min left", "3 of 4 runs, about 4 min left"], "twice 630 s; 240 s for 300, 300 s"


def test_several_processes_begin_with_the_longest_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what they have done of the runs that they are at counts in the time that is left."""
    begun = []
    clock = {"now": 0.0}
    monkeypatch.setattr(grid.time, "perf_counter", lambda: clock["now"])

    def share(runs: Sequence[Run], its_settings: Settings, bury: Any, onlooker: workers.Onlooker) -> list[str]:
        begun.extend(run.experiment.name for run in runs)
        onlooker.began(runs[0])
        onlooker.began(runs[1])
        clock["now"] += 100
        onlooker.ended(runs[1], "done")
        onlooker.began(runs[2])
        clock["now"] += 60
        onlooker.ended(runs[2], "done")
        onlooker.ended(runs[0], "interrupted")
        return len(runs) * ["done"]

    monkeypatch.setattr(grid, "share", share)
    monkeypatch.setattr(grid, "workers", lambda its_settings: 2 * [{}])
    monkeypatch.setattr(grid, "devices", lambda its_settings: 2)
    monkeypatch.setattr(grid, "_estimates", lambda *_: [400.0, 100.0, 60.0])
    run_grid(tmp_path, ONLY="cifar100/C_se cifar100/matched_*", JOBS="2")
    assert begun == ["cifar100/matched_vit", "cifar100/matched_convnext", "cifar100/C_se"]
    said = capsys.readouterr().out
    assert "about 7 min on this device" in said, "the longest run takes longer than half of all"
    left = [line for line in said.splitlines() if line.endswith(" left")]
    assert left == ["1 of 3 runs, about 5 min left", "2 of 3 runs, about 4 min left"], "400 s, of which 100 and then 160 are done"


def test_what_a_record_holds(small: None, tmp_path: Path) -> None:
    run_grid(tmp_path, ONLY="cifar100/scratch_convnext", SEEDS="3")
    (record,) = records(tmp_path).values()
    assert record["run"]["seed"] == 3 and record["run"]["profile"] == "smoke"
    assert record["configuration"]["experiment"]["recipe"]["epochs"] == 2
    assert record["data"]["images"] == {"train": 180, "validation": 20, "test": 100}
    assert len(record["data"]["train_sha256"]) == 64
    assert record["cost"]["parameters"] == 27_897_028 and record["cost"]["multiply_adds"] == 363_730_944
    lock = (ROOT / "requirements.lock").read_bytes()
    assert record["code"]["requirements_lock_sha256"] == hashlib.sha256(lock).hexdigest()
    assert record["environment"]["deterministic"] is True and record["environment"]["threads"] == 1
    assert [epoch["epoch"] for epoch in record["results"]["epochs"]] == [1, 2]
    assert len(record["timings"]["epochs"]) == 2
    text = canonical_json(record)
    assert str(ROOT) not in text and str(tmp_path) not in text and os.uname().nodename not in text


def test_same_seed_same_record_apart_from_timings(small: None, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        run_grid(tmp_path / folder, ONLY="fashion_mnist/baseline")
    (one,), (two,) = records(tmp_path / "a").values(), records(tmp_path / "b").values()
    assert without_timings(one) == without_timings(two)


def test_a_run_that_is_compiled_says_so(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.engine.step.compile_blocks", lambda network: None)
    run_grid(tmp_path / "plain", ONLY="fashion_mnist/baseline")
    assert "compiled" not in capsys.readouterr().out
    run_grid(tmp_path / "compiled", ONLY="fashion_mnist/baseline", COMPILE="on")
    line = "fashion_mnist/baseline seed 0: compiled (COMPILE=on, 8 steps); the first epoch may take half a minute longer\n"
    assert line in capsys.readouterr().out


def test_a_run_after_others_is_the_run_alone(small: None, tmp_path: Path) -> None:
    run_grid(tmp_path / "many", ONLY="fashion_mnist/*")
    run_grid(tmp_path / "one", ONLY="fashion_mnist/C_spatial")
    many = records(tmp_path / "many")
    assert len(many) == 12
    (alone,) = records(tmp_path / "one").values()
    assert without_timings(many["fashion_mnist/C_spatial 0"]) == without_timings(alone)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RuntimeError(f"no kernel\nin {ROOT}/bench"), "failed", "RuntimeError: no kernel"),
        (torch.OutOfMemoryError("tried to allocate 2 GiB"), "out_of_memory", "OutOfMemoryError: tried to allocate 2 GiB"),
        (MemoryError(), "out_of_memory", "MemoryError: "),
        (torch.AcceleratorError("CUDA error: out of memory"), "out_of_memory", "AcceleratorError: CUDA error: out of memory"),
        (RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED"), "out_of_memory", "RuntimeError: cuBLAS: CUBLAS_STATUS_ALLOC_FAILED"),
        (ValueError("out of memory"), "failed", "ValueError: out of memory"),
    ],
)
def test_a_failing_run_becomes_a_record_and_the_others_go_on(
    error: Exception, status: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(run: Any, classes: int, initial: Any, device: Any) -> Any:
        if run.experiment.name == "cifar100/baseline_F0":
            raise error
        return small_network(classes)

    monkeypatch.setattr(grid, "build_network", build)
    assert run_grid(tmp_path, ONLY="cifar100/baseline_F?") == 1
    found = records(tmp_path)
    assert {name: record["results"]["status"] for name, record in found.items()} == {
        "cifar100/baseline_F0 0": status,
        "cifar100/baseline_F1 0": "done",
        "cifar100/baseline_F2 0": "done",
    }
    assert found["cifar100/baseline_F0 0"]["results"]["error"] == text
    assert f"1 {status}, 2 done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "failed"),
        (torch.OutOfMemoryError("CUDA out of memory, within a capture"), "out_of_memory"),
    ],
)
def test_after_a_device_is_lost_the_other_runs_stay_due(
    error: Exception, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would fail one after another, each with a record that says so."""

    def synchronize(device: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def build(run: Any, classes: int, initial: Any, device: Any) -> Any:
        if run.experiment.name == "cifar100/baseline_F1":
            monkeypatch.setattr(grid.machine, "answers", lambda device: answers(torch.device("cuda")))
            raise error
        return small_network(classes)

    answers = grid.machine.answers
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(grid, "build_network", build)
    assert run_grid(tmp_path, ONLY="cifar100/baseline_F?") == 1
    statuses = {name: record["results"]["status"] for name, record in records(tmp_path).items()}
    assert statuses == {"cifar100/baseline_F0 0": "done", "cifar100/baseline_F1 0": status}
    said = capsys.readouterr().out
    assert "cpu does not answer this process any more; the same command goes on with the others" in said
    assert f"1 done, 1 {status}, 1 not begun in" in said
    monkeypatch.undo()
    assert grid.machine.answers(torch.device("cpu"))
    monkeypatch.setattr(grid, "build_network", lambda run, classes, initial, device: small_network(classes))
    assert run_grid(tmp_path, ONLY="cifar100/baseline_F?") == 0, "a failed run is tried again"


def test_several_processes_share_a_grid(tmp_path: Path) -> None:
    assert run_grid(tmp_path, ONLY="cifar100/baseline_F0", SEEDS="0 1", JOBS="2") == 0
    assert sorted(records(tmp_path)) == ["cifar100/baseline_F0 0", "cifar100/baseline_F0 1"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_checkpoint_that_cannot_be_used_concerns_its_run_alone(
    jobs: str, small: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    its_settings = chosen(tmp_path, ONLY="cifar100/baseline_F0", SEEDS="0 1", JOBS=jobs)
    runs = plan(its_settings)
    last = CheckpointFolder(tmp_path / "checkpoints" / runs[0].key).last
    last.parent.mkdir(parents=True)
    last.write_bytes(b"damaged")
    assert grid.work_through(runs, its_settings) == errors.EXIT_USER
    assert list(records(tmp_path)) == ["cifar100/baseline_F0 1"]
    printed, said = capfd.readouterr()
    assert "1 unusable, 1 done in" in printed
    assert said.count("error: ") == 1 and f"error: {last}: expected a checkpoint, found a damaged file; delete it" in said
    last.unlink()
    assert grid.work_through(runs, replace(its_settings, jobs=1)) == 0


def test_a_terminated_grid_stops_its_processes_and_continues(tmp_path: Path) -> None:
    environ = os.environ | {"PROFILE": "smoke", "DEVICE": "cpu", "PYTHONUNBUFFERED": "1", "RESULTS": str(tmp_path)}
    command = [sys.executable, "-m", "bench", "grid", "--only", "cifar100/baseline_F0", "--seeds", "0-2", "--jobs", "2"]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("epoch 1/2" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()  # to the end: nobody writes any more
        assert process.wait(60) == errors.EXIT_TERMINATED
    statuses = [record["results"]["status"] for record in records(tmp_path).values()]
    assert "interrupted" in statuses and len(statuses) < 3
    again = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout
    assert "continues" in again and len(records(tmp_path)) == 3
    assert all(record["results"]["status"] == "done" for record in records(tmp_path).values())


def test_no_process_starts_after_all_were_asked_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while one run is under way and another has its place but no process yet."""
    started: list[subprocess.Popen[bytes]] = []
    original, places = subprocess.Popen, itertools.count(1)

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(original(["sleep", "10"], **options))
        return started[-1]

    class Places(queue.SimpleQueue[Any]):
        def get(self, *arguments: Any, **options: Any) -> Any:
            if next(places) == 2:
                while not started:
                    time.sleep(0.01)
                assert threading.main_thread().ident
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                while started[0].returncode is None:  # until it was asked to stop
                    time.sleep(0.01)
            return super().get(*arguments, **options)

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    monkeypatch.setattr(workers, "queue", SimpleNamespace(SimpleQueue=Places))  # not that of the threads
    its_settings = chosen(tmp_path, ONLY="fashion_mnist/baseline", SEEDS="0 1", JOBS="2")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            shared(plan(its_settings), its_settings)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.returncode for process in started] == [-signal.SIGTERM]


@pytest.mark.parametrize(("moment", "status"), [("after", "done"), ("before", "failed")])
def test_a_process_that_dies_after_its_record_leaves_it(
    moment: str, status: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that die of SIGKILL at once, after or before a record of theirs was written."""
    die, original = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], subprocess.Popen
    monkeypatch.setattr(workers.subprocess, "Popen", lambda command, **options: original(die, **options))
    its_settings = chosen(tmp_path, ONLY="fashion_mnist/baseline", JOBS="2")
    (run,) = plan(its_settings)
    written = grid.execute(run, its_settings) if moment == "after" else None
    assert shared([run], its_settings) == [status]
    (record,) = records(tmp_path).values()
    assert record["results"]["status"] == status
    assert written is None or canonical_json(record) == canonical_json(written)


def test_a_held_run_comes_last(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    its_settings = chosen(tmp_path, ONLY="*/baseline")
    held, _ = plan(its_settings)
    holder = CheckpointFolder(tmp_path / "checkpoints" / held.key).hold()

    def let_go(seconds: float) -> None:
        assert list(records(tmp_path)) == ["fashion_mnist/baseline 0"], "the other run did not wait"
        holder.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", let_go)
    holder.__enter__()
    assert cli.main(["run", "cifar100/baseline", "--profile", "smoke", "--results", str(tmp_path)]) == errors.EXIT_BUSY
    expected = rf"cifar100/baseline seed 0: another process \(pid {os.getpid()} on \S+, since 20.* UTC\) works on it"
    assert re.fullmatch(f"{expected}\n", capsys.readouterr().err)
    assert grid.work_through(plan(its_settings), its_settings) == 0
    output = capsys.readouterr().out
    assert re.search(f"{expected}; it comes last\nfashion|{expected}; it comes last\n2/2 fashion", output)
    assert "waiting for other processes with 1 of the runs\n" in output and output.endswith(" s\n") and "2 done" in output
    assert sorted(records(tmp_path)) == ["cifar100/baseline 0", "fashion_mnist/baseline 0"]


# ---- pretrained weights ----------------------------------------------------------------------------------------------------


@pytest.fixture
def smoke_with_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke budget, but starting from pretrained weights where the experiment does."""
    monkeypatch.setitem(PROFILES, "smoke", lambda experiment: replace(smoke(experiment), weights=experiment.weights))


def test_weights_file_is_used_and_recorded_by_name_and_content(smoke_with_weights: None, tmp_path: Path) -> None:
    torch.manual_seed(9)
    state = convnext_tiny(classes=200).state_dict()
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(state, path)
    its_settings = chosen(tmp_path, ONLY="cifar100/baseline_F0", WEIGHTS=str(path))
    (run,) = plan(its_settings)
    record = grid.execute(run, its_settings)
    assert record["configuration"]["weights"] == {
        "name": "mine.safetensors",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    trained = torch.load(CheckpointFolder(tmp_path / "checkpoints" / run.key).best, weights_only=True)
    assert torch.equal(trained["features.0.0.weight"], state["features.0.0.weight"]), "F0 leaves the backbone as it was given"
    fresh = build_network(replace(run, seed=0), 100, None, torch.device("cpu")).state_dict()
    assert not torch.equal(trained["features.0.0.weight"], fresh["features.0.0.weight"])


def test_without_weights_the_identity_is_torchvisions(smoke_with_weights: None, tmp_path: Path) -> None:
    (run,) = plan(chosen(tmp_path, ONLY="cifar100/baseline"))
    assert run.weights is not None
    assert run.weights.name == "convnext_tiny-983f1562.pth"
    assert run.weights.sha256.startswith("983f1562536e84ff")
