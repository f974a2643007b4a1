"""Data sets as verified uint8 arrays in one canonical order.

    import data
    cifar = data.load("cifar100")        # .train and .test, each .images [N, H, W, C], .labels [N], .sha256;
    .classes, .mean, .std

`load` never touches the network; `python -m data` (or `make data`) fetches and prepares.
"""

from pathlib import Path

from . import fetch
from .canonical import Dataset, Split
from .errors import Damaged, DataError, Missing
from .prepare import from_folders
from .roots import is_folder, resolve
from .sources import SOURCES
from .status import EMBEDDED, NAMES, Status, status
from .store import open_prepared

__all__ = ["NAMES", "DataError", "Dataset", "Split", "Status", "fetch", "load", "status"]


def load(name: str, root: Path | str | None = None) -> Dataset:
    """A data set by name, memory-mapped where it is prepared on disk. Never touches the network.

    `root` defaults to the environment variable DATASETS, else `datasets`. If the set is not prepared there but its raw files lie
    below, it is prepared from them first. "tiny_fashion_mnist" (real, part of the suite) and "synthetic_cifar100" need no root.

    Raises DataError, one line, for an unknown name, a set that is not there, or one that is damaged and cannot be made again.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if name not in SOURCES:
        raise DataError(f"there is no data set {name!r}: expected one of {', '.join(NAMES)}")
    folder = resolve(root)
    try:
        return open_prepared(SOURCES[name].spec, folder)
    except (Missing, Damaged) as error:
        problem = error
    advice = "run `make data`, or `make data FROM=DIR` with a folder that holds the files"
    if not is_folder(folder):
        raise DataError(f"{problem}: {advice}") from problem
    try:
        return from_folders(SOURCES[name], [folder], folder)
    except Missing:
        raise DataError(f"{problem}: {advice}") from problem
