"""Stochastic depth whose draws are given: a block's branch is left out, image by image, as its caller has drawn.

Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, https://arxiv.org/abs/1603.09382. torchvision draws inside of the
forward pass, from the device's global generator; then what a network learns depends on the device and on everything that was drawn
before, and every block holds another rate, which makes otherwise equal blocks different code to a compiler.
"""

from torch import Tensor, nn
from torchvision.ops import StochasticDepth


class GivenStochasticDepth(StochasticDepth):  # type: ignore[misc]
    """torchvision's, once :func:`give_factors` has told what to multiply the images' branches by."""

    factor: Tensor  # [N, 1, 1, 1]

    def forward(self, branch: Tensor) -> Tensor:
        """Scale the branch ``[N, C, H, W]`` of every image while training; as it is in evaluation."""
        return branch * self.factor if self.training else branch


def rates(network: nn.Module) -> list[float]:
    """How often each of the network's blocks with stochastic depth is left out, in the order of its modules."""
    return [module.p for module in network.modules() if isinstance(module, StochasticDepth)]


def give_factors(network: nn.Module, factors_KN: Tensor) -> None:
    """Let block k of :func:`rates` multiply its branch by ``factors_KN[k]``: 0, or 1 / (1 - its rate), for each image of a batch.

    The blocks look at the same memory from then on: whoever calls writes there before each forward pass.
    """
    modules = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    for module, factor_N in zip(modules, factors_KN, strict=True):
        module.__class__ = GivenStochasticDepth  # its state is torchvision's and the factor
        module.factor = factor_N[:, None, None, None]
