"""Every finding of `make doctor`, on machines that are made up."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from bench import doctor, environment, limits
from bench.doctor import GIB, Check, examine, render
from bench.errors import UserError
from data import DataError
from data.sources import SOURCES

LINUX_MACHINE = {"/proc/cpuinfo": "flags : fpu avx2 avx512_bf16\n", "/proc/self/cgroup": "0::/job/step\n"}


class Machine:
    """A machine on which all is well, without a GPU; a test changes what it is about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.files = dict(LINUX_MACHINE)
        self.states = {"cifar100": "ready", "fashion_mnist": "ready"}
        self.weights: Path | None = folder / "datasets" / "weights.pth"
        self.weights_intact = True
        self.driver: str | None = None
        self.gpus = 0
        self.free = 100 * GIB
        self.folder = folder
        data, fetch = ModuleType("data"), ModuleType("data.fetch")
        vars(data).update(fetch=fetch, status=self.status, DataError=DataError)
        vars(fetch).update(weights_path=lambda root: self.weights, has_hash=lambda path, remote: self.weights_intact)
        monkeypatch.setitem(sys.modules, "data", data)
        monkeypatch.setitem(sys.modules, "data.fetch", fetch)
        monkeypatch.setattr(limits, "read", lambda path: self.files.get(str(path), ""))
        monkeypatch.setattr(environment, "cuda_driver", lambda: self.driver)
        monkeypatch.setattr("bench.machine.device_name", lambda device: "a processor")
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}.__getitem__)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=self.free))
        monkeypatch.setattr(torch, "__version__", f"{doctor.locked_version('torch')}+cu130")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: self.gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 80 * GIB))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def status(self, name: str, root: Path, *, verify: bool) -> SimpleNamespace:
        assert verify, "present is not enough: the bytes are to be verified"
        return SimpleNamespace(name=name, state=self.states[name], detail="what to do")

    def examine(self, device: str = "auto") -> dict[str, Check]:
        return {check.name: check for check in examine(device, self.folder / "datasets", self.folder / "results")}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def problems(checks: dict[str, Check]) -> list[str]:
    return [check.name for check in checks.values() if not check.ok]


def notes(checks: dict[str, Check]) -> list[str]:
    return [check.name for check in checks.values() if check.ok and check.advice]


def test_a_machine_on_which_all_is_well(machine: Machine) -> None:
    checks = machine.examine()
    names = ["python", "torch", "torchvision", "driver", "device", "threads", "memory", "results"]
    assert list(checks) == [*names, "cifar100", "fashion_mnist", "weights"]
    assert problems(checks) == notes(checks) == []
    assert checks["device"].found == "auto chose cpu: a processor, bf16 in hardware (avx512_bf16), used if faster"
    assert checks["memory"].found == "64.0 GiB"
    assert checks["weights"].found == "weights.pth, verified"


def test_a_gpu_is_described(machine: Machine) -> None:
    machine.driver, machine.gpus = "580.65.06", 2
    description = "a GPU, compute capability 9.0, 60.0 GiB of 80.0 GiB free, "
    not_measured = "JOBS not measured (`make bench-throughput` does)"
    assert machine.examine("auto")["device"].found == f"auto chose cuda: {description}{not_measured}"
    assert machine.examine("cuda:1")["device"].found == f"cuda:1: {description}{not_measured}"
    assert machine.examine("cpu")["device"].found.startswith("cpu: a processor")
    measured = json.loads((environment.ROOT / "results" / "throughput" / "nvidia-h100-80gb-hbm3.json").read_bytes())
    file = machine.folder / "results" / "throughput" / "a-processor.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(measured | {"sharing": {"1": 100.0, "2": 150.0, "4": 151.0}}))
    assert machine.examine("cuda")["device"].found == f"cuda: {description}best with JOBS=2 for each GPU"
    assert problems(machine.examine("cuda")) == []
    file.write_text(json.dumps(measured | {"sharing": {"many": 100.0}}))
    for device in ("auto", "cuda"):
        check = machine.examine(device)["device"]
        assert check.ok and f"JOBS not known: {file}: expected a throughput measurement; sharing: expected an object" in check.found


def test_an_old_driver(machine: Machine) -> None:
    machine.driver = "550.54.14"
    for device in ("auto", "cuda"):
        check = machine.examine(device)["driver"]
        assert (check.ok, check.found) == (False, "550.54.14; torch built for CUDA 13.0")
        assert "580 or newer" in check.advice
    assert "driver" not in problems(machine.examine("cpu"))
    machine.gpus = 1
    assert problems(machine.examine("cuda")) == []
    assert "forward compatibility" in machine.examine("cuda")["driver"].found


def test_an_old_driver_is_enough_for_an_older_cuda(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    machine.driver, machine.gpus = "550.54.14", 1
    assert problems(machine.examine("cuda")) == []


@pytest.mark.parametrize(
    ("driver", "cuda", "visible", "reason"),
    [
        (None, "13.0", None, "no NVIDIA driver here: install driver 580 or newer"),
        ("580.65.06", None, None, "a build without CUDA"),
        ("580.65.06", "13.0", "", "CUDA_VISIBLE_DEVICES hides every GPU"),
        ("580.65.06", "13.0", None, "driver 580.65.06 is loaded but torch sees no GPU"),
    ],
)
def test_cuda_without_a_gpu_is_an_error_with_its_reason(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    driver: str | None,
    cuda: str | None,
    visible: str | None,
    reason: str,
) -> None:
    machine.driver = driver
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    checks = machine.examine("cuda")
    assert problems(checks) == ["device"]
    assert reason in checks["device"].advice
    assert "DEVICE=cpu" in checks["device"].advice
    # auto goes on with the CPU, and says why where there is a driver that promises a GPU
    assert problems(machine.examine("auto")) == []
    assert machine.examine("auto")["device"].advice == ("" if driver is None else checks["device"].advice)


def test_a_gpu_number_that_is_not_there(machine: Machine) -> None:
    machine.driver, machine.gpus = "580.65.06", 1
    check = machine.examine("cuda:1")["device"]
    assert not check.ok
    assert "1 GPU(s), numbered from 0" in check.advice


def test_an_unknown_device_is_the_users_mistake(machine: Machine) -> None:
    with pytest.raises(UserError, match="expected auto, cpu, cuda or cuda:N, found 'gpu'"):
        machine.examine("gpu")


def test_a_cpu_without_bf16(machine: Machine) -> None:
    machine.files["/proc/cpuinfo"] = "flags : fpu avx2 avx512_bf16x\n"
    assert machine.examine()["device"].found.endswith("no units for bf16, which is computed in fp32")


@pytest.mark.parametrize(("version", "advised"), [("2.13.0", False), ("2.13.0+cpu", False), ("2.14.0+cu130", True)])
def test_a_torch_that_is_not_the_locks_is_a_note(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, version: str, advised: bool
) -> None:
    monkeypatch.setattr(doctor, "locked_version", {"torch": "2.13.0", "torchvision": "0.28.0"}.__getitem__)
    monkeypatch.setattr("torchvision.__version__", "0.28.0")
    monkeypatch.setattr(torch, "__version__", version)
    checks = machine.examine()
    assert problems(checks) == []
    assert notes(checks) == (["torch"] if advised else [])
    assert ("requirements.lock has 2.13.0" in checks["torch"].advice) == advised


def test_a_torch_that_cannot_be_imported(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # until here: other fixtures' ends need torch
        patch.setitem(sys.modules, "torch", None)  # the import statement then raises ImportError
        checks = machine.examine()
    assert problems(checks) == ["torch"]
    assert "make venv" in checks["torch"].advice
    assert list(checks) == ["python", "torch", "memory", "results"]


@pytest.mark.parametrize(
    ("version", "ok", "advised"),
    [((3, 10), False, True), ((3, 11), True, False), ((3, 13), True, False), ((3, 14), True, True)],
)
def test_the_python_version(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], ok: bool, advised: bool) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    check = doctor.check_python()
    assert (check.ok, bool(check.advice)) == (ok, advised)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("/sys/fs/cgroup/job/step/memory.max", str(3 * GIB), "3.0 GiB"),
        ("/sys/fs/cgroup/job/memory.max", str(3 * GIB), "3.0 GiB"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", str(3 * GIB), "3.0 GiB"),
        ("/sys/fs/cgroup/memory.max", "max", "64.0 GiB"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712", "64.0 GiB"),
    ],
)
def test_a_memory_limit_counts(machine: Machine, name: str, text: str, found: str) -> None:
    machine.files[name] = f"{text}\n"
    check = machine.examine()["memory"]
    assert check.found == found
    assert check.ok == (found == "64.0 GiB")
    assert ("4.0 GiB are needed" in check.advice) == (not check.ok)


def test_the_memory_controller_of_version_1(machine: Machine) -> None:
    machine.files["/proc/self/cgroup"] = "12:pids:/other\n4:memory:/job\n"
    machine.files["/sys/fs/cgroup/memory/job/memory.limit_in_bytes"] = f"{8 * GIB}\n"
    machine.files["/sys/fs/cgroup/pids/other/memory.limit_in_bytes"] = f"{1 * GIB}\n"
    assert machine.examine()["memory"].found == "8.0 GiB"


def test_more_threads_than_cores_is_a_note(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.files["/sys/fs/cgroup/job/cpu.max"] = "50000 100000\n"
    assert machine.examine()["threads"].found == "torch uses 1 on 0.5 cores"
    assert notes(machine.examine()) == []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert notes(machine.examine()) == ["threads"]
    assert machine.examine()["threads"].advice == "set OMP_NUM_THREADS=1"


def test_little_disk(machine: Machine) -> None:
    machine.free = GIB // 2
    checks = machine.examine()
    assert problems(checks) == ["results"]
    assert checks["results"].found.endswith("0.5 GiB free")
    assert "2.0 GiB are needed" in checks["results"].advice
    machine.states["cifar100"] = "missing"  # room for data matters only while some is missing
    assert notes(machine.examine()) == ["datasets", "cifar100"]


def test_a_results_folder_that_cannot_be_written(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    checks = machine.examine()
    assert problems(checks) == ["results"]
    assert checks["results"].found.endswith("results: Permission denied")
    assert "RESULTS" in checks["results"].advice


def test_a_results_folder_that_cannot_be_searched(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def exists(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "exists", exists)
    check = doctor.check_folder("results", machine.folder / "mine", "RESULTS", needed=0)
    assert (check.ok, check.found) == (False, f"{machine.folder / 'mine'}: Permission denied") and "RESULTS" in check.advice


def test_a_results_folder_below_a_file(machine: Machine) -> None:
    (machine.folder / "results").write_text("a file")
    assert problems(machine.examine()) == ["results"]


def test_looking_leaves_nothing_behind(machine: Machine) -> None:
    machine.states["cifar100"] = "missing"
    machine.examine()
    assert list(machine.folder.iterdir()) == []


def test_missing_data_is_a_note_and_damaged_data_a_problem(machine: Machine) -> None:
    machine.states.update(cifar100="missing", fashion_mnist="damaged")
    machine.weights = None
    checks = machine.examine()
    assert problems(checks) == ["fashion_mnist"]
    assert notes(checks) == ["cifar100", "weights"]
    assert (checks["fashion_mnist"].found, checks["fashion_mnist"].advice) == ("damaged", "what to do")
    assert checks["cifar100"].advice == "what to do; the smoke profile does without"
    assert "WEIGHTS" in checks["weights"].advice


def test_damaged_weights_are_a_problem(machine: Machine) -> None:
    machine.weights_intact = False
    check = machine.examine()["weights"]
    assert (check.ok, check.found) == (False, "damaged")
    assert "run `make data`" in check.advice


def test_weights_that_the_user_gives_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    assert "expected a file, found none" in doctor.check_weights(tmp_path, path).advice
    torch.save({"a": torch.zeros(1)}, path)
    assert doctor.check_weights(tmp_path, path) == Check("weights", True, "mine.pth, 1 tensors")


def test_weights_that_cannot_be_read_are_a_problem_of_their_own(machine: Machine) -> None:
    def unreadable(path: Path, remote: object) -> bool:
        raise DataError(f"cannot read {path}")

    vars(sys.modules["data.fetch"]).update(has_hash=unreadable)
    check = machine.examine()["weights"]
    assert (check.ok, check.found) == (False, "not usable") and check.advice.startswith("cannot read ")


def test_the_real_data_package_answers(tmp_path: Path) -> None:
    assert set(doctor.REAL_SETS) == set(SOURCES)
    checks = {check.name: check for check in doctor.check_datasets(tmp_path)}
    assert list(checks) == ["datasets", "cifar100", "fashion_mnist", "weights"]
    for name in ("cifar100", "fashion_mnist", "weights"):
        assert checks[name].found == "missing"
        assert "make data" in checks[name].advice


def test_render_aligns_and_advises() -> None:
    checks = [
        Check("torch", True, "2.14.0", "note this"),
        Check("fashion_mnist", False, "damaged", "do that"),
        Check("x", True, "y"),
    ]
    assert render(checks).splitlines() == [
        "note  torch          2.14.0",
        "                     → note this",
        "FAIL  fashion_mnist  damaged",
        "                     → do that",
        "ok    x              y",
    ]


@pytest.mark.parametrize(("script", "version"), [("echo 581.29", "581.29"), ("exit 9", None), ("true", None)])
def test_the_driver_under_wsl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, version: str | None) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert environment._driver_of_windows() == version
