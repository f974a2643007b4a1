"""A machine that fails: a full disk, a folder that cannot be written, a clock that goes backwards, no memory, a crash."""

import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench import cli, grid
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.execution import Measurements
from bench.environment import ROOT
from bench.errors import EXIT_FAILED, EXIT_USER
from bench.ledger import Ledger
from bench.verify.records import check_records
from tests import tally
from tests.conftest import CPU, small_network
from tests.reliability.disk import mount, small_disk
from tests.reliability.equality import assert_equal, curves, same, without_timings
from tests.reliability.process import EXPERIMENTS, FILLER, output, run

GRID = ("grid", f"--only={EXPERIMENTS[0]}")


def one_line(printed: str, cause: str) -> None:
    """What was said of the fault was one line, with its cause and what to do, and no traceback."""
    assert "Traceback" not in printed, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert re.search(rf"cannot be written \({cause}\); (free space or )?choose another folder with RESULTS=$", line), line


@pytest.mark.slow
def test_a_disk_that_is_full_from_any_moment_of_a_run(tmp_path: Path) -> None:
    """Before each operation on a file and each write: one line, status 2; with space again the run goes on to the same bytes."""
    assert run(tmp_path / "straight", *GRID) == 0
    moment = failed = 0
    filled = True
    while filled:
        moment += 1
        with small_disk(tmp_path / f"full {moment}", 8) as results:
            status = run(results, *GRID, moment=moment, disaster="full disk")
            filled = (results / FILLER).exists()
            if status:
                assert status == EXIT_USER
                one_line(output(results), "No space left on device")
                failed += 1
            (results / FILLER).unlink(missing_ok=True)
            assert run(results, *GRID) == 0
            assert_equal(results, tmp_path / "straight")
    assert failed > 40
    tally.count("faults tried", moment - 1)


def test_a_full_disk(tmp_path: Path) -> None:
    """The quick one: full from the start, then while the first checkpoint is written."""
    with small_disk(tmp_path / "results", 1) as results:
        assert run(results, *GRID) == EXIT_USER
        one_line(output(results), "No space left on device")
        assert not list(results.rglob(".*")) and not list(results.rglob("last.pt"))
        assert mount("-o", "remount,size=8m", str(results)).returncode == 0
        assert run(results, *GRID) == 0
    tally.count("faults tried")


@pytest.mark.parametrize("started", [False, True])
def test_a_folder_that_cannot_be_written(started: bool, tmp_path: Path) -> None:
    """A new ledger, and one with a run that was begun."""
    with small_disk(tmp_path / "results", 8) as results:
        if started:
            run(results, *GRID, moment=60)
            assert list(results.rglob("*.pt"))
        assert mount("-o", "remount,ro", str(results)).returncode == 0
        assert run(results, *GRID) == EXIT_USER
        one_line(output(results), "Read-only file system")
        assert mount("-o", "remount,rw", str(results)).returncode == 0
        assert run(results, *GRID) == 0
    tally.count("faults tried")


# ---- in this process -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measurements, "_in_turns", lambda _, ways: dict.fromkeys(ways, 1.0))  # the same mode in every ledger
    monkeypatch.setattr(grid, "build_network", lambda run, classes, initial, device: small_network(classes, run.seed))
    monkeypatch.setattr(grid, "CHECKPOINT_SECONDS", 0)


def command(results: Path, *, only: str = EXPERIMENTS[1]) -> list[str]:
    return ["grid", f"--only={only}", "--profile=smoke", "--device=cpu", f"--results={results}"]


def test_a_clock_that_goes_backwards(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour at each look: interrupted and continued, the run has the same record, its curves their points in order."""
    assert cli.main(command(tmp_path / "straight")) == 0
    seconds = itertools.count(datetime(2026, 1, 1, tzinfo=UTC).timestamp(), -3600)
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    monkeypatch.setattr(grid, "_now", lambda: datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"))
    save, saves = CheckpointFolder.save, itertools.count(1)

    def save_and_stop(self: CheckpointFolder, state: dict[str, Any]) -> None:
        save(self, state)
        if next(saves) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointFolder, "save", save_and_stop)
    results = tmp_path / "backwards"
    assert [cli.main(command(results)) for _ in range(2)] == [130, 0]
    ((_, record),) = Ledger(results).records()
    ((_, its),) = Ledger(tmp_path / "straight").records()
    assert record["timings"]["finished"] < record["timings"]["started"], "the clock did go backwards"
    same(without_timings(record), without_timings(its))
    (folder,), (expected,) = ([path.parent for path in ledger.rglob("events.*")] for ledger in (results, tmp_path / "straight"))
    assert curves(folder) == curves(expected)
    # what the small network lacks of the real one is found in both
    findings, others = ([f[1:] for f in check_records(Ledger(folder)).findings] for folder in (results, tmp_path / "straight"))
    (noted,) = [finding for finding in findings if finding not in others]
    assert noted[0] == "timings.finished" and noted[-1] is True, "a note, and no more"
    assert [finding for finding in findings if finding != noted] == others
    tally.count("faults tried")


def allocate_an_exabyte() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def fail(error: Exception) -> Callable[[], None]:
    def allocate() -> None:
        raise error

    return allocate


ALLOCATORS = {
    "of the device": (fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), "CUDA out of memory"),
    "of Python": (fail(MemoryError()), "MemoryError"),
    "of the processor": (
        allocate_an_exabyte,
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1152921504606846976",
    ),
}


@pytest.mark.parametrize("kind", ALLOCATORS)
def test_out_of_memory(
    kind: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the second epoch of the first run: its record says so, its checkpoint stays, the other run is done."""
    allocate, message = ALLOCATORS[kind]
    steps = itertools.count(1)

    def starved(run: Any, classes: int, initial: Any, device: Any) -> nn.Module:
        network = small_network(classes, run.seed)
        network.register_forward_pre_hook(lambda module, inputs: allocate() if module.training and next(steps) == 6 else None)
        return network

    both = " ".join(EXPERIMENTS)
    assert cli.main(command(tmp_path / "straight", only=both)) == 0
    monkeypatch.setattr(grid, "build_network", starved)
    results = tmp_path / "starved"
    assert cli.main(command(results, only=both)) == EXIT_FAILED
    found = {record["run"]["experiment"]: record["results"] for _, record in Ledger(results).records()}
    assert [found[name]["status"] for name in EXPERIMENTS] == ["out_of_memory", "done"]
    assert message in found[EXPERIMENTS[0]]["error"]
    captured = capsys.readouterr()
    assert message in captured.out and "Traceback" not in captured.err
    (last,) = results.rglob("last.pt")
    state = torch.load(last, map_location=CPU, weights_only=True)
    assert len(state["progress"]["epochs"]) == 1, "of the epoch before"
    monkeypatch.setattr(grid, "build_network", lambda run, classes, initial, device: small_network(classes, run.seed))
    assert cli.main(command(results, only=both)) == 0
    assert_equal(results, tmp_path / "straight")
    tally.count("faults tried")


# ---- a crash -------------------------------------------------------------------------------------------------------------------

# Python runs it at every start; the process that does one of the runs reads from address 0 as soon as it holds the run's folder.
CRASH = """
import ctypes, os, sys
def crash(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("/holder") and "/baseline_F0/" in str(arguments[1]):
        ctypes.string_at(0)
if "bench.serving" in sys.orig_argv:
    sys.addaudithook(crash)
"""


@pytest.mark.slow
def test_a_process_that_crashes(tmp_path: Path) -> None:
    """Of the three runs that two processes share one ends in a segmentation fault: the others are done, its record says so."""
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    results = tmp_path / "results"
    program = [sys.executable, "-m", "bench", "grid", "--only=cifar100/baseline_F?", "--profile=smoke", "--device=cpu", "--jobs=2"]
    environ = os.environ | {"RESULTS": str(results)}
    crashed = subprocess.run(program, cwd=ROOT, env=environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert crashed.returncode == EXIT_FAILED
    line = "cifar100/baseline_F0 seed 0: failed: ChildProcessError: the process died of SIGSEGV\n"
    assert line in crashed.stdout and "1 failed, 2 done" in crashed.stdout and "Traceback" not in crashed.stderr
    found = {record["run"]["experiment"]: record["results"] for _, record in Ledger(results).records()}
    assert found["cifar100/baseline_F0"]["error"] == "ChildProcessError: the process died of SIGSEGV"
    assert check_records(Ledger(results)).problems == 0
    again = subprocess.run(program, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert again.returncode == 0 and "3 runs, 1 due" in again.stdout
    tally.count("faults tried")
