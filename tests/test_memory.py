"""Memory that is freed serves again, and is handed back when asked."""

import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Callable

import pytest

from bench import memory

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is no glibc")

BLOCK, TIMES = 48 * 2**20, 8  # bytes; more than glibc keeps by itself
LARGE_PAGES = BLOCK // 2**21  # the fewest that a block can have, where the kernel gives large ones
SCRIPT = f"""
import ctypes, resource
from bench import memory

def take():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    block = ctypes.c_void_p(libc.malloc({BLOCK}))
    ctypes.memset(block, 1, {BLOCK})
    libc.free(block)

{{prepare}}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
    take()
    {{between}}
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


class Thing:
    """May hold itself: then only a collection frees it."""

    itself: "Thing"


def pages(prepare: str, between: str = "pass") -> int:
    """Pages that a new process got from the kernel while it took and freed a block some times."""
    script = SCRIPT.format(prepare=prepare, between=between)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return int(result.stdout.splitlines()[-1])


@on_glibc
def test_a_freed_block_serves_again() -> None:
    assert pages("take()") > TIMES * LARGE_PAGES / 2, "by itself the C library returns it"
    assert pages("memory.keep_freed(); take()") < 2 * LARGE_PAGES


@on_glibc
def test_what_is_kept_can_be_handed_back() -> None:
    assert pages("memory.keep_freed(); take()", "memory.give_back()") > TIMES * LARGE_PAGES / 2


@on_glibc
def test_every_command_keeps_it() -> None:
    assert pages("from bench.cli import main; main(['list', '--profile', 'smoke']); take()") < 2 * LARGE_PAGES


@on_glibc
def test_a_reserve_is_there_before_it_is_needed() -> None:
    assert pages("memory.keep_freed(); memory.reserve(0)") >= LARGE_PAGES, "the first block comes from the kernel"
    assert pages(f"memory.keep_freed(); memory.reserve({BLOCK})") < LARGE_PAGES


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def library(name: str | None) -> object:
        asked.append(name)
        return object()  # without mallopt and malloc_trim

    monkeypatch.setattr(memory.ctypes, "CDLL", library)
    memory.keep_freed()
    memory.give_back()
    assert asked == [None, None]


def test_collections_pass_over_what_was_there_before() -> None:
    def gone(thing: Thing) -> Callable[[], bool]:
        thing.itself, known = thing, weakref.ref(thing)
        return lambda: known() is None

    before, left = Thing(), gone(Thing())
    with memory.collecting_only_later():
        assert left(), "garbage of before is collected once more"
        older, later = gone(before), gone(Thing())
        del before
        gc.collect()
        assert later() and not older()
    gc.collect()
    assert older()
    with pytest.raises(ZeroDivisionError), memory.collecting_only_later():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0
