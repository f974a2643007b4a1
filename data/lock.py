"""One process at a time per data set and root, across processes; a lock dies with the process that holds it."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import disk_error


@contextmanager
def exclusive(root: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold `<root>/.<name>.lock` while the body runs; wait for another holder, and say so. Creates `root`.

    Raises DiskError if the root cannot be written. The lock file stays: removing it would let two processes lock two
    files.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise disk_error(error, root) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another process is preparing it; waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            raise disk_error(error, root) from error
        yield
    finally:
        os.close(handle)
