"""Images and labels on the device once, as uint8; crop, flip and normalisation there, a batch at a time.

Shapes: N images, B in a batch, H = W = 32 pixels, P padding, C channels stored (1 for grey), always 3 channels given out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bench.environment import seed_for
from models import depthwise

SIDE = 32  # pixels; every network of the study takes 32x32
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Draws:
    """The random choices of one epoch, in order of use: which image comes when, its crop and flip ``[N]``, and ``[N, K]`` numbers
    in [0, 1): where one is below the rate of block k's stochastic depth, the block is left out for that image.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor
    depth: Tensor


def draw_epoch(images: int, *, seed: int, epoch: int, padding: int, flip: bool, blocks: int, device: torch.device) -> Draws:
    """Draw an epoch's choices. They depend on the seed and the epoch alone, and are the same for every device.

    Args:
        images: N.
        padding: the crop's corner is uniform over 0 to ``2 * padding`` in each direction.
        flip: whether half of the images are mirrored.
        blocks: K, the blocks with stochastic depth.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, epoch, "order and augmentation"))
    order = torch.randperm(images, generator=generator)
    top = torch.randint(2 * padding + 1, (images,), generator=generator)
    left = torch.randint(2 * padding + 1, (images,), generator=generator)
    mirrored = torch.randint(2, (images,), generator=generator).bool() & flip
    depth = torch.rand(images, blocks, generator=torch.Generator().manual_seed(seed_for(seed, epoch, "stochastic depth")))
    return Draws(*(choice.to(device) for choice in (order, top, left, mirrored, depth)))


class DeviceSplit:
    """One split on the device.

    Args:
        images: ``[N, h, w, C]`` uint8, C = 1 or 3; another size than 32x32 is resized once, bilinearly.
        labels: ``[N]`` uint8.
        padding: black pixels around each image, for random crops.
        mean, std: per channel, of pixel values in [0, 1]; one value stands for all three channels.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        *,
        padding: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
    ) -> None:
        stored = torch.from_numpy(np.array(images)).to(device)  # np.array: memory-mapped arrays are read-only
        if stored.shape[1:3] != (SIDE, SIDE):
            stored = _resize(stored)
        self.padding = padding
        self.images = functional.pad(stored, (0, 0, padding, padding, padding, padding))  # [N, H + 2P, W + 2P, C]
        self.labels = torch.from_numpy(np.array(labels, dtype=np.int64)).to(device)
        self.scale = (1 / (255 * torch.tensor(std, dtype=torch.float64))).float().expand(3).to(device)
        self.shift = (
            (-torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)).float().expand(3).to(device)
        )
        self._offsets = torch.arange(SIDE, device=device)
        self._in_one_kernel = device.type == "cuda" and depthwise.triton_works()

    def __len__(self) -> int:
        return len(self.labels)

    def located(self, draws: Draws) -> Tensor:
        """Where the pixels of an epoch's images lie, crop and flip included, and their labels: ``[N, H + W + 1]`` int64.

        In the epoch's order, for each image: its H rows among those of all images, one image below the other; its W columns, from
        left to right or, mirrored, from right to left; its label.
        """
        first = draws.order * self.images.shape[1] + draws.top
        rows_NH = first[:, None] + self._offsets
        columns_NW = draws.left[:, None] + torch.where(draws.flip[:, None], self._offsets.flip(0), self._offsets)
        return torch.cat([rows_NH, columns_NW, self.labels[draws.order, None]], dim=1)

    def augmented(self, located: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[B, 3, 32, 32]`` float32 images (channels last in memory) and their ``[B]`` labels.

        Args:
            located: ``[B, H + W + 1]``, some of :meth:`located`.
        """
        rows_BH, columns_BW, labels_B = located[:, :SIDE], located[:, SIDE:-1], located[:, -1]
        images_BHWC = self.images.flatten(0, 1)[rows_BH[:, :, None], columns_BW[:, None, :]]
        return self._normalise(images_BHWC), labels_B

    def batch(self, plan: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`augmented` gives for one step's row of a plan ``[S, B, H + W + 1]``; on a GPU in one kernel.

        Args:
            step: ``[1]``, on the device.
        """
        if self._in_one_kernel:
            from bench.engine import augment_triton  # here: Triton is not on every system

            return augment_triton.batch(self.images, plan, step, self.scale, self.shift, SIDE)
        return self.augmented(plan.index_select(0, step).squeeze(0))

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order, not augmented, as :meth:`augmented` gives them; the last batch may be smaller."""
        inner = slice(self.padding, self.padding + SIDE)
        for start in range(0, len(self), batch_size):
            now = slice(start, start + batch_size)
            yield self._normalise(self.images[now, inner, inner]), self.labels[now]

    def _normalise(self, images_BHWC: Tensor) -> Tensor:
        normal = torch.addcmul(self.shift, images_BHWC.float(), self.scale)  # grey broadcasts to three channels
        return normal.permute(0, 3, 1, 2)


def _resize(images_NHWC: Tensor) -> Tensor:
    as_float = images_NHWC.permute(0, 3, 1, 2).float()
    resized = functional.interpolate(as_float, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return resized.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
