"""CIFAR-100 from every packaging gives the same arrays; anything else gives one clear line."""

import gzip

import numpy as np
import pytest

from data import cifar100
from data.canonical import verified_split
from data.errors import DataError

from .fakes import binary_files, png, png_files, records, small_cifar100, tar_bytes, write_files, zip_bytes

SPEC, RAW = small_cifar100()


def packagings():
    """name -> function of a folder that writes the packaging there and returns what `read` is given."""

    def folder(files, name):
        return lambda tmp: write_files(tmp, files) / name

    def file(content, name):
        return lambda tmp: write_files(tmp, {name: content}) / name

    with_mac_files = {**binary_files(RAW), "cifar-100-binary/._train.bin": b"resource fork"}
    return {
        "binary archive": file(tar_bytes(binary_files(RAW)), "cifar-100-binary.tar.gz"),
        "binary archive with a Mac's files": file(tar_bytes(with_mac_files), "cifar-100-binary.tar.gz"),
        "binary archive unpacked by gunzip": file(tar_bytes(binary_files(RAW), "w"), "cifar-100-binary.tar"),
        "binary folder": folder(binary_files(RAW), "cifar-100-binary"),
        "PNG archive": file(tar_bytes(png_files(RAW), shuffled=3), "cifar100.tgz"),
        "PNG archive without coarse folders": file(tar_bytes(png_files(RAW, coarse=False)), "cifar100.tgz"),
        "PNG zip": file(zip_bytes(png_files(RAW)), "cifar100.zip"),
        "PNG folder": folder(png_files(RAW), "cifar100"),
        "PNG folder without coarse folders": folder(png_files(RAW, coarse=False), "cifar100"),
    }


@pytest.mark.parametrize("name", packagings())
def test_every_packaging_is_found_and_gives_the_canonical_hashes(tmp_path, name):
    source = packagings()[name](tmp_path)
    assert list(cifar100.find(tmp_path)) == [source]
    raw = cifar100.read(source, SPEC)
    for split in ("train", "test"):
        assert verified_split(raw[split], SPEC, split).sha256 == SPEC.splits[split].sha256


def test_pixels_and_classes_survive_the_record_layout():
    first = cifar100.decode_records(records(RAW["train"]), SPEC, "train", "train.bin")
    assert np.array_equal(first.images, RAW["train"].images)
    assert np.array_equal(first.labels, RAW["train"].labels)
    assert len(cifar100.CLASSES) == 100
    assert list(cifar100.CLASSES) == sorted(set(cifar100.CLASSES))


def broken(split_bytes):
    return {**binary_files(RAW), "cifar-100-binary/train.bin": split_bytes}


GOOD = records(RAW["train"])
BAD_RECORDS = {
    "truncated": (GOOD[:-1], "expected 614,800 bytes .* found 614,799"),
    "cut at a record": (GOOD[:-3074], "found 611,726"),
    "too long": (GOOD + b"\0", "614,801|more than 614,800"),
    "fine label 100": (GOOD[:1] + b"\x64" + GOOD[2:], "expected fine labels below 100, found 100"),
    "coarse label 20": (b"\x14" + GOOD[1:], "expected coarse labels below 20, found 20"),
    "HTML": (b"<html><body>404</body></html>", "HTML page|expected 614,800 bytes"),
}


@pytest.mark.parametrize("form", ["archive", "folder"])
@pytest.mark.parametrize("name", BAD_RECORDS)
def test_bad_records(tmp_path, name, form):
    content, message = BAD_RECORDS[name]
    if form == "archive":
        source = tmp_path / "cifar-100-binary.tar.gz"
        source.write_bytes(tar_bytes(broken(content)))
    else:
        source = write_files(tmp_path, broken(content)) / "cifar-100-binary"
    with pytest.raises(DataError, match=message):
        cifar100.read(source, SPEC)


def test_the_python_edition_is_never_opened(tmp_path):
    files = {"cifar-100-python/train": b"\x80\x04 a pickle", "cifar-100-python/test": b"\x80\x04", "cifar-100-python/meta": b""}
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(tar_bytes(files))
    assert list(cifar100.find(tmp_path)) == []
    renamed = path.rename(tmp_path / "cifar-100.tar.gz")
    with pytest.raises(DataError, match="pickle and is never opened"):
        cifar100.read(renamed, SPEC)


def changed(files, change):
    """PNG files of which one has another name or content."""
    name = "cifar100/train/group_0/apple"
    victim = next(path for path in files if path.startswith(name))
    content = files.pop(victim)
    files.update(change(victim, content))
    return files


BAD_PNG = {
    "missing": (lambda path, content: {}, "expected 200 train images, found 199"),
    "one more": (lambda path, content: {path: content, "cifar100/train/group_0/apple/x.png": content}, "more than 200 train"),
    "unknown class": (lambda path, content: {"cifar100/train/group_0/unicorn/x.png": content}, "not CIFAR-100"),
    "unknown split": (lambda path, content: {"cifar100/extra/group_0/apple/x.png": content}, "not CIFAR-100"),
    "another size": (lambda path, content: {path: png(np.zeros((33, 32, 3), np.uint8))}, "expected a 32 x 32 RGB image"),
    "grey": (lambda path, content: {path: png(np.zeros((32, 32), np.uint8))}, "expected a 32 x 32 RGB image"),
    "truncated": (lambda path, content: {path: content[: len(content) // 2]}, "not a readable PNG"),
    "a JPEG's head": (lambda path, content: {path: b"\xff\xd8\xff\xe0" + content}, "not a readable PNG"),
    "huge": (lambda path, content: {path: content + bytes(100_000)}, "too many for a PNG"),
}


@pytest.mark.parametrize("form", ["archive", "folder"])
@pytest.mark.parametrize("name", BAD_PNG)
def test_bad_png_sets(tmp_path, name, form):
    change, message = BAD_PNG[name]
    files = changed(png_files(RAW), change)
    if form == "archive":
        source = tmp_path / "cifar100.tgz"
        source.write_bytes(tar_bytes(files))
    else:
        source = write_files(tmp_path, files) / "cifar100"
        if name == "unknown split":
            message = "expected 200 train images, found 199"  # a folder is read by its train and test alone
    with pytest.raises(DataError, match=message):
        cifar100.read(source, SPEC)


def test_an_archive_without_the_data(tmp_path):
    path = tmp_path / "cifar100.tgz"
    path.write_bytes(tar_bytes({"cifar-100-binary/train.bin": GOOD}))
    with pytest.raises(DataError, match="found train: it is another archive, or not complete"):
        cifar100.read(path, SPEC)
    path.write_bytes(gzip.compress(b"not a tar" * 1000))
    with pytest.raises(DataError, match="truncated or damaged"):
        cifar100.read(path, SPEC)
