"""SIGTERM and Ctrl-C: a checkpoint, the right exit status, and soon; the second one at once."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import cli, grid, stopping
from bench.environment import ROOT
from bench.errors import EXIT_INTERRUPTED, EXIT_TERMINATED
from bench.ledger import Ledger
from tests import tally
from tests.conftest import small_network
from tests.reliability.equality import assert_equal
from tests.reliability.process import EXPERIMENTS, run, start, status_of, wait_for

STATUSES = {signal.SIGTERM: EXIT_TERMINATED, signal.SIGINT: EXIT_INTERRUPTED}
SECONDS = 10.0  # from a signal to the exit; on two idle cores one is enough
GRID = ("grid", f"--only={' '.join(EXPERIMENTS)}", "--seeds=0 1 2")


def statuses(results: Path) -> list[str]:
    return [record["results"]["status"] for _, record in Ledger(results).records()]


@pytest.mark.slow
def test_stopped_again_and_again(tmp_path: Path) -> None:
    """A grid of six runs asked to stop at random moments, by either signal, until it is done: as if it had never been asked."""
    assert run(tmp_path / "straight", *GRID) == 0
    chance, exits, grids = random.Random(0), [], 0
    while len(exits) < 20:
        grids += 1
        results, status = tmp_path / f"stopped {grids}", -1
        while status:
            number = chance.choice(list(STATUSES))
            process = start(results, *GRID)
            process.join(chance.uniform(0.5, 3))
            assert process.pid
            signalled = time.monotonic()
            if process.is_alive():
                os.kill(process.pid, number)
            status = status_of(process)
            if status:
                assert status == STATUSES[number]
                exits.append(time.monotonic() - signalled)
        assert_equal(results, tmp_path / "straight")
    assert max(exits) < SECONDS
    tally.count("signals obeyed", len(exits))
    tally.tell("slowest exit after a signal", f"{max(exits):.2f} s of {len(exits)} with a small network")


@pytest.mark.parametrize("number", STATUSES, ids=lambda number: number.name)
def test_a_second_signal_leaves_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """Where a step does not end, the first one waits for it."""
    process = start(tmp_path / "results", *GRID, network="stuck")
    wait_for(tmp_path / "results", "stuck")
    assert process.pid
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # to it as well as to its group
    process.join(1.5 * stopping.MOMENT)
    assert process.is_alive(), "it was asked to stop after the step"
    os.kill(process.pid, number)
    signalled = time.monotonic()
    assert status_of(process) == STATUSES[number]
    assert time.monotonic() - signalled < SECONDS
    assert statuses(tmp_path / "results") == ["interrupted"]
    assert run(tmp_path / "results", *GRID) == 0
    tally.count("signals obeyed", 2)


def test_a_signal_after_the_last_step_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is done, the next one does not begin."""
    train = grid.train

    def train_and_signal(*arguments: Any, **options: Any) -> Any:
        outcome = train(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return outcome

    monkeypatch.setattr(grid, "build_network", lambda run, classes, initial, device: small_network(classes, run.seed))
    monkeypatch.setattr(grid, "train", train_and_signal)
    before = {number: signal.getsignal(number) for number in STATUSES}
    try:
        assert cli.main([*GRID, "--profile=smoke", "--device=cpu", f"--results={tmp_path}"]) == EXIT_INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert statuses(tmp_path) == ["done"]
    tally.count("signals obeyed")


# ---- the command itself, with a real network -----------------------------------------------------------------------------------


def command(results: Path) -> subprocess.Popen[str]:
    environ = os.environ | {"PROFILE": "smoke", "DEVICE": "cpu", "RESULTS": str(results), "PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "-m", "bench", "run", "cifar100/baseline_F1"]
    return subprocess.Popen(program, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", STATUSES, ids=lambda number: number.name)
def test_a_signal_while_torch_is_imported(number: signal.Signals, tmp_path: Path) -> None:
    with command(tmp_path) as process:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
        process.send_signal(number)
        printed, said = process.communicate(timeout=60)
    assert process.returncode == STATUSES[number]
    assert "Traceback" not in said and not printed
    assert not list(tmp_path.iterdir())
    tally.count("signals obeyed")


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUSES, ids=lambda number: number.name)
def test_a_signal_while_a_real_network_trains(number: signal.Signals, tmp_path: Path) -> None:
    with command(tmp_path) as process:
        assert process.stdout is not None
        assert "epoch 1/2" in process.stdout.readline()
        process.send_signal(number)
        signalled = time.monotonic()
        process.communicate(timeout=300)
    seconds = time.monotonic() - signalled
    assert process.returncode == STATUSES[number]
    assert statuses(tmp_path) == ["interrupted"] and list(tmp_path.rglob("last.pt"))
    assert seconds < 3 * SECONDS, "a step, and a checkpoint of 334 MB"
    tally.count("signals obeyed")
    tally.tell("slowest exit after a signal", f"{seconds:.2f} s after {number.name} with ConvNeXt-Tiny")
