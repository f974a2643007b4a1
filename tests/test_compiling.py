"""Which blocks are compiled, and that alike ones share their code."""

import pytest
import torch

from bench.engine.compiling import compile_blocks
from bench.engine.network import FAMILIES, by_part
from bench.engine.regime import release, trained_parts
from models import mixer, vit
from models.convnext import convnext_tiny, part_of
from models.stochastic_depth import give_factors


def compiled(network: torch.nn.Module) -> int:
    return sum(module._compiled_call_impl is not None for module in network.modules())


@pytest.mark.parametrize(("build", "count"), [(convnext_tiny, 18 + 4), (vit.vit, 12), (mixer.mixer, 12)])
def test_every_block_is(build: object, count: int) -> None:
    network = build(classes=10)  # type: ignore[operator]
    compile_blocks(network)
    assert compiled(network) == count


def test_frozen_blocks_are_not() -> None:
    network = convnext_tiny(classes=10)
    parts = by_part(network, FAMILIES["convnext_tiny"].part_of)
    assert part_of("features.7.0.layer_scale") == "last_stage"
    counts = []
    for epoch in (1, 6):
        for regime in ("F0", "F1", "F2"):
            release(parts, trained_parts(regime, epoch=epoch, frozen_epochs=5))  # type: ignore[arg-type]
            compile_blocks(network)
            counts.append(compiled(network))
    assert counts == [0, 0, 0, 0, 3 + 1, 18 + 4]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_alike_blocks_share_their_code() -> None:
    """Six blocks that differ in their weights, their stochastic depth and their network are one piece of code."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    for _ in range(2):
        network = convnext_tiny(classes=10).train()
        factors = torch.ones(18, 2)
        give_factors(network, factors)
        x = torch.randn(2, 96, 8, 8, requires_grad=True).to(memory_format=torch.channels_last)  # as a stem gives it
        for block in network.features[1]:
            block.compile(backend=counter, dynamic=False)
            x = block(x)
    assert counter.frame_count == 1
    torch._dynamo.reset()
