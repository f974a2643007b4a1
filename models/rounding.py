"""Weights in the lower precision, rounded together once in a forward pass, where autocast would round each where it is used."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

ROUNDED_FIRST = 0.06  # of a network's numbers: the first layers'


class Rounding:
    """A copy in bf16 beside each of some parameters, brought up to date before each forward pass that needs them.

    On a GPU most are copied beside the first layers, and waited for where the first of them is used.
    """

    def __init__(self, network: nn.Module, parameters: list[nn.Parameter]) -> None:
        first = 1
        while sum(parameter.numel() for parameter in parameters[:first]) < ROUNDED_FIRST * sum(p.numel() for p in parameters):
            first += 1
        self._parameters = parameters
        self._copies = [torch.zeros_like(parameter, dtype=torch.bfloat16, requires_grad=False) for parameter in parameters]
        self._first = first
        self._pending: torch.cuda.Stream | None = None  # where the rest is copied, until it is waited for
        for place, parameter in enumerate(parameters):
            parameter.rounding = self, place  # type: ignore[attr-defined]
        network.register_forward_pre_hook(self._refresh)
        # a forward pass that fails may have waited for nothing yet; a capture ends in order only once its branches are joined
        network.register_forward_hook(lambda *_: self._wait(), always_call=True)

    def of(self, place: int) -> Tensor:
        """The copy of the parameter at a place."""
        if place >= self._first:
            self._wait()
        return self._copies[place]

    def _wait(self) -> None:
        if self._pending:
            torch.cuda.current_stream(self._pending.device).wait_stream(self._pending)
            self._pending = None

    @torch.no_grad()
    def _refresh(self, network: nn.Module, given: Any) -> None:
        if product_dtype(self._parameters[0]) != torch.bfloat16:
            return
        device = self._parameters[0].device
        if device.type == "cuda" and self._first < len(self._parameters):
            self._pending = _beside(device)
            self._pending.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self._pending):
                self._copy(slice(self._first, None))
            self._copy(slice(self._first))
        else:
            self._copy(slice(None))

    def _copy(self, places: slice) -> None:
        torch._foreach_copy_(self._copies[places], list[Tensor](self._parameters[places]))


@functools.cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def product_dtype(x: Tensor) -> torch.dtype:
    """What products are computed in: what autocast would cast to, or the type of ``x``."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def lowered(parameter: nn.Parameter) -> Tensor:
    """A parameter in the precision of products, without its gradient."""
    if product_dtype(parameter) != torch.bfloat16:
        return parameter.detach()
    rounding: tuple[Rounding, int] = parameter.rounding  # type: ignore[attr-defined]
    return rounding[0].of(rounding[1])
