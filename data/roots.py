"""Where prepared data lives."""

import os
from pathlib import Path


def resolve(root: Path | str | None) -> Path:
    """`root`, or the environment variable DATASETS, or `datasets` under the current folder."""
    return Path(root if root is not None else os.environ.get("DATASETS") or "datasets").expanduser()


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder that can be reached. pathlib's own `is_dir` raises where a parent may not be searched."""
    try:
        return path.is_dir()
    except OSError:
        return False
