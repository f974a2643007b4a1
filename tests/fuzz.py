"""What the tests share that feed readers with garbage: how much of it, what it is made of, and what a reader may do with it.

By default the tests are quick, and the same every time; with ``FUZZ=20`` in the environment they try 20 times as many inputs, new
ones each time.
"""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests import tally

TIMES = int(os.environ.get("FUZZ") or 1)
SECONDS = 10.0  # for one input; the slowest takes a tenth of one
MEBIBYTES = 256  # for one input; the largest has one

Result = TypeVar("Result")


def examples(count: int) -> settings:
    """Settings of a test that tries ``count`` inputs, or FUZZ times as many."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=timedelta(seconds=SECONDS),
        suppress_health_check=list(HealthCheck),  # they judge how fast inputs are made, which depends on the machine
    )


def attempt(read: Callable[[], Result], *errors: type[Exception]) -> Result | None:
    """What the reader returns, or None where it raises an error of the suite's own, in one line.

    Anything else fails the test: another exception, more than SECONDS, or MEBIBYTES more memory than before.
    """
    tally.count("inputs fuzzed")
    with _time_limit(), _memory_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as for a user: a library's warning does not stop a reader
        try:
            return read()
        except errors as error:
            text = str(error)
            assert text and text.isprintable(), f"expected one line, found {text!r}"
            return None


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory_limit() -> Iterator[None]:
    """By the kernel's own count of the largest amount of memory that this process had, begun anew."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mebibytes()
    yield
    assert _peak_mebibytes() - before < MEBIBYTES, f"more than {MEBIBYTES} MiB"


def _peak_mebibytes() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


# ---- garbage ---------------------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a good file after one to four accidents."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(result)))
        length = draw(st.integers(1, 64))
        accident = draw(st.sampled_from(["cut", "change", "insert", "lose", "repeat", "blank"]))
        if accident == "cut":
            del result[at:]
        elif accident == "change":
            result[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif accident == "insert":
            result[at:at] = draw(st.binary(max_size=length))
        elif accident == "lose":
            del result[at : at + length]
        elif accident == "repeat":
            result[at:at] = result[at : at + length]
        else:
            result[at : at + length] = bytes(len(result[at : at + length]))
    return bytes(result)


@st.composite
def flipped(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a good file with one bit flipped."""
    result = bytearray(content)
    result[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(result)


def garbage(content: bytes) -> st.SearchStrategy[bytes]:
    """Damaged files, good heads with anything behind them, and anything at all."""
    heads = st.integers(0, min(len(content), 64)).map(lambda length: content[:length])
    return st.one_of(damaged(content), st.tuples(heads, st.binary(max_size=400)).map(b"".join), st.binary(max_size=400))


AWKWARD: list[Any] = [
    *(None, True, -1, 0, 2**63, 10**400, -0.5, 1e308, float("nan"), float("inf")),
    *("", "|", "two\nlines", "\ud800", "../..", "\0", "`" * 300, [], {}, [[]], {"": None}),
]
VALUES = st.one_of(
    st.sampled_from(AWKWARD),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
        max_leaves=4,
    ),
)


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a JSON value in which one field, somewhere, was replaced, removed, repeated or added."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    result: Any = value.copy()
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    change = draw(st.sampled_from(["inside", "inside", "inside", "replace", "remove", "add"]))
    if change == "inside":
        result[key] = draw(edited(value[key]))
    elif change == "replace":
        result[key] = draw(VALUES)
    elif change == "remove":
        del result[key]
    elif isinstance(result, dict):
        result[draw(st.sampled_from(["new", "", "\ud800", "two\nlines"]))] = draw(VALUES)
    else:
        result.insert(key, result[key])
    return result
