"""Gradients and updates beside the backward pass, on streams that do at once what is queued."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not on this system")
from bench.engine.optimizer import updates_beside
from models.beside import gradients_beside, gradients_of
from tests.test_fused import both, images

CUDA = torch.device("cuda", 0)


class Stream:
    """Notes whom it waited for."""

    def __init__(self, device: torch.device) -> None:
        self.waited: list[object] = []

    def wait_stream(self, other: object) -> None:
        self.waited.append(other)


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's, of a GPU that is not there."""
    trunk = Stream(CUDA)

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        yield

    monkeypatch.setattr("models.beside._streams", {})
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: trunk)
    monkeypatch.setattr(torch.cuda, "stream", on)


def parameters(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(10)) for _ in range(count)]


def test_an_update_waits_until_the_next_layer_asks() -> None:
    """The layer that asked for the last gradient may still read what it is the gradient of."""
    updates: list[list[bool]] = []
    first, second, third = parameters(3)

    def update() -> None:
        updates.append([parameter.grad is not None for parameter in (first, second, third)])

    with gradients_beside(CUDA, update=update, after=20):
        for parameter in (first, second):
            assert gradients_of((parameter,), lambda: (torch.ones(10),), ()) == [None]
        assert updates == []
        gradients_of((third,), lambda: (torch.ones(10),), ())
        assert updates == [[True, True, False]]


def test_a_gradient_is_laid_out_as_its_parameter() -> None:
    parameter = nn.Parameter(torch.zeros(4, 6).t())
    with gradients_beside(CUDA):
        gradients_of((parameter,), lambda: (torch.arange(24.0).view(6, 4),), ())
    assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
    assert torch.equal(parameter.grad, torch.arange(24.0).view(6, 4))


def test_a_parameter_takes_part_once() -> None:
    (parameter,) = parameters(1)
    with pytest.raises(AssertionError, match="once in a pass"), gradients_beside(CUDA):
        for _ in range(2):
            gradients_of((parameter,), lambda: (torch.ones(10),), ())
    assert gradients_of((parameter,), lambda: (torch.ones(10),), ())[0] is not None, "after a failure nothing is beside any more"


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_cuda.py trains the same on the GPU")
@pytest.mark.parametrize("name", ["vit", "mixer"])
def test_weights_are_those_of_a_step_after_the_pass(name: str) -> None:
    """Every parameter is updated once, by its own gradient, while others are still to come."""
    x = images()
    ended = []
    for on in (False, True):
        network, _ = both(name)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            logits = network(x)
            with updates_beside(optimizer, CUDA, on=on):
                logits.backward(torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits))
            optimizer.step()
        assert all(state["step"] == 2 for state in optimizer.state.values())
        ended.append([parameter.detach() for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ended, strict=True))
