"""The processes that share a grid on one machine: how many, and which device and how many threads each has."""

import os

import torch

from bench.environment import choose_device
from bench.limits import available_cores, available_memory
from bench.settings import Settings

# The largest network's run needs 4.8 GB on two cores (matched_vit, profile paper, measured); evaluation and the rest fit into 6.
MEMORY_OF_A_RUN = 6 * 2**30  # bytes, on the CPU


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
