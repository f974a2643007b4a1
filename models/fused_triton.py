"""The kernels of :mod:`models.fused`, in Triton: rows of channels, sums in fp32 at least.

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
MOST_TOKENS = 128  # of one attention: its matrix lies in registers
PRODUCT = (64, 64)  # rows and columns of a program's product
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
    centred = tl.where(known[None, :], value - (tl.sum(value, 1) / C)[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    w = tl.load(weight + channel[None, :], mask=known[None, :], other=0.0).to(WIDE)
    b = tl.load(bias + channel[None, :], mask=known[None, :], other=0.0).to(WIDE)
    tl.store(h + place, (centred * scale[:, None] * w + b).to(h.dtype.element_ty), mask=present)


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
        centred = tl.where(known[None, :], value - (tl.sum(value, 1) / C)[:, None], 0.0)
        scale = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
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
    centred = tl.where(known[None, :], value - (tl.sum(value, 1) / C)[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    w = tl.load(weight + channel[None, :], mask=known[None, :], other=0.0).to(WIDE)
    b = tl.load(bias + channel[None, :], mask=known[None, :], other=0.0).to(WIDE)
    tl.store(h + place, (centred * scale[:, None] * w + b).to(h.dtype.element_ty), mask=present)


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


# ---- products with GELU --------------------------------------------------------------------------------------------------


def product_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """``h = x W^T + b`` of ``[..., C]``, and ``gelu(h)``, in the type of x; W is ``[D, C]``."""
    hidden, active = (torch.empty(*x.shape[:-1], len(weight), dtype=x.dtype, device=x.device) for _ in range(2))
    _launch_product(x, weight.t(), bias, hidden, active, bias, backward=False)
    return hidden, active


def product_gelu_backward(g: Tensor, weight: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """``g W gelu'(hidden)``, and shares ``[S, D]`` of the sum of its rows; W is ``[C, D]``."""
    gradient = torch.empty_like(hidden)
    rows = hidden.numel() // hidden.shape[-1]
    shares = torch.empty(triton.cdiv(rows, PRODUCT[0]), hidden.shape[-1], dtype=wide(g.dtype), device=g.device)
    _launch_product(g, weight, hidden, hidden, gradient, shares, backward=True)
    return gradient, shares


def _launch_product(
    x: Tensor, weight_KN: Tensor, bias: Tensor, hidden: Tensor, out: Tensor, shares: Tensor, *, backward: bool
) -> None:
    k, n = weight_KN.shape
    rows = x.numel() // k
    block_rows, block_columns = PRODUCT
    _product[triton.cdiv(rows, block_rows), triton.cdiv(n, block_columns)](
        x, weight_KN, bias, hidden, out, shares, rows, n, *weight_KN.stride(),
        k, backward, block_rows, block_columns, 64 if k % 64 == 0 else 32, num_warps=4, num_stages=3,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    x, weight, bias, hidden, out, shares, rows, columns, next_k, next_column,
    K: tl.constexpr, BACKWARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    step = tl.arange(0, STEP)
    here, known = row < rows, column < columns
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, K, STEP):
        k = first + step
        within, over = here[:, None], known[None, :]
        if K % STEP:
            within, over = within & (k < K)[None, :], over & (k < K)[:, None]
        a = tl.load(x + row[:, None] * K + k[None, :], mask=within, other=0.0)
        b = tl.load(weight + k[:, None] * next_k + column[None, :] * next_column, mask=over, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    present = here[:, None] & known[None, :]
    place = row[:, None] * columns + column[None, :]
    kind: tl.constexpr = out.dtype.element_ty
    if BACKWARD:
        value = tl.load(hidden + place, mask=present, other=0.0).to(tl.float32)
    else:
        rounded = (total + tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]).to(kind)
        tl.store(hidden + place, rounded, mask=present)
        value = rounded.to(tl.float32)
    below = 0.5 * (1 + tl.erf(value * 0.7071067811865476))  # the normal distribution's function, and its density next
    if BACKWARD:
        density = tl.exp(-0.5 * value * value) * 0.3989422804014327
        gradient = (total.to(kind).to(tl.float32) * (below + value * density)).to(kind)
        tl.store(out + place, gradient, mask=present)
        summed = tl.sum(tl.where(present, gradient.to(tl.float32), 0.0), 0)
        tl.store(shares + tl.program_id(0) * columns + column, summed, mask=known)
    else:
        tl.store(out + place, (value * below).to(kind), mask=present)


# ---- attention over few tokens -------------------------------------------------------------------------------------------


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of ``[N, L, 3 C]`` (queries, keys and values, each by head) to ``[N, L, C]``."""
    n, tokens, width = qkv.shape
    mixed = torch.empty(n, tokens, width // 3, dtype=qkv.dtype, device=qkv.device)
    blocks, warps = _attention_blocks(tokens, width // 3 // heads)
    _attention[n, heads](qkv, mixed, (width // 3 // heads) ** -0.5, tokens, heads, width // 3 // heads, *blocks, num_warps=warps)
    return mixed


def attention_backward(of_mixed: Tensor, qkv: Tensor, heads: int) -> Tensor:
    """The gradient of ``qkv``."""
    n, tokens, width = qkv.shape
    of_qkv = torch.empty_like(qkv)
    blocks, warps = _attention_blocks(tokens, width // 3 // heads)
    _attention_backward[n, heads](
        of_mixed, qkv, of_qkv, (width // 3 // heads) ** -0.5, tokens, heads, width // 3 // heads, *blocks, num_warps=warps
    )
    return of_qkv


def _attention_blocks(tokens: int, width: int) -> tuple[tuple[int, int], int]:
    of_tokens, of_width = (max(16, triton.next_power_of_2(size)) for size in (tokens, width))
    return (of_tokens, of_width), 8 if of_tokens > 64 else 4 if of_tokens > 16 else 1


@triton.jit  # type: ignore[untyped-decorator]
def _probabilities(q, k, scale, token, TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where((token < TOKENS)[None, :], scores, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _attention(  # type: ignore[no-untyped-def]
    qkv, mixed, scale,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, L: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    image, head = tl.program_id(0), tl.program_id(1)
    token, channel = tl.arange(0, L), tl.arange(0, D)
    present = (token < TOKENS)[:, None] & (channel < WIDTH)[None, :]
    C: tl.constexpr = HEADS * WIDTH
    place = qkv + (image * TOKENS + token)[:, None] * (3 * C) + head * WIDTH + channel[None, :]
    q = tl.load(place, mask=present, other=0.0)
    k = tl.load(place + C, mask=present, other=0.0)
    v = tl.load(place + 2 * C, mask=present, other=0.0)
    p = _probabilities(q, k, scale, token, TOKENS)
    out = tl.dot(p.to(v.dtype), v, input_precision="ieee")
    place = mixed + (image * TOKENS + token)[:, None] * C + head * WIDTH + channel[None, :]
    tl.store(place, out.to(mixed.dtype.element_ty), mask=present)


@triton.jit  # type: ignore[untyped-decorator]
def _attention_backward(  # type: ignore[no-untyped-def]
    of_mixed, qkv, of_qkv, scale,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, L: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    image, head = tl.program_id(0), tl.program_id(1)
    token, channel = tl.arange(0, L), tl.arange(0, D)
    present = (token < TOKENS)[:, None] & (channel < WIDTH)[None, :]
    C: tl.constexpr = HEADS * WIDTH
    at = (image * TOKENS + token)[:, None] * (3 * C) + head * WIDTH + channel[None, :]
    q = tl.load(qkv + at, mask=present, other=0.0)
    k = tl.load(qkv + at + C, mask=present, other=0.0)
    v = tl.load(qkv + at + 2 * C, mask=present, other=0.0)
    g = tl.load(of_mixed + (image * TOKENS + token)[:, None] * C + head * WIDTH + channel[None, :], mask=present, other=0.0)
    p = _probabilities(q, k, scale, token, TOKENS)
    of_v = tl.dot(tl.trans(p.to(v.dtype)), g, input_precision="ieee")
    tl.store(of_qkv + at + 2 * C, of_v.to(of_qkv.dtype.element_ty), mask=present)
    of_p = tl.dot(g, tl.trans(v), input_precision="ieee")
    of_scores = (p * (of_p - tl.sum(p * of_p, 1)[:, None]) * scale).to(q.dtype)
    of_q = tl.dot(of_scores, k, input_precision="ieee")
    tl.store(of_qkv + at, of_q.to(of_qkv.dtype.element_ty), mask=present)
    of_k = tl.dot(tl.trans(of_scores), q, input_precision="ieee")
    tl.store(of_qkv + at + C, of_k.to(of_qkv.dtype.element_ty), mask=present)
