"""The suite's command line in processes of its own, which can be killed at a chosen moment.

They train a network of a thousandth of the size, leave a checkpoint at each epoch, and are forked from a process that has imported
torch: a start takes a tenth of a second.

A *moment* is a number, counted from 1 in each process: it is the moment before an operation on a file below the results folder, in
the middle of a file that is being written, or after a training step, whichever comes as the so many-th.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from bench import cli, grid, ledger
from bench.engine import checkpoint
from bench.engine.execution import Measurements
from bench.progress import Watcher
from bench.report import write
from tests.conftest import small_network

EXPERIMENTS = ("cifar100/stem_dual", "fashion_mnist/baseline")  # with and without a validation split
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["tests.reliability.preloaded"])
SECONDS = 120.0  # for one process; they take a few at most

WRITES = os.O_WRONLY | os.O_RDWR
OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate")


def start(results: Path, *command: str, moment: int = 0, network: str = "small") -> BaseProcess:
    """Start a command of the suite on a results folder; what it prints is appended to ``output`` beside that folder.

    Args:
        moment: when it kills itself; 0: never.
        network: one of NETWORKS.
    """
    arguments = [*command, "--profile=smoke", "--device=cpu", "--depthwise=reference", f"--results={results}"]
    process = FORKING.Process(target=_main, args=(arguments, results, moment, network))
    process.start()
    return process


def status_of(process: BaseProcess) -> int:
    """Wait for the exit status; minus the signal's number where one ended it."""
    process.join(SECONDS)
    assert process.exitcode is not None, f"still there after {SECONDS:g} s"
    return process.exitcode


def run(results: Path, *command: str, moment: int = 0, network: str = "small") -> int:
    """Start a command, wait for it and return its exit status."""
    return status_of(start(results, *command, moment=moment, network=network))


def output(results: Path) -> str:
    """All that the processes on this results folder have printed so far."""
    path = _output(results)
    return path.read_text() if path.exists() else ""


def wait_for(results: Path, text: str) -> None:
    """Wait until one of the processes has printed the text."""
    deadline = time.monotonic() + SECONDS
    while text not in output(results):
        assert time.monotonic() < deadline, output(results)
        time.sleep(0.01)


# ---- in the process ----------------------------------------------------------------------------------------------------------


class Stuck(nn.Module):
    """A network whose first training step does not end."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Say so, and sleep."""
        print("stuck", flush=True)
        time.sleep(3600)
        return images


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"small": small_network, "stuck": lambda classes, seed: Stuck()}


def _output(results: Path) -> Path:
    return results.with_name(f"{results.name}.output")


def _main(arguments: list[str], results: Path, moment: int, network: str) -> None:
    with _output(results).open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    grid.build_network = lambda run, classes, initial, device: NETWORKS[network](classes, run.seed)
    grid.CHECKPOINT_SECONDS = 0
    Measurements._timed = lambda *_: 1.0  # type: ignore[assignment]  # the same mode of computing in every folder
    if moment:
        _arm(results, moment)
    sys.exit(cli.main(arguments))


def _arm(results: Path, moment: int) -> None:
    """Let the process kill itself at the moment."""
    moments = 0

    def now() -> bool:
        nonlocal moments
        moments += 1
        return moments == moment

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before_operation(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in OPERATIONS or (event == "open" and arguments[2] & WRITES)
        if writes and str(arguments[0]).startswith(str(results)) and now():
            die()

    def write_half(path: Path, content: Callable[[IO[bytes]], object]) -> None:
        def half(file: IO[bytes]) -> None:
            content(file)
            if now():
                file.truncate(file.tell() // 2)
                die()

        whole(path, half)

    def step_and_die(self: Watcher, epoch: int, step: int, steps: int) -> None:
        if now():
            die()

    whole = ledger.write_atomically
    for module in (ledger, checkpoint, write):
        module.write_atomically = write_half  # type: ignore[attr-defined]
    Watcher.step = step_and_die  # type: ignore[method-assign]
    sys.addaudithook(before_operation)
