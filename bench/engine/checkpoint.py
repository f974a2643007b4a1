"""The state of a run after an epoch, on disk: enough to go on as if nothing had happened.

Nothing random needs saving: every epoch draws from generators seeded by (seed, epoch).
"""

import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from bench.errors import UserError
from bench.leases import Lease, available_locks
from bench.ledger import write_atomically, write_bytes_atomically

SCHEMA = 4


class Busy(Exception):
    """Another process works on this run; the message says which."""


class Unusable(UserError):
    """A checkpoint from which its run cannot go on. It is up to the user to delete it; other runs are not concerned."""


class CheckpointFolder:
    """The files of one run.

    ``last.pt`` to continue from, ``previous.pt`` in case it is damaged, ``best.pt`` with the weights of the selected epoch, a lock,
    and the name of its holder.

    Args:
        folder: one folder for each run.
    """

    def __init__(self, folder: Path) -> None:
        self.last = folder / "last.pt"
        self.previous = folder / "previous.pt"
        self.best = folder / "best.pt"
        self._lock = folder / "lock"
        self._holder = folder / "holder"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the run for this process; a holder that died holds nothing.

        Raises:
            Busy: another process holds the run.
            UserError: the folder cannot be written.
        """
        lock, lease = FileLock(self._lock, fallback_to_soft=False), Lease(self._lock.parent)
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            with available_locks():
                lock.acquire(timeout=0)
            if not lease.take():
                lock.release()
                raise Busy(f"another process{self._named_holder()} works on it")
        except Timeout:
            raise Busy(f"another process{self._named_holder()} works on it") from None
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise UserError(f"{self._lock.parent}: {reason}; choose another folder with RESULTS=") from error
        try:
            holder = f"pid {os.getpid()} on {os.uname().nodename}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            write_bytes_atomically(self._holder, holder.encode())
            yield
        finally:
            with suppress(OSError):  # without the lock the name means nothing
                self._holder.unlink()
            lease.release()
            lock.release()

    def _named_holder(self) -> str:
        """Who holds the run, in parentheses; nothing where the holder has not written it yet."""
        with suppress(OSError):
            return f" ({self._holder.read_text(errors='replace')})"
        return ""

    def save(self, state: dict[str, Any]) -> None:
        """Make ``state``, of tensors and plain values, the last one; the one before it stays, in case this one gets damaged."""
        if self.last.exists():
            self.last.replace(self.previous)
        write_atomically(self.last, lambda file: torch.save({"schema": SCHEMA, **state}, file))

    def save_best(self, network: dict[str, Tensor]) -> None:
        """Replace ``best.pt``: a network's state dict, nothing else."""
        write_atomically(self.best, lambda file: torch.save(network, file))

    def load(self, configuration_sha256: str, device: torch.device) -> dict[str, Any] | None:
        """Return the last state that is not damaged, or None where the run has none; a damaged one is named on standard error, and
        removed where an older one is good.

        Raises:
            Unusable: all there are are damaged, or the state belongs to another schema or configuration.
        """
        present = [path for path in (self.last, self.previous) if path.exists()]
        for path in present:
            try:
                state = _read(path, device)
            except Exception as error:  # noqa: BLE001 - what damaged bytes lead to, nobody can list
                print(f"{path}: damaged ({type(error).__name__})", file=sys.stderr, flush=True)
                continue
            if state.get("schema") != SCHEMA or state.get("configuration_sha256") != configuration_sha256:
                raise Unusable(
                    f"{path}: expected a checkpoint of this configuration, found another; delete it to start the run again"
                )
            if path == self.previous:
                self.last.unlink(missing_ok=True)  # damaged: the next save would put it in the place of this good one
            return state
        if present:
            raise Unusable(f"{self.last}: expected a checkpoint, found a damaged file; delete it to start the run again")
        return None

    def finish(self) -> None:
        """Remove what only an unfinished run needs; ``best.pt`` and the lock stay."""
        for path in (self.last, self.previous, self._holder):
            path.unlink(missing_ok=True)


class Unwritten(CheckpointFolder):
    """The same files for a process that may read them only, since another writes them."""

    def save(self, state: dict[str, Any]) -> None:
        """Leave it to the other."""

    def save_best(self, network: dict[str, Tensor]) -> None:
        """Leave it to the other."""


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a state whose every byte is as it was written; torch itself checks none of the sums in its archives."""
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise zipfile.BadZipFile(broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols that torch.save does not write
        state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise TypeError(type(state).__name__)
    return state
