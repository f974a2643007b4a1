"""Many kernels recorded once, to be launched as one."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

WARM_UP = 3  # launched kernel by kernel before a capture: libraries choose algorithms, an optimizer makes its state


def captured(work: Callable[[], None], pool: Any = None) -> "Repeated":
    """Do the work a few times, record it, and return what repeats it on the same memory.

    Args:
        pool: of :func:`torch.cuda.graph_pool_handle`: memory for work that leaves nothing there, of graphs that take turns.
    """
    aside(work, times=WARM_UP)
    return Repeated(work, capture(work, pool))


@dataclass(frozen=True)
class Repeated:
    """Recorded work. It holds what it was recorded from: a graph knows addresses only, and what lies there must live on."""

    work: Callable[[], None]
    graph: torch.cuda.CUDAGraph

    def __call__(self) -> None:
        """Queue it once more."""
        self.graph.replay()


def aside(work: Callable[[], None], *, times: int = 1) -> None:
    """Do the work on the stream that it will be recorded on, as capturing requires of all that comes before it."""
    stream = _trunk(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(times):
                work()
    finally:
        torch.cuda.current_stream().wait_stream(stream)


def capture(work: Callable[[], None], pool: Any = None) -> torch.cuda.CUDAGraph:
    """Record what the work launches, without doing it. An exception of the work ends the recording and comes through."""
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    failure: BaseException | None = None
    try:
        with torch.cuda.graph(graph, pool, _trunk(torch.cuda.current_device())):
            try:
                work()
            except BaseException as error:
                failure = error
                raise
    except BaseException:
        torch.cuda.set_stream(before)  # ending a recording whose branches were not joined fails too, and leaves its stream
        if failure is not None:
            raise failure  # noqa: B904 - what is known of it is whether memory ran out
        raise
    return graph


@functools.cache
def _trunk(device: int) -> torch.cuda.Stream:
    """What is captured on it goes before what branches off, where both want the GPU: each kernel waits for the one before.

    It is one for all captures of the process, for torch keeps 32 MiB for cuBLAS with each stream, for good.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
