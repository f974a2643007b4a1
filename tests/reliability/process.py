"""The suite's command line in processes of its own, which can be killed at a chosen moment.

They train a network of a thousandth of the size, leave a checkpoint at each epoch, and are forked from a process that has imported
torch: a start takes less than a second.

A *moment* is a number, counted from 1 in each process: it is the moment before an operation on a file below the results folder, in
the middle of a file that is being written, or after a training step, whichever comes as the so many-th. The disaster of that moment
is that the process is killed, or that the disk is full from then on.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, Literal

from torch import nn

from bench import cli, grid, ledger, stopping
from bench.engine import checkpoint
from bench.engine.execution import Measurements
from bench.progress import Watcher
from tests.conftest import small_network

EXPERIMENTS = ("cifar100/stem_dual", "fashion_mnist/baseline")  # with and without a validation split
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["tests.reliability.preloaded"])
SECONDS = 120.0  # for one process; they take a few at most

Disaster = Literal["kill", "full disk"]
FILLER = "filler"  # the file that fills the disk
WRITES = os.O_WRONLY | os.O_RDWR
OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate")


def start(results: Path, *command: str, moment: int = 0, disaster: Disaster = "kill", network: str = "small") -> BaseProcess:
    """Start a command of the suite on a results folder; what it prints is appended to :func:`output`.

    Args:
        moment: when the disaster happens; 0: never.
        network: one of NETWORKS.
    """
    arguments = [*command, "--profile=smoke", "--device=cpu", "--depthwise=reference", f"--results={results}"]
    process = FORKING.Process(target=_main, args=(arguments, results, moment, disaster, network))
    process.start()
    return process


def status_of(process: BaseProcess) -> int:
    """Wait for the exit status; minus the signal's number where one ended it."""
    process.join(SECONDS)
    assert process.exitcode is not None, f"still there after {SECONDS:g} s"
    return process.exitcode


def run(results: Path, *command: str, **options: Any) -> int:
    """Start a command, wait for it and return its exit status."""
    return status_of(start(results, *command, **options))


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


def stuck_network(classes: int, seed: int) -> nn.Module:
    """The small network, whose first step does not end."""

    def sleep(module: nn.Module, inputs: Any) -> None:
        print("stuck", flush=True)
        time.sleep(3600)

    network = small_network(classes, seed)
    network.register_forward_pre_hook(sleep)
    return network


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"small": small_network, "stuck": stuck_network}


def _output(results: Path) -> Path:
    return results.with_name(f"{results.name}.output")


def _main(arguments: list[str], results: Path, moment: int, disaster: Disaster, network: str) -> None:
    stopping.install()
    with _output(results).open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    grid.build_network = lambda run, classes, initial, device: NETWORKS[network](classes, run.seed)
    grid.CHECKPOINT_SECONDS = 0
    Measurements._in_turns = lambda _, ways: dict.fromkeys(ways, 1.0)  # type: ignore[method-assign]  # the same mode everywhere
    if moment:
        _arm(results, moment, disaster)
    sys.exit(cli.main(arguments))


def _arm(results: Path, moment: int, disaster: Disaster) -> None:
    """Let the disaster happen at the moment."""
    moments = 0

    def now() -> bool:
        nonlocal moments
        moments += 1
        return moments == moment

    def happen() -> None:
        if disaster == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        fill(results)

    def before_operation(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in OPERATIONS or (event == "open" and arguments[2] & WRITES)
        if writes and str(arguments[0]).startswith(str(results)) and now():
            happen()

    def write_half(path: Path, content: Callable[[IO[bytes]], object]) -> None:
        def half(file: IO[bytes]) -> None:
            its_moment = now()
            if its_moment and disaster == "full disk":
                happen()
            content(file)
            if its_moment:
                file.truncate(file.tell() // 2)
                happen()

        whole(path, half)

    def after_step(self: Watcher, epoch: int, step: int, steps: int) -> None:
        if now():
            happen()

    whole = ledger.write_atomically
    for module in (ledger, checkpoint):
        module.write_atomically = write_half  # type: ignore[attr-defined]
    Watcher.step = after_step  # type: ignore[method-assign]
    sys.addaudithook(before_operation)


def fill(folder: Path) -> None:
    """Leave no block free on the folder's file system."""
    with (folder / FILLER).open("wb", buffering=0) as file:
        size = 2**20
        while size:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
            except OSError:
                size //= 2
