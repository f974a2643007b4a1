"""Which data sets are prepared on disk, how each is recognised and read, and where it is fetched from.

Hashes: CIFAR-100's binary archive as published on its page, Fashion-MNIST's files as published in its README, the weights'
own SHA-256, which begins with the digits in their file name. fast.ai publishes no hash of its whole archive; the
canonical SHA-256 of the arrays decides about it, as it does about every source.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import cifar100, fashion_mnist
from .canonical import RawDataset, Spec


@dataclass(frozen=True)
class RemoteFile:
    """One file and the addresses that serve these very bytes.

    `known_hash` is "<algorithm>:<hex>", or None if none is published.
    """

    filename: str
    urls: tuple[str, ...]
    known_hash: str | None
    max_bytes: int


@dataclass(frozen=True)
class Source:
    """A data set: what it must be, how to recognise and read it, and alternative sets of files to fetch, best first."""

    spec: Spec
    find: Callable[[Path], Iterator[Path]]
    read: Callable[[Path, Spec], RawDataset]
    expected: str
    offers: tuple[tuple[RemoteFile, ...], ...]


CIFAR100_BINARY = RemoteFile(
    "cifar-100-binary.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
    "md5:03b5dce01913d631647c71ecec9e9cb8",
    200 * 2**20,
)
CIFAR100_PNG = RemoteFile(
    "cifar100.tgz",
    ("https://s3.amazonaws.com/fast-ai-imageclas/cifar100.tgz",),
    None,
    200 * 2**20,
)
FASHION_MNIST_HOSTS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
SOURCES = {
    "cifar100": Source(cifar100.SPEC, cifar100.find, cifar100.read, cifar100.EXPECTED, ((CIFAR100_BINARY,), (CIFAR100_PNG,))),
    "fashion_mnist": Source(
        fashion_mnist.SPEC,
        fashion_mnist.find,
        fashion_mnist.read,
        fashion_mnist.EXPECTED,
        (
            tuple(
                RemoteFile(name, tuple(host + name for host in FASHION_MNIST_HOSTS), f"md5:{md5}", 64 * 2**20)
                for name, md5 in FASHION_MNIST_MD5.items()
            ),
        ),
    ),
}
IMAGENET_WEIGHTS = RemoteFile(
    "convnext_tiny-983f1562.pth",
    ("https://download.pytorch.org/models/convnext_tiny-983f1562.pth",),
    "sha256:983f1562536e84ff750a1576fb08e54de751dbf2e17c0d8a4a13704341fdcd3d",
    128 * 2**20,
)
IMAGENET_WEIGHTS_MIB = 109.119  # the size that torchvision states, to three decimals
