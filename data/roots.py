"""Where prepared data lives."""

import os
from pathlib import Path

from .errors import DataError


def resolve(root: Path | str | None) -> Path:
    """`root`, or the environment variable DATASETS, or `datasets` under the current folder."""
    return expanded(root if root is not None else os.environ.get("DATASETS") or "datasets")


def expanded(path: Path | str) -> Path:
    """`path` with the home folder that its ~ stands for; DataError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: expected the home folder of a user, found none: write the path without ~") from error


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder that can be reached. pathlib's own `is_dir` raises where a parent may not be searched."""
    try:
        return path.is_dir()
    except OSError:
        return False
