"""Who works on a run, where several machines share a file system and a lock of one may not bind the others.

A lease is a file ``lease.N`` that appears by exclusive creation, which NFS, Lustre and the like do atomically for all of their
machines, also where they know no locks. The lease with the highest number counts. Whoever finds it free, or its holder dead,
creates the next number, which only one can, and then removes those below; nobody ever removes the highest. So no removal can hit
a lease that somebody else has just made.

A holder changes its file every few seconds. A process on the holder's own machine sees at once whether the holder is alive. One on
another machine watches: a file that stays the same over ``LOOKS`` looks, ``LOOK_SECONDS`` apart by the watcher's own clock, has a
dead holder. No clock of one machine is compared with another's, nor with a file's times. A holder that was taken for dead, because
its machine stood still, sees the next number when it comes to, and leaves without writing anything more.

A file is written in place and keeps its size, which a full disk allows. One that is empty was made by a process that died before
it wrote, or is about to: a few looks are enough.
"""

import errno
import json
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.errors import EXIT_TERMINATED

BEAT_SECONDS = 5.0  # between two changes of a lease by its holder
LOOK_SECONDS = 2.0
LOOKS = 30  # twelve beats missed
LOOKS_AT_NOTHING = 3
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what flock says on a file system without locks

FREE = b"free"
SIZE = 1024  # bytes of a file, more than any content has


class Lease:
    """A lease on a folder, for this process.

    Args:
        folder: it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._beats = 0
        self._released = threading.Event()
        self._heart: threading.Thread | None = None

    def take(self) -> bool:
        """Lease the folder unless somebody alive holds it; this takes a minute where a holder died on another machine.

        Raises:
            OSError: the folder cannot be written.
        """
        found = _highest(self._folder)
        if found and not _to_be_had(self._path(found)):
            return False
        self._number = found + 1
        try:
            descriptor = os.open(self._path(self._number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        os.close(descriptor)
        try:
            self._write(self._content())
        except FileNotFoundError:  # this process slept, and another took its empty file for a dead one's
            return False
        except OSError:  # a full disk: nobody is to wait for an empty file
            self._path(self._number).unlink(missing_ok=True)
            raise
        if _highest(self._folder) != self._number:  # it was taken, freed, taken and cleared away since we looked
            self._path(self._number).unlink(missing_ok=True)
            return False
        for number in _numbers(self._folder):
            if number < self._number:
                self._path(number).unlink(missing_ok=True)
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._heart.start()
        return True

    def release(self) -> None:
        """Let others have the folder; nothing happens where it was not taken."""
        if self._heart:
            self._released.set()
            self._heart.join()
            self._heart = None
            with suppress(OSError):  # the folder may be gone
                if _highest(self._folder) == self._number:
                    self._write(FREE)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with suppress(OSError):  # a server that is away for a while; should others take over meanwhile, the next look shows it
                if _highest(self._folder) > self._number:
                    print(
                        f"{self._folder}: another process took this run over, for this one stood still", file=sys.stderr, flush=True
                    )
                    os._exit(EXIT_TERMINATED)
                self._beats += 1
                self._write(self._content())

    def _content(self) -> bytes:
        return json.dumps({"process": _identity(os.getpid()), "host": platform.node(), "beats": self._beats}).encode()

    def _write(self, content: bytes) -> None:
        """In place, so that a file that somebody removed does not come back."""
        descriptor = os.open(self._path(self._number), os.O_WRONLY)
        try:
            os.write(descriptor, content.ljust(SIZE - 1) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _path(self, number: int) -> Path:
        return self._folder / f"lease.{number}"


@contextmanager
def available_locks() -> Iterator[None]:
    """Around the taking of a lock: a file system without locks is no error, for a lease holds there too."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def alive(folders: Sequence[Path]) -> list[bool]:
    """Whether each folder is held by a living process. Holders on other machines are watched for two beats and a half."""
    paths = [folder / f"lease.{number}" if number else None for folder, number in ((each, _highest(each)) for each in folders)]
    contents = [_read(path) if path else FREE for path in paths]
    seen = [False if content == FREE else _alive_here(content) for content in contents]
    if None in seen:
        time.sleep(2.5 * BEAT_SECONDS)
    return [
        bool(path and _read(path) != content) if lives is None else lives
        for path, content, lives in zip(paths, contents, seen, strict=True)
    ]


def _to_be_had(path: Path) -> bool:
    """Whether a lease is free or its holder dead."""
    content = _read(path)
    if content is None or content == FREE:
        return content == FREE
    if (alive := _alive_here(content)) is not None:
        return not alive
    same, looks = 0, LOOKS if content else LOOKS_AT_NOTHING
    while same < looks:
        time.sleep(LOOK_SECONDS)
        started = time.monotonic()
        if _read(path) != content:
            return False
        # a look that the file system held up may have held up the holder's beat too
        same = same + 1 if time.monotonic() - started < LOOK_SECONDS else 0
    return True


def _alive_here(content: bytes | None) -> bool | None:
    """Whether the process that a lease names lives, if it is one of this machine; None: it cannot be seen from here."""
    try:
        its = json.loads(content or b"")["process"]
        machine, number, _ = its
    except (ValueError, KeyError, TypeError, RecursionError):  # it is just being written, or no lease
        return None
    ours = _identity(os.getpid())
    if ours is None or machine != ours[0]:
        return None
    return bool(list(_identity(number) or ()) == its)


def _identity(process: int) -> tuple[str, int, int] | None:
    """Machine, number and start of a process: no two processes ever share them. None where it is gone, or the system has no /proc.

    The machine is a boot of a kernel with a host name and a table of processes: containers on one host have a table each.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        table = Path("/proc/self/ns/pid").readlink()
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if state in "ZX":  # it has ended, and its parent has not asked yet
        return None
    return f"{platform.node()} {boot} {table}", process, int(rest[18])  # field 22: start, in clock ticks since the boot


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes().strip()
    except FileNotFoundError:  # a newer one exists
        return None


def _numbers(folder: Path) -> list[int]:
    return [int(found[1]) for path in folder.iterdir() if (found := re.fullmatch(r"lease\.(\d+)", path.name))]


def _highest(folder: Path) -> int:
    return max(_numbers(folder), default=0) if folder.is_dir() else 0
