"""The state of a run after an epoch, on disk: enough to go on as if nothing had happened.

Nothing random needs saving: every epoch draws from generators seeded by (seed, epoch).
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from bench.errors import UserError
from bench.ledger import write_atomically

SCHEMA = 2


class Busy(Exception):
    """Another process works on this run."""


class CheckpointFolder:
    """The files of one run: ``last.pt`` to continue from, ``best.pt`` with the weights of the selected epoch, and a lock.

    Args:
        folder: one folder for each run.
    """

    def __init__(self, folder: Path) -> None:
        self.last = folder / "last.pt"
        self.best = folder / "best.pt"
        self._lock = folder / "lock"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the run for this process; a holder that died holds nothing.

        Raises:
            Busy: another process holds the run.
            UserError: the folder cannot be written.
        """
        lock = FileLock(self._lock)
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy from None
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise UserError(f"{self._lock.parent}: {reason}; choose another folder with RESULTS=") from error
        try:
            yield
        finally:
            lock.release()

    def save(self, state: dict[str, Any]) -> None:
        """Replace ``last.pt`` in one atomic step; ``state`` holds tensors and plain values only."""
        write_atomically(self.last, lambda file: torch.save({"schema": SCHEMA, **state}, file))

    def save_best(self, network: dict[str, Tensor]) -> None:
        """Replace ``best.pt``: a network's state dict, nothing else."""
        write_atomically(self.best, lambda file: torch.save(network, file))

    def load(self, configuration_sha256: str, device: torch.device) -> dict[str, Any] | None:
        """Return the last state, or None where the run has none.

        Raises:
            UserError: the file is damaged, or belongs to another schema or configuration.
        """
        if not self.last.exists():
            return None
        try:
            state = torch.load(self.last, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise UserError(
                f"{self.last}: expected a checkpoint, found a damaged file; delete it to start the run again"
            ) from error
        if (
            not isinstance(state, dict)
            or state.get("schema") != SCHEMA
            or state.get("configuration_sha256") != configuration_sha256
        ):
            raise UserError(
                f"{self.last}: expected a checkpoint of this configuration, found another; delete it to start the run again"
            )
        return state

    def finish(self) -> None:
        """Remove what only an unfinished run needs; ``best.pt`` stays."""
        self.last.unlink(missing_ok=True)
