# ruff: noqa: RUF005 - within its kernels Triton knows no unpacking
"""Depthwise convolution in Triton kernels, for CUDA: square maps of few pixels, channels last, sums in fp32 at least.

Notation of :mod:`models.depthwise`. Libraries' kernels for it were made for large maps: in bf16, batch 128, cuDNN on an H100 takes
314 microseconds forward and backward for 384 channels on a 2x2 map, these 24. They keep rows of a map in registers, a channel in
each lane, and use a pixel for all taps that meet it; which taps meet the map in a row is known to the compiler.

- A program of ``_convolve`` computes some rows of an image's map. The gradient of x is the same sum with the mirrored kernel.
- A program of ``_weight_gradient`` sums all taps over its share of the images' rows. The shares are added up afterwards in an order
  that never changes, so that results repeat bit for bit.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHANNELS = 64  # of a program, which is one warp
_ROWS = 2  # of a program, on maps larger than the next
_WHOLE = 4
_SIDE_OF_MANY_TAPS = 4  # from which a copy of the weight is worth its launch
_CHANNELS_OF_SHARE = 32  # all taps' sums lie in registers
_SHARES = 1056  # programs for the weight's gradient, at most: eight for each multiprocessor of an H100
_SUMMED = 256  # shares that are added up at a time, at most


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
    """The convolution of a square map with the ``[C, 1, k, k]`` weight (odd k), stride 1, the map's size kept.

    Weight and bias may be wider than x: they are rounded to its precision as they are read, which saves copies of them.
    """
    return _Tiles.apply(x_NCHW.contiguous(memory_format=torch.channels_last), weight, bias)  # type: ignore[no-any-return, no-untyped-call]


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        taps_TC = taps_of(weight, x_NCHW.shape[-1])
        ctx.save_for_backward(x_NCHW, taps_TC, weight)
        return convolved(x_NCHW.permute(0, 2, 3, 1), taps_TC, bias, x_NCHW.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_NCHW, taps_TC, weight = ctx.saved_tensors
        g_NHWC = gradients[0].contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        dx = gradient_of_map(g_NHWC, taps_TC, None, g_NHWC.dtype).permute(0, 3, 1, 2) if of_x else None
        if not (of_weight or of_bias):
            return dx, None, None
        found = weight_gradients(x_NCHW.permute(0, 2, 3, 1), g_NHWC, weight)
        return dx, *(gradient.to(weight.dtype) for gradient in found)


def taps_of(weight: Tensor, side: int) -> Tensor:
    """The weight's taps ``[k^2, C]``; where they are read often, neighbouring channels side by side, as in a map."""
    taps_TC = weight.flatten(1).t()
    return taps_TC.contiguous() if side >= _SIDE_OF_MANY_TAPS else taps_TC


def convolved(x_NHWC: Tensor, taps_TC: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """The convolution of x in ``dtype``, to which x, taps ``[k^2, C]`` and bias are rounded as they are read."""
    return _convolved(x_NHWC, taps_TC, bias, None, dtype, dtype, mirrored=False)


def gradient_of_map(g_NHWC: Tensor, taps_TC: Tensor, added: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The gradient of the convolution's map from that of what it gave, plus ``added``, in ``dtype``."""
    return _convolved(g_NHWC, taps_TC, None, added, dtype, g_NHWC.dtype, mirrored=True)


def _convolved(
    x: Tensor,
    taps_TC: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    dtype: torch.dtype,
    rounded: torch.dtype,
    *,
    mirrored: bool,
) -> Tensor:
    n, side, _, channels = x.shape
    rows = side if side <= _WHOLE else _ROWS if side % _ROWS == 0 else 1
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    like = x if x.dtype == rounded else torch.empty(0, dtype=rounded, device=x.device)  # a pointer to the type
    _convolve[n * (side // rows), triton.cdiv(channels, _CHANNELS)](
        x, taps_TC, y if bias is None else bias, y if added is None else added, y, like, channels, *taps_TC.stride(),
        side, round(len(taps_TC) ** 0.5), rows, mirrored, bias is not None, added is not None, x.dtype == torch.float64, _CHANNELS,
        num_warps=1,
    )  # fmt: skip
    return y


def weight_gradients(x_NHWC: Tensor, g_NHWC: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the weight ``[C, 1, k, k]``, laid out as it is, and of the bias ``[C]``, in fp32 at least.

    x may be wider than the gradient ``g_NHWC``: it is rounded to its precision as it is read.
    """
    n, side, _, channels = x_NHWC.shape
    kernel = weight.shape[-1]
    blocks = triton.cdiv(channels, _CHANNELS_OF_SHARE)
    each = triton.cdiv(n * side, max(1, _SHARES // blocks))
    wide = torch.promote_types(x_NHWC.dtype, torch.float32)
    count = triton.cdiv(n * side, each)
    shares = torch.empty(count, kernel**2 + 1, channels, dtype=wide, device=x_NHWC.device)
    _weight_gradient[blocks, count](
        x_NHWC, g_NHWC, shares, n * side, channels, each, side, kernel, wide == torch.float64, _CHANNELS_OF_SHARE, num_warps=1
    )
    of_weight = torch.empty_like(weight, dtype=wide)
    of_bias = torch.empty(channels, dtype=wide, device=x_NHWC.device)
    at_a_time = min(_SUMMED, max(32, triton.next_power_of_2(count)))
    _sum_shares[blocks, kernel**2 + 1](shares, of_weight, of_bias, count, channels, kernel**2, at_a_time, _CHANNELS_OF_SHARE)
    return of_weight, of_bias


# ---- kernels -----------------------------------------------------------------------------------------------------------


@triton.jit  # type: ignore[untyped-decorator]
def _convolve(  # type: ignore[no-untyped-def]
    x, taps, bias, added, y, rounded, channels, next_tap, next_channel,
    SIDE: tl.constexpr, KERNEL: tl.constexpr, ROWS: tl.constexpr, MIRRORED: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr,
    DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    REACH: tl.constexpr = KERNEL // 2
    strips = SIDE // ROWS
    image, top = tl.program_id(0) // strips, tl.program_id(0) % strips * ROWS
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = channel < channels
    totals = (tl.zeros([BLOCK], WIDE),) * (ROWS * SIDE)
    first, last = max(top - REACH, 0), min(top + ROWS - 1 + REACH, SIDE - 1)
    for row in range(first, last + 1):
        line = x + (image * SIDE + row) * SIDE * channels + channel
        values = ()
        for column in tl.static_range(SIDE):
            value = tl.load(line + column * channels, mask=known, other=0.0).to(rounded.dtype.element_ty)
            values = values + (value.to(WIDE),)  # type: ignore[assignment]
        for out in tl.static_range(ROWS):
            down = row - top - out + REACH
            meets = known & (down >= 0) & (down < KERNEL)
            for right in tl.static_range(KERNEL):
                if right - REACH < SIDE and REACH - right < SIDE:
                    tap = down * KERNEL + right
                    if MIRRORED:
                        tap = KERNEL * KERNEL - 1 - tap
                    factor = tl.load(taps + tap * next_tap + channel * next_channel, mask=meets, other=0.0)
                    factor = factor.to(rounded.dtype.element_ty).to(WIDE)
                    for column in tl.static_range(SIDE):
                        if column + right - REACH >= 0 and column + right - REACH < SIDE:
                            total = totals[out * SIDE + column] + values[column + right - REACH] * factor
                            totals = totals[: out * SIDE + column] + (total,) + totals[out * SIDE + column + 1 :]
    offset = tl.load(bias + channel, mask=known, other=0.0).to(rounded.dtype.element_ty).to(WIDE) if BIAS else 0.0
    for out in tl.static_range(ROWS):
        for column in tl.static_range(SIDE):
            place = ((image * SIDE + top + out) * SIDE + column) * channels + channel
            total = totals[out * SIDE + column] + offset
            if ADD:
                total += tl.load(added + place, mask=known, other=0.0).to(WIDE)
            tl.store(y + place, total.to(y.dtype.element_ty), mask=known)


@triton.jit  # type: ignore[untyped-decorator]
def _weight_gradient(  # type: ignore[no-untyped-def]
    x, g, shares, lines, channels, each,
    SIDE: tl.constexpr, KERNEL: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    REACH: tl.constexpr = KERNEL // 2
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = channel < channels
    sums = (tl.zeros([BLOCK], WIDE),) * (KERNEL * KERNEL)
    of_bias = tl.zeros([BLOCK], WIDE)
    start = tl.program_id(1) * each
    for line in range(start, min(start + each, lines)):  # all images' rows, one below the other
        gradients = ()
        for column in tl.static_range(SIDE):
            gradient = tl.load(g + (line * SIDE + column) * channels + channel, mask=known, other=0.0).to(WIDE)
            gradients = gradients + (gradient,)  # type: ignore[assignment]
            of_bias += gradient
        for down in tl.static_range(KERNEL):
            if down - REACH < SIDE and REACH - down < SIDE:
                row = line % SIDE + down - REACH
                inside = known & (row >= 0) & (row < SIDE)
                values = ()
                for column in tl.static_range(SIDE):
                    place = ((line + down - REACH) * SIDE + column) * channels + channel
                    value = tl.load(x + place, mask=inside, other=0.0).to(g.dtype.element_ty)
                    values = values + (value.to(WIDE),)  # type: ignore[assignment]
                for right in tl.static_range(KERNEL):
                    total = sums[down * KERNEL + right]
                    for column in tl.static_range(SIDE):
                        if column + right - REACH >= 0 and column + right - REACH < SIDE:
                            total += gradients[column] * values[column + right - REACH]
                    sums = sums[: down * KERNEL + right] + (total,) + sums[down * KERNEL + right + 1 :]
    share = shares + tl.program_id(1) * (KERNEL * KERNEL + 1) * channels + channel
    for tap in tl.static_range(KERNEL * KERNEL):
        tl.store(share + tap * channels, sums[tap], mask=known)
    tl.store(share + KERNEL * KERNEL * channels, of_bias, mask=known)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_shares(  # type: ignore[no-untyped-def]
    shares, of_weight, of_bias, count, channels, TAPS: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap = tl.program_id(1)  # the last is the bias
    known = channel < channels
    total = tl.zeros([SHARES, BLOCK], shares.dtype.element_ty)
    for first in range(0, count, SHARES):
        share = first + tl.arange(0, SHARES)
        place = (share[:, None] * (TAPS + 1) + tap) * channels + channel[None, :]
        total += tl.load(shares + place, mask=(share < count)[:, None] & known[None, :], other=0.0)
    if tap < TAPS:
        tl.store(of_weight + channel * TAPS + tap, tl.sum(total, 0), mask=known)
    else:
        tl.store(of_bias + channel, tl.sum(total, 0), mask=known)
