"""Signals that ask a training run to stop: it leaves a checkpoint at the next step's end first.

SIGUSR1 and SIGUSR2 are what batch systems send before a time limit or a preemption. The first signal while a run is
:func:`heeding` is a request, and so is one of another kind after it, for a batch system sends several; the same SIGINT or SIGTERM
again, or any signal at another time, leaves at once. Two of a kind within a moment are one: a group of processes is sent it as a
whole, and again by its first, as by make.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from bench.errors import EXIT_TERMINATED

IMPATIENT = (signal.SIGINT, signal.SIGTERM)
SIGNALS = (*IMPATIENT, signal.SIGUSR1, signal.SIGUSR2)

MOMENT = 1.0  # seconds, for a loaded machine

_heeding = False
_wanted: int | None = None  # the signal that asked
_last: int | None = None  # the signal for which this process leaves
_came: dict[int, float] = dict.fromkeys(SIGNALS, -math.inf)  # when each last came, by `time.monotonic`


def install() -> None:
    """Handle the signals from now on; to be called in the main thread."""
    for number in SIGNALS:
        _came[number] = -math.inf
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
    """Leave as the signal that asked would have; as SIGTERM where only another process of torchrun has been asked.

    Raises:
        KeyboardInterrupt: it was SIGINT.
        SystemExit: it was another.
    """
    global _wanted
    number, _wanted = _wanted or signal.SIGTERM, None
    _raise(number)


def last() -> int | None:
    """The signal for which this process is leaving; None where no handled signal has come."""
    return _last


def _handle(number: int, frame: FrameType | None) -> None:
    global _wanted
    now = time.monotonic()
    # Python may handle the next signal within this function, wherever a function is called: nowhere from here on
    before, _came[number] = _came[number], now
    if now - before < MOMENT:
        return
    if not _heeding or (number == _wanted and number in IMPATIENT):
        _wanted = None
        _raise(number)
    _wanted = _wanted or number


def _raise(number: int) -> NoReturn:
    global _last
    _last = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_TERMINATED)
