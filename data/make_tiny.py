"""The maker of tiny_fashion_mnist.

    python -m data.make_tiny [ROOT]      writes the embedded files again from the full set prepared under ROOT

Per class the first 200 train and 100 test images of the canonical order, which within a class is the order of SHA-256
digests, and so as good as random. The same contents every time; the compressed bytes are those of one zlib version.
"""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np

from . import fashion_mnist
from .canonical import Bytes, Split
from .errors import DataError
from .roots import resolve
from .store import open_prepared
from .tiny import FOLDER, PER_CLASS


def first_per_class(split: Split, count: int, classes: int) -> tuple[Bytes, Bytes]:
    """Images and labels of the first `count` images of each class, in the canonical order of `split`."""
    chosen = np.concatenate([np.flatnonzero(split.labels == label)[:count] for label in range(classes)])
    return split.images[chosen], split.labels[chosen]


def write_idx_gz(path: Path, array: Bytes) -> None:
    """A uint8 array as a compressed idx file, without the time or name that would change its bytes."""
    header = bytes((0, 0, fashion_mnist.UINT8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0))


def make(root: Path, folder: Path = FOLDER) -> None:
    """Write the four idx files of the subset from the full set prepared under `root`.

    DataError if it is not prepared.
    """
    full = open_prepared(fashion_mnist.SPEC, root)
    folder.mkdir(exist_ok=True)
    for split, (images_stem, labels_stem) in fashion_mnist.STEMS.items():
        images, labels = first_per_class(getattr(full, split), PER_CLASS[split], len(full.classes))
        write_idx_gz(folder / f"{images_stem}.gz", images[..., 0])
        write_idx_gz(folder / f"{labels_stem}.gz", labels)


if __name__ == "__main__":
    try:
        make(resolve(sys.argv[1] if len(sys.argv) > 1 else None))
    except DataError as error:
        sys.exit(f"{error}: run `make data` first")
