"""JOBS: which device and how many threads each process of a grid has, and how they do their runs."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import grid, serving, stopping, workers
from bench.errors import UserError
from bench.experiment import Run
from bench.runs import plan
from bench.settings import Settings
from tests.test_grid import chosen, shared

GIB = 2**30


def machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int = 0, cores: float = 8, memory: int = 64 * GIB, shown: str = "") -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(workers, "available_cores", lambda: cores)
    monkeypatch.setattr(workers, "available_memory", lambda: memory)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def asked(tmp_path: Path, jobs: str, device: str = "auto") -> list[dict[str, str]]:
    return workers.workers(chosen(tmp_path, JOBS=jobs, DEVICE=device))


@pytest.mark.parametrize(("shown", "names"), [("", ["0", "1", "2"]), ("5, 2,GPU-a1", ["5", "2", "GPU-a1"])])
def test_auto_is_a_process_for_each_visible_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, names: list[str]
) -> None:
    machine(monkeypatch, gpus=3, shown=shown)
    assert asked(tmp_path, "auto") == [{"OMP_NUM_THREADS": "2", "DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": name} for name in names]


def test_more_processes_go_round_the_gpus_and_a_named_gpu_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus=2, cores=12)
    assert [worker["CUDA_VISIBLE_DEVICES"] for worker in asked(tmp_path, "6")] == ["0", "1", "0", "1", "0", "1"]
    assert asked(tmp_path, "2", "cuda:1") == [{"OMP_NUM_THREADS": "6"}] * 2
    assert asked(tmp_path, "auto", "cuda:1") == [{"OMP_NUM_THREADS": "12"}]


@pytest.mark.parametrize(
    ("cores", "memory", "jobs", "threads"),
    [(8, 64, 8, 1), (8, 20, 3, 2), (2, 64, 2, 1), (1.5, 64, 1, 1), (8, 2, 1, 8)],
)
def test_auto_on_the_cpu_is_what_cores_and_memory_have_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: float, memory: int, jobs: int, threads: int
) -> None:
    machine(monkeypatch, gpus=2, cores=cores, memory=memory * GIB)
    assert asked(tmp_path, "auto", "cpu") == [{"OMP_NUM_THREADS": str(threads)}] * jobs
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert {worker["OMP_NUM_THREADS"] for worker in asked(tmp_path, "auto", "cpu")} == {"5"}, "a user's choice is kept"


def test_what_is_no_number_of_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JOBS: expected auto or a whole number from 1 of at most 6 digits, found 'all'"):
        asked(tmp_path, "all")


@pytest.mark.parametrize(
    ("gpus", "jobs", "seeds", "said"),
    [
        (0, "1", "0", "about 5 min"),
        (0, "2", "0", "about 5 min"),
        (0, "2", "0 1", "about 10 min"),
        (2, "2", "0", "about 5 min"),
        (2, "1", "0 1", "about 10 min"),
        (2, "4", "0-3", "about 10 min"),
        (4, "auto", "0-2", "about 5 min"),
    ],
)
def test_an_estimate_is_divided_by_devices_that_have_a_run(
    gpus: int, jobs: str, seeds: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five minutes a run, timed on all threads, of which each process has its share."""
    machine(monkeypatch, gpus=gpus)
    monkeypatch.setattr(grid.machine, "choose_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(grid, "_estimates", lambda due, its_settings, device: [300.0] * len(due))
    monkeypatch.setattr(grid, "_statuses", lambda due, its_settings, estimates, device: ["done"] * len(due))
    its_settings = chosen(tmp_path, JOBS=jobs, DEVICE="auto", ONLY="cifar100/baseline", SEEDS=seeds)
    assert grid.work_through(plan(its_settings), its_settings) == 0
    assert f"\n{said} on this device" in capsys.readouterr().out


@pytest.mark.parametrize(("jobs", "seeds", "processes"), [("8", "0 1", 2), ("auto", "0", 1), ("3", "0-5", 3)])
def test_no_more_processes_than_runs_share_the_threads(
    jobs: str, seeds: str, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cores=8)
    found: list[int] = []

    def statuses(due: list[Run], its_settings: Settings, *_: Any) -> list[str]:
        found.append(len(workers.workers(its_settings)))
        return ["done"] * len(due)

    monkeypatch.setattr(grid, "_statuses", statuses)
    its_settings = chosen(tmp_path, JOBS=jobs, ONLY="cifar100/baseline", SEEDS=seeds)
    assert grid.work_through(plan(its_settings), its_settings) == 0
    assert grid.work_through([], its_settings) == 0
    assert found == [processes, 1]


# Stands for a process of a grid: it notes its environment, and holds its GPU while it does a run.
SERVER = """
import json, os, pathlib, sys, time
folder, answers = pathlib.Path(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w")
gpu = os.environ["CUDA_VISIBLE_DEVICES"]
for line in sys.stdin:
    if line.split()[1] == sys.argv[3]:
        sys.exit(int(sys.argv[4]))
    (folder / f"gpu{gpu}").mkdir()
    time.sleep(0.3)
    (folder / f"gpu{gpu}").rmdir()
    note = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "DEVICE", "JOBS")} | {"process": os.getpid()}
    (folder / f"{line.split()[1]}.json").write_text(json.dumps(note))
    leaving = line.split()[1] == sys.argv[5]
    print("done last" if leaving else "done", file=answers, flush=True)
    if leaving:
        time.sleep(0.3)
        os.abort()
"""


def serve_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, dies_of: str = "", status: int = 0, leaves_after: str = ""
) -> None:
    """Let the processes of a grid be those above, which may end at a seed, or die of what they have to end for after one."""
    original = subprocess.Popen

    def start(command: list[str], **options: Any) -> "subprocess.Popen[str]":
        arguments = [str(folder), command[-1], dies_of, str(status), leaves_after]
        return original([sys.executable, "-c", SERVER, *arguments], **options)

    monkeypatch.setattr(workers.subprocess, "Popen", start)


def notes(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("?.json"))]


def test_processes_of_a_grid_get_their_device_and_never_share_one_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs on two GPUs, in processes that only say on which they would be; each does its share, one after another."""
    machine(monkeypatch, gpus=2)
    serve_with(monkeypatch, tmp_path)
    its_settings = chosen(tmp_path, JOBS="auto", DEVICE="auto", ONLY="cifar100/baseline", SEEDS="0 1 2 3")
    assert shared(plan(its_settings), its_settings) == ["done"] * 4
    found = notes(tmp_path)
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in found) == ["0", "0", "1", "1"]
    assert {each["DEVICE"] for each in found} == {"cuda"} and {each["JOBS"] for each in found} == {"1"}
    assert len({each["process"] for each in found}) == 2


def test_after_a_process_has_left_another_does_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose GPU does not answer any more; its end takes a while and may go wrong, and is no run's."""
    machine(monkeypatch, gpus=1)
    serve_with(monkeypatch, tmp_path, leaves_after="0")
    its_settings = chosen(tmp_path, JOBS="auto", DEVICE="auto", ONLY="cifar100/baseline", SEEDS="0 1 2")
    assert shared(plan(its_settings), its_settings) == ["done"] * 3
    first, second, third = (note["process"] for note in notes(tmp_path))
    assert first != second == third


@pytest.mark.parametrize(("status", "expected"), [(75, "interrupted"), (1, "failed")])
def test_a_process_that_ends_within_a_run(
    status: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, gpus=1)
    serve_with(monkeypatch, tmp_path, dies_of="1", status=status)
    its_settings = chosen(tmp_path, JOBS="auto", DEVICE="cpu", ONLY="cifar100/baseline", SEEDS="0 1 2")
    monkeypatch.setattr(workers, "workers", lambda settings: [{"CUDA_VISIBLE_DEVICES": "0"}])
    assert shared(plan(its_settings), its_settings) == ["done", expected, "done"]
    said = capsys.readouterr().out
    assert ("seed 1: failed: ChildProcessError: the process ended with status 1" in said) == (expected == "failed")


# Cannot write its folder.
UNWRITABLE = """
import os, sys
for line in sys.stdin:
    os.write(int(sys.argv[1]), b"error: results: cannot be written\\n")
"""


def test_what_the_user_can_mend_ends_the_grid_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, began = subprocess.Popen, []
    monkeypatch.setattr(
        workers.subprocess,
        "Popen",
        lambda command, **options: original([sys.executable, "-c", UNWRITABLE, command[-1]], **options),
    )
    monkeypatch.setattr(workers._Server, "ask", lambda self, run, ask=workers._Server.ask: (began.append(run), ask(self, run)))
    its_settings = chosen(tmp_path, JOBS="2", ONLY="cifar100/baseline", SEEDS="0-19")
    with pytest.raises(UserError, match=r"^results: cannot be written$"):
        shared(plan(its_settings), its_settings)
    assert len(began) <= 3, "the first line of either process ends it for all"


# In a run it notes every signal; the first asks, and at the second of a kind that is impatient it leaves.
STUCK = """
import os, pathlib, signal, sys, time
folder, asked = pathlib.Path(sys.argv[1]), []
def note(number, frame):
    asked.append(number)
    (folder / "asked").write_text(" ".join(map(str, asked)))
    if asked.count(signal.SIGTERM) == 2 or len(asked) == 3:
        sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, note)
sys.stdin.readline()
(folder / "at work").touch()
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        ((signal.SIGTERM, signal.SIGTERM), [15, 15]),
        ((signal.SIGINT, signal.SIGINT), [15, 15]),
        ((signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM), [12, 12, 15]),
    ],
)
def test_every_signal_is_passed_on(
    sent: tuple[int, ...], passed_on: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may be in a step that does not end; a batch system may send the same twice without being impatient."""
    original = subprocess.Popen
    monkeypatch.setattr(
        workers.subprocess, "Popen", lambda command, **options: original([sys.executable, "-c", STUCK, str(tmp_path)], **options)
    )
    monkeypatch.setattr(workers, "workers", lambda settings: [{}])

    def impatient() -> None:
        for count, number in enumerate(sent):
            while not (tmp_path / "at work").exists() or len(asked()) < count:
                time.sleep(0.01)
            time.sleep(stopping.MOMENT)
            os.kill(os.getpid(), number)

    def asked() -> list[int]:
        path = tmp_path / "asked"
        return [int(word) for word in path.read_text().split()] if path.exists() else []

    its_settings = chosen(tmp_path, JOBS="1", ONLY="cifar100/baseline", SEEDS="0 1")
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.install()
    user = threading.Thread(target=impatient)
    try:
        user.start()
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            shared(plan(its_settings), its_settings)
    finally:
        user.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert asked() == passed_on


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_gpu_on_which_memory_ran_out_gets_another_process(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been in a capture, which leaves CUDA in disorder."""
    for name, value in {"PROFILE": "smoke", "RESULTS": str(tmp_path), "SEEDS": "0 1", "ONLY": "cifar100/baseline"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(serving, "status_of", lambda run, settings: "out_of_memory")
    monkeypatch.setattr(serving.machine, "choose_device", lambda name: torch.device(device))
    monkeypatch.setattr(sys, "stdin", io.StringIO("cifar100/baseline 0\ncifar100/baseline 1\n"))
    reading, writing = os.pipe()
    serving.serve(writing)
    with os.fdopen(reading) as file:
        assert file.read().splitlines() == (["out_of_memory last"] if device == "cuda" else 2 * ["out_of_memory"])


def test_a_server_answers_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a status, or by what is wrong with an input; a run that failed with its GPU is the last."""
    for name, value in {
        "PROFILE": "smoke",
        "DEVICE": "cpu",
        "RESULTS": str(tmp_path),
        "SEEDS": "0 1 2",
        "ONLY": "*/baseline",
    }.items():
        monkeypatch.setenv(name, value)

    def status_of(run: Run, settings: Settings) -> str:
        if run.seed == 1:
            raise UserError("expected the weights, found none")
        return "failed" if run.seed == 2 else "done"

    monkeypatch.setattr(serving, "status_of", status_of)
    lines = "".join(f"{row}/baseline {seed}\n" for seed in range(3) for row in ("cifar100", "fashion_mnist"))
    mendable = 2 * ["error: expected the weights, found none"]
    for answers, expected in (
        (True, ["done", "done", *mendable, "failed", "failed"]),
        (False, ["done", "done", *mendable, "failed last"]),
    ):
        monkeypatch.setattr(serving.machine, "answers", lambda device, answers=answers: answers)
        emptied: list[bool] = []
        monkeypatch.setattr(torch.cuda, "empty_cache", partial(emptied.append, True))
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        reading, writing = os.pipe()
        serving.serve(writing)
        with os.fdopen(reading) as file:
            assert file.read().splitlines() == expected
        assert len(emptied) == len(expected) - (not answers), "a GPU that does not answer refuses that too"
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdin", io.StringIO("cifar100/baseline 0\n"))
    serving.serve(writing)  # as where the grid was killed meanwhile
