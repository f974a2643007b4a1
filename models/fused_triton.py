"""Kernels of :mod:`models.fused` in Triton: norms and sums over rows of channels, in fp32 at least.

A row is a position of a map or a token, R rows of C channels, contiguous. A program takes some rows and all of their channels, so a
layer norm is one pass. Sums over rows are added up in an order that never changes, so that results repeat bit for bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.depthwise_triton import convolved

PROGRAMS = 1056  # at most, where each has rows enough: eight for each multiprocessor of an H100
ELEMENTS = 1024  # of a program at a time, about: of one warp, whose lanes each hold the same channels of all rows
ONE_KERNEL_SIDE = 2  # pixels: up to it few taps meet the map, so that one kernel computes convolution and norm
COLUMNS, SUMMED = 32, 256  # and rows at a time, of a program that sums columns
FEW_ROWS = 1056  # which one program for each block of columns sums


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.promote_types(dtype, torch.float32)


def _tile(rows: int, channels: int) -> tuple[int, int]:
    """Rows and channels, as powers of two, of a program at a time: all channels, and fewer rows where there are few."""
    block = triton.next_power_of_2(channels)
    count = 1
    while 2 * count * block <= ELEMENTS and rows // (2 * count) >= PROGRAMS:
        count *= 2
    return count, block


def _shared_out(rows: int, count: int, programs: int) -> tuple[int, int]:
    """How many programs take ``count`` rows at a time, of how many rows each."""
    each = triton.cdiv(triton.cdiv(rows, count), programs) * count
    return triton.cdiv(rows, each), each


# ---- layer norm --------------------------------------------------------------------------------------------------------


def norm(
    x: Tensor, added: Tensor | None, added_bias: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``LN(x + added + added_bias)`` in ``dtype`` and the sum, of ``[..., C]``; with nothing to add the second is x itself."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    h = torch.empty(x.shape, dtype=dtype, device=x.device)
    total = x if added is None else torch.empty_like(x)
    count, block = _tile(rows, channels)
    _norm[triton.cdiv(rows, count),](
        x, x if added is None else added, weight if added_bias is None else added_bias, weight, bias, total, h, rows, eps,
        channels, added is not None, added_bias is not None, x.dtype == torch.float64, count, block, num_warps=1,
    )  # fmt: skip
    return h, total


def norm_backward(
    of_h: Tensor, x: Tensor, weight: Tensor, eps: float, of_x: Tensor | None, dtype: torch.dtype, copy: torch.dtype | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradient of the sum that was normed, from that of h and, to be added, that of the sum itself.

    Also the same in the type of ``copy``, and shares ``[S, 3 C]`` of the gradients of weight, bias and what was added to all rows.
    """
    channels = x.shape[-1]
    rows = x.numel() // channels
    count, block = _tile(rows, channels)
    programs, each = _shared_out(rows, count, PROGRAMS)
    gradient = torch.empty(x.shape, dtype=dtype, device=x.device)
    copied = None if copy is None else torch.empty(x.shape, dtype=copy, device=x.device)
    shares = torch.empty(programs, 3 * channels, dtype=wide(x.dtype), device=x.device)
    _norm_backward[programs,](
        of_h, x, weight, gradient if of_x is None else of_x, gradient, gradient if copied is None else copied, shares,
        rows, each, eps,
        channels, of_x is not None, copied is not None, x.dtype == torch.float64, count, block, num_warps=1,
    )  # fmt: skip
    return gradient, copied, shares


@triton.jit  # type: ignore[untyped-decorator]
def _centred(value, known, eps, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """The channels of some rows about their mean, and one over their deviation."""
    centred = tl.where(known[None, :], value - (tl.sum(value, 1) / C)[:, None], 0.0)
    return centred, 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)


@triton.jit  # type: ignore[untyped-decorator]
def _normed(value, weight, bias, channel, known, eps, C: tl.constexpr):  # type: ignore[no-untyped-def]
    centred, scale = _centred(value, known, eps, C)
    w = tl.load(weight + channel[None, :], mask=known[None, :], other=0.0).to(value.dtype)
    b = tl.load(bias + channel[None, :], mask=known[None, :], other=0.0).to(value.dtype)
    return centred * scale[:, None] * w + b


@triton.jit  # type: ignore[untyped-decorator]
def _norm(  # type: ignore[no-untyped-def]
    x, added, added_bias, weight, bias, total, h, rows, eps,
    C: tl.constexpr, ADD: tl.constexpr, BIAS: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    known = channel < C
    present = (row < rows)[:, None] & known[None, :]
    place = row[:, None] * C + channel[None, :]
    value = tl.load(x + place, mask=present, other=0.0).to(WIDE)
    if ADD:
        value += tl.load(added + place, mask=present, other=0.0).to(WIDE)
        if BIAS:
            value += tl.load(added_bias + channel[None, :], mask=known[None, :], other=0.0).to(WIDE)
        tl.store(total + place, value.to(total.dtype.element_ty), mask=present)
    normed = _normed(value, weight, bias, channel, known, eps, C)
    tl.store(h + place, normed.to(h.dtype.element_ty), mask=present)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_backward(  # type: ignore[no-untyped-def]
    of_h, x, weight, of_x, gradient, copied, shares, rows, each, eps,
    C: tl.constexpr, ADD: tl.constexpr, COPY: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    channel = tl.arange(0, BLOCK)
    known = channel < C
    w = tl.load(weight + channel[None, :], mask=known[None, :], other=0.0).to(WIDE)
    of_weight, of_bias, of_rows = tl.zeros([BLOCK], WIDE), tl.zeros([BLOCK], WIDE), tl.zeros([BLOCK], WIDE)
    start = tl.program_id(0) * each
    for first in range(start, min(start + each, rows), ROWS):
        row = first + tl.arange(0, ROWS)
        present = (row < rows)[:, None] & known[None, :]
        place = row[:, None] * C + channel[None, :]
        value = tl.load(x + place, mask=present, other=0.0).to(WIDE)
        g = tl.load(of_h + place, mask=present, other=0.0).to(WIDE)
        if ADD:
            direct = tl.load(of_x + place, mask=present, other=0.0).to(WIDE)  # before the sums: loads wait for one another there
        centred, scale = _centred(value, known, eps, C)
        normal = centred * scale[:, None]
        of_normal = g * w
        along = tl.sum(of_normal * normal, 1) / C
        result = (of_normal - (tl.sum(of_normal, 1) / C)[:, None] - normal * along[:, None]) * scale[:, None]
        if ADD:
            result += direct
        tl.store(gradient + place, result.to(gradient.dtype.element_ty), mask=present)
        if COPY:
            tl.store(copied + place, result.to(copied.dtype.element_ty), mask=present)
        of_weight += tl.sum(g * normal, 0)
        of_bias += tl.sum(g, 0)
        of_rows += tl.sum(tl.where(present, result, 0.0), 0)
    line = shares + tl.program_id(0) * 3 * C + channel
    tl.store(line, of_weight, mask=known)
    tl.store(line + C, of_bias, mask=known)
    tl.store(line + 2 * C, of_rows, mask=known)


# ---- sums over rows ----------------------------------------------------------------------------------------------------


def column_sums(x_RC: Tensor) -> Tensor:
    """``[C]``, the sum of all rows, in fp32 at least."""
    rows, channels = x_RC.shape
    programs, each = (1, rows) if rows <= FEW_ROWS else _shared_out(rows, SUMMED, FEW_ROWS)
    sums = torch.empty(programs, channels, dtype=wide(x_RC.dtype), device=x_RC.device)
    _column_sums[triton.cdiv(channels, COLUMNS), programs](
        x_RC, sums, rows, channels, each, x_RC.dtype == torch.float64, SUMMED, COLUMNS, num_warps=8
    )
    return sums[0] if programs == 1 else column_sums(sums)


@triton.jit  # type: ignore[untyped-decorator]
def _column_sums(  # type: ignore[no-untyped-def]
    x, sums, rows, channels, each, DOUBLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = channel < channels
    total = tl.zeros([ROWS, BLOCK], WIDE)
    start = tl.program_id(1) * each
    for first in range(start, min(start + each, rows), ROWS):
        row = first + tl.arange(0, ROWS)
        present = (row < min(start + each, rows))[:, None] & known[None, :]
        total += tl.load(x + row[:, None] * channels + channel[None, :], mask=present, other=0.0).to(WIDE)
    tl.store(sums + tl.program_id(1) * channels + channel, tl.sum(total, 0).to(sums.dtype.element_ty), mask=known)


# ---- depthwise convolution and layer norm --------------------------------------------------------------------------------


def mixed_norm(
    x_NHWC: Tensor, taps_TC: Tensor, tap_bias: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The depthwise convolution of square maps with k x k taps ``[k^2, C]``, and ``LN`` of it, both in ``dtype``."""
    n, side, _, channels = x_NHWC.shape
    if side > ONE_KERNEL_SIDE:
        y = convolved(x_NHWC, taps_TC, tap_bias, dtype)
        return y, norm(y, None, None, weight, bias, eps, dtype)[0]
    rows = n * side * side
    y, h = (torch.empty(x_NHWC.shape, dtype=dtype, device=x_NHWC.device) for _ in range(2))
    count, block = _tile(rows, channels)
    _mixed_norm[triton.cdiv(rows, count),](
        x_NHWC, taps_TC, tap_bias, weight, bias, y, h, rows, *taps_TC.stride(), eps,
        channels, side, round(len(taps_TC) ** 0.5), x_NHWC.dtype == torch.float64, count, block, num_warps=1,
    )  # fmt: skip
    return y, h


@triton.jit  # type: ignore[untyped-decorator]
def _mixed_norm(  # type: ignore[no-untyped-def]
    x, taps, tap_bias, weight, bias, y, h, rows, next_tap, next_channel, eps,
    C: tl.constexpr, SIDE: tl.constexpr, KERNEL: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    position, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row, column = position // SIDE % SIDE, position % SIDE
    known = channel < C
    present = (position < rows)[:, None] & known[None, :]
    place = position[:, None] * C + channel[None, :]
    total = tl.zeros([ROWS, BLOCK], WIDE)
    REACH: tl.constexpr = min(KERNEL // 2, SIDE - 1)  # taps beyond it never meet the map
    for down in range(-REACH, REACH + 1):
        for right in tl.static_range(-REACH, REACH + 1):
            tap = (down + KERNEL // 2) * KERNEL + right + KERNEL // 2
            inside = (row + down >= 0) & (row + down < SIDE) & (column + right >= 0) & (column + right < SIDE)
            value = tl.load(x + place + (down * SIDE + right) * C, mask=present & inside[:, None], other=0.0)
            factor = tl.load(taps + tap * next_tap + channel[None, :] * next_channel, mask=known[None, :], other=0.0)
            total += value.to(y.dtype.element_ty).to(WIDE) * factor.to(y.dtype.element_ty).to(WIDE)
    total += tl.load(tap_bias + channel[None, :], mask=known[None, :], other=0.0).to(y.dtype.element_ty).to(WIDE)
    rounded = total.to(y.dtype.element_ty)
    tl.store(y + place, rounded, mask=present)
    value = rounded.to(WIDE)
    normed = _normed(value, weight, bias, channel, known, eps, C)
    tl.store(h + place, normed.to(h.dtype.element_ty), mask=present)


# ---- the end of a ConvNeXt block -----------------------------------------------------------------------------------------


def scaled_sum(x: Tensor, branch: Tensor, bias: Tensor, scale: Tensor, factor: Tensor | None) -> Tensor:
    """``x + factor[n] scale[c] (branch + bias[c])`` of ``[N, ..., C]``, in fp32 at least."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    total = torch.empty(x.shape, dtype=wide(x.dtype), device=x.device)
    count, block = _tile(rows, channels)
    _scaled_sum[triton.cdiv(rows, count),](
        x, branch, bias, scale, scale if factor is None else factor, total, rows, rows // len(x),
        channels, factor is not None, x.dtype == torch.float64, count, block, num_warps=1,
    )  # fmt: skip
    return total


def scaled_sum_backward(g: Tensor, branch: Tensor, bias: Tensor, scale: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient of the branch, and shares ``[S, 2 C]`` of those of the scale and of the bias."""
    channels = g.shape[-1]
    rows = g.numel() // channels
    of_branch = torch.empty_like(branch)
    count, block = _tile(rows, channels)
    programs, each = _shared_out(rows, count, PROGRAMS)
    shares = torch.empty(programs, 2 * channels, dtype=wide(g.dtype), device=g.device)
    _scaled_sum_backward[programs,](
        g, branch, bias, scale, scale if factor is None else factor, of_branch, shares, rows, rows // len(g), each,
        channels, factor is not None, g.dtype == torch.float64, count, block, num_warps=1,
    )  # fmt: skip
    return of_branch, shares


@triton.jit  # type: ignore[untyped-decorator]
def _scaled_sum(  # type: ignore[no-untyped-def]
    x, branch, bias, scale, factor, total, rows, rows_of_image,
    C: tl.constexpr, FACTOR: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    present = (row < rows)[:, None] & (channel < C)[None, :]
    place = row[:, None] * C + channel[None, :]
    value = tl.load(branch + place, mask=present, other=0.0).to(WIDE)
    value += tl.load(bias + channel[None, :], mask=(channel < C)[None, :], other=0.0).to(WIDE)
    value *= tl.load(scale + channel[None, :], mask=(channel < C)[None, :], other=0.0).to(WIDE)
    if FACTOR:
        value *= tl.load(factor + row // rows_of_image, mask=row < rows, other=0.0).to(WIDE)[:, None]
    value += tl.load(x + place, mask=present, other=0.0).to(WIDE)
    tl.store(total + place, value.to(total.dtype.element_ty), mask=present)


@triton.jit  # type: ignore[untyped-decorator]
def _scaled_sum_backward(  # type: ignore[no-untyped-def]
    g, branch, bias, scale, factor, of_branch, shares, rows, rows_of_image, each,
    C: tl.constexpr, FACTOR: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    channel = tl.arange(0, BLOCK)
    known = channel < C
    by = tl.load(scale + channel[None, :], mask=known[None, :], other=0.0).to(WIDE)
    offset = tl.load(bias + channel[None, :], mask=known[None, :], other=0.0).to(WIDE)
    of_scale, of_bias = tl.zeros([BLOCK], WIDE), tl.zeros([BLOCK], WIDE)
    start = tl.program_id(0) * each
    for first in range(start, min(start + each, rows), ROWS):
        row = first + tl.arange(0, ROWS)
        present = (row < rows)[:, None] & known[None, :]
        place = row[:, None] * C + channel[None, :]
        value = tl.load(g + place, mask=present, other=0.0).to(WIDE)
        added = tl.load(branch + place, mask=present, other=0.0).to(WIDE)
        if FACTOR:
            value *= tl.load(factor + row // rows_of_image, mask=row < rows, other=0.0).to(WIDE)[:, None]
        tl.store(of_branch + place, (value * by).to(of_branch.dtype.element_ty), mask=present)
        of_scale += tl.sum(value * (added + offset), 0)
        of_bias += tl.sum(value * by, 0)
    line = shares + tl.program_id(0) * 2 * C + channel
    tl.store(line, of_scale, mask=known)
    tl.store(line + C, of_bias, mask=known)
