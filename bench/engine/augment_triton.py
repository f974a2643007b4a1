"""One kernel from an epoch's plan to a batch: the images' places, crop, flip and normalisation, and their labels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIXELS = 256  # of a program


def batch(images: Tensor, plan: Tensor, step: Tensor, scale: Tensor, shift: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return ``[B, 3, side, side]`` float32 images (channels last in memory) and their ``[B]`` labels.

    Args:
        images: ``[N, H, W, C]`` uint8, C = 1 or 3.
        plan: ``[S, B, 2 side + 1]`` int64, of :meth:`DeviceSplit.located`.
        step: ``[1]`` int64, which row of the plan.
        scale, shift: ``[3]`` float32.
    """
    count, channels = plan.shape[1], images.shape[-1]
    out = torch.empty(count, side, side, 3, device=images.device)
    labels = torch.empty(count, dtype=torch.int64, device=images.device)
    _batch[count, triton.cdiv(side * side, _PIXELS)](
        images, plan, step, scale, shift, out, labels, images.shape[2], count, side, channels, _PIXELS, 4
    )
    return out.permute(0, 3, 1, 2), labels


@triton.jit  # type: ignore[untyped-decorator]
def _batch(  # type: ignore[no-untyped-def]
    images, plan, step, scale, shift, out, labels, width, count,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, COLOURS: tl.constexpr,
):  # fmt: skip
    image, pixel = tl.program_id(0), tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    line = plan + (tl.load(step) * count + image) * (2 * SIDE + 1)
    present = pixel < SIDE * SIDE
    row = tl.load(line + pixel // SIDE, mask=present, other=0)
    column = tl.load(line + SIDE + pixel % SIDE, mask=present, other=0)
    colour = tl.arange(0, COLOURS)
    known = present[:, None] & (colour < 3)[None, :]
    place = (row * width + column)[:, None] * CHANNELS + (colour[None, :] if CHANNELS == 3 else 0)
    value = tl.load(images + place, mask=known, other=0).to(tl.float32)
    by = tl.load(scale + colour, mask=colour < 3, other=0.0)
    to = tl.load(shift + colour, mask=colour < 3, other=0.0)
    tl.store(out + (image * SIDE * SIDE + pixel)[:, None] * 3 + colour[None, :], to[None, :] + value * by[None, :], mask=known)
    if tl.program_id(1) == 0:
        tl.store(labels + image, tl.load(line + 2 * SIDE))
