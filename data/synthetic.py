"""synthetic_cifar100: 100 classes of 32 x 32 RGB patterns from a seed, for tests and for machines without the real set.

Every class owns a coarse pattern. An image shows its class's pattern moved by up to a few pixels each way, mixed with a coarse
pattern of its own and with pixel noise: a linear probe on the pixels beats chance by far, and stays far from solving it, because
motion and mixing are what convolutions undo and linear maps do not.

All arithmetic is on integers, and the random bits are PCG64's raw stream, which numpy keeps the same for ever (its
distributions it may change), so the bytes are the same on every machine; their SHA-256 is checked at every load.
"""

import numpy as np
import numpy.typing as npt

from .canonical import Dataset, RawSplit, Spec, SplitSpec, dataset_of, verified_split

NAME = "synthetic_cifar100"
SEED = 20090408
CELL = 4  # pixels per side of a pattern's cells
SHIFT = 6  # an image's pattern moves by -SHIFT to +SHIFT pixels along each axis
SPEC = Spec(
    name=NAME,
    classes=tuple(f"pattern_{label:02d}" for label in range(100)),
    image_shape=(32, 32, 3),
    train=SplitSpec(10_000, "5bc05d18b318824b4a815827e2c61c64e3b8959b9b71b1fd680427adfa5c64a7"),
    test=SplitSpec(2_000, "ef398c07d806a561f1e37531603cfa019b0cb6eb1df169e5836e235c058bec42"),
)

Ints = npt.NDArray[np.int16]


def load() -> Dataset:
    """The data set, generated in memory. DataError if this machine does not produce the pinned bytes."""
    bits = np.random.PCG64(SEED)
    patterns = _cells(bits, len(SPEC.classes))
    train = verified_split(_generate(bits, patterns, SPEC.train.count), SPEC, "train")
    test = verified_split(_generate(bits, patterns, SPEC.test.count), SPEC, "test")
    return dataset_of(SPEC, train, test)


def _random_bytes(bits: np.random.PCG64, *shape: int) -> npt.NDArray[np.uint8]:
    count = int(np.prod(shape))
    words = bits.random_raw(-(-count // 8)).astype("<u8")  # little-endian, so that the bytes are the same everywhere
    return np.frombuffer(words.tobytes(), dtype=np.uint8)[:count].reshape(shape)


def _cells(bits: np.random.PCG64, count: int) -> Ints:
    """`count` coarse patterns [count, 8, 8, 3], -128 to 127."""
    side = 32 // CELL
    return _random_bytes(bits, count, side, side, 3).astype(np.int16) - 128


def _generate(bits: np.random.PCG64, patterns: Ints, count: int) -> RawSplit:
    """`count` images, the classes in equal numbers."""
    labels = (np.arange(count) % len(patterns)).astype(np.uint8)
    moves = _random_bytes(bits, count, 2).astype(np.int64) % (2 * SHIFT + 1)
    place = np.arange(32)
    rows = (place + moves[:, :1]) % 32 // CELL  # [count, 32]: the cell that each row of the moved pattern shows
    columns = (place + moves[:, 1:]) % 32 // CELL
    noise = _random_bytes(bits, count, 32, 32, 3).astype(np.int16) - 128
    cells = 2 * patterns[labels] + 3 * _cells(bits, count)
    mixed = cells[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    mixed += noise
    images = np.clip((mixed >> 3) + 128, 0, 255).astype(np.uint8)
    return RawSplit(images, labels)
