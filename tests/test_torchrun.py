"""One run by two processes, started by torchrun, on gloo: the numbers of one process, written by one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import errors, grid
from bench.engine import ranks
from bench.environment import ROOT
from bench.errors import UserError
from bench.runs import plan
from tests.test_grid import chosen, records

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
RUN = ["-m", "bench", "run"]

# A run of the small network in fp32, with a regime that changes after an epoch. Prints its results; stops at a step if told to.
SMALL = """
import json, signal, sys
from pathlib import Path
from bench import stopping
from bench.engine import ranks
from bench.engine.checkpoint import CheckpointFolder, Unwritten
from bench.machine import make_deterministic
from tests import conftest

folder, stop_at = Path(sys.argv[1]), sys.argv[2]

class Stopping(conftest.Recorder):
    def step(self, epoch, step, steps):
        super().step(epoch, step, steps)
        if ranks.rank() == 0 and f"{epoch}/{step}" == stop_at:
            signal.raise_signal(signal.SIGTERM)

make_deterministic()
stopping.install()
with ranks.joined("cpu"), stopping.heeding():
    ranks.begin()
    if ranks.rank() > 0:
        conftest.CheckpointFolder = Unwritten
    observer = Stopping()
    results = conftest.train_small(conftest.small_run(regime="F2", frozen_epochs=1, validation_fraction=0.2), folder, observer)
    if ranks.rank() == 0:
        print("RESULTS " + json.dumps({"results": results, "steps": observer.steps}), flush=True)
"""


def command(words: Sequence[str], processes: int) -> list[str]:
    return [*TORCHRUN, *words] if processes == 2 else [sys.executable, *words]


def run(words: Sequence[str], processes: int, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DEVICE": "cpu", "PROFILE": "smoke"} | variables
    return subprocess.run(command(words, processes), cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)


def small_results(tmp_path: Path, folder: str, processes: int, stop_at: str = "") -> dict[str, Any]:
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    done = run([str(script), str(tmp_path / folder), stop_at], processes)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert bool(lines) != bool(stop_at), done.stderr
    assert "SIGKILL" not in done.stderr and "AssertionError" not in done.stderr, "a process that was told to leave did not"
    return dict(json.loads(lines[0].removeprefix("RESULTS "))) if lines else {}


def numbers(results: dict[str, Any], split: str, what: str) -> list[float]:
    return [epoch[split][what] for epoch in results["results"]["epochs"]]


def test_two_processes_compute_what_one_does_and_either_goes_on_from_the_other(tmp_path: Path) -> None:
    """Only sums are taken in another order: fp32 losses agree to 1e-5, and as many images are right, but for a tie."""
    one = small_results(tmp_path, "one", 1)
    for begun_by, continued_by in ((2, 1), (1, 2)):
        small_results(tmp_path, f"by {begun_by}", begun_by, stop_at="2/2")
        continued = small_results(tmp_path, f"by {begun_by}", continued_by)
        assert continued["steps"][0] == [2, 3], "from the very step"
        for split in ("train", "validation", "test"):
            assert numbers(continued, split, "loss") == pytest.approx(numbers(one, split, "loss"), rel=1e-5)
            assert numbers(continued, split, "correct") == pytest.approx(numbers(one, split, "correct"), abs=1)
            assert numbers(continued, split, "images") == numbers(one, split, "images"), "each image counts once"
        hashes = [its["results"]["weights_sha256"] for its in (one, continued)]
        assert hashes[0] != hashes[1], "two processes did compute it in another order"


def test_a_run_under_torchrun_leaves_one_record_that_says_so(tmp_path: Path) -> None:
    """The real network in bf16, whose losses agree to 1e-2."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        done = run([*RUN, "cifar100/baseline"], processes, RESULTS=str(folder), DEPTHWISE="reference")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2/2") == 1, "one process speaks"
        (found[processes],) = records(folder).values()
        assert len(list((folder / "tensorboard").rglob("events*"))) == 1
    one, two = found[1], found[2]
    assert "processes" not in one["environment"] and two["environment"]["processes"] == "2"
    assert one["configuration"] == two["configuration"]
    for split in ("train", "test"):
        assert numbers(two, split, "loss") == pytest.approx(numbers(one, split, "loss"), rel=1e-2)
        assert numbers(two, split, "images") == numbers(one, split, "images")
    again = run([*RUN, "cifar100/baseline"], 2, RESULTS=str(tmp_path / "2"))
    assert again.returncode == 0 and "epoch" not in again.stdout, "a finished run is finished for all"


def test_sigterm_to_torchrun_leaves_a_checkpoint_for_one_process(tmp_path: Path) -> None:
    environ = os.environ | {"RESULTS": str(tmp_path), "DEVICE": "cpu", "PROFILE": "smoke", "DEPTHWISE": "reference"}
    environ |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    words = [*RUN, "cifar100/baseline_F0"]
    with subprocess.Popen(command(words, 2), cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("epoch 1/2" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) != 0
    (record,) = records(tmp_path).values()
    assert record["results"]["status"] == "interrupted"
    done = run(words, 1, RESULTS=str(tmp_path), DEPTHWISE="reference")
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path).values()
    assert record["results"]["status"] == "done" and record["environment"]["processes"] == "2, then 1"
    assert record["timings"]["restarts"] == 1


def test_a_batch_that_cannot_be_divided_is_refused(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its_settings = chosen(tmp_path, ONLY="cifar100/baseline")
    (planned,) = plan(its_settings)
    monkeypatch.setattr(ranks, "begin", lambda: None)
    monkeypatch.setattr(ranks, "size", lambda: 3)
    with pytest.raises(UserError, match="torchrun: expected a number of processes that divides the batch of 50, found 3"):
        grid.execute(planned, its_settings)
    assert not records(tmp_path)


def test_what_torchrun_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(ranks.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 1)
    for device, message in (
        ("cuda:0", "expected cuda or cpu under torchrun"),
        ("cuda", "expected a GPU for each process, found 1"),
    ):
        with pytest.raises(UserError, match=message), ranks.joined(device):
            pass
    assert ranks.size() == 1 and ranks.rank() == 0


def test_a_user_mistake_under_torchrun_is_said_and_nothing_hangs(tmp_path: Path) -> None:
    done = run([*RUN, "cifar100/typo"], 2, RESULTS=str(tmp_path))
    assert done.returncode != 0 and "is not in the catalog" in done.stderr
    assert errors.EXIT_USER == 2 and "exitcode  : 2" in done.stderr
