"""One order and one hash for a data set, whatever archive it came from.

Mirrors pack the same images in different orders and formats. Sorting a split by (label, SHA-256 of the image's bytes)
gives every source the same arrays, and the SHA-256 of those arrays says whether they are the data set at all.
"""

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .errors import DataError

Bytes = npt.NDArray[np.uint8]
CHUNK = 2048  # images per step of the statistics: keeps the widened copy of CIFAR-100 under 15 MB


@dataclass(frozen=True, eq=False)
class Split:
    """One split in canonical order. Its arrays are read-only: copy them before changing anything.

    images: uint8 [N, H, W, C], C = 3 (RGB) or 1 (grey). labels: uint8 [N].
    sha256: over all image bytes followed by all label bytes, as hexadecimal digits.
    """

    images: Bytes
    labels: Bytes
    sha256: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits and what a model needs to know about them.

    classes: the name of each label. mean, std: per channel over the train split, in units where 255 is 1 (population
    standard deviation), computed from integer sums, so that they are the same doubles on every machine.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class SplitSpec:
    """How many images a split has, and its canonical SHA-256."""

    count: int
    sha256: str


@dataclass(frozen=True)
class Spec:
    """What a data set must be. image_shape is (H, W, C)."""

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: SplitSpec
    test: SplitSpec

    @property
    def splits(self) -> dict[str, SplitSpec]:
        return {"train": self.train, "test": self.test}


@dataclass(frozen=True)
class RawSplit:
    """A split as its source orders it: images uint8 [N, H, W, C], labels uint8 [N]."""

    images: Bytes
    labels: Bytes


RawDataset = dict[str, RawSplit]


def sha256_of(images: Bytes, labels: Bytes) -> str:
    """SHA-256 over all image bytes followed by all label bytes; both must be C-contiguous."""
    digest = hashlib.sha256(images.data)
    digest.update(labels.data)
    return digest.hexdigest()


def canonical_order(images: Bytes, labels: Bytes) -> npt.NDArray[np.intp]:
    """The permutation that sorts by (label, SHA-256 of the image's bytes).

    Equal images keep equal bytes, so ties are harmless.
    """
    digests = b"".join(hashlib.sha256(image.data).digest() for image in images.reshape(len(images), -1))
    words = np.frombuffer(digests, dtype=">u8").reshape(len(images), 4)
    return np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0], labels))


def canonical_split(raw: RawSplit) -> Split:
    """`raw` in canonical order, with its hash."""
    order = canonical_order(np.ascontiguousarray(raw.images), raw.labels)
    images, labels = raw.images[order], raw.labels[order]
    images.setflags(write=False)
    labels.setflags(write=False)
    return Split(images, labels, sha256_of(images, labels))


def verified_split(raw: RawSplit, spec: Spec, split: str) -> Split:
    """`raw` in canonical order, or a DataError if it is not the split that `spec` describes."""
    want = spec.splits[split]
    shape = (want.count, *spec.image_shape)
    if raw.images.shape != shape or raw.labels.shape != (want.count,):
        raise DataError(
            f"{spec.name} {split}: expected images {shape} and {want.count} labels, "
            f"found {raw.images.shape} and {len(raw.labels)}: take it from another source"
        )
    if want.count and int(raw.labels.max()) >= len(spec.classes):
        raise DataError(
            f"{spec.name} {split}: expected labels 0 to {len(spec.classes) - 1}, found {int(raw.labels.max())}: "
            "the file is damaged or another data set"
        )
    result = canonical_split(raw)
    if result.sha256 != want.sha256:
        raise DataError(
            f"{spec.name} {split}: expected SHA-256 {want.sha256}, found {result.sha256}: "
            "these are other images or labels; take them from another source"
        )
    return result


def channel_statistics(images: Bytes) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of uint8 [N, H, W, C], in units where 255 is 1."""
    channels = images.shape[-1]
    total, squares = [0] * channels, [0] * channels
    for start in range(0, len(images), CHUNK):
        pixels = images[start : start + CHUNK].reshape(-1, channels).astype(np.uint16)
        for c in range(channels):
            total[c] += int(pixels[:, c].sum(dtype=np.uint64))
            squares[c] += int((pixels[:, c] * pixels[:, c]).sum(dtype=np.uint64))  # 255 * 255 fits uint16
    n = images.size // channels
    mean = tuple(float(Fraction(s, 255 * n)) for s in total)
    std = tuple(math.sqrt(Fraction(n * q - s * s, (255 * n) ** 2)) for s, q in zip(total, squares, strict=True))
    return mean, std


def dataset_of(spec: Spec, train: Split, test: Split) -> Dataset:
    """The data set of two verified splits, with its statistics."""
    mean, std = channel_statistics(train.images)
    return Dataset(spec.name, train, test, spec.classes, mean, std)
