"""Windows that take turns, and the memory and energy that are measured beside them."""

import ctypes
import gc
import math
import os
import platform
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.measure import energy, timing
from bench.measure.timing import Spread, interleaved, peak_memory, ratio
from tests.conftest import CPU

tells_the_peak = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel tells no peak anew")


def test_contenders_take_turns_in_windows_of_the_same_length(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, int]] = []
    clock = {"now": 0.0}

    def contender(name: str, seconds: float) -> Callable[[int], None]:
        def do(steps: int) -> None:
            log.append((name, steps))
            clock["now"] += steps * seconds

        return do

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["now"])
    speeds = interleaved(
        {"fast": contender("fast", 0.1), "slow": contender("slow", 4.0)},
        images={"fast": 8, "slow": 6},
        device=CPU,
        window_seconds=1,
        windows=2,
    )
    assert log == [("fast", 1), ("fast", 10), ("slow", 1), ("fast", 10), ("slow", 1)], "a step that fills a window is one"
    assert speeds == {"fast": pytest.approx([80, 80]), "slow": pytest.approx([1.5, 1.5])}
    assert ratio(speeds, "fast", "slow").median == pytest.approx(80 / 1.5)


@pytest.mark.parametrize(("most_seconds", "turns"), [(0, 2), (7.9, 2), (8.1, 3), (math.inf, 5)])
def test_no_turn_but_the_second_begins_late(most_seconds: float, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 4.0 * len(calls))
    slow = {"slow": calls.append}
    speeds = interleaved(slow, images={"slow": 8}, device=CPU, window_seconds=1, windows=5, most_seconds=most_seconds)
    assert speeds == {"slow": pytest.approx([2] * turns)}
    assert len(calls) == turns


def test_turns_go_on_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}

    def contender(steps: int) -> None:
        clock["now"] += steps * 0.5

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["now"])
    both = {"one": contender, "other": contender}
    speeds = interleaved(both, images={"one": 8, "other": 8}, device=CPU, window_seconds=1, windows=2, least_seconds=8)
    assert list(map(len, speeds.values())) == [4, 4], "two seconds a turn, the first one three"


def test_a_ratio_is_taken_turn_by_turn() -> None:
    speeds = {"one": [10.0, 20.0, 40.0], "other": [10.0, 10.0, 10.0]}
    assert ratio(speeds, "one", "other") == Spread(median=2, low=1, high=4)


@pytest.mark.parametrize(("machine", "reserved"), [(16 * 10**9, 10**9), (2 * 10**9, 5 * 10**8)])
def test_after_a_warm_up_as_much_memory_is_at_hand(machine: int, reserved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reserves: list[int] = []
    monkeypatch.setattr(timing, "peak_memory", lambda work, device: work())
    monkeypatch.setattr("bench.limits.available_memory", lambda: machine)
    monkeypatch.setattr("bench.memory.reserve", reserves.append)
    assert timing.warmed_up(lambda: 10**9, CPU) == 10**9
    assert reserves == [reserved], "no more than a part of the machine's"
    timing.warmed_up(lambda: 10**9, torch.device("cuda"))
    assert len(reserves) == 1


@tells_the_peak
@pytest.mark.parametrize("function", ["memory_in_use", "peak_memory"])
def test_what_only_the_collector_frees_is_freed_first(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network is a cycle; of a GPU nobody else would ask for its memory back."""
    live = weakref.WeakSet[object]()

    class Cycle:
        def __init__(self) -> None:
            self.itself = self
            live.add(self)

    for count in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, count, lambda device: len(live))
    for nothing in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, nothing, lambda device: None)
    gpu = torch.device("cuda", 0)
    gc.disable()
    try:
        Cycle()
        assert {"memory_in_use": lambda: timing.memory_in_use(gpu), "peak_memory": lambda: peak_memory(int, gpu)}[function]() == 0
    finally:
        gc.enable()


def test_peak_memory_sees_what_is_freed_again() -> None:
    size = 300_000_000
    before = peak_memory(lambda: None, CPU)
    peak = peak_memory(lambda: torch.ones(size // 4).sum(), CPU)
    after = peak_memory(lambda: None, CPU)
    assert before and peak and after
    assert peak - before > 0.9 * size and peak - after > 0.9 * size


@tells_the_peak
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library keeps what is freed")
def test_what_was_freed_before_is_no_part_of_the_peak() -> None:
    before = peak_memory(lambda: None, CPU)
    pieces = [torch.ones(15_000) for _ in range(5_000)]  # of a size that glibc does not map apart; 300 MB
    pinned = torch.ones(15_000)  # above them, so that freeing them gives nothing back
    del pieces
    after = peak_memory(lambda: None, CPU)
    assert before and after
    assert pinned.sum() == 15_000 and after - before < 50_000_000


def test_energy_is_read_from_the_drivers_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def total(handle: object, millijoules: Any) -> int:
        millijoules._obj.value = 12_500
        return 0

    asked = []
    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetHandleByUUID=lambda name, handle: asked.append(name) or 0,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    assert energy.EnergyCounter(torch.device("cuda")).joules() == 12.5
    assert asked == [b"GPU-1234"]
    library.nvmlDeviceGetTotalEnergyConsumption = lambda handle, millijoules: 3  # not supported
    assert energy.EnergyCounter(torch.device("cuda")).joules() is None
    assert energy.EnergyCounter(CPU).joules() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_in_use_and_left_are_this_machines() -> None:
    before = timing.memory_in_use(CPU)
    held = torch.ones(100_000_000 // 4)
    after, left = timing.memory_in_use(CPU), timing.memory_left(CPU)
    assert before and after and left
    assert after - before > 0.9 * held.nbytes and left < 10**14


@pytest.mark.parametrize(("machine", "left"), [(16 * 10**9, 5 * 10**6 * 1024), (4 * 10**9, 3 * 10**9)])
def test_memory_that_is_left(machine: int, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel has, or what a control group leaves of it."""
    monkeypatch.setattr(timing, "memory_in_use", lambda device: 10**9)
    monkeypatch.setattr("bench.limits.read", lambda path: {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 5000000 kB\n"}[path])
    monkeypatch.setattr("bench.limits.available_memory", lambda: machine)
    assert timing.memory_left(CPU) == left
