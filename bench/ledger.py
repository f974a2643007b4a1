"""Records on disk: one JSON file for each finished run, written whole or not at all.

A record holds, under ``results``, what a rerun with the same configuration, seed, code, data and machine gives again byte for
byte; whatever depends on the clock stands apart under ``timings``.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from bench.errors import UserError
from bench.experiment import Run, canonical_json

SCHEMA = 1
STATUSES = ("done", "diverged", "out_of_memory", "interrupted", "failed")
FINISHED = ("done", "diverged")  # running these again would give the same; the other statuses are tried again
SECTIONS = ("schema", "run", "configuration", "code", "data", "environment", "cost", "results", "timings")

Record = dict[str, Any]


class Ledger:
    """The records under one results folder.

    Args:
        results: the folder; records lie in ``results/records/<profile>/<data set>/<row>/seed<k>-<configuration>.json``.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self.folder = results / "records"

    def path(self, run: Run) -> Path:
        """Where the record of a run lies, present or not."""
        return self.folder / f"{run.key}.json"

    def find(self, run: Run) -> Record | None:
        """Return the record of a run, or None.

        Raises:
            UserError: the file is there and is no record.
        """
        path = self.path(run)
        return read_record(path) if path.exists() else None

    def records(self) -> Iterator[tuple[Path, Record]]:
        """All records with their paths, ordered by path.

        Raises:
            UserError: a file in the folder is no record.
        """
        for path in sorted(self.folder.rglob("*.json")):
            yield path, read_record(path)

    def write(self, run: Run, record: Record) -> Path:
        """Put a record under its final name in one atomic step and return the path."""
        assert tuple(record) == SECTIONS, tuple(record)
        path = self.path(run)
        text = canonical_json(record).encode()
        write_atomically(path, lambda file: file.write(text))
        return path


def read_record(path: Path) -> Record:
    """Read a record and check its form.

    Raises:
        UserError: the file is no JSON, lacks a section, or has another schema version or an unknown status.
    """
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: expected a record in JSON, found {error}; move the file out of the ledger") from error
    if not isinstance(record, dict) or set(record) != set(SECTIONS):
        found = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{path}: expected a record with {', '.join(SECTIONS)}, found {found}")
    if record["schema"] != SCHEMA:
        raise UserError(f"{path}: expected schema {SCHEMA}, found {record['schema']!r}; was it written by a newer version?")
    status = record["results"].get("status") if isinstance(record["results"], dict) else None
    if status not in STATUSES:
        raise UserError(f"{path}: results.status: expected one of {', '.join(STATUSES)}, found {status!r}")
    return record


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a file that appears under ``path`` whole or not at all, also across a power cut.

    Raises:
        UserError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())  # NamedTemporaryFile makes it private to the user
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder with RESULTS="
        ) from error


def _umask() -> int:
    current = os.umask(0o022)  # there is no call that only reads it
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
