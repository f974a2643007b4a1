"""Memory: what becomes of that which this process frees, and whether an error says that there is no more."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # numbers of parameters, mallopt(3)


def keep_freed() -> None:
    """Let later tensors have the memory of earlier ones; to be called before there are any.

    glibc hands large blocks back to the kernel when they are freed, and has them again page by page, zeroed, as long as a step
    goes on. Two Xeon cores train the CIFAR stem 1.1 times, ViT-Tiny 1.08 times, the default stem 1.06 times as fast without that
    (medians of processes that took turns). Where the C library is no glibc nothing changes.
    """
    if can_keep():
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)  # no block is mapped by itself, to be unmapped when it is freed
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # the heap's end is not returned either


def can_keep() -> bool:
    """Whether :func:`keep_freed` changes anything: whether the C library is glibc."""
    return hasattr(ctypes.CDLL(None), "mallopt")


def give_back() -> None:
    """Hand back to the kernel what is free now, which is hundreds of MiB at times, where the C library is glibc."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def reserve(count: int) -> None:
    """Have the kernel give so many bytes, for what is allocated next; without :func:`keep_freed` they go back at once."""
    import torch  # here: it takes seconds to import, and not every command needs it

    torch.ones(count, dtype=torch.uint8)


@contextmanager
def collecting_only_later() -> Iterator[None]:
    """Within it, garbage collections pass over what is alive at its beginning.

    Those are the half million objects of torch's own modules, for the most part, which take 0.2 s to look through; a grid collects
    after each run.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def ran_out(error: Exception) -> bool:
    """Whether memory ran out. Only torch's allocator on a GPU has an exception for it; CUDA and its libraries have words."""
    import torch

    words = ("DefaultCPUAllocator: can't allocate", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
