"""Records on disk: one JSON file for each finished run, written whole or not at all.

A record holds, under ``results``, what a rerun with the same configuration, seed, code, data and machine gives again byte for
byte; whatever depends on the clock stands apart under ``timings``.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from bench.errors import UserError, found_in
from bench.experiment import Run, canonical_json
from bench.schema import Fault, faults, name_of, shown

SCHEMA = 1
STATUSES = ("done", "diverged", "out_of_memory", "interrupted", "failed")
FINISHED = ("done", "diverged")  # running these again would give the same; the other statuses are tried again
SECTIONS = ("schema", "run", "configuration", "code", "data", "environment", "cost", "results", "timings")
UNFINISHED = ".unfinished"  # ends the name of a file that is still being written
LARGEST_FILE = 16 * 2**20  # bytes; the record of a run of 100 epochs has 50 thousand

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
            UserError: the file is there and is no record, or no file system takes its name.
        """
        path = self.path(run)
        try:
            present = path.exists()
        except OSError as error:
            raise _no_folder(self.results, error) from error
        return read_record(path) if present else None

    def finished(self, run: Run) -> Record | None:
        """Return the record of a run if running it again would only give the same.

        Raises:
            UserError: as :meth:`find`.
        """
        record = self.find(run)
        return record if record and record["results"]["status"] in FINISHED else None

    def records(self) -> Iterator[tuple[Path, Record]]:
        """All records with their paths, ordered by path.

        Raises:
            UserError: the folder cannot be searched, or a file in it is no record.
        """
        for path in self.paths():
            yield path, read_record(path)

    def paths(self) -> list[Path]:
        """The files of all records, in order.

        Raises:
            UserError: the folder, or one in it, cannot be searched.
        """
        return [path for path in self.contents() if path.name.endswith(".json")]

    def contents(self) -> list[Path]:
        """All files and folders in the ledger's folder, in order; none where there is no folder yet.

        Raises:
            UserError: the folder, or one in it, cannot be searched.
        """

        def refuse(error: OSError) -> None:  # pathlib's search would pass over a folder that it may not read, and its records
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error

        try:
            return sorted(
                Path(folder, name) for folder, folders, files in os.walk(self.folder, onerror=refuse) for name in folders + files
            )
        except (OSError, ValueError) as error:
            raise _no_folder(self.results, error) from error

    def write(self, run: Run, record: Record) -> Path:
        """Put a record under its final name in one atomic step and return the path."""
        assert tuple(record) == SECTIONS, tuple(record)
        path = self.path(run)
        write_bytes_atomically(path, canonical_json(record).encode())
        return path


def _no_folder(results: Path, error: OSError | ValueError) -> UserError:
    reason = f"{error.strerror}: {shown(error.filename)}" if isinstance(error, OSError) else error
    return UserError(f"RESULTS={shown(str(results))}: cannot be searched ({reason}); choose another folder")


def read_record(path: Path) -> Record:
    """Read a record that holds everything a report prints.

    Raises:
        UserError: the file is no JSON, has another schema version or an unknown status, or a field that the report needs is absent
            or of another kind.
    """
    record = parse(path)
    for fault in departures(record, complete=False):
        raise UserError(f"{path}: {fault}; restore the file or move it out of the ledger")
    assert isinstance(record, dict)
    return record


def parse(path: Path) -> Any:
    """The JSON value in a file. It may hold NaN and infinities, which JSON proper has not.

    Raises:
        UserError: the file cannot be read, is larger than any record, or is no JSON.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("something that is no file")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"more than {LARGEST_FILE:,} bytes")
        return json.loads(content)
    except (ValueError, OSError, RecursionError) as error:
        advice = "name one that is there" if isinstance(error, FileNotFoundError) else "move the file out of the ledger"
        raise UserError(f"{path}: expected a record in JSON, found {found_in(error)}; {advice}") from error


def departures(record: Any, *, complete: bool) -> Iterator[Fault]:
    """Yield what in a parsed record is not as it should be: its sections, its schema, its status, or else every such field.

    Args:
        complete: ask for every field, rather than for those that the report needs.
    """
    if not isinstance(record, dict) or set(record) != set(SECTIONS):
        found = name_of(", ".join(sorted(record)) or "nothing") if isinstance(record, dict) else type(record).__name__
        yield Fault("", f"a record with {', '.join(SECTIONS)}", found)
    elif type(record["schema"]) is not int or record["schema"] != SCHEMA:
        yield Fault("schema", f"schema {SCHEMA}", f"{shown(record['schema'])}; was it written by a newer version?")
    else:
        status = record["results"].get("status") if isinstance(record["results"], dict) else None
        if status not in STATUSES:
            yield Fault("results.status", f"one of {', '.join(STATUSES)}", shown(status))
        yield from faults(record, complete=complete)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Let a file with this content appear, as :func:`write_atomically` does.

    Raises:
        UserError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    write_atomically(path, lambda file: file.write(content))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a file that appears under ``path`` whole or not at all, also across a power cut.

    What writers that were killed have left in the folder is removed.

    Raises:
        UserError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with _unfinished(path) as file:
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
    except (OSError, RuntimeError) as error:
        # what torch.save meets on a full disk, its archive hides behind an error of its own as it is closed
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(
            f"{path}: cannot be written ({reason.strerror}); free space or choose another folder with RESULTS="
        ) from error


def _sweep(folder: Path) -> None:
    """Remove the unfinished files whose writers are dead: a living one holds a lock on its own."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _unfinished(path: Path) -> IO[bytes]:
    """Open a new file in the folder of ``path``, locked for as long as it is open."""
    while True:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - the caller closes it
            dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED, delete=False
        )
        with suppress(OSError):  # on a file system without locks nobody sweeps either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # nobody swept it away before it was locked
            return file
        file.close()


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


def accuracy(counts: Mapping[str, Any]) -> float:
    """Percent correct, of the counts that a record has of a split."""
    return float(100 * counts["correct"] / counts["images"])
