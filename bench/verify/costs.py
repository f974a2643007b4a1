"""What a network costs, counted again for a comparison with records."""

import functools
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.engine import network as networks
from bench.experiment import Model
from bench.measure.cost import attention_maps, attention_parameters, parameters


@functools.cache
def cost_again(model: Model, classes: int) -> dict[str, Any]:
    """The cost section of a record, as :func:`bench.measure.cost.cost_of` gives it, in a tenth of the time.

    On the meta device nothing is drawn or computed, and one of the two counters counts alone: that they agree was asked for when
    the record was made, and is asked again by the tests.
    """
    with torch.device("meta"):
        network = networks.build(model, classes=classes, seed=0).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, 32, 32))
    return {
        "parameters": parameters(network),
        "attention_parameters": attention_parameters(network),
        "attention_maps": attention_maps(network),
        "multiply_adds": int(counter.get_total_flops()) // 2,
    }
