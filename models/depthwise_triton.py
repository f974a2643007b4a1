"""Depthwise convolution in two Triton kernels, for CUDA: any square map, channels last, sums in fp32 at least.

Notation of :mod:`models.depthwise`. cuDNN's kernels for it were made for large maps: in bf16, batch 128, an H100 takes 312
microseconds forward and backward for 384 channels on a 2x2 map, where these take 30.

- A program of ``_correlate`` computes a block of positions (over images, rows and columns) by channels, one tap after another; the
  shifted rows that it reads come from the cache. The gradient of x is the same sum with the mirrored kernel.
- A program of ``_weight_gradient`` takes one row of taps, a block of channels and a share of the positions. The shares are added up
  afterwards in an order that never changes, so that results repeat bit for bit.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Sides of the blocks. Channels: 32 in bf16 are 64 bytes, two sectors of the cache.
_POSITIONS, _CHANNELS = 64, 32
_POSITIONS_OF_SHARE = 16
_COLUMNS = 8  # taps in a row, as a power of two; the one too many adds up the gradient of the bias
_SIDE_OF_MANY_TAPS = 4  # from which a copy of the weight is worth its launch
_PROGRAMS = 1024  # of the weight's gradient, at least about: some for each multiprocessor of any GPU


@functools.cache
def works() -> bool:
    """Whether Triton compiles and runs here; it needs a GPU that it supports, and a C compiler."""
    if not torch.cuda.is_available():
        return False
    x, weight = torch.ones(1, 1, 1, 1, device="cuda"), torch.ones(1, 1, 7, 7, device="cuda")
    try:
        return bool(tiles(x, weight, torch.ones(1, device="cuda")).item() == 2)
    except Exception:  # noqa: BLE001 - whatever it lacks, other methods do the work
        return False


def tiles(x_NCHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution of a square map with the ``[C, 1, k, k]`` weight (odd k up to 7), stride 1, the map's size kept.

    Weight and bias may be wider than x: they are rounded to its precision as they are read, which saves copies of them.
    """
    return _Tiles.apply(x_NCHW.contiguous(memory_format=torch.channels_last), weight, bias)  # type: ignore[no-any-return, no-untyped-call]


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        taps_CT = weight.flatten(1)
        if x_NCHW.shape[-1] >= _SIDE_OF_MANY_TAPS:  # read often: neighbouring channels side by side, as in x
            taps_CT = taps_CT.t().contiguous().t()
        ctx.kernel = weight.shape[-1]
        ctx.save_for_backward(x_NCHW, taps_CT)
        return _correlated(x_NCHW, taps_CT, bias, ctx.kernel, mirrored=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_NCHW, taps_CT = ctx.saved_tensors
        gradient_NCHW = gradients[0].contiguous(memory_format=torch.channels_last)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        dx = _correlated(gradient_NCHW, taps_CT, None, ctx.kernel, mirrored=True) if of_x else None
        if not (of_weight or of_bias):
            return dx, None, None
        sums_KKC = _weight_gradients(x_NCHW, gradient_NCHW, ctx.kernel).to(taps_CT.dtype)
        of_taps_CKK = sums_KKC[:, : ctx.kernel].permute(2, 0, 1)
        return dx, of_taps_CKK.reshape(-1, 1, ctx.kernel, ctx.kernel), sums_KKC[ctx.kernel // 2, -1]


def _correlated(x_NCHW: Tensor, taps_CT: Tensor, bias: Tensor | None, kernel: int, *, mirrored: bool) -> Tensor:
    n, channels, side, _ = x_NCHW.shape
    positions = n * side * side
    y_NCHW = torch.empty_like(x_NCHW)
    _correlate[triton.cdiv(positions, _POSITIONS), triton.cdiv(channels, _CHANNELS)](
        x_NCHW, taps_CT, taps_CT if bias is None else bias, y_NCHW, positions, channels, taps_CT.stride(0), taps_CT.stride(1),
        side, kernel, mirrored, bias is not None, x_NCHW.dtype == torch.float64, _POSITIONS, _CHANNELS,
    )  # fmt: skip
    return y_NCHW


def _weight_gradients(x_NCHW: Tensor, gradient_NCHW: Tensor, kernel: int) -> Tensor:
    """``[k, 8, C]``: rows and columns of taps. In the middle row's last column, which no tap has, the gradient of the bias."""
    n, channels, side, _ = x_NCHW.shape
    positions = n * side * side
    blocks = triton.cdiv(channels, _CHANNELS)
    tiles_of_share = triton.cdiv(triton.cdiv(positions, _POSITIONS_OF_SHARE), max(1, _PROGRAMS // (kernel * blocks)))
    share = tiles_of_share * _POSITIONS_OF_SHARE
    wide = torch.promote_types(x_NCHW.dtype, torch.float32)
    shares = torch.empty(triton.cdiv(positions, share), kernel, _COLUMNS, channels, dtype=wide, device=x_NCHW.device)
    _weight_gradient[kernel, blocks, len(shares)](
        x_NCHW, gradient_NCHW, shares, positions, channels, share,
        side, kernel, wide == torch.float64, _COLUMNS, _POSITIONS_OF_SHARE, _CHANNELS,
    )  # fmt: skip
    return shares.sum(0) if len(shares) > 1 else shares[0]


# ---- kernels -----------------------------------------------------------------------------------------------------------


@triton.jit  # type: ignore[untyped-decorator]
def _correlate(  # type: ignore[no-untyped-def]
    x, taps, bias, y, positions, channels, next_channel, next_tap,
    SIDE: tl.constexpr, KERNEL: tl.constexpr, MIRRORED: tl.constexpr, BIAS: tl.constexpr,
    DOUBLE: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row, column = position // SIDE % SIDE, position % SIDE
    known = channel < channels
    present = (position < positions)[:, None] & known[None, :]
    place = position[:, None] * channels + channel[None, :]
    total = tl.zeros([POSITIONS, CHANNELS], WIDE)
    REACH: tl.constexpr = min(KERNEL // 2, SIDE - 1)  # taps beyond it never meet the map
    for down in range(-REACH, REACH + 1):
        for right in tl.static_range(-REACH, REACH + 1):
            tap = (down + KERNEL // 2) * KERNEL + right + KERNEL // 2
            if MIRRORED:
                tap = KERNEL * KERNEL - 1 - tap
            inside = (row + down >= 0) & (row + down < SIDE) & (column + right >= 0) & (column + right < SIDE)
            value = tl.load(x + place + (down * SIDE + right) * channels, mask=present & inside[:, None], other=0.0)
            factor = tl.load(taps + tap * next_tap + channel * next_channel, mask=known, other=0.0)
            total += value.to(WIDE) * factor.to(value.dtype).to(WIDE)[None, :]
    if BIAS:
        offset = tl.load(bias + channel, mask=known, other=0.0)
        total += offset.to(x.dtype.element_ty).to(WIDE)[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=present)


@triton.jit  # type: ignore[untyped-decorator]
def _weight_gradient(  # type: ignore[no-untyped-def]
    x, gradient, shares, positions, channels, share,
    SIDE: tl.constexpr, KERNEL: tl.constexpr, DOUBLE: tl.constexpr, COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    down = tl.program_id(0) - KERNEL // 2
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    right = tl.arange(0, COLUMNS) - KERNEL // 2
    known = (channel < channels)[None, :]
    total = tl.zeros([POSITIONS, COLUMNS, CHANNELS], WIDE)
    start = tl.program_id(2) * share
    for first in range(start, min(start + share, positions), POSITIONS):
        position = first + tl.arange(0, POSITIONS)
        row, column = position // SIDE % SIDE + down, (position % SIDE)[:, None] + right[None, :]
        present = position < positions
        g = tl.load(gradient + position[:, None] * channels + channel[None, :], mask=present[:, None] & known, other=0.0)
        inside = (present & (row >= 0) & (row < SIDE))[:, None] & (column >= 0) & (column < SIDE)
        place = ((position + down * SIDE)[:, None] + right[None, :])[:, :, None] * channels + channel[None, None, :]
        value = tl.load(x + place, mask=inside[:, :, None] & known[None], other=0.0).to(WIDE)
        value = tl.where((right == COLUMNS - 1 - KERNEL // 2)[None, :, None], 1.0, value)  # the bias meets every position
        total += g.to(WIDE)[:, None, :] * value
    line = (tl.program_id(2) * KERNEL + tl.program_id(0)) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(shares + line[:, None] * channels + channel[None, :], tl.sum(total, 0), mask=known)
