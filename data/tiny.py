"""tiny_fashion_mnist: a balanced, real subset of Fashion-MNIST that ships with the suite.

Four idx files beside the licence (MIT) in `tiny_fashion_mnist/`; `python -m data.make_tiny` made them.
"""

from dataclasses import replace
from pathlib import Path

from . import fashion_mnist
from .canonical import Dataset, SplitSpec, dataset_of, verified_split

NAME = "tiny_fashion_mnist"
FOLDER = Path(__file__).parent / NAME
PER_CLASS = {"train": 200, "test": 100}
SPEC = replace(
    fashion_mnist.SPEC,
    name=NAME,
    train=SplitSpec(2_000, "b785046f79018f34cb1bfca41e6bdae05a9791e60b96392e01db16a8b6732d60"),
    test=SplitSpec(1_000, "605f16fe147b89e5883a6f47c9ca36d09b817ad157652cdd6ba0ac9c079d7cad"),
)


def load() -> Dataset:
    """The embedded subset, verified: images uint8 [2000 or 1000, 28, 28, 1]. DataError if its files were changed."""
    raw = fashion_mnist.read(FOLDER, SPEC)
    return dataset_of(SPEC, verified_split(raw["train"], SPEC, "train"), verified_split(raw["test"], SPEC, "test"))
