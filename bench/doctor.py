"""What this machine offers the suite, and what to do where something is missing.

Every check is a small function that returns one value; nothing is written, downloaded or repaired here.
"""

import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import limits
from bench.errors import UserError

# Everything that imports torch is imported where it is used: a torch that does not load is one of the findings.
if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
REAL_SETS = ("cifar100", "fashion_mnist")
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)  # the versions that requirements.lock is resolved for
GIB = 1 << 30
# Four processes of the smoke profile, or one of the mini profile beside a desktop.
LEAST_MEMORY = 4 * GIB
# A training checkpoint of ConvNeXt-Tiny is 0.34 GB (weights and two moments in float32), twice while it is replaced.
LEAST_DISK_FOR_RESULTS = 2 * GIB
# Archives, arrays and pretrained weights together are 0.6 GB.
LEAST_DISK_FOR_DATASETS = 1 * GIB


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``ok`` with advice is a note: the suite works, but something could be better."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine(device: str, datasets: Path, results: Path, weights: Path | None = None) -> list[Check]:
    """Look at everything a run needs, in the order in which it needs it.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. A GPU that is asked for and absent is a failed check.
        datasets: folder of the data sets; it need not exist yet.
        results: folder of the ledger; it need not exist yet.
        weights: file of pretrained weights to use; None: those that `make data` fetches.

    Raises:
        UserError: ``device`` is none of these names.
    """
    checks = [check_python(), *check_packages()]
    torch_works = all(check.ok for check in checks if check.name == "torch")
    if torch_works:
        checks += [check_driver(device), check_device(device, results), check_threads()]
    checks += [check_memory(), check_folder("results", results, "RESULTS", LEAST_DISK_FOR_RESULTS)]
    return checks + (check_datasets(datasets, weights) if torch_works else [])


def render(checks: list[Check]) -> str:
    """One aligned line for each check, and under each problem or note a line that says what to do."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = "FAIL" if not check.ok else "note" if check.advice else "ok"
        lines.append(f"{mark:<4}  {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':<{width + 8}}→ {check.advice}")
    return "\n".join(lines)


# --- software ---------------------------------------------------------------------------------------------------------


def check_python() -> Check:
    """The interpreter, against the range that the lock covers."""
    found = platform.python_version()
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST_PYTHON, NEWEST_PYTHON))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("python", False, found, f"Python {oldest} to {newest} is needed: install one, then `make clean venv`")
    if sys.version_info[:2] > NEWEST_PYTHON:
        return Check("python", True, found, f"requirements.lock covers Python {oldest} to {newest}; this one is untested")
    return Check("python", True, found)


def check_packages() -> list[Check]:
    """torch and torchvision: whether they import at all, and whether they are the lock's."""
    try:
        import torch
        import torchvision
    except (ImportError, OSError) as error:  # OSError: a CUDA library that torch loads is missing or damaged
        problem = str(error).strip().splitlines()[0]
        return [Check("torch", False, f"cannot be imported: {problem}", "install the locked packages: `make venv`")]
    return [_against_lock("torch", torch.__version__), _against_lock("torchvision", torchvision.__version__)]


def locked_version(package: str) -> str:
    """The version that requirements.lock pins the package to."""
    pin = re.search(rf"^{re.escape(package)}==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert pin, f"requirements.lock does not pin {package}"
    return pin[1]


def _against_lock(package: str, found: str) -> Check:
    expected = locked_version(package)
    # A build says after "+" what it was built for; a wheel from PyPI and its twin "+cu130" are the same release.
    if found.partition("+")[0] == expected:
        return Check(package, True, found)
    advice = f"requirements.lock has {expected}: numbers may differ from the published ones; `make venv` installs the lock"
    return Check(package, True, found, advice)


# --- device -----------------------------------------------------------------------------------------------------------


def check_driver(device: str) -> Check:
    """The NVIDIA driver, against what the CUDA version of this torch needs; ``cpu`` does without either."""
    import torch

    from bench import environment

    cuda, driver = torch.version.cuda, environment.cuda_driver()
    built = f"torch built for CUDA {cuda}" if cuda else "torch built without CUDA"
    if driver is None:
        return Check("driver", True, f"no NVIDIA driver; {built}")
    found = f"{driver}; {built}"
    needed = environment.MINIMUM_CUDA_DRIVER
    if device == "cpu" or cuda is None or int(cuda.partition(".")[0]) < 13 or int(driver.partition(".")[0]) >= needed:
        return Check("driver", True, found)
    if torch.cuda.is_available():  # data-centre GPUs only, in a container that brings CUDA's compatibility libraries
        return Check("driver", True, f"{found}; older than {needed}, works by CUDA's forward compatibility")
    advice = f"CUDA {cuda} needs driver {needed} or newer: update the driver, or set DEVICE=cpu to do without the GPU"
    return Check("driver", False, found, advice)


def check_device(device: str, results: Path) -> Check:
    """The device that ``device`` stands for, why ``auto`` took it, and how many processes a GPU is worth where that is measured."""
    import torch

    from bench import environment, machine

    if device.startswith("cuda"):
        try:
            return Check("device", True, describe_gpu(machine.choose_device(device), results))
        except UserError as error:
            seen = torch.cuda.is_available()
            return Check("device", False, f"DEVICE={device} is not there", str(error) if seen else why_no_gpu())
    chosen = machine.choose_device(device)
    chose = "auto chose " if device == "auto" else ""
    if chosen.type == "cuda":
        return Check("device", True, chose + describe_gpu(chosen, results))
    found = f"{chose}cpu: {machine.device_name(chosen)}, {bf16_on_cpu()}"
    gpu_is_hidden = device == "auto" and environment.cuda_driver() is not None
    return Check("device", True, found, why_no_gpu() if gpu_is_hidden else "")


def describe_gpu(device: "torch.device", results: Path) -> str:
    """Name, compute capability, memory, and how many processes it is worth."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    free, total = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return f"{device}: {name}, compute capability {major}.{minor}, {_gib(free)} of {_gib(total)} free, {_jobs(device, results)}"


def _jobs(device: "torch.device", results: Path) -> str:
    """How many processes to start on it, from the measurement of the speed of some together."""
    from bench import environment, machine
    from bench.measure.sharing import best_count
    from bench.report.measurements import read_report

    path = results / "throughput" / f"{environment.slug(machine.device_name(device))}.json"
    try:
        speeds = read_report(path).get("sharing") if path.exists() else None
    except (OSError, UserError) as error:
        return f"JOBS not known: {error}"
    return f"best with JOBS={best_count(speeds)} for each GPU" if speeds else "JOBS not measured (`make bench-throughput` does)"


def why_no_gpu() -> str:
    """The first reason that explains why torch sees no GPU, as an instruction."""
    import torch

    from bench import environment

    driver = environment.cuda_driver()
    if driver is None:
        return (
            f"no NVIDIA driver here: install driver {environment.MINIMUM_CUDA_DRIVER} or newer, "
            "start a container with --gpus all (`make container` does), or set DEVICE=cpu"
        )
    if torch.version.cuda is None:
        return "this torch is a build without CUDA: install the locked one (`make venv`), or set DEVICE=cpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU: unset it, or set DEVICE=cpu"
    return (
        f"driver {driver} is loaded but torch sees no GPU: update a driver that is too old, "
        "start a container with --gpus all (`make container` does), or set DEVICE=cpu"
    )


def bf16_on_cpu() -> str:
    """Whether the CPU multiplies bfloat16 in hardware; where that is no faster than fp32, a bf16 run is computed in fp32."""
    from bench.machine import BF16_FLAGS

    units = sorted(BF16_FLAGS & set(limits.read("/proc/cpuinfo").split()))
    return f"bf16 in hardware ({', '.join(units)}), used if faster" if units else "no units for bf16, which is computed in fp32"


# --- machine ----------------------------------------------------------------------------------------------------------


def check_threads() -> Check:
    """torch's threads against the cores that this process may use: more threads than cores get in each other's way."""
    import torch

    cores, threads = limits.available_cores(), torch.get_num_threads()
    found = f"torch uses {threads} on {cores:g} cores"
    if threads > max(1, cores):
        return Check("threads", True, found, f"set OMP_NUM_THREADS={max(1, int(cores))}")
    return Check("threads", True, found)


def check_memory() -> Check:
    """The memory this process may use: the machine's, or the limit of its control group where that is lower."""
    total = limits.available_memory()
    if total < LEAST_MEMORY:
        return Check(
            "memory",
            False,
            _gib(total),
            f"{_gib(LEAST_MEMORY)} are needed: raise the container's limit or use another machine",
        )
    return Check("memory", True, _gib(total))


def check_folder(name: str, folder: Path, variable: str, needed: int) -> Check:
    """Whether a folder, or the one it will be made in, can be written and has room."""
    try:
        present = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(present).free
        with tempfile.TemporaryFile(dir=present):
            pass
    except OSError as error:
        advice = f"expected a folder that this user may write to: change its owner or mode, or set {variable} to another"
        return Check(name, False, f"{folder}: {error.strerror}", advice)
    found = f"{folder}: {_gib(free)} free"
    if free < needed:
        return Check(name, False, found, f"{_gib(needed)} are needed: free space, or set {variable} to a folder on another disk")
    return Check(name, True, found)


# --- data -------------------------------------------------------------------------------------------------------------


def check_datasets(datasets: Path, weights: Path | None = None) -> list[Check]:
    """The real sets and the weights; only while one is missing does their folder need room and a right to write."""
    contents = [*(check_data(name, datasets) for name in REAL_SETS), check_weights(datasets, weights)]
    if not any(check.advice for check in contents):
        return contents
    folder = check_folder("datasets", datasets, "DATASETS", LEAST_DISK_FOR_DATASETS)
    return [replace(folder, ok=True), *contents]  # no reason to fail: the smoke profile never looks there


def check_data(name: str, datasets: Path) -> Check:
    """A real data set, with its bytes verified. A missing one is a note, because the smoke profile needs none."""
    import data

    status = data.status(name, datasets, verify=True)
    if status.state == "ready":
        return Check(name, True, status.detail)
    if status.state == "missing":
        return Check(name, True, "missing", f"{status.detail}; the smoke profile does without")
    return Check(name, False, "damaged", status.detail)


def check_weights(datasets: Path, given: Path | None = None) -> Check:
    """The pretrained weights, verified by their hash, or by their content where the user gave a file of their own.

    Without them the smoke profile still runs.
    """
    from data import DataError, fetch
    from data.sources import IMAGENET_WEIGHTS
    from models.errors import WeightsError
    from models.weights import read_state_dict

    try:
        if given is not None:
            return Check("weights", True, f"{given.name}, {len(read_state_dict(given))} tensors")
        path = fetch.weights_path(datasets)
        if path is None:
            return Check("weights", True, "missing", "`make data` downloads them, or set WEIGHTS to a file you have")
        if not fetch.has_hash(path, IMAGENET_WEIGHTS):
            return Check("weights", False, "damaged", f"delete {path} and run `make data`")
        return Check("weights", True, f"{path.name}, verified")
    except (DataError, WeightsError) as error:
        return Check("weights", False, "not usable", str(error))


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
