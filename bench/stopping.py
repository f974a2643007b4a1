"""Signals that ask a training run to stop: it leaves a checkpoint at the next step's end first.

The first SIGINT or SIGTERM while a run is :func:`heeding` is a request; a second one, or one at any other time, leaves at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from bench.errors import EXIT_TERMINATED

_heeding = False
_wanted: int | None = None  # the signal that asked


def install() -> None:
    """Handle SIGINT and SIGTERM from now on; to be called in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


@contextmanager
def heeding() -> Iterator[None]:
    """Within it, the first signal only asks; whoever is within looks at :func:`wanted` often and then calls :func:`leave`.

    Who comes to the end without looking again is asked still.
    """
    global _heeding, _wanted
    _heeding, _wanted = True, None
    try:
        yield
    finally:
        _heeding = False


def wanted() -> bool:
    """Whether a signal has asked to stop."""
    return _wanted is not None


def leave() -> NoReturn:
    """Leave as the signal that asked would have.

    Raises:
        KeyboardInterrupt: it was SIGINT.
        SystemExit: it was SIGTERM.
    """
    global _wanted
    assert _wanted is not None
    number, _wanted = _wanted, None
    _raise(number)


def _handle(number: int, frame: FrameType | None) -> None:
    global _wanted
    if not _heeding or wanted():
        _raise(number)
    _wanted = number


def _raise(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_TERMINATED)
