"""The processes that share a grid on one machine: how many, which device and how many threads each has, and their work.

What each does is :mod:`bench.serving`.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Protocol

import torch

from bench import stopping
from bench.environment import ROOT
from bench.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, UserError
from bench.experiment import Run
from bench.limits import available_cores, available_memory
from bench.machine import choose_device
from bench.settings import Settings

# The largest network's run needs 4.8 GB on two cores (matched_vit, profile paper, measured); evaluation and the rest fit into 6.
MEMORY_OF_A_RUN = 6 * 2**30  # bytes, on the CPU

# The exit statuses of a process that was asked to stop. A signal may come before it is handled.
ASKED_TO_STOP = (EXIT_TERMINATED, EXIT_INTERRUPTED, *(-number for number in stopping.SIGNALS))


def workers(settings: Settings) -> list[dict[str, str]]:
    """The environment variables of each process that JOBS asks for.

    ``auto`` is one for each GPU that CUDA_VISIBLE_DEVICES shows; on the CPU, as many as there are cores and memory for. More
    processes than GPUs go round them, unless DEVICE names one. Threads are divided.
    """
    gpus = visible_gpus(settings.device)
    count = settings.jobs or len(gpus) or (1 if settings.device.startswith("cuda") else fitting())
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, int(available_cores()) // count))}
    devices = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], "DEVICE": "cuda"} if gpus else {} for i in range(count)]
    return [threads | device for device in devices]


def devices(settings: Settings) -> int:
    """How many devices the processes have between them. The CPU is one: what shares its threads is no sooner done."""
    return len({worker.get("CUDA_VISIBLE_DEVICES") for worker in workers(settings)})


def visible_gpus(device: str) -> list[str]:
    """The GPUs to share, as CUDA_VISIBLE_DEVICES names them; none where ``device`` is the CPU or one GPU."""
    if device not in ("auto", "cuda") or choose_device(device).type != "cuda":
        return []
    count = torch.cuda.device_count()  # of the visible ones
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(i) for i in range(count)])[:count]


def fitting() -> int:
    """How many runs the CPU's cores and memory have room for."""
    return max(1, min(int(available_cores()), available_memory() // MEMORY_OF_A_RUN))


# ---- their work ------------------------------------------------------------------------------------------------------------


class Onlooker(Protocol):
    """Is told which runs are under way; by several threads."""

    def began(self, run: Run) -> None:
        """A process has taken it."""

    def ended(self, run: Run, status: str) -> None:
        """It has this status."""


def share(runs: Sequence[Run], settings: Settings, bury: Callable[[Run, str], str], onlooker: Onlooker) -> list[str]:
    """Execute runs in ``settings.jobs`` processes at a time, each with its device and its share of the threads.

    Asked to stop, begin no more and ask the processes to stop; each leaves a checkpoint. Every further signal is passed on.

    Args:
        bury: takes a run whose process has ended within it, and how, and returns the run's status.

    Returns:
        The status of each run.

    Raises:
        UserError: an input that the user can mend, of any run; none is begun after it.
    """
    idle: queue.SimpleQueue[_Server] = queue.SimpleQueue()
    servers = [_Server(settings.variables() | {"JOBS": "1"} | worker) for worker in workers(settings)]
    for server in servers:
        idle.put(server)
    asking, stopped = threading.Lock(), threading.Event()

    def status(run: Run) -> str:
        found = answered(run)
        onlooker.ended(run, found)
        return found

    def answered(run: Run) -> str:
        server = idle.get()  # there are as many as threads that ask
        onlooker.began(run)
        try:
            with asking:  # none starts unseen after all were asked to stop
                if stopped.is_set():
                    return "interrupted"
                server.ask(run)
            answer = server.answer()
        except UserError:
            stopped.set()
            raise
        finally:
            idle.put(server)
        if isinstance(answer, str):
            return answer
        if answer in ASKED_TO_STOP:
            return "interrupted"
        how = f"died of {signal.Signals(-answer).name}" if answer < 0 else f"ended with status {answer}"
        return bury(run, f"the process {how}")

    def stop() -> None:
        with asking:
            stopped.set()
        for server in servers:
            server.stop()

    threads = ThreadPoolExecutor(len(servers))
    try:
        futures = [threads.submit(status, run) for run in runs]
        return [future.result() for future in futures]
    except (KeyboardInterrupt, SystemExit):
        stop()
        raise
    finally:
        _until_all_have_ended(threads, servers, stop)


def _until_all_have_ended(threads: ThreadPoolExecutor, servers: "Sequence[_Server]", stop: Callable[[], None]) -> None:
    """Wait for the runs that are under way, and for the processes; whoever is impatient meanwhile has them asked again."""
    signalled: BaseException | None = None
    while True:
        try:
            threads.shutdown(cancel_futures=True)
            for server in servers:
                server.dismiss()
            for server in servers:
                server.wait()
            break
        except (KeyboardInterrupt, SystemExit) as signal_:
            signalled = signal_
            stop()
    if signalled:
        raise signalled


class _Server:
    """A process that does runs one after another: it is started when there is one, and anew after it has died.

    Args:
        variables: what is different in its environment.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        self._environ = os.environ | variables
        self._process: subprocess.Popen[str] | None = None
        self._answers: IO[str] | None = None

    def ask(self, run: Run) -> None:
        """Let it begin a run."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, which its answer will be
            self._process.stdin.write(f"{run.experiment.name} {run.seed}\n")
            self._process.stdin.flush()

    def answer(self) -> str | int:
        """Wait for the status of the run, or for the process's exit status if it ends without an answer.

        Raises:
            UserError: an input that the user can mend.
        """
        assert self._process is not None and self._answers is not None
        line = self._answers.readline().strip()
        if not line:
            return self._process.wait()
        if line.startswith("error: "):
            raise UserError(line.removeprefix("error: "))
        status, _, last = line.partition(" ")
        if last:  # not asked again: its end may take a while, and go wrong
            self._process.wait()
        return status

    def stop(self) -> None:
        """Ask it to leave a checkpoint and end, by the signal that asked this process."""
        if self._process is not None:
            asked_by = stopping.last()
            self._process.send_signal(signal.SIGTERM if asked_by in (None, signal.SIGINT) else asked_by)

    def dismiss(self) -> None:
        """Have nothing more to do for it: it ends after the run that it is at."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def wait(self) -> None:
        """Wait until it has ended."""
        if self._process is not None and self._answers is not None:
            self._process.wait()
            self._answers.close()

    def _start(self) -> None:
        self.dismiss()
        self.wait()
        reading, writing = os.pipe()
        # in a group of its own: a terminal's Ctrl-C comes to this process alone, and each run is asked once
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.serving", str(writing)],
            cwd=ROOT,
            env=self._environ,
            stdin=subprocess.PIPE,
            pass_fds=(writing,),
            process_group=0,
            text=True,
        )
        os.close(writing)
        self._answers = os.fdopen(reading)
