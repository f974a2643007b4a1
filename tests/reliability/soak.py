"""Work through a grid again and again in one process, and print after each round what the process holds.

``python -m tests.reliability.soak FOLDER ROUNDS``: each round has a results folder of its own below the given one, of which the
weights are deleted. A line is a JSON object with the exit status, the seconds, the resident memory in MiB, the open files and the
threads.
"""

import gc
import json
import shutil
import sys
import time
from pathlib import Path

from bench import memory
from bench.grid import work_through
from bench.runs import plan
from bench.settings import DEFAULTS, settings

ONLY = "cifar100/E1_P2_F0 fashion_mnist/baseline"


def main(folder: Path, rounds: int) -> None:
    """Print the rounds' lines on standard error; what the grid prints goes to standard output."""
    memory.keep_freed()  # as the command line does
    for number in range(1, rounds + 1):
        started = time.perf_counter()
        given = DEFAULTS | {"PROFILE": "smoke", "DEVICE": "cpu", "ONLY": ONLY, "RESULTS": str(folder / str(number))}
        chosen = settings(**{name.lower(): value for name, value in (given | {"DEPTHWISE": "reference"}).items()})
        status = work_through(plan(chosen), chosen)
        shutil.rmtree(chosen.results / "checkpoints")
        gc.collect()  # what Python would free later anyway
        memory.give_back()
        line = {"status": status, "seconds": time.perf_counter() - started} | held()
        print(json.dumps(line), file=sys.stderr, flush=True)


def held() -> dict[str, float]:
    """Memory, files and threads of this process, as the kernel counts them."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "mebibytes": int(fields["VmRSS"].split()[0]) / 1024,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(fields["Threads"]),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
