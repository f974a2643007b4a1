"""Our Triton kernels against the convolution, in Triton's interpreter: what they compute, on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton", reason="Triton is not on this system")
from models.depthwise_triton import tiles, works
from tests.triton_without_gpu import KERNELS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_cuda.py tests what is compiled")


def operands(images: int, channels: int, side: int, kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    x = torch.randn(images, channels, side, side, generator=generator, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(channels, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize(
    ("images", "channels", "side", "kernel"),
    [(3, 5, 1, 7), (3, 40, 2, 7), (2, 7, 4, 7), (2, 65, 8, 7), (1, 6, 16, 7), (2, 6, 5, 3), (9, 3, 3, 5)],
)
def test_equals_the_convolution_in_float64(images: int, channels: int, side: int, kernel: int) -> None:
    x, weight, bias = operands(images, channels, side, kernel, torch.float64)
    expected = functional.conv2d(x, weight, bias, padding=kernel // 2, groups=channels)
    found = tiles(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    upstream = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    theirs = torch.autograd.grad(expected, (x, weight, bias), upstream)
    for mine, reference in zip(torch.autograd.grad(found, (x, weight, bias), upstream), theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-10)


def test_bf16_is_summed_in_fp32() -> None:
    x, weight, bias = operands(4, 8, 4, 7, torch.bfloat16)
    found = tiles(x, weight, bias)
    assert found.dtype == torch.bfloat16
    exact = functional.conv2d(x.double(), weight.double(), bias.double(), padding=3, groups=8)
    assert (found.double() - exact).abs().max() < 2**-7 * exact.abs().max()  # one rounding to 8 bits; the interpreter cuts off


def test_frozen_operands_get_no_gradient() -> None:
    x, weight, bias = operands(2, 3, 2, 7, torch.float64)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    tiles(x, weight, bias).sum().backward()
    assert x.grad is not None and weight.grad is None and bias.grad is None


def test_without_a_gpu_it_does_not_work() -> None:
    assert not works()


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """The interpreter takes much that the compiler refuses."""
    environ = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.triton_without_gpu"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout
    compiled = {tuple(line.split()[:2]) for line in output.splitlines()}
    kernels = [name for names in KERNELS.values() for name in names]
    assert compiled == {(gpu, name) for gpu in ("sm_80", "sm_86", "sm_90") for name in kernels}
