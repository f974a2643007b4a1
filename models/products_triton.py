"""Kernels of :mod:`models.fused` in Triton: matrix products with what lies around them, for bf16.

A product with its bias and GELU, or with the gradient of GELU, and attention over so few tokens that its matrix lies in registers.
Products are summed in fp32 and rounded where the library rounds them.
"""

import functools
import sys

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.fused_triton import wide

MOST_TOKENS = 128  # of one attention
PRODUCT = (64, 64)  # rows and columns of a program's product


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


def attends(tokens: int, width: int, device: torch.device) -> bool:
    """Whether a program takes attention over so many tokens, ``width`` numbers of each by head: a device may have no room for it.

    An H100 has it for all that the study has, and an RTX 4090 for all but the matched ViT's 65 tokens of 88 numbers.
    """
    (length, of_width), _ = _attention_blocks(tokens, width)
    most = 2 * length * (length + 4 * of_width)  # bytes that the compiler has asked for, of a backward pass, on any device
    return tokens <= MOST_TOKENS and most <= _shared_memory(device)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of a program at most; the interpreter knows no bound."""
    if device.type != "cuda":
        return sys.maxsize
    return int(triton.compiler.compiler.max_shared_mem(device.index))  # which launches are held against


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
