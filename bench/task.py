"""What stands by on a cluster's node while a task's grid works: it passes on Slurm's signals and has the task requeued.

Nothing here needs torch. So the grid may run in a container, and this, with Slurm's commands, outside of it.
"""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from bench import stopping
from bench.errors import EXIT_FAILED, EXIT_TERMINATED

LOOK_SECONDS = 0.2  # between two looks at whether the grid has ended, or is to be asked to


@dataclass(frozen=True)
class Task:
    """What submitit calls on a node, with the file of its runs.

    Args:
        python: the command that starts Python.
        flags: of ``bench grid``; a container may not hand on the variables that are set around it.
    """

    python: tuple[str, ...]
    flags: tuple[str, ...]

    def __call__(self, runs: str) -> int:
        """Work through the runs and return the grid's exit status; asked to stop, have the task requeued instead.

        Raises:
            RuntimeError: the grid was killed, or could not begin.
        """
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's own: calls checkpoint, then `scontrol requeue`, then exits
        asked: set[int] = set()
        threads = {"OMP_NUM_THREADS": cpus} if (cpus := os.environ.get("SLURM_CPUS_PER_TASK")) else {}
        command = [*self.python, "-u", "-m", "bench", "grid", *self.flags, "--runs", runs]
        grid = subprocess.Popen(command, env=threads | os.environ)
        for number in stopping.SIGNALS:
            signal.signal(number, lambda number, frame: asked.add(number))
        passed_on = False
        while (status := grid.poll()) is None:  # not wait: a signal in the moment before it would be handled after it
            if asked and not passed_on:
                grid.send_signal(signal.SIGUSR2)  # Slurm mostly has signalled it too; of SIGUSR2 the second changes nothing
                passed_on = True
            time.sleep(LOOK_SECONDS)
        # whatever the grid was at when it was asked: a task that is requeued with nothing left to do ends at once
        if asked & {signal.SIGUSR1, signal.SIGUSR2} or ((asked or status == EXIT_TERMINATED) and not _ending()):
            requeue(signal.SIGUSR2, None)
        if status not in (0, EXIT_FAILED):  # of failed runs there are records; Slurm is to show the rest as failed tasks
            raise RuntimeError(f"the grid ended with status {status}")
        return status

    def checkpoint(self, runs: str) -> Any:
        """What submitit puts in this call's place when the task is requeued: the same; the checkpoints lie with the runs."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, runs)


def _ending() -> bool:
    """Whether Slurm is about to end this job itself, as after `scancel`: then SIGTERM is no preemption."""
    command = ["squeue", "--noheader", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%T"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() != "RUNNING"
