"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28 x 28, 10 classes, as four idx files.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
https://arxiv.org/abs/1708.07747, https://github.com/zalandoresearch/fashion-mnist (MIT licence).
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .archive import read_file
from .canonical import Bytes, RawDataset, RawSplit, Spec, SplitSpec
from .errors import DataError
from .walk import folders

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)  # the order of the official README
SPEC = Spec(
    name="fashion_mnist",
    classes=CLASSES,
    image_shape=(28, 28, 1),
    train=SplitSpec(60_000, "b5e480b8e56d40a5268664e704f9122c8d8a9416affcf8b983f1cc90717baed1"),
    test=SplitSpec(10_000, "66db2877a409ead12e98365c72766511b1ae26ed2f3d8dd89c4107408976d784"),
)
STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
EXPECTED = "the four idx files (train-images-idx3-ubyte, ..., with or without .gz)"
UINT8 = 0x08  # the idx code of unsigned bytes


def find(top: Path) -> Iterator[Path]:
    """Folders under `top` that hold all four idx files."""
    for folder in folders(top):
        names = set(folder.files)
        if all(names & set(_spellings(stem)) for pair in STEMS.values() for stem in pair):
            yield folder.path


def read(folder: Path, spec: Spec = SPEC) -> RawDataset:
    """The four idx files of `folder`, compressed or not, in their own order.

    Raises DataError for a truncated file, a header that does not say what `spec` expects, or one that lies about the
    length.
    """
    raw: RawDataset = {}
    for split, (images_stem, labels_stem) in STEMS.items():
        count = spec.splits[split].count
        height, width, channels = spec.image_shape
        images = read_idx(_existing(folder, images_stem), (count, height, width))
        labels = read_idx(_existing(folder, labels_stem), (count,))
        raw[split] = RawSplit(images.reshape(count, height, width, channels), labels)
    return raw


def read_idx(path: Path, shape: tuple[int, ...]) -> Bytes:
    """A uint8 array of just this shape from an idx file, compressed or not. DataError for anything else.

    The format: 00 00 08 <number of dimensions>, each size as a big-endian uint32, then the bytes, row-major.
    """
    header_bytes = 4 + 4 * len(shape)
    content = read_file(path, header_bytes + math.prod(shape))  # a longer file ends here, with an error
    magic = bytes((0, 0, UINT8, len(shape)))
    if content[:4] != magic:
        raise DataError(f"{path}: expected an idx file that begins {magic.hex()}, found {content[:4].hex()}: get it again")
    if len(content) < header_bytes:
        raise DataError(f"{path} is truncated within its header: delete it and get it again")
    found = struct.unpack(f">{len(shape)}I", content[4:header_bytes])
    if found != shape:
        raise DataError(f"{path}: expected sizes {shape}, its header says {found}: it is another file, or damaged")
    if len(content) != header_bytes + math.prod(shape):
        raise DataError(
            f"{path}: its header promises {math.prod(shape):,} bytes, found {len(content) - header_bytes:,}: "
            "it is truncated; delete it and get it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(shape)


def _spellings(stem: str) -> tuple[str, ...]:
    dotted = stem.replace("-idx", ".idx")  # how some unpackers write it
    return (f"{stem}.gz", stem, f"{dotted}.gz", dotted)


def _existing(folder: Path, stem: str) -> Path:
    for name in _spellings(stem):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} has no {stem}, compressed or not: expected {EXPECTED}")
