"""Gradients of parameters beside the backward pass, on a CUDA stream of their own.

Only the optimizer waits for the gradient of a parameter; the next layer's backward pass waits for the gradient of its output alone.
On small maps neither fills a GPU, so the two together take little longer than one, and so do they with the update of parameters
that have their gradients. In a captured step the streams are branches of its graph. What is computed does not change.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn


class _Beside:
    """One backward pass. It holds what the streams read until they are done: its memory must not be used again before."""

    def __init__(self, device: torch.device, update: Callable[[], object] | None, after: int) -> None:
        self._device, self._update, self._after = device, update, after
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._gradients, self._updates = _streams[device]
        for stream in _streams[device]:  # used or not, they are waited for at the end: a capture allows that to its branches alone
            stream.wait_stream(torch.cuda.current_stream(device))
        self._held: list[object] = []
        self._numbers = 0

    def run(self, work: Callable[[], None], operands: object) -> None:
        """Do it beside what comes next."""
        self._held.append(operands)
        self._gradients.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._gradients):
            work()

    def took(self, parameters: Sequence[nn.Parameter]) -> None:
        """Count what has its gradient now."""
        self._numbers += sum(parameter.numel() for parameter in parameters)

    def update_if_due(self) -> None:
        """Once enough parameters have their gradients, update these, beside all the rest.

        All that reads them must have been queued: the backward pass of their own layer may read them after it has asked for their
        gradients, but not after another layer does.
        """
        if self._update is None or self._numbers < self._after:
            return
        self._numbers = 0
        for stream in (self._gradients, torch.cuda.current_stream(self._device)):
            self._updates.wait_stream(stream)
        with torch.cuda.stream(self._updates):
            self._held.append(self._update())

    def join(self) -> None:
        """Let what comes next wait for all of it."""
        for stream in (self._gradients, self._updates):
            torch.cuda.current_stream(self._device).wait_stream(stream)
        self._held.clear()


_streams: dict[torch.device, tuple[torch.cuda.Stream, torch.cuda.Stream]] = {}  # for gradients and updates
_now: _Beside | None = None  # autograd's threads look here, so it is one for all of them


@contextmanager
def gradients_beside(
    device: torch.device, *, on: bool = True, update: Callable[[], object] | None = None, after: int = 0
) -> Iterator[None]:
    """Within it, backward passes on ``device`` compute gradients with :func:`gradients_of` beside themselves, one pass at a time.

    They go to ``.grad`` directly: ``torch.autograd.grad`` and hooks on parameters do not see them.

    Args:
        on: else nothing changes, as on every device but a GPU.
        update: updates the parameters that have a gradient, takes it away from them, and returns what must be held for it.
        after: of how many more numbers the gradients are known when it is called.
    """
    global _now  # a backward pass runs on threads of autograd, to which nothing else is handed
    if not on or device.type != "cuda":
        yield
        return
    now = _now = _Beside(device, update, after)
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # a capture that has failed refuses
            now.join()
        raise
    else:
        now.join()
    finally:
        _now = None


def gradients_of(
    parameters: Sequence[nn.Parameter], compute: Callable[[], Sequence[Tensor]], operands: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Gradients of some parameters, for the backward pass of an ``autograd.Function`` to return: None where it has no part in them.

    Args:
        compute: gives them; parameters that are frozen are left out by the caller.
        operands: what ``compute`` reads that the backward pass may free.
    """
    if _now is None:
        return compute()

    def work() -> None:
        for parameter, gradient in zip(parameters, compute(), strict=True):
            assert parameter.grad is None, "a parameter takes part once in a pass, and its last gradient is gone"
            if gradient.stride() != parameter.stride():  # optimizers take them side by side
                gradient = torch.empty_like(parameter).copy_(gradient)
            parameter.grad = gradient

    _now.update_if_due()
    _now.run(work, operands)
    _now.took(parameters)
    return [None] * len(parameters)


def beside(work: Callable[[], None], operands: object) -> None:
    """Do what only the end of the step waits for, beside the backward pass where gradients are."""
    if _now is None:
        work()
    else:
        _now.run(work, operands)
