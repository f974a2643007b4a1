"""A bounded walk through a user's folder, for finding data in it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_DEPTH = 6
MAX_ENTRIES = 500_000


@dataclass(frozen=True)
class Folder:
    """One folder of the walk. Remove a name from `subfolders` to keep the walk out of it."""

    path: Path
    subfolders: list[str]
    files: list[str]


def folders(top: Path) -> Iterator[Folder]:
    """`top` and what lies below, sorted: at most MAX_DEPTH levels and MAX_ENTRIES entries, no hidden or linked folders."""
    entries = 0
    for name, subfolders, files in os.walk(top):
        path = Path(name)
        depth = len(path.relative_to(top).parts)
        subfolders[:] = sorted(s for s in subfolders if not s.startswith(".")) if depth < MAX_DEPTH else []
        yield Folder(path, subfolders, sorted(files))
        entries += len(subfolders) + len(files)
        if entries > MAX_ENTRIES:
            return
