"""Fused blocks are used where they compute what their layers do."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not on this system")
from bench import machine
from bench.catalog import find
from bench.engine import execution, parity
from bench.engine import network as networks
from bench.engine.evaluate import BATCH
from bench.engine.execution import Execution, Measurements, layers_of
from bench.engine.parity import EVALUATED, fused_blocks_agree
from models import fused_triton
from tests.conftest import small_network
from tests.test_fused import both, images

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_cuda.py compares what is compiled")
CUDA = torch.device("cuda", 0)


def agree(name: str) -> bool:
    fused, layers = both(name)
    return fused_blocks_agree(fused.float(), layers.float(), images().float(), nullcontext(), torch.float32)


@interpreted
@pytest.mark.parametrize("name", ["vit", "mixer"])
def test_right_kernels_agree(name: str) -> None:
    assert agree(name)


@interpreted
@pytest.mark.parametrize("change", [lambda shares: shares * 1.1, lambda shares: shares * float("nan"), torch.zeros_like])
def test_a_wrong_kernel_is_noticed(change: object, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused_triton.norm_backward

    def wrong(*operands: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        gradient, copied, shares = right(*operands)  # type: ignore[arg-type]
        return gradient, copied, change(shares)  # type: ignore[operator]

    monkeypatch.setattr(fused_triton, "norm_backward", wrong)
    assert not agree("vit")


def test_images_a_few_at_a_time_have_the_same_gradients() -> None:
    _, layers = both("convnext")
    x = torch.cat([images(), images()[:1]])
    together, apart = (parity._gradients(layers, x, None, at_a_time) for at_a_time in (None, 2))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


@interpreted
def test_steps_and_evaluation_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a GPU does, with steps that are repeated in place of a graph."""

    def repeated(work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work

    monkeypatch.setattr(parity, "captured", repeated)
    monkeypatch.setattr(parity, "EVALUATED", 3)
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, fused, capturable: adamw(parameters, fused=fused))
    fused, layers = both("vit")
    x = images()
    assert parity._steps_are_the_same(fused, x, nullcontext())
    fused, layers = both("vit")
    assert parity._evaluate_alike(fused, layers, x, nullcontext(), torch.float32)
    layers.get_parameter("head.weight").data.mul_(1.5)
    assert not parity._evaluate_alike(fused, layers, x, nullcontext(), torch.float32)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> Measurements:
    """Of a GPU that is not there."""
    monkeypatch.setattr(machine, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(machine, "answers", lambda device: True)
    monkeypatch.setattr(execution, "triton_works", lambda: True)
    return Measurements(CUDA, None)


@pytest.mark.parametrize(("fused", "chosen"), [(1.0, "fused"), (1.9, "fused"), (2.0, "layers"), (3.0, "layers")])
def test_the_faster_blocks_are_chosen(
    fused: float, chosen: str, measurements: Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "_of_blocks", lambda *_: {"layers": 2.0, "fused": fused})
    assert measurements.blocks(small_network(), [], Execution(), "bf16") == chosen


def test_blocks_that_fail_are_not_used(measurements: Measurements, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, float]:
        raise RuntimeError("their gradients are not the layers'")

    monkeypatch.setattr(measurements, "_of_blocks", fail)
    with pytest.warns(UserWarning, match=r"layer by layer, fused they fail on this GPU: their gradients"):
        assert measurements.blocks(small_network(), [], Execution(), "bf16") == "layers"
    assert measurements.seconds == {}


def test_want_of_memory_is_not_taken_for_failure(measurements: Measurements, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measurements, "_of_blocks", fail)
    with pytest.raises(torch.OutOfMemoryError):
        measurements.blocks(small_network(), [], Execution(), "bf16")


def test_evaluation_is_compared_at_its_own_size() -> None:
    assert BATCH["cuda"] == EVALUATED


def test_networks_that_differ_in_heads_alone_are_measured_apart(
    measurements: Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "_of_blocks", lambda *_: {"layers": 2.0, "fused": 1.0})
    for name in ("cifar100/B_heads1", "cifar100/B_heads8", "cifar100/baseline", "cifar100/stem_baseline"):
        network = networks.build(find(name).model, classes=10, seed=0)
        measurements.blocks(network, layers_of(network), Execution(), "bf16")
    assert len(measurements.seconds) == 4


def test_a_context_that_is_lost_is_not_taken_for_failure(measurements: Measurements, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, float]:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(measurements, "_of_blocks", fail)
    monkeypatch.setattr(machine, "answers", lambda device: False)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measurements.blocks(small_network(), [], Execution(), "bf16")


def test_a_cpu_computes_layer_by_layer() -> None:
    assert Measurements(torch.device("cpu"), None).blocks(small_network(), [], Execution(), "bf16") == "layers"
