"""Seeds, determinism, and what machine and code this is.

Nothing here names a host, a user or a path: a record may be published as it is.
"""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})  # what Linux calls a processor's units for bf16
MINIMUM_CUDA_DRIVER = 580  # the CUDA 13 wheels of the lock need this driver branch or a newer one


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


def seed_for(*key: int | str) -> int:
    """A 63-bit seed from a key such as ``(seed, epoch, "order")``, the same on every machine and Python."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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


def device_in_words(described: Mapping[str, Any]) -> str:
    """The device of :func:`describe`, on a CPU with its instructions, where they are recorded, and the number of threads."""
    count = described["threads"]
    threads = "" if str(described["cuda"]) != "None" else f", {count} thread{'' if count == 1 else 's'}"
    words = f", {described['instructions']}" if described.get("instructions") else ""
    return f"{described['device']}{words}{threads}"


def slug(text: str) -> str:
    """A name for files: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def device_slug(described: Mapping[str, Any]) -> str:
    """The device of :func:`describe` in the names of its files."""
    return slug(device_in_words(described))


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


def cuda_driver() -> str | None:
    """The NVIDIA driver's version, or None where there is no driver."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return _driver_of_windows()
    words = text.splitlines()[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _driver_of_windows() -> str | None:
    """Under WSL the driver is Windows' own and has no file in /proc; its tool is there all the same."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.splitlines()[0].strip() if output.strip() else None


def code_state() -> dict[str, Any]:
    """Commit, whether the tree differs from it, and the hashes of the lock and of the Python sources."""
    commit, dirty = _git_state()
    return {
        "commit": commit,
        "dirty": dirty,
        "requirements_lock_sha256": hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest(),
        "sources_sha256": sources_sha256(ROOT),
    }


def _git_state() -> tuple[str | None, bool | None]:
    """From git; without it, from BENCH_COMMIT ("-dirty" at its end marks changes), which `make container` passes."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit, bool(_git("status", "--porcelain", "--", *_SOURCES))
    except (OSError, subprocess.CalledProcessError):
        given = os.environ.get("BENCH_COMMIT", "")
        return (given.removesuffix("-dirty") or None, given.endswith("-dirty") if given else None)


_SOURCES = ("bench", "models", "data", "requirements.lock")


def _git(*arguments: str) -> str:
    # safe.directory: in a container the mounted source belongs to another user id
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def sources_sha256(root: Path) -> str:
    """SHA-256 over the names and bytes of all Python files of the suite under ``root``, the tests' left out."""
    digest = hashlib.sha256()
    for folder in ("bench", "data", "models"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


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
