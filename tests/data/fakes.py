"""Small data sets in the official formats: the layouts of the real archives, with a few images per class."""

import gzip
import hashlib
import io
import random
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data import cifar100, fashion_mnist
from data.canonical import RawDataset, RawSplit, Spec, SplitSpec
from data.sources import Source

COUNTS = {"cifar100": (200, 100), "fashion_mnist": (40, 20)}


def naive_sha256(images: np.ndarray, labels: np.ndarray) -> str:
    """The canonical hash, by the definition and without numpy's sorting."""
    rows = sorted(
        (int(label), hashlib.sha256(image.tobytes()).digest(), image.tobytes()) for image, label in zip(images, labels, strict=True)
    )
    digest = hashlib.sha256(b"".join(image for _, _, image in rows))
    digest.update(bytes(label for label, _, _ in rows))
    return digest.hexdigest()


def make_raw(spec: Spec, seed: int = 0) -> RawDataset:
    """Random images in random order, each class equally often."""
    rng = np.random.default_rng(seed)
    raw = {}
    for split, want in spec.splits.items():
        images = rng.integers(0, 256, (want.count, *spec.image_shape), dtype=np.uint8)
        labels = rng.permutation(np.arange(want.count) % len(spec.classes)).astype(np.uint8)
        raw[split] = RawSplit(images, labels)
    return raw


def small(real: Spec, seed: int = 0) -> tuple[Spec, RawDataset]:
    """A spec like `real` with few images, and data that meet it."""
    counted = replace(
        real,
        train=SplitSpec(COUNTS[real.name][0], ""),
        test=SplitSpec(COUNTS[real.name][1], ""),
    )
    raw = make_raw(counted, seed)
    hashes = {split: naive_sha256(r.images, r.labels) for split, r in raw.items()}
    spec = replace(
        counted,
        train=replace(counted.train, sha256=hashes["train"]),
        test=replace(counted.test, sha256=hashes["test"]),
    )
    return spec, raw


def small_cifar100() -> tuple[Spec, RawDataset]:
    return small(cifar100.SPEC)


def small_fashion_mnist() -> tuple[Spec, RawDataset]:
    return small(fashion_mnist.SPEC)


def source_of(spec: Spec, offers: tuple = ()) -> Source:
    module = {"cifar100": cifar100, "fashion_mnist": fashion_mnist}[spec.name]
    return Source(spec, module.find, module.read, module.EXPECTED, offers)


def records(raw: RawSplit) -> bytes:
    """CIFAR-100's binary records: coarse label, fine label, channel-major pixels."""
    planes = raw.images.transpose(0, 3, 1, 2).reshape(len(raw.images), -1)
    return np.hstack([raw.labels[:, None] // 5, raw.labels[:, None], planes]).astype(np.uint8).tobytes()


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def binary_files(raw: RawDataset) -> dict[str, bytes]:
    return {f"cifar-100-binary/{split}.bin": records(raw[split]) for split in raw}


def png_files(raw: RawDataset, *, coarse: bool = True) -> dict[str, bytes]:
    files = {}
    for split, (images, labels) in {s: (r.images, r.labels) for s, r in raw.items()}.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            middle = f"group_{label // 5}/" if coarse else ""
            files[f"cifar100/{split}/{middle}{cifar100.CLASSES[label]}/{number:05d}.png"] = png(image)
    return files


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_files(raw: RawDataset, *, compressed: bool = True, dotted: bool = False) -> dict[str, bytes]:
    files = {}
    for split, (images_stem, labels_stem) in fashion_mnist.STEMS.items():
        for stem, array in ((images_stem, raw[split].images[..., 0]), (labels_stem, raw[split].labels)):
            name = stem.replace("-idx", ".idx") if dotted else stem
            content = idx(array)
            files[name + ".gz" if compressed else name] = gzip.compress(content, mtime=0) if compressed else content
    return files


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz", shuffled: int | None = None) -> bytes:
    names = list(files)
    if shuffled is not None:
        random.Random(shuffled).shuffle(names)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def leftovers(root: Path) -> list[str]:
    """What lies under a root beside lock files: nothing, unless something was left behind."""
    return sorted(p.name for p in root.iterdir() if not p.name.endswith(".lock"))
