"""Data sets and ImageNet-1k weights over the network: a list of mirrors in turn, in rounds of growing patience.

The first round leaves a slow host for the next mirror (the official host of CIFAR-100 has been throttled to hours since mid-2026);
only if no mirror is quick do later rounds put up with a slow one. Hashes of archives are checked where one is published, and the
canonical SHA-256 of the arrays in every case.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import sources
from .archive import readable
from .canonical import Dataset
from .download import MirrorError, Patience, download, host_of
from .errors import DataError, DiskError, disk_error
from .lock import exclusive
from .prepare import Say, from_candidate, from_folders, ready, say_on_stderr
from .roots import is_folder, resolve
from .sources import RemoteFile, Source
from .walk import folders


@dataclass(frozen=True)
class Policy:
    """Rounds over all mirrors: how patient each is, and how long to wait before it (s)."""

    rounds: tuple[Patience, ...] = (
        Patience(connect_s=10, read_s=20, minimum_rate=200_000, window_s=15),
        Patience(connect_s=20, read_s=60, minimum_rate=2_000, window_s=60),
        Patience(connect_s=20, read_s=60, minimum_rate=2_000, window_s=60),
    )
    pauses_s: tuple[float, ...] = (0, 2, 10)


POLICY = Policy()


@dataclass
class Attempts:
    """What was tried, so that no address that cannot help is tried twice and the last line says why each failed."""

    policy: Policy
    mirrors: Sequence[str]
    say: Say
    hopeless: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    given: dict[Path, str] = field(default_factory=dict)  # which address gave a file

    def rounds(self) -> Iterator[Patience]:
        """Each round's patience, after its pause; ends early when no address is left that a later round could help."""
        for patience, pause in zip(self.policy.rounds, self.policy.pauses_s, strict=True):
            if self.failures and self.hopeless >= self.failures.keys():
                return
            time.sleep(pause)
            yield patience

    def file(self, file: RemoteFile, folder: Path, patience: Patience) -> Path | None:
        """The file, at once if it is there with its hash; else from the first address that gives it, or None if none does now."""
        path = folder / file.filename
        if has_hash(path, file):
            return path
        for url in (*(f"{mirror.rstrip('/')}/{file.filename}" for mirror in self.mirrors), *file.urls):
            if url in self.hopeless:
                continue
            self.say(f"{file.filename}: fetching from {host_of(url)}")
            try:
                download(file, url, folder, patience)
            except MirrorError as error:
                self.fail(url, file.filename, str(error), again=error.again)
            else:
                self.given[path] = url
                return path
        return None

    def fail(self, url: str, filename: str, reason: str, *, again: bool) -> None:
        self.failures[url] = f"{host_of(url)}: {reason}"
        self.say(f"{filename}: {host_of(url)} failed: {reason}")
        if not again:
            self.hopeless.add(url)

    def error(self, name: str) -> DataError:
        reasons = "; ".join(self.failures.values()) or "no mirror is known"
        return DataError(f"{name} could not be fetched ({reasons}): try again later, or `make data FROM=DIR` with the files")


def dataset(
    source: Source,
    root: Path,
    mirrors: Sequence[str] = (),
    policy: Policy | None = None,
    say: Say = say_on_stderr,
) -> Dataset:
    """Fetch and prepare a data set; at once if it is prepared, without the network if its files lie under `root`.

    `mirrors` are base addresses tried before the known ones. Downloads stay in `<root>/downloads/<name>`. Raises
    DataError.
    """
    if (result := ready(source, root)) is not None:
        return result
    name = source.spec.name
    if is_folder(root) and next(source.find(root), None) is not None:
        try:
            return from_folders(source, [root], root, say)
        except DiskError:
            raise
        except DataError as error:
            say(f"{name}: not usable: {error}")
    attempts = Attempts(policy or POLICY, mirrors, say)
    with exclusive(root, name, say):
        if (result := ready(source, root)) is not None:
            return result
        for patience in attempts.rounds():
            for offer in source.offers:
                result = _from_offer(source, offer, root, attempts, patience)
                if result is not None:
                    return result
    raise attempts.error(name)


def _from_offer(source: Source, offer: Sequence[RemoteFile], root: Path, attempts: Attempts, patience: Patience) -> Dataset | None:
    """Fetch every file of the offer and prepare from them; None if one cannot be had or they are not the data set."""
    folder = _folder(root / "downloads" / source.spec.name)
    files = []
    for remote in offer:
        path = attempts.file(remote, folder, patience)
        if path is None:
            return None
        files.append(path)
    try:
        return from_candidate(source, files[0] if len(files) == 1 else folder, root)
    except DiskError:
        raise
    except DataError as error:  # a lying mirror without a published hash: forget its file, and ask those that are left
        for path in files:
            path.unlink()
            if path in attempts.given:
                attempts.fail(attempts.given[path], path.name, str(error), again=False)
        return _from_offer(source, offer, root, attempts, patience)


def weights_path(root: Path | str | None = None) -> Path | None:
    """The ImageNet-1k weights under `root` if they are there and of the right size, else None.

    No network, no hashing.
    """
    path = resolve(root) / "weights" / sources.IMAGENET_WEIGHTS.filename
    try:
        size = path.stat().st_size
    except OSError:
        return None
    return path if round(size / 2**20, 3) == sources.IMAGENET_WEIGHTS_MIB else None


def imagenet_weights(
    root: Path | str | None = None,
    mirrors: Sequence[str] = (),
    policy: Policy | None = None,
    say: Say = say_on_stderr,
) -> Path:
    """torchvision's ConvNeXt-Tiny weights (ImageNet-1k, V1) under `<root>/weights`, fetched if absent.

    Their SHA-256 is checked each time, and a file that fails is fetched again. No pickle is opened here.

    Raises DataError if no mirror gives them, the folder cannot be written, or the file there cannot be read.
    """
    base, remote = resolve(root), sources.IMAGENET_WEIGHTS
    path = base / "weights" / remote.filename
    if has_hash(path, remote):
        return path
    attempts = Attempts(policy or POLICY, mirrors, say)
    with exclusive(base, "weights", say):
        folder = _folder(base / "weights")
        for patience in attempts.rounds():
            result = attempts.file(remote, folder, patience)
            if result is not None:
                return result
    raise attempts.error(remote.filename)


def imagenet_weights_from(tops: Sequence[Path], root: Path, say: Say = say_on_stderr) -> Path | None:
    """Copy the weights from below `tops` to `<root>/weights`, verified; None if no file of their name is there.

    Raises DataError if none of these files can be read and has their hash, or if the folder cannot be written.
    """
    remote = sources.IMAGENET_WEIGHTS
    target = root / "weights" / remote.filename
    if has_hash(target, remote):
        return target
    found = [f.path / remote.filename for top in tops for f in folders(top) if remote.filename in f.files]
    if not found:
        return None
    source = _first_with_hash(found, remote)
    with exclusive(root, "weights", say):
        temporary = _folder(target.parent) / f".{remote.filename}.tmp"
        try:
            shutil.copyfile(source, temporary)
            if not has_hash(temporary, remote):
                raise DataError(f"{source}: its copy under {target.parent} is not the same: check the disks and try again")
            temporary.replace(target)
        except OSError as error:
            raise disk_error(error, target.parent) from error
        finally:
            temporary.unlink(missing_ok=True)
    return target


def _first_with_hash(paths: Sequence[Path], remote: RemoteFile) -> Path:
    """The first of `paths` that is `remote`, or a DataError that says of each what it is instead."""
    failures = []
    for path in paths:
        try:
            if has_hash(path, remote):
                return path
            failures.append(f"{path}: its hash is not {remote.known_hash}: it is truncated, another file, or a link to none")
        except DataError as error:
            failures.append(str(error))
    raise DataError("; ".join(failures))


def has_hash(path: Path, remote: RemoteFile) -> bool:
    """Whether a file is there and has the published hash of `remote`. DataError if it cannot be read."""
    algorithm, _, digest = (remote.known_hash or "").partition(":")
    with readable(path):
        if not algorithm or not path.is_file():
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == digest


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error
    return path
