"""Stochastic depth from given draws: torchvision's rates, nothing drawn inside, the same for every device."""

import pytest
import torch
from torchvision.ops import StochasticDepth

from bench.engine.device_data import draw_epoch
from models.convnext import convnext_tiny
from models.stochastic_depth import GivenStochasticDepth, give_factors, rates
from models.vit import vit
from tests.conftest import CPU


def test_rates_rise_from_nothing_to_torchvisions() -> None:
    found = rates(convnext_tiny(classes=10))
    assert len(found) == 18 and found[0] == 0 and found[-1] == pytest.approx(0.1)
    assert found == sorted(found)
    assert rates(vit(classes=10)) == []


def test_a_factor_scales_its_images_branch_while_training() -> None:
    module = StochasticDepth(0.5, "row")
    factors = torch.tensor([[0.0, 2.0, 2.0]])
    give_factors(module, factors)
    branch = torch.ones(3, 2, 1, 1)
    assert module(branch)[:, 0, 0, 0].tolist() == [0, 2, 2]
    factors[0, 0] = 2  # the caller writes to the memory that the module looks at
    assert module(branch)[:, 0, 0, 0].tolist() == [2, 2, 2]
    assert torch.equal(module.eval()(branch), branch)


def test_parameters_keep_their_names_and_every_block_its_own_factor() -> None:
    network = convnext_tiny(classes=10)
    names = list(network.state_dict())
    factors = torch.arange(18.0)[:, None].expand(18, 2)
    give_factors(network, factors)
    assert list(network.state_dict()) == names
    given = [module for module in network.modules() if isinstance(module, GivenStochasticDepth)]
    assert [module.factor.flatten().tolist() for module in given] == [[k, k] for k in range(18)]


def test_as_many_factors_as_blocks() -> None:
    with pytest.raises(ValueError):
        give_factors(convnext_tiny(classes=10), torch.ones(17, 2))


def test_an_epochs_draws_leave_blocks_out_at_their_rates() -> None:
    draws = draw_epoch(20_000, seed=0, epoch=1, padding=0, flip=False, blocks=18, device=CPU)
    left_out = (draws.depth < torch.tensor(rates(convnext_tiny(classes=10)))).float().mean(0)
    assert left_out[0] == 0
    assert left_out.tolist() == pytest.approx(rates(convnext_tiny(classes=10)), abs=0.01)
    again = draw_epoch(20_000, seed=0, epoch=1, padding=0, flip=False, blocks=18, device=CPU)
    other = draw_epoch(20_000, seed=0, epoch=2, padding=0, flip=False, blocks=18, device=CPU)
    assert torch.equal(draws.depth, again.depth) and not torch.equal(draws.depth, other.depth)


def test_fewer_blocks_leave_the_other_draws_alone() -> None:
    """A ViT sees the same order, crops and flips as a ConvNeXt."""
    one, two = (draw_epoch(50, seed=0, epoch=1, padding=4, flip=True, blocks=count, device=CPU) for count in (0, 18))
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("order", "top", "left", "flip"))
