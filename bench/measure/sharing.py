"""How many processes a GPU is worth: their speed together, each training the same network on its own.

This is also the program of one of them: it gets ready, says so, waits for a line, trains for a while and prints its speed.
"""

import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from bench import environment, machine
from bench.catalog import find
from bench.engine.execution import Choices
from bench.engine.graphs import WARM_UP
from bench.measure import loops
from bench.measure.timing import seconds_of, synchronize

PROGRAM = (sys.executable, "-m", "bench.measure.sharing")
PROCESSES = (1, 2, 4)
AT_A_TIME = 8  # steps between two looks at the clock, which wait for the device
ENOUGH = 0.98  # of the highest speed: more processes for the rest of it are not worth their memory


def shared_speeds(experiment: str, device: torch.device, choices: Choices, *, seconds: float) -> dict[str, float]:
    """Images per second of all processes together, by their number; those for which there is no memory are left out.

    Args:
        experiment: its network is trained, with its batch size.
        choices: how the user wants steps to be computed; nothing is compiled.
        seconds: how long they train.
    """
    speeds = {}
    kept = str(choices.kept.absolute() if choices.kept else "")
    for count in PROCESSES:
        together = _together(count, [experiment, str(device), kept, str(seconds), choices.depthwise, choices.cuda_graph])
        if together is None:
            break
        speeds[str(count)] = together
    return speeds


def best_count(speeds: dict[str, float]) -> int:
    """The fewest processes that are about as fast together as any number measured."""
    return min(int(count) for count, speed in speeds.items() if speed >= ENOUGH * max(speeds.values()))


def _together(count: int, arguments: list[str]) -> float | None:
    """All begin when the last is ready. None if one of them does not come to its end."""
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen([*PROGRAM, *arguments], cwd=environment.ROOT, stdin=pipe, stdout=pipe, stderr=nowhere, text=True)
            )
            stack.callback(process.kill)  # one that is not needed any more: another has died
            processes.append(process)
        if any(_line(process) != "ready" for process in processes):
            return None
        for process in processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has died, and will not tell a speed
                process.stdin.write("go\n")
                process.stdin.close()
        speeds = [_line(process) for process in processes]
        return sum(map(float, speeds)) if all(speeds) else None


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _train(name: str, device: torch.device, choices: Choices, seconds: float) -> None:
    experiment = find(name)
    do = loops.ours_alone(experiment, device, choices)
    do(WARM_UP + 1)
    synchronize(device)
    print("ready", flush=True)
    sys.stdin.readline()
    started, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        seconds_of(lambda: do(AT_A_TIME), device)
        steps += AT_A_TIME
    print(steps * experiment.recipe.batch_size / passed, flush=True)


if __name__ == "__main__":
    _name, _device, _kept, _seconds, _depthwise, _cuda_graph = sys.argv[1:]
    _choices = Choices(_depthwise, "off", _cuda_graph, Path(_kept) if _kept else None)  # type: ignore[arg-type]
    _train(_name, machine.prepared(_device), _choices, float(_seconds))
