"""Several processes on one results folder: each run has one holder, who is named, and a dead one holds nothing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.environment import ROOT
from bench.errors import EXIT_BUSY
from bench.ledger import Ledger
from tests import tally
from tests.reliability.equality import assert_equal
from tests.reliability.process import EXPERIMENTS, output, run, start, status_of, wait_for

RUN = ("run", EXPERIMENTS[0])
GRID = ("grid", f"--only={' '.join(EXPERIMENTS)}", "--seeds=0 1 2")
TRAINED = re.compile(r"(\S+ seed \d)  epoch 2/2")


def test_a_holder_is_named_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    results = tmp_path / "results"
    holder = start(results, *RUN, network="stuck")
    wait_for(results, "stuck")
    assert run(results, *RUN) == EXIT_BUSY
    named = rf"another process \(pid {holder.pid} on {re.escape(os.uname().nodename)}, since 20\S+ \S+ UTC\) works on it\n"
    assert re.search(f"^{EXPERIMENTS[0]} seed 0: {named}", output(results), re.MULTILINE)
    holder.kill()
    status_of(holder)
    assert list(results.rglob("holder")), "it could not take its name away"
    assert run(results, *RUN) == 0
    assert not list(results.rglob("holder"))
    tally.count("kills survived")


def test_a_grid_takes_over_from_a_holder_that_dies(tmp_path: Path) -> None:
    results = tmp_path / "results"
    holder = start(results, *RUN, network="stuck")
    wait_for(results, "stuck")
    grid = start(results, *GRID)
    wait_for(results, "waiting for other processes with 1 of the runs")
    holder.kill()
    assert status_of(grid) == 0
    assert len(set(TRAINED.findall(output(results)))) == 6
    tally.count("kills survived")


def test_two_grids_side_by_side(tmp_path: Path) -> None:
    """Each of six runs is trained once, by one of them, and both end when all are done."""
    results = tmp_path / "results"
    assert [status_of(process) for process in [start(results, *GRID), start(results, *GRID)]] == [0, 0]
    trained = TRAINED.findall(output(results))
    assert len(trained) == len(set(trained)) == 6
    assert run(tmp_path / "alone", *GRID) == 0
    assert_equal(results, tmp_path / "alone")


@pytest.mark.slow
def test_two_times_make_all_side_by_side(tmp_path: Path) -> None:
    """The very commands, with real networks: both end well, and the report holds every run."""
    arguments = ["PROFILE=smoke", "DEVICE=cpu", "ONLY=cifar100/baseline_F? fashion_mnist/baseline", f"RESULTS={tmp_path}"]
    environ = {"PATH": os.environ["PATH"], "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    program = [shutil.which("make") or "make", "all", *arguments]
    both = [
        subprocess.Popen(program, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    ended = [(*process.communicate(timeout=900), process.returncode) for process in both]
    assert [status for *_, status in ended] == [0, 0], ended
    trained = [name for printed, *_ in ended for name in TRAINED.findall(printed)]
    assert len(trained) == len(set(trained)) == 4
    assert [record["results"]["status"] for _, record in Ledger(tmp_path).records()] == ["done"] * 4
    page = (tmp_path / "RESULTS.md").read_text()
    assert all(path.name in page for path in Ledger(tmp_path).paths())
