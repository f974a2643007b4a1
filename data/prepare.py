"""From raw files on this machine to prepared arrays."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import store
from .canonical import Dataset, dataset_of, verified_split
from .errors import Damaged, DataError, DiskError, Missing
from .lock import exclusive
from .roots import is_folder
from .sources import Source

Say = Callable[[str], None]


def say_on_stderr(line: str) -> None:
    """Where progress goes unless a caller says otherwise."""
    print(line, file=sys.stderr, flush=True)


def ready(source: Source, root: Path) -> Dataset | None:
    """The prepared data set, or None if it has to be made (again)."""
    try:
        return store.open_prepared(source.spec, root)
    except (Missing, Damaged):
        return None


def from_candidate(source: Source, candidate: Path, root: Path) -> Dataset:
    """Read, order, verify and store one archive or folder.

    The caller holds the lock. DataError says what is wrong with it.
    """
    raw = source.read(candidate, source.spec)
    splits = {name: verified_split(raw.pop(name), source.spec, name) for name in source.spec.splits}
    store.write(dataset_of(source.spec, splits["train"], splits["test"]), root)
    return store.open_prepared(source.spec, root)


def from_folders(source: Source, tops: Sequence[Path], root: Path, say: Say = say_on_stderr) -> Dataset:
    """Prepare from the first archive or folder below `tops` that is the data set. At once if it is prepared already.

    Two processes may call this at once: one prepares, the other waits and then opens what the first has made.
    """
    if (dataset := ready(source, root)) is not None:
        return dataset
    name, places = source.spec.name, " or ".join(map(str, tops))
    for top in tops:
        if not is_folder(top):
            raise DataError(f"{top} is not a folder: give one that holds {source.expected}")
    candidates = [candidate for top in tops for candidate in source.find(top)]
    if not candidates:
        raise Missing(f"{name}: nothing of it under {places}; expected {source.expected}")
    with exclusive(root, name, say):
        if (dataset := ready(source, root)) is not None:
            return dataset
        failures = []
        for candidate in candidates:
            try:
                return from_candidate(source, candidate, root)
            except DiskError:
                raise
            except DataError as error:
                failures.append(str(error))
    raise DataError("; ".join(failures))
