"""A small disk of its own for a test: a tmpfs, which only root may mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Mount an empty disk on a new folder; the test is skipped where that is not permitted."""
    folder.mkdir()
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)).returncode != 0:
        pytest.skip("needs a disk that can be filled: mounting a tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)
