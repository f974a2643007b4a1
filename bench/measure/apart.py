"""A loop in a process of its own, which takes turns with those of this one.

What becomes of freed memory is settled when a process begins (``bench/memory.py``), so the row without that lever has another. This
is also the program of that process: it gets ready, says so, and for each number that it reads does so many steps and answers.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

from bench import environment, machine
from bench.catalog import find
from bench.engine.execution import Choices
from bench.measure import loops

PROGRAM = (sys.executable, "-m", "bench.measure.apart")


class Apart:
    """Our loop on the CPU in a process whose freed memory goes back to the kernel, as the C library has it by itself.

    Args:
        experiment: its network is trained, with its batch size.
        choices: as those of this process.
    """

    def __init__(self, experiment: str, choices: Choices) -> None:
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        arguments = [*PROGRAM, experiment, choices.depthwise, str(choices.kept.absolute() if choices.kept else "")]
        self._process = subprocess.Popen(arguments, cwd=environment.ROOT, stdin=pipe, stdout=pipe, stderr=nowhere, text=True)
        self._hear()

    def __call__(self, steps: int) -> None:
        """Have it do some steps, and wait for them.

        Raises:
            RuntimeError: it has died.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, and will not answer
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        self._hear()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.close()
            raise RuntimeError(f"{' '.join(PROGRAM[1:])} has died with status {self._process.returncode}")


def _serve(name: str, depthwise: Literal["auto", "reference"], kept: str) -> None:
    choices = Choices(depthwise=depthwise, kept=Path(kept) if kept else None)
    do = loops.ours_alone(find(name), machine.prepared("cpu"), choices)
    print("ready", flush=True)
    for line in sys.stdin:
        do(int(line))
        print("done", flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])  # type: ignore[arg-type]
