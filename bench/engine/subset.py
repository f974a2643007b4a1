"""Class-balanced subsets and splits, as indices into a data set in canonical order."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
Indices = NDArray[np.int64]


def first_per_class(labels: Labels, count: int | None) -> Indices:
    """Indices of a class-balanced subset: the first images of each class.

    The canonical order within a class follows a hash of the image, so "the first" is as good as a random draw, and needs no seed:
    every seed and every experiment sees the same images.

    Args:
        labels: ``[N]``, class numbers from 0, each present.
        count: the subset's size; where it is no multiple of the class count, the first classes give one image more. None: all.

    Returns:
        ``[count]``, ascending.

    Raises:
        ValueError: some class has too few images.
    """
    if count is None:
        return np.arange(len(labels))
    classes = int(labels.max()) + 1
    quotas = np.full(classes, count // classes) + (np.arange(classes) < count % classes)
    available = np.bincount(labels, minlength=classes)
    if (quotas > available).any():
        short = int(np.argmax(quotas > available))
        raise ValueError(f"subset of {count}: class {short} has {available[short]} images, {quotas[short]} are needed")
    chosen = [np.flatnonzero(labels == label)[:quota] for label, quota in enumerate(quotas)]
    return np.sort(np.concatenate(chosen))


def stratified_split(labels: Labels, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split indices into a part to train on and a part to validate on, with the same share of each class.

    Args:
        labels: ``[N]``, class numbers from 0.
        fraction: share of the images to validate on; their number is ``round(fraction * N)``.
        seed: draws which images, and which classes give one more where the share is no whole number.

    Returns:
        Training and validation indices, ascending, disjoint, together all of ``range(N)``.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    classes = int(labels.max()) + 1
    shares = np.bincount(labels, minlength=classes) * fraction
    quotas = np.floor(shares).astype(np.int64)
    wanted = round(fraction * len(labels))
    order = generator.permutation(classes)
    by_remainder = order[np.argsort(-(shares - quotas)[order], kind="stable")]
    quotas[by_remainder[: wanted - quotas.sum()]] += 1
    held_out = [generator.permutation(np.flatnonzero(labels == label))[:quota] for label, quota in enumerate(quotas)]
    validation = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), validation), validation
