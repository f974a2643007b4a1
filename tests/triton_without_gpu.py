"""Compile our Triton kernels for GPUs that are not here, as they would be launched: ``python -m tests.triton_without_gpu``.

It must run without Triton's interpreter (TRITON_INTERPRET=0), and prints a line for each compiled kernel. What a kernel wants of
shared memory must be there.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from bench.engine import augment_triton
from models import depthwise_triton, fused, fused_triton, products_triton

THREADS_OF_WARP = 32
# Bytes of shared memory that a program may have on an A100, an RTX 3090 or 4090, and an H100 or H200, by compute capability: CUDA
# C++ Programming Guide, table of technical specifications.
SHARED = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}
# Tokens, heads and numbers of each: of the ablation of heads, ViT-Tiny and the matched ViT, besides a few.
ATTENTION = ((16, 2, 4), (4, 1, 384), (65, 3, 64), (65, 5, 88))
TYPES = {
    torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.uint8: "*u8", torch.int64: "*i64",
}  # fmt: skip
NUMBERS = (torch.bfloat16, torch.float32, torch.float64)
KERNELS = {
    depthwise_triton: ("_convolve", "_weight_gradient", "_sum_shares"),
    fused_triton: (
        "_norm", "_norm_backward", "_column_sums", "_mixed_norm", "_scaled_sum", "_scaled_sum_backward",
    ),
    products_triton: ("_product", "_attention", "_attention_backward"),
    augment_triton: ("_batch",),
}  # fmt: skip


class Compiled:
    """Stands for a kernel: a launch compiles it for the arguments that it gets, and computes nothing."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self._kernel, self._capability = kernel, capability

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._compile

    def _compile(self, *arguments: Any, **options: int) -> None:
        signature, constants = {}, {}
        for parameter, argument in zip(self._kernel.params, arguments, strict=True):
            kind = TYPES[argument.dtype] if isinstance(argument, Tensor) else "fp32" if isinstance(argument, float) else "i32"
            signature[parameter.name] = kind
            if parameter.is_constexpr or (kind == "i32" and argument == 1):  # as a launch does
                signature[parameter.name] = "constexpr"
                constants[(parameter.num,)] = argument
        source = triton.compiler.ASTSource(fn=self._kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", self._capability, THREADS_OF_WARP), options=options)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED[self._capability], (self._kernel.fn.__name__, compiled.metadata.shared)
        pointers = " ".join(kind for kind in signature.values() if kind.startswith("*"))
        print(f"sm_{self._capability} {self._kernel.fn.__name__} {pointers}", flush=True)


def launch(dtype: torch.dtype) -> None:
    """What a forward and a backward pass launch; weights lie in fp32 at least, as in training."""
    wide = torch.promote_types(dtype, torch.float32)
    for side in (4, 2):
        x = torch.randn(2, side, side, 8, dtype=wide, requires_grad=True)
        weight, channel = torch.randn(8, 1, 7, 7, dtype=wide, requires_grad=True), torch.randn(8, dtype=wide, requires_grad=True)
        h, x = fused._MixedNorm.apply(x, weight, channel, channel, channel, 1e-6, dtype)  # type: ignore[no-untyped-call]
        fused._ScaledSum.apply(x, h, channel, channel, None).sum().backward()  # type: ignore[no-untyped-call]
    h, _ = fused._Norm.apply(x.detach().requires_grad_(), h.detach().requires_grad_(), channel, channel, channel, 1e-6, dtype)  # type: ignore[no-untyped-call]
    h.sum().backward()
    if dtype == torch.bfloat16:
        hidden, _ = products_triton.product_gelu(h.detach(), torch.empty(32, 8, dtype=dtype), torch.empty(32, dtype=dtype))
        products_triton.product_gelu_backward(h.detach(), torch.empty(8, 32, dtype=dtype), hidden)
        for tokens, heads, width in ATTENTION:
            if products_triton.attends(tokens, width, torch.device("cpu")):
                qkv = torch.empty(2, tokens, 3 * heads * width, dtype=dtype, requires_grad=True)
                fused._Attention.apply(qkv, heads).sum().backward()  # type: ignore[no-untyped-call]
        images, plan, step = torch.empty(3, 40, 40, 3, dtype=torch.uint8), torch.empty(2, 3, 65, dtype=torch.int64), torch.ones(1)
        augment_triton.batch(images, plan, step.long(), torch.ones(3), torch.ones(3), 32)


def compile_for(capability: int, dtype: torch.dtype) -> None:
    """Compile all kernels for a GPU."""
    kernels = {(module, name): getattr(module, name) for module, names in KERNELS.items() for name in names}
    for (module, name), kernel in kernels.items():
        setattr(module, name, Compiled(kernel, capability))
    room, products_triton._shared_memory = products_triton._shared_memory, lambda device: SHARED[capability]
    try:
        launch(dtype)
    finally:
        products_triton._shared_memory = room
        for (module, name), kernel in kernels.items():
            setattr(module, name, kernel)


if __name__ == "__main__":
    for capability in SHARED:
        for dtype in NUMBERS:
            compile_for(capability, dtype)
