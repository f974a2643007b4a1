"""Compile our Triton kernels for GPUs that are not here, as they would be launched: ``python -m tests.triton_without_gpu``.

It must run without Triton's interpreter (TRITON_INTERPRET=0), and prints a line for each compiled kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from models import depthwise_triton

THREADS_OF_WARP = 32
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}


class Compiled:
    """Stands for a kernel: a launch compiles it for the arguments that it gets, and computes nothing."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self._kernel, self._capability = kernel, capability

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._compile

    def _compile(self, *arguments: Any) -> None:
        signature, constants = {}, {}
        for parameter, argument in zip(self._kernel.params, arguments, strict=True):
            signature[parameter.name] = TYPES[argument.dtype] if isinstance(argument, Tensor) else "i32"
            if parameter.is_constexpr:
                signature[parameter.name] = "constexpr"
                constants[(parameter.num,)] = argument
        source = triton.compiler.ASTSource(fn=self._kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", self._capability, THREADS_OF_WARP))
        assert compiled.asm["cubin"]
        pointers = " ".join(kind for kind in signature.values() if kind.startswith("*"))
        print(f"sm_{self._capability} {self._kernel.fn.__name__} {pointers}", flush=True)


def compile_for(capability: int, dtype: torch.dtype) -> None:
    """Compile what a forward and a backward pass launch; weights lie in fp32 at least, as in training."""
    kernels = {name: getattr(depthwise_triton, name) for name in ("_correlate", "_weight_gradient")}
    wide = torch.promote_types(dtype, torch.float32)
    x = torch.randn(2, 3, 4, 4, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(3, 1, 7, 7, dtype=wide, requires_grad=True), torch.randn(3, dtype=wide, requires_grad=True)
    for name, kernel in kernels.items():
        setattr(depthwise_triton, name, Compiled(kernel, capability))
    try:
        depthwise_triton.tiles(x, weight, bias).sum().backward()
    finally:
        for name, kernel in kernels.items():
            setattr(depthwise_triton, name, kernel)


if __name__ == "__main__":
    for capability in (80, 90):
        for dtype in TYPES:
            compile_for(capability, dtype)
