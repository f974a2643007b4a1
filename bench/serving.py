"""One of the processes that JOBS asks for. It does the runs that it is told, so that they share data, compiled code and warm-up.

On each line of its input stand an experiment and a seed; when the run has ended, a line goes to the file whose number is the
argument: its status, with "last" behind it where this process ends now; or "error:" with what the user can mend. The other choices
are environment variables, as the grid that started it has set them. At the end of its input it ends.
"""

import gc
import os
import sys
from contextlib import suppress

import torch

from bench import machine, memory, stopping
from bench.errors import EXIT_INTERRUPTED, UserError
from bench.grid import status_of
from bench.runs import plan
from bench.settings import DEFAULTS, settings, variable
from data import DataError
from models.errors import WeightsError


def serve(answers: int) -> None:
    """Do runs until there are no more.

    Args:
        answers: a file descriptor to write to.
    """
    chosen = settings(**{name.lower(): variable(name) for name in DEFAULTS})
    runs = {f"{run.experiment.name} {run.seed}": run for run in plan(chosen)}
    try:
        for line in sys.stdin:
            try:
                answer = status_of(runs[line.strip()], chosen)
            except (UserError, DataError, WeightsError) as error:
                answer = f"error: {' '.join(str(error).split())}"  # on one line
            device = machine.choose_device(chosen.device)
            # the next run gets a process to which the GPU answers; want of memory may have been within a capture, which leaves
            # CUDA in disorder
            leaving = not machine.answers(device) if answer == "failed" else answer == "out_of_memory" and device.type == "cuda"
            with suppress(BrokenPipeError):  # the grid is gone, and no further line will come
                os.write(answers, f"{answer}{' last' if leaving else ''}\n".encode())
            if leaving:
                return
            gc.collect()  # a compiled network is a cycle, and holds its memory until then
            torch.cuda.empty_cache()  # other processes may need it before the next run here
    finally:
        os.close(answers)


if __name__ == "__main__":
    stopping.install()
    memory.keep_freed()
    try:
        with memory.collecting_only_later():
            serve(int(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
