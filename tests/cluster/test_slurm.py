"""The grid as a job array on a real Slurm, with a task killed and another preempted: the report is that of a serial grid."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.environment import ROOT
from tests.cluster.conftest import reason_without
from tests.test_grid import records
from tests.test_shards import report_with_timings_of, same_records

if "TEST_CLUSTER" not in os.environ:
    pytest.skip("`make test-cluster` runs this", allow_module_level=True)
if reason := reason_without():
    pytest.skip(reason, allow_module_level=True)

CHOICE = {
    "PROFILE": "smoke",
    "DEVICE": "cpu",
    "DEPTHWISE": "reference",
    "ONLY": "cifar100/baseline cifar100/stem_baseline",
    "SEEDS": "0 1 2",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
SLURM = {"LAUNCHER": "slurm", "PARTITION": "main", "GPUS": "0", "PARALLEL": "2", "SBATCH": "cpus-per-task=1"}
PATIENCE = 240  # seconds


def grid(results: Path, *flags: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench", "grid", *flags]
    environ = os.environ | CHOICE | {"RESULTS": str(results)} | variables
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output(process: subprocess.Popen[str], status: int = 0) -> str:
    text, _ = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == status, text
    return text


def eventually(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def training(log: Path) -> bool:
    return log.exists() and "epoch 1/2" in log.read_text()


def pids(text: str) -> list[int]:
    """The processes whose command line holds a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if text in words:
            found.append(int(folder.name))
    return found


def test_a_job_array_survives_a_kill_a_preemption_and_its_front_and_ends_in_the_serial_report(
    slurm: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serial, results = tmp_path / "serial", tmp_path / "slurm"
    alone = grid(serial)  # beside the array, which waits more than it computes
    eventually(lambda: (serial / "measured.json").exists(), "the mode of computing is measured")  # one number, without depthwise
    results.mkdir()
    shutil.copy(serial / "measured.json", results)

    planned = output(grid(results, "--dry-run", **SLURM))
    assert "6 runs, 6 due: 4 tasks, 2 at a time in partition main, 0 GPUs each" in planned
    front = grid(results, **slurm, **SLURM)
    array = json.loads(eventually(lambda: read(results / "cluster/1/array.json"), "the array is submitted"))
    assert len(array["tasks"]) == 4
    job, log = array["job"], results / "cluster/1/log"

    eventually(lambda: training(log / f"{job}_0_0_log.out"), "task 0 trains")
    (victim,) = pids(str(results / "cluster/1/0.txt"))
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: training(log / f"{job}_1_0_log.out"), "task 1 trains")
    subprocess.run(["scancel", "--signal=USR2", f"{job}_1"], env=os.environ | slurm, capture_output=True)

    front.send_signal(signal.SIGINT)
    assert "the same command continues" in output(front, 130)
    shown = output(grid(results, "--status", **slurm))
    assert re.search(r"\d+ (waiting|running)", shown.splitlines()[0]), shown
    again = output(grid(results, **slurm, **SLURM))
    with capsys.disabled():
        print(f"\n{again}")
    its_log = (log / f"{job}_1_0_log.out").read_text()
    assert "Requeued job" in its_log
    assert sorted(path.name for path in (results / "cluster").iterdir()) == ["1", "2"], "the killed task's runs, once more"
    # Slurm repeats a signal whose delivery was not confirmed in time, as on a busy machine: then the task is preempted again
    starts = its_log.count("Starting with JobEnvironment")
    restarts = [record["timings"]["restarts"] for name, record in records(results).items() if name in array["tasks"][1]]
    assert 1 <= max(restarts) < starts, its_log
    assert output(grid(results, "--status", **slurm)) == "6 done\n"
    output(alone)
    assert same_records(serial, results)
    assert report_with_timings_of(serial, results) == (serial / "RESULTS.md").read_text()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
