"""The machine that computes: its devices, how they are made deterministic, and what a record says of them.

Nothing here names a host, a user or a path: a record may be published as it is.
"""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.environment import cuda_driver
from bench.errors import UserError

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})  # what Linux calls a processor's units for bf16


def choose_device(name: str) -> torch.device:
    """Return the device that ``name`` (``auto``, ``cpu``, ``cuda`` or ``cuda:N``) stands for.

    ``auto`` takes a GPU where torch sees one, else the CPU. An explicit ``cuda`` never falls back.

    Raises:
        UserError: the name is unknown, or a GPU was asked for and torch sees none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not re.fullmatch("[0-9]{1,3}", index)) or (kind == "cpu" and index):
        raise UserError(f"DEVICE: expected auto, cpu, cuda or cuda:N, found {name[:80]!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"DEVICE={name}: torch sees no GPU here; run `make doctor` for the reason, or set DEVICE=cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"DEVICE={name}: this machine has {torch.cuda.device_count()} GPU(s), numbered from 0")
    return torch.device(name)


def prepared(name: str) -> torch.device:
    """Make this process deterministic on the device of :func:`choose_device`, and that device the current one; return it.

    CUDA graphs are recorded, and Triton launches, on the current device, whatever device the tensors lie on.

    Raises:
        UserError: as there.
    """
    make_deterministic()
    device = choose_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def answers(device: torch.device) -> bool:
    """Whether a device still computes for this process; after some errors a GPU does not until the process ends.

    Nor does torch's allocator after a capture that could not be ended.
    """
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def make_deterministic() -> None:
    """Ask torch for algorithms whose result does not change from one execution to the next, and little from device to device."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; makes cuBLAS repeatable
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs up to 15 % and changes no result
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # fp32, where torch would let TF32 stand for it


def describe(device: torch.device) -> dict[str, Any]:
    """What a record says of the machine: versions, device, threads, modes."""
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # plain text, for a checkpoint holds it too
        "torchvision": _version("torchvision"),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "driver": cuda_driver() if cuda else None,
        "device": device_name(device),
        "instructions": instructions(device),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "image": os.environ.get("BENCH_IMAGE") or None,
    }


def device_name(device: torch.device) -> str:
    """The name that the vendor gives to the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name()


def instructions(device: torch.device) -> str | None:
    """The widest instructions that torch uses on a CPU, with its units for bf16: ``AVX2``, ``AVX512 avx512_bf16``; None on a GPU.

    Virtual machines give processors of different generations one name, and bf16 is twenty times as fast on one as on the other.
    """
    if device.type == "cuda":
        return None
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    return " ".join([torch.backends.cpu.get_cpu_capability(), *sorted(flags & BF16_FLAGS)])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
