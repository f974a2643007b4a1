"""torch.compile block by block: alike blocks, of one network or of many runs in one process, share their code.

A whole network compiles for minutes, anew for every kind of attention and every regime. Its blocks are a handful of shapes, and
what lies between them is little.
"""

import warnings

from torch import nn
from torchvision.models import ConvNeXt
from torchvision.models.convnext import CNBlock

from models import mixer, vit

MOST_VARIANTS = 64  # of one piece of code: shapes, precisions, and which of the inputs need gradients


def compile_blocks(network: nn.Module) -> None:
    """Let the blocks whose parameters all train be compiled when they are first called, in place; names and values stay.

    Frozen blocks would be compiled a second time when released, and before the first attention block they only run forward. What
    comes behind one has a backward pass too, in which the steps of a frozen phase are as slow as uncompiled code is.
    Compiled code repeats bit for bit: kernels are chosen by rules, not by timing them.
    """
    import torch._dynamo
    import torch._inductor.config  # here: they take seconds to import, and few commands compile

    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    torch._inductor.config.deterministic = True
    # the tracer looks at its own intermediate tensors and is warned of them
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    for block in _blocks(network):
        trains = all(parameter.requires_grad for parameter in block.parameters())
        if not trains:
            block._compiled_call_impl = None
        elif block._compiled_call_impl is None:
            block.compile(dynamic=False)


def _blocks(network: nn.Module) -> list[nn.Module]:
    blocks = [module for module in network.modules() if isinstance(module, CNBlock | vit.Block | mixer.Block)]
    if isinstance(network, ConvNeXt):  # the stem and the downsampling layers come between the stages
        blocks += network.features[::2]
    return blocks
