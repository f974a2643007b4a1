"""Seeds, what code this is, and a recorded machine in words; without torch, whose import takes seconds.

Nothing here names a host, a user or a path: a record may be published as it is.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_CUDA_DRIVER = 580  # the CUDA 13 wheels of the lock need this driver branch or a newer one


def seed_for(*key: int | str) -> int:
    """A 63-bit seed from a key such as ``(seed, epoch, "order")``, the same on every machine and Python."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def device_in_words(described: Mapping[str, Any]) -> str:
    """The device of a recorded environment, on a CPU with its instructions, where they are recorded, and the number of threads."""
    count = described["threads"]
    threads = "" if str(described["cuda"]) != "None" else f", {count} thread{'' if count == 1 else 's'}"
    words = f", {described['instructions']}" if described.get("instructions") else ""
    return f"{described['device']}{words}{threads}"


def slug(text: str) -> str:
    """A name for files: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def device_slug(described: Mapping[str, Any]) -> str:
    """The device of a recorded environment in the names of its files."""
    return slug(device_in_words(described))


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
