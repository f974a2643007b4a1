"""One run by several processes, a device each, as torchrun starts them: who this one is, and what all of them say together.

Every batch is cut into equal slices, one for each process; DistributedDataParallel averages the gradients. Order, augmentation and
stochastic depth are functions of an image's place in the epoch, so the batches, rates and draws are those of one process, and only
the order in which numbers are added up differs. With one process every function here returns what it was given.
"""

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from bench.errors import UserError
from bench.machine import choose_device

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within it, the processes that torchrun has started belong together; nothing happens where it has not.

    Raises:
        UserError: there are fewer GPUs than processes, or DEVICE names one for all of them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    kind, local = choose_device(device).type, int(os.environ["LOCAL_RANK"])
    if kind == "cuda":
        if ":" in device:
            raise UserError(f"DEVICE={device}: expected cuda or cpu under torchrun, which gives each process a GPU of its own")
        if local >= torch.cuda.device_count():
            raise UserError(f"torchrun: expected a GPU for each process, found {torch.cuda.device_count()}; lower --nproc-per-node")
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield
    except BaseException as error:
        # what averages the gradients must go before the process group that it uses: torch waits for the group's thread then, which
        # in turn may wait for Python
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise
    finally:
        if rank() == 0 and not _begun:
            from_first(lambda: False)  # the others need not wait any longer
        distributed.destroy_process_group()


_begun = False


def begin() -> bool:
    """The first process calls it when it holds the run, and the others to wait for that; whether there is anything to train."""
    global _begun
    _begun = True
    return from_first(lambda: True)


def size() -> int:
    """How many processes train the run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; the first, 0, is the one that writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def averaging(network: nn.Module) -> nn.Module:
    """The network with gradients that are averaged over all processes, for as long as the same parameters train."""
    return DistributedDataParallel(network) if size() > 1 else network


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, known to each."""
    if size() == 1:
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, whose slices are equal."""
    return value if size() == 1 else total(value) / size()


def any_of(here: bool, device: torch.device) -> bool:
    """Whether it holds in some process; all of them learn it at the same step."""
    return here if size() == 1 else bool(total(torch.tensor(float(here), device=device)).item())


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes; the others wait for it."""
    if size() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(made)
    return made[0]  # type: ignore[no-any-return]


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if size() > 1:
        distributed.barrier()
