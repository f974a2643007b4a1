"""The two data sets that need no preparation, no root and no network."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import data
from data import fashion_mnist, synthetic, tiny
from data.canonical import Dataset
from data.errors import DataError

from .fakes import naive_sha256


def linear_probe(dataset: Dataset, ridge: float = 1000.0) -> float:
    """Test accuracy of ridge regression from pixels (-0.5 to 0.5) to one-hot labels."""
    train, test = (s.images.reshape(len(s.images), -1).astype(np.float32) / 255 - 0.5 for s in (dataset.train, dataset.test))
    targets = np.eye(len(dataset.classes), dtype=np.float32)[dataset.train.labels]
    weights = np.linalg.solve(train.T @ train + ridge * np.eye(train.shape[1], dtype=np.float32), train.T @ targets)
    return float(((test @ weights).argmax(1) == dataset.test.labels).mean())


@pytest.mark.parametrize("name", ["tiny_fashion_mnist", "synthetic_cifar100"])
def test_loads_without_a_root(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DATASETS", str(tmp_path / "nowhere"))
    dataset = data.load(name)
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == split.labels.dtype == np.uint8
        assert split.sha256 == naive_sha256(split.images, split.labels)
        assert set(np.bincount(split.labels)) == {len(split.labels) // len(dataset.classes)}  # balanced
    assert not (tmp_path / "nowhere").exists()
    assert data.status(name).state == "ready"


def test_tiny_fashion_mnist_is_small_and_licensed():
    dataset = data.load("tiny_fashion_mnist")
    assert dataset.train.images.shape == (2000, 28, 28, 1)
    assert dataset.test.images.shape == (1000, 28, 28, 1)
    assert dataset.classes == fashion_mnist.CLASSES
    assert sum(p.stat().st_size for p in tiny.FOLDER.iterdir()) <= 1_500_000
    licence = (tiny.FOLDER / "LICENSE").read_text()
    assert "MIT" in licence
    assert "Copyright (c) 2017 Zalando SE" in licence


def test_tiny_fashion_mnist_is_real_enough_to_learn():
    assert 0.6 < linear_probe(data.load("tiny_fashion_mnist")) < 0.95


def test_tiny_fashion_mnist_notices_a_change(tmp_path, monkeypatch):
    for path in tiny.FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-1])
    monkeypatch.setattr(tiny, "FOLDER", tmp_path)
    with pytest.raises(DataError, match="truncated or damaged"):
        data.load("tiny_fashion_mnist")
    assert data.status("tiny_fashion_mnist").state == "damaged"


def test_synthetic_cifar100_is_learnable_but_not_by_a_linear_map():
    dataset = data.load("synthetic_cifar100")
    assert dataset.train.images.shape == (10_000, 32, 32, 3)
    assert dataset.test.images.shape == (2_000, 32, 32, 3)
    assert len(set(dataset.classes)) == 100
    assert 0.10 < linear_probe(dataset) < 0.50  # chance is 0.01


def test_synthetic_cifar100_takes_under_two_seconds():
    start = time.process_time()  # this process's own time: a busy machine is not this test's business
    data.load("synthetic_cifar100")
    assert time.process_time() - start < 2


def test_synthetic_cifar100_has_no_image_twice():
    dataset = data.load("synthetic_cifar100")
    images = np.concatenate([dataset.train.images, dataset.test.images])
    assert len({image.tobytes() for image in images}) == 12_000


def test_synthetic_bytes_come_from_the_stable_stream():
    """The first bytes of PCG64's raw stream, in little-endian order: what every numpy and machine must give."""
    words = np.random.PCG64(synthetic.SEED).random_raw(2)
    expected = b"".join(int(word).to_bytes(8, "little") for word in words)
    assert synthetic._random_bytes(np.random.PCG64(synthetic.SEED), 13).tobytes() == expected[:13]


def test_loading_imports_neither_pooch_nor_requests_nor_pillow():
    code = (
        "import sys, data; data.load('tiny_fashion_mnist'); import data.fetch; "
        "print(sorted({'pooch', 'requests', 'PIL', 'rich', 'torch'} & set(sys.modules)))"
    )
    root = Path(data.__file__).parents[1]
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
