"""JOBS: which device and how many threads each process of a grid has."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import grid, workers
from bench.errors import UserError
from tests.test_grid import chosen

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
    monkeypatch.setattr(grid.environment, "choose_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(grid, "_estimates", lambda due, its_settings, device: [300.0] * len(due))
    monkeypatch.setattr(grid, "_statuses", lambda due, its_settings, estimates, device: ["done"] * len(due))
    its_settings = chosen(tmp_path, JOBS=jobs, DEVICE="auto", ONLY="cifar100/baseline", SEEDS=seeds)
    assert grid.work_through(grid.plan(its_settings), its_settings) == 0
    assert f"\n{said} on this device" in capsys.readouterr().out


def test_processes_of_a_grid_get_their_device_and_never_share_one_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs on two GPUs, in processes that only say on which they would be."""
    machine(monkeypatch, gpus=2)
    original = subprocess.Popen

    def start(command: list[str], env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
        path = tmp_path / f"{command[-1]}.json"
        path.write_text(json.dumps({name: env[name] for name in ("CUDA_VISIBLE_DEVICES", "DEVICE", "JOBS")}))
        lock = tmp_path / f"gpu{env['CUDA_VISIBLE_DEVICES']}"
        return original(["sh", "-c", f"mkdir {lock} && sleep 0.3 && rmdir {lock}"], **options)

    monkeypatch.setattr(grid.subprocess, "Popen", start)
    its_settings = chosen(tmp_path, JOBS="auto", DEVICE="auto", ONLY="cifar100/baseline", SEEDS="0 1 2 3")
    assert grid._statuses_of_processes(grid.plan(its_settings), its_settings) == ["done"] * 4
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in found) == ["0", "0", "1", "1"]
    assert {each["DEVICE"] for each in found} == {"cuda"} and {each["JOBS"] for each in found} == {"1"}
