"""One order, one hash, exact statistics."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from data.canonical import RawSplit, channel_statistics, dataset_of, verified_split
from data.errors import DataError

from .fakes import small_cifar100, small_fashion_mnist


@pytest.mark.parametrize("make", [small_cifar100, small_fashion_mnist])
def test_any_order_gives_the_hash_of_the_definition(make):
    spec, raw = make()
    order = np.random.default_rng(7).permutation(spec.train.count)
    shuffled = RawSplit(raw["train"].images[order], raw["train"].labels[order])
    first, second = verified_split(raw["train"], spec, "train"), verified_split(shuffled, spec, "train")
    assert first.sha256 == second.sha256 == spec.train.sha256
    assert np.array_equal(first.images, second.images)
    assert np.all(np.diff(first.labels.astype(int)) >= 0)


def test_images_keep_their_labels():
    spec, raw = small_cifar100()
    label_of = {image.tobytes(): label for image, label in zip(raw["train"].images, raw["train"].labels, strict=True)}
    split = verified_split(raw["train"], spec, "train")
    assert [label_of[image.tobytes()] for image in split.images] == split.labels.tolist()


def test_a_moved_label_is_another_data_set():
    spec, raw = small_cifar100()
    labels = raw["train"].labels.copy()
    labels[[0, 1]] = labels[[1, 0]]
    assert labels[0] != labels[1]
    with pytest.raises(DataError, match="expected SHA-256"):
        verified_split(RawSplit(raw["train"].images, labels), spec, "train")


def test_wrong_count_and_label_out_of_range():
    spec, raw = small_fashion_mnist()
    images, labels = raw["test"].images, raw["test"].labels.copy()
    with pytest.raises(DataError, match="expected images"):
        verified_split(RawSplit(images[:-1], labels[:-1]), spec, "test")
    labels[3] = 10
    with pytest.raises(DataError, match="expected labels 0 to 9, found 10"):
        verified_split(RawSplit(images, labels), spec, "test")


def test_statistics_are_exact():
    images = np.random.default_rng(1).integers(0, 256, (5000, 4, 4, 3), dtype=np.uint8)  # more than one chunk
    mean, std = channel_statistics(images)
    for c in range(3):
        counts = Counter(images[..., c].ravel().tolist())
        exact_mean = Fraction(sum(value * n for value, n in counts.items()), counts.total())
        variance = sum(n * (value - exact_mean) ** 2 for value, n in counts.items()) / counts.total()
        assert mean[c] == float(exact_mean / 255)
        assert std[c] == math.sqrt(variance / 255**2)


def test_statistics_agree_with_floating_point():
    spec, raw = small_cifar100()
    train, test = (verified_split(raw[s], spec, s) for s in ("train", "test"))
    dataset = dataset_of(spec, train, test)
    pixels = train.images.astype(np.float64) / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-12)
    assert dataset.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-12)


def test_arrays_are_read_only():
    spec, raw = small_cifar100()
    split = verified_split(raw["test"], spec, "test")
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0
