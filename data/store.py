"""Prepared data sets on disk: memory-mappable arrays that appear in one atomic step.

    <root>/<name>/{train,test}_images.npy   uint8 [N, H, W, C], canonical order
    <root>/<name>/{train,test}_labels.npy   uint8 [N]
    <root>/<name>/manifest.json             hashes, statistics, size and time stamps of each array file, and a checksum of all this

Opening maps the arrays and trusts them while the stamps are those of the manifest and its checksum holds; what was copied or
touched since is hashed again, and so nothing unverified is ever returned. One of the stamps is the time that the kernel alone sets
(ctime), because a copy may keep the time of modification.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .canonical import Bytes, Dataset, Spec, Split, channel_statistics, sha256_of
from .errors import Damaged, Missing, disk_error, reason

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Arrays:
    """The four array files of a data set and the shapes that they must have."""

    folder: Path
    spec: Spec

    def shapes(self) -> dict[str, tuple[int, ...]]:
        result: dict[str, tuple[int, ...]] = {}
        for split, want in self.spec.splits.items():
            result[f"{split}_images.npy"] = (want.count, *self.spec.image_shape)
            result[f"{split}_labels.npy"] = (want.count,)
        return result

    def map(self, name: str) -> Bytes:
        """One array, mapped read-only. Damaged if it is not the uint8 array of the expected shape."""
        path, shape = self.folder / name, self.shapes()[name]
        try:
            array: Bytes = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # numpy reads a header as Python: damage there ends in almost anything
            raise Damaged(f"{path} cannot be read ({reason(error)})") from error
        if array.shape != shape or array.dtype != np.uint8:
            raise Damaged(f"{path}: expected uint8 {shape}, found {array.dtype} {array.shape}")
        return array

    def stamps(self) -> dict[str, list[int]]:
        """Of each file; Damaged if one is not there."""
        try:
            return {name: stamps_of(self.folder / name) for name in self.shapes()}
        except OSError as error:
            raise Damaged(f"{error.filename} cannot be read ({error.strerror})") from error


def stamps_of(path: Path) -> list[int]:
    """Bytes, time of modification and time of change (ns) of a file."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def open_prepared(spec: Spec, root: Path, *, verify: bool = False) -> Dataset:
    """The prepared data set, memory-mapped.

    Missing or Damaged (both DataError) if it is not there or not what was written.
    """
    folder = root / spec.name
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Missing(f"{spec.name} is not prepared under {root}") from error
    except OSError as error:
        raise Damaged(f"{folder} cannot be read ({error.strerror})") from error
    manifest = _read_manifest(folder, spec)
    arrays = Arrays(folder, spec)
    stamps = arrays.stamps()
    splits = {
        split: Split(arrays.map(f"{split}_images.npy"), arrays.map(f"{split}_labels.npy"), want.sha256)
        for split, want in spec.splits.items()
    }
    mean, std = tuple(manifest["mean"]), tuple(manifest["std"])
    as_written = _manifest(spec.name, manifest["sha256"], mean, std, stamps)
    if verify or manifest != as_written:
        for name, split in splits.items():
            if sha256_of(split.images, split.labels) != split.sha256:
                raise Damaged(f"{folder}: the {name} arrays no longer have SHA-256 {split.sha256}")
        if (mean, std) != channel_statistics(splits["train"].images):
            raise Damaged(f"{folder / MANIFEST}: mean and std are not those of the train images")
        # A verified copy gets its own stamps, so that the next load is quick; on a read-only root, each is verified.
        with suppress(OSError):
            _write_manifest(folder, as_written)
    return Dataset(spec.name, splits["train"], splits["test"], spec.classes, mean, std)


def write(dataset: Dataset, root: Path) -> None:
    """Put verified arrays under `<root>/<name>`, whole or not at all.

    The caller holds the lock. DiskError if it does not fit.
    """
    target = root / dataset.name
    for stale in root.glob(f".{dataset.name}.*.tmp"):  # of a process that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with _temporary_folder(root, dataset.name) as temporary:
        for split in ("train", "test"):
            arrays: Split = getattr(dataset, split)
            _write_array(temporary / f"{split}_images.npy", arrays.images)
            _write_array(temporary / f"{split}_labels.npy", arrays.labels)
        stamps = {path.name: stamps_of(path) for path in temporary.iterdir()}
        sha256 = {"train": dataset.train.sha256, "test": dataset.test.sha256}
        _write_manifest(temporary, _manifest(dataset.name, sha256, dataset.mean, dataset.std, stamps))
        _sync_folder(temporary)
        if target.exists():  # damaged arrays; a crash between these two lines leaves none, never a mixture
            target.rename(root / f".{dataset.name}.{os.getpid()}.old.tmp")
        temporary.rename(target)
        _sync_folder(root)
    for old in root.glob(f".{dataset.name}.*.old.tmp"):
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _temporary_folder(root: Path, name: str) -> Iterator[Path]:
    """A folder on the root's own file system, removed unless the body renames it."""
    path = root / f".{name}.{os.getpid()}.tmp"
    try:
        path.mkdir()
        yield path
    except OSError as error:
        raise disk_error(error, root) from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_array(path: Path, array: Bytes) -> None:
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array.data.cast("B"))  # not np.save, whose error on a full disk has no errno
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(folder: Path, spec: Spec) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{path} cannot be read ({reason(error)})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Damaged(f"{path}: expected a manifest of format {FORMAT}")
    if manifest.get("sha256") != {split: want.sha256 for split, want in spec.splits.items()}:
        raise Damaged(f"{path}: its SHA-256 are not those of {spec.name}")
    channels = spec.image_shape[2]
    for key in ("mean", "std"):
        values = manifest.get(key)
        if not isinstance(values, list) or len(values) != channels or not all(map(_is_finite, values)):
            raise Damaged(f"{path}: expected {channels} numbers as {key}")
    if not isinstance(manifest.get("files"), dict):
        raise Damaged(f"{path}: expected the stamps of the array files")
    return manifest


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _manifest(
    name: str, sha256: dict[str, str], mean: tuple[float, ...], std: tuple[float, ...], stamps: dict[str, list[int]]
) -> dict[str, Any]:
    """The manifest of a data set. Its checksum is over all the rest: what was changed by hand since is not believed."""
    manifest = {"format": FORMAT, "name": name, "sha256": sha256, "mean": list(mean), "std": list(std), "files": stamps}
    return manifest | {"check": hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()}


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    temporary = folder / f".{MANIFEST}.{os.getpid()}"
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / MANIFEST)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
