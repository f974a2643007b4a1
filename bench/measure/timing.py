"""Interleaved timing: contenders take turns, so that whatever else the machine does falls on all of them alike."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import limits, memory

MOST_RESERVED = 0.25  # of the memory that this process may use
ROOM = 2.0  # times the memory of the largest so far, for the next one
WINDOWS = 5  # turns of each contender
FEWEST = 2  # of them where time is short: one has no spread


@dataclass(frozen=True)
class Spread:
    """The median of some windows, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def as_json(self) -> dict[str, float]:
        """For a file of results."""
        return {"median": self.median, "low": self.low, "high": self.high}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was queued; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds from an idle device to an idle device again."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def interleaved(
    contenders: Mapping[str, Callable[[int], object]],
    *,
    images: Mapping[str, int],
    device: torch.device,
    window_seconds: float,
    windows: int = WINDOWS,
    most_seconds: float = math.inf,
    least_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Images per second of each contender, one value for each window, windows of all contenders in turns.

    In the first turn a step of each says how many fill a window. Where one does, it is the window: on two cores it takes no longer
    than those after it, if its memory is at hand (:func:`warmed_up`, or an untimed turn before). Else the window follows.

    Args:
        contenders: each takes a number of steps and does them; all are warm, but for inference on a CPU.
        images: in a step of each.
        window_seconds: about how long a window lasts; at least one step.
        windows: turns of each.
        most_seconds: after so much time no further turn begins, but for the second.
        least_seconds: further turns until so much time has passed: what is fast has time for more, and a steadier median.
    """
    started = time.perf_counter()
    steps: dict[str, int] = {}
    speeds: dict[str, list[float]] = {}

    def passed() -> float:
        return time.perf_counter() - started

    def seconds(name: str, count: int) -> float:
        return seconds_of(partial(contenders[name], count), device)

    for name in contenders:
        once = seconds(name, 1)
        steps[name] = max(1, round(window_seconds / once))
        window = once if steps[name] == 1 else seconds(name, steps[name])
        speeds[name] = [images[name] * steps[name] / window]
    turns = 1
    while turns < min(windows, FEWEST) or (turns < windows and passed() < most_seconds) or passed() < least_seconds:
        turns += 1
        for name in contenders:
            speeds[name].append(images[name] * steps[name] / seconds(name, steps[name]))
    return speeds


def ratio(speeds: Mapping[str, Sequence[float]], one: str, other: str) -> Spread:
    """How many times as fast ``one`` is as ``other``, turn by turn."""
    return Spread.of([mine / theirs for mine, theirs in zip(speeds[one], speeds[other], strict=True)])


def memory_in_use(device: torch.device) -> int | None:
    """Bytes that torch has allocated on a GPU, those of the whole process on a CPU, without what was freed.

    None where the system does not tell (only Linux does on a CPU).
    """
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    memory.give_back()
    return _bytes_of_process("VmRSS")


def memory_left(device: torch.device) -> int | None:
    """Bytes that there are beside :func:`memory_in_use`: free on a GPU, else available as the kernel and control groups have it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    used = memory_in_use(device)
    lines = [line.split() for line in limits.read("/proc/meminfo").splitlines()]
    available = next((int(words[1]) * 1024 for words in lines if words[:1] == ["MemAvailable:"]), None)
    return None if used is None or available is None else min(available, limits.available_memory() - used)


def has_room(device: torch.device, most: int) -> bool:
    """Whether there is memory for one more of what takes up to ``most`` bytes, twice over; True where the system does not tell."""
    left = memory_left(device)
    return left is None or left >= ROOM * most


def peak_memory(work: Callable[[], Any], device: torch.device) -> int | None:
    """The most :func:`memory_in_use` while ``work`` runs. What earlier work has freed does not count."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    memory.give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        work()
        return None
    work()
    return _bytes_of_process("VmHWM")


def _bytes_of_process(name: str) -> int | None:
    lines = [line.split() for line in limits.read("/proc/self/status").splitlines()]
    return next((int(words[1]) * 1024 for words in lines if words[:1] == [f"{name}:"]), None)


def warmed_up(work: Callable[[], Any], device: torch.device) -> int | None:
    """Do ``work``, which comes before what is timed, and return its :func:`peak_memory` in bytes; on a CPU have as much again.

    A step that is timed should find its memory, as it does after a while of training, and not wait for the kernel. The first
    few would, and those that the profiler records, whose notes lie between the tensors.
    """
    peak = peak_memory(work, device)
    if device.type == "cpu":
        memory.reserve(min(peak or 0, int(MOST_RESERVED * limits.available_memory())))
    return peak
