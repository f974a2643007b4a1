"""The grid on Slurm as far as it can be had without Slurm: choices, groups, the process on the node, the one in front."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import cli, cluster, errors, grid, stopping
from bench.catalog import EXPERIMENTS
from bench.cluster import VARIABLES, Array, Slurm
from bench.environment import ROOT
from bench.errors import UserError
from bench.experiment import Run
from bench.ledger import SECTIONS, Ledger
from bench.runs import listed, plan
from bench.settings import DEFAULTS, Settings, settings
from bench.task import Task
from tests.records import record_of, run_of
from tests.test_grid import chosen, records

SLURM = Slurm(partition="main", gpus=1, parallel=2, minutes=60, sbatch={}, python=("python",))
CHOICE = {name: default for name, (default, _) in VARIABLES.items()} | {"LAUNCHER": "slurm"}
RUNS = [run_of(f"cifar100/{row}", seed, "smoke") for row in ("baseline", "baseline_F0", "C_se", "stem_dual") for seed in (0, 1)]


# ---- choices and groups --------------------------------------------------------------------------------------------------------


def test_choices_become_what_a_task_asks_for() -> None:
    assert cluster.launcher(CHOICE | {"LAUNCHER": "local", "GPUS": "all"}) is None
    given = cluster.launcher(CHOICE | {"SBATCH": "account=me --mem=32G", "TASK_PYTHON": "apptainer exec --nv b.sif python"})
    assert given == Slurm("", 1, 8, 240, {"account": "me", "mem": "32G"}, ("apptainer", "exec", "--nv", "b.sif", "python"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LAUNCHER", "lsf", "expected local or slurm"),
        ("GPUS", "all", "expected a whole number from 0"),
        ("PARALLEL", "0", "expected a whole number from 1"),
        ("TIME_LIMIT", "1:00", "expected a whole number from 5"),
        ("TIME_LIMIT", "4", "expected a whole number from 5"),
        ("TIME_LIMIT", "9" * 5000, "expected a whole number from 5 of at most 6 digits"),
        ("PARALLEL", "9" * 5000, "expected a whole number from 1 of at most 6 digits"),
        ("GPUS", "9" * 5000, "expected a whole number from 0 of at most 6 digits"),
        ("TASK_PYTHON", "a 'b", 'expected a command as a shell reads it, found "a \'b" (No closing quotation)'),
        ("SBATCH", "--exclusive", "expected words of the form option=value"),
    ],
)
def test_what_is_no_choice_is_one_clear_line(name: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [word for key, given in (CHOICE | {name: value}).items() for word in (f"--{key.lower().replace('_', '-')}={given}",)]
    assert cli.main(["grid", "--profile", "smoke", "--dry-run", *flags]) == errors.EXIT_USER
    said = capsys.readouterr().err
    assert said.startswith(f"error: {name}: {expected}") and said.count("\n") == 1 and len(said) < 250


def test_without_submitit_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    choice = ["--profile", "smoke", "--results", str(tmp_path), "--launcher", "slurm", "--gpus", "0"]
    assert cli.main(["grid", *choice]) == errors.EXIT_USER
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "expected the package submitit, found none; run `make venv-cluster`" in said
    assert not (tmp_path / "cluster").exists()


def test_a_dry_run_shows_the_tasks_and_submits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice = [
        "--profile",
        "smoke",
        "--results",
        str(tmp_path),
        "--only",
        "cifar100/baseline cifar100/stem_baseline",
        "--seeds",
        "0 1",
    ]
    assert cli.main(["grid", *choice, "--launcher", "slurm", "--dry-run", "--parallel", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "4 runs, 4 due: 3 tasks, 1 at a time in the default partition, 1 GPUs each, requeued after 240 minutes",
        "task 0: cifar100/stem_baseline 0",
        "task 1: cifar100/stem_baseline 1",
        "task 2: cifar100/baseline 0, cifar100/baseline 1",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_status_of_the_whole_catalog(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice = ["--profile", "smoke", "--results", str(tmp_path)]
    assert cli.main(["grid", *choice, "--status"]) == 0
    assert capsys.readouterr().out == f"{len(EXPERIMENTS)} due\n"
    runs = plan(settings(**{name.lower(): value for name, value in (DEFAULTS | {"PROFILE": "smoke"}).items()}))
    failed = next(run for run in runs if run.experiment.name == "cifar100/E1_P2_F0")
    record = {name: record_of(failed, (1, 2))[name] for name in SECTIONS}
    record["results"] |= {"status": "failed", "error": "OSError: lost"}
    Ledger(tmp_path).write(failed, record)
    assert cli.main(["grid", *choice, "--status"]) == 0
    assert capsys.readouterr().out == f"{len(EXPERIMENTS) - 1} due, 1 failed\ncifar100/E1_P2_F0 0: failed: OSError: lost\n"


def test_groups_hold_every_run_once_and_none_is_empty() -> None:
    for parallel in (1, 2, 100):
        for alone in (False, True):
            found = cluster.groups(RUNS, parallel, alone=alone)
            assert all(found)
            assert sorted(run.key for group in found for run in group) == sorted(run.key for run in RUNS)
            assert len(found) <= cluster.TASKS_PER_PLACE * parallel or alone


def test_a_file_of_runs_chooses_among_those_that_were_chosen(tmp_path: Path) -> None:
    path = tmp_path / "0.txt"
    path.write_text("".join(f"{cluster.name(run)}\n" for run in (RUNS[3], RUNS[0])))
    assert listed(RUNS, path) == [RUNS[3], RUNS[0]]
    path.write_text(f"\n{cluster.name(RUNS[0])}\n\n")
    assert listed(RUNS, path) == [RUNS[0]], "an empty line is no run"
    path.write_text("cifar100/baseline 7\n")
    with pytest.raises(UserError, match="expected an experiment and a seed that were chosen, found 'cifar100/baseline 7'"):
        listed(RUNS, path)
    with pytest.raises(UserError, match=r"--runs .*absent: expected a file of lines NAME SEED, found none"):
        listed(RUNS, tmp_path / "absent")


# ---- on the node ---------------------------------------------------------------------------------------------------------------

# In place of Python: a grid that ends when it is asked to, as one that has left a checkpoint.
GRID = f"""#!{sys.executable}
import os, signal, sys, time
signal.signal(signal.SIGUSR2, lambda *_: os._exit({errors.EXIT_TERMINATED}))
log, seconds, status = (word.partition("=")[2] for word in sys.argv[5:8])
open(log, "w").write(" ".join([*sys.argv[1:5], *sys.argv[8:]]))
time.sleep(float(seconds))
os.kill(os.getpid(), signal.SIGKILL) if status == "-9" else sys.exit(int(status))
"""


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The signals with which submitit's handler was called; the handlers are put back."""
    calls: list[int] = []
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


def program(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    program(folder / "bin/squeue", f"#!/bin/sh\necho '{answer}'\n")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def task(folder: Path, status: int, seconds: float) -> Task:
    python = program(folder / "python", GRID)
    return Task((python,), (f"--log={folder / 'log'}", f"--seconds={seconds}", f"--status={status}"))


def signals(folder: Path, *numbers: signal.Signals) -> None:
    """Send them to this process once the grid has begun."""

    def send() -> None:
        while not (folder / "log").exists() or not (folder / "log").read_text():
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


@pytest.mark.parametrize("status", [0, errors.EXIT_FAILED])
def test_a_task_works_through_its_file_of_runs(tmp_path: Path, requeued: list[int], status: int) -> None:
    assert task(tmp_path, status, 0)("runs.txt") == status
    assert (tmp_path / "log").read_text() == "-u -m bench grid --runs runs.txt"
    assert requeued == []


def test_a_grid_that_is_killed_is_a_failed_task(tmp_path: Path, requeued: list[int]) -> None:
    with pytest.raises(RuntimeError, match="the grid ended with status -9"):
        task(tmp_path, -9, 0)("runs.txt")
    assert requeued == []


@pytest.mark.parametrize(
    ("sent", "state", "requeues"),
    [
        ([signal.SIGUSR2], "COMPLETING", True),  # before the time limit, or a preemption
        ([signal.SIGTERM, signal.SIGUSR2], "RUNNING", True),
        ([signal.SIGTERM], "RUNNING", True),  # a preemption with time to leave
        ([signal.SIGTERM], "CANCELLED", False),  # scancel
    ],
)
def test_a_task_that_is_asked_to_stop_is_requeued_unless_it_is_cancelled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    requeued: list[int],
    sent: list[signal.Signals],
    state: str,
    requeues: bool,
) -> None:
    squeue(tmp_path, monkeypatch, state)
    signals(tmp_path, *sent)
    with pytest.raises(RuntimeError, match=f"status {errors.EXIT_TERMINATED}"):  # submitit's handler would not have come back
        task(tmp_path, 0, 60)("runs.txt")
    assert bool(requeued) == requeues


def test_what_stands_by_on_a_node_needs_no_torch() -> None:
    program = "import bench.task, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"


# ---- in front ------------------------------------------------------------------------------------------------------------------


def finish(results: Path, run: Run) -> None:
    record = record_of(run, (20, 30))
    Ledger(results).write(run, {section: record[section] for section in SECTIONS})


class Cluster:
    """In place of Slurm: "submitted" runs get records at once, except those that kill their process."""

    def __init__(self, results: Path, monkeypatch: pytest.MonkeyPatch, deadly: Sequence[Run] = ()) -> None:
        self.results, self.deadly = results, deadly
        self.submitted: list[list[int]] = []  # the sizes of each array's groups
        monkeypatch.setattr(cluster, "submit", self.submit)
        monkeypatch.setattr(cluster, "_queued", lambda found: {})
        monkeypatch.setattr(grid, "check_inputs", lambda runs, settings: None)

    def submit(self, tasks: Sequence[Sequence[Run]], settings: Settings, its_slurm: Slurm) -> Array:
        self.submitted.append([len(group) for group in tasks])
        for group in tasks:
            for run in group:
                if run in self.deadly:
                    break
                finish(self.results, run)
        return Array(str(len(self.submitted)), tuple(tuple(map(cluster.name, group)) for group in tasks))


def test_due_runs_are_one_array_and_nothing_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = Cluster(tmp_path, monkeypatch)
    assert cluster.work_through(RUNS, chosen(tmp_path), SLURM) == 0
    assert len(slurm.submitted) == 1 and sum(slurm.submitted[0]) == len(RUNS)
    assert cluster.work_through(RUNS, chosen(tmp_path), SLURM) == 0
    assert len(slurm.submitted) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "8 done"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_that_kills_its_task_is_tried_alone_and_then_has_a_record(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its device is: where it was submitted from there need be none."""
    deadly = next(run for run in RUNS if run.experiment.name == "cifar100/baseline")
    slurm = Cluster(tmp_path, monkeypatch, [deadly])
    its_settings = replace(chosen(tmp_path), device=device)
    assert cluster.work_through(RUNS, its_settings, replace(SLURM, parallel=1)) == errors.EXIT_FAILED
    assert max(slurm.submitted[0]) > 1 and slurm.submitted[2:] == [[1]]
    assert set(slurm.submitted[1]) == {1}, "those that were with it in a task, and it, each alone"
    failed = records(tmp_path)["cifar100/baseline 0"]["results"]
    assert failed["status"] == "failed" and failed["error"].startswith("ChildProcessError: its task ended without a record 3 times")
    assert "7 done" in capsys.readouterr().out


def test_who_comes_back_finds_what_is_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cluster/1"
    folder.mkdir(parents=True)
    (folder / "array.json").write_text('{"job": "12", "tasks": [["cifar100/baseline 0"], ["cifar100/baseline 1"]]}')
    finish(tmp_path, RUNS[2])
    squeue(tmp_path, monkeypatch, "12 0 RUNNING\n12 1 PENDING\n99 3 RUNNING")
    (array,) = cluster.arrays(tmp_path)
    assert cluster._queued([array]) == {array: {0: "RUNNING", 1: "PENDING"}}
    with grid._checkpoint(RUNS[0], chosen(tmp_path)).hold():
        text = cluster.status(RUNS, chosen(tmp_path))
    assert text.splitlines()[0] == "1 running, 1 waiting, 1 done, 5 due"
    assert text.splitlines()[1:] == ["cifar100/baseline 0: running", "cifar100/baseline 1: waiting"]


def test_nothing_to_do_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an empty shard."""
    slurm = Cluster(tmp_path, monkeypatch)
    assert (cluster.work_through([], chosen(tmp_path), SLURM), slurm.submitted) == (0, [])


def test_a_job_of_another_slurm_with_the_same_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cluster/1").mkdir(parents=True)
    (tmp_path / "cluster/1/array.json").write_text('{"job": "12", "tasks": [["cifar100/baseline 0"]]}')
    squeue(tmp_path, monkeypatch, "12 0 RUNNING\n12 7 RUNNING")
    assert cluster.status(RUNS, chosen(tmp_path)).splitlines()[0] == "1 waiting, 7 due"


def test_a_folder_for_arrays_that_cannot_be_had_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "cluster").write_text("")
    with pytest.raises(UserError, match=r"cluster: cannot be written \(File exists\); choose another folder with RESULTS="):
        cluster._new_folder(tmp_path / "cluster")


def test_leases_that_cannot_be_looked_at_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def alive(folders: Sequence[Path]) -> list[bool]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cluster, "alive", alive)
    with pytest.raises(UserError, match="checkpoints: expected folders to look at, found permission denied"):
        cluster.status(RUNS, chosen(tmp_path))


ARRAY = '{"job": "1", "tasks": [["cifar100/baseline 0"]]}'


@pytest.mark.parametrize(
    ("number", "text"),
    [("1", ""), ("1", "{}"), ("1", "[]"), ("1", '{"job": "1", "tasks": 3}'), ("1", "[" * 100_000), ("x", ARRAY)],
    ids=lambda text: text[:10],
)
def test_what_is_no_array_is_one_clear_line(number: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster" / number / "array.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert cli.main(["grid", "--profile", "smoke", "--status", "--results", str(tmp_path)]) == errors.EXIT_USER
    expected = f"error: {path}: expected a job array in a folder with its number, found another file; restore it, or delete"
    said = capsys.readouterr().err
    assert said.startswith(expected) and said.count("\n") == 1


def test_arrays_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9):
        (tmp_path / f"cluster/{number}").mkdir(parents=True)
        (tmp_path / f"cluster/{number}/array.json").write_text(f'{{"job": "{number}", "tasks": []}}')
    assert [array.job for array in cluster.arrays(tmp_path)] == ["9", "10"]


def test_a_queue_that_does_not_answer_is_no_empty_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue(tmp_path, monkeypatch, "")
    program(tmp_path / "bin/squeue", "#!/bin/sh\necho 'slurm_load_jobs error: no controller' >&2\nexit 1\n")
    with pytest.raises(
        UserError, match="expected an answer of squeue, found slurm_load_jobs error: no controller; the tasks go on"
    ):
        cluster._queued([Array("12", (("cifar100/baseline 0",),))])
