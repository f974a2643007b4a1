"""Fashion-MNIST's idx files, compressed or not; headers that lie."""

import gzip
import struct

import numpy as np
import pytest

from data import fashion_mnist
from data.canonical import verified_split
from data.errors import DataError

from .fakes import idx, idx_files, small_fashion_mnist, write_files

SPEC, RAW = small_fashion_mnist()
TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
def test_every_packaging_is_found_and_gives_the_canonical_hashes(tmp_path, compressed, dotted):
    write_files(tmp_path / "some" / "where", idx_files(RAW, compressed=compressed, dotted=dotted))
    assert list(fashion_mnist.find(tmp_path)) == [tmp_path / "some" / "where"]
    raw = fashion_mnist.read(tmp_path / "some" / "where", SPEC)
    for split in ("train", "test"):
        assert raw[split].images.shape[1:] == (28, 28, 1)
        assert verified_split(raw[split], SPEC, split).sha256 == SPEC.splits[split].sha256


def test_three_files_are_not_the_data_set(tmp_path):
    files = idx_files(RAW)
    files.pop(f"{TRAIN_LABELS}.gz")
    write_files(tmp_path, files)
    assert list(fashion_mnist.find(tmp_path)) == []
    with pytest.raises(DataError, match="has no train-labels-idx1-ubyte"):
        fashion_mnist.read(tmp_path, SPEC)


def header(*sizes, kind=8):
    return bytes((0, 0, kind, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes)


PIXELS = RAW["train"].images.tobytes()
BAD_IDX = {
    "truncated": (header(40, 28, 28) + PIXELS[:-1], "promises 31,360 bytes, found 31,359: it is truncated"),
    "cut in the header": (header(40, 28, 28)[:9], "truncated within its header"),
    "empty": (b"", "expected an idx file that begins 00000803"),
    "bytes after the end": (header(40, 28, 28) + PIXELS + b"\0", "more than 31,376 bytes"),
    "says more images": (header(41, 28, 28) + PIXELS, "its header says .41, 28, 28."),
    "says fewer images": (header(39, 28, 28) + PIXELS, "its header says .39, 28, 28."),
    "says four billion images": (header(2**32 - 1, 28, 28) + PIXELS, "its header says .4294967295, 28, 28."),
    "another shape of the same size": (header(40, 14, 56) + PIXELS, "its header says .40, 14, 56."),
    "another type": (header(40, 28, 28, kind=0x0D) + PIXELS, "begins 00000803, found 00000d03"),
    "labels under the images' name": (idx(RAW["train"].labels), "begins 00000803, found 00000801"),
    "an HTML page": (b"<!doctype html><title>404</title>", "HTML page"),
}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", BAD_IDX)
def test_bad_idx_files(tmp_path, name, compressed):
    content, message = BAD_IDX[name]
    files = idx_files(RAW, compressed=False)
    files[TRAIN_IMAGES] = content
    if compressed and name != "an HTML page":
        files = {f"{stem}.gz": gzip.compress(body) for stem, body in files.items()}
    write_files(tmp_path, files)
    with pytest.raises(DataError, match=message):
        fashion_mnist.read(tmp_path, SPEC)


@pytest.mark.parametrize("cut", [1, 9, 1000])
def test_a_truncated_gzip(tmp_path, cut):
    files = idx_files(RAW)
    files[f"{TRAIN_IMAGES}.gz"] = files[f"{TRAIN_IMAGES}.gz"][:-cut]
    with pytest.raises(DataError, match="truncated or damaged"):
        fashion_mnist.read(write_files(tmp_path, files), SPEC)


def test_a_label_out_of_range(tmp_path):
    labels = RAW["train"].labels.copy()
    labels[5] = 10
    files = {**idx_files(RAW), f"{TRAIN_LABELS}.gz": gzip.compress(idx(labels))}
    raw = fashion_mnist.read(write_files(tmp_path, files), SPEC)
    with pytest.raises(DataError, match="expected labels 0 to 9, found 10"):
        verified_split(raw["train"], SPEC, "train")


def test_the_digits_under_the_same_names_are_refused(tmp_path):
    """MNIST's files have the same names, sizes and headers; only the hash tells."""
    other = RAW["train"].images[::-1].copy()
    other[0] = 255 - other[0]
    files = {**idx_files(RAW), f"{TRAIN_IMAGES}.gz": gzip.compress(idx(np.ascontiguousarray(other[..., 0])))}
    raw = fashion_mnist.read(write_files(tmp_path, files), SPEC)
    with pytest.raises(DataError, match="these are other images or labels"):
        verified_split(raw["train"], SPEC, "train")
