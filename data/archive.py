"""Archives from strangers, read member by member and never extracted.

Nothing here writes a file or follows a name that an archive gives. Every read has an upper bound, so that a small
archive which unpacks to terabytes ends in an error and not in a full memory.
"""

import gzip
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

from .errors import DataError, reason

MAX_MEMBERS = 200_000
MAX_MEMBER_BYTES = 256 * 2**20
MAX_TOTAL_BYTES = 2**30  # CIFAR-100 unpacked, as PNG files in a tar: about 250 MB
GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
MARKUP = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
# What the standard library raises on damaged input. The last line is for what it takes unchecked from headers: tarfile numbers in
# extended headers, zipfile flags and names.
BROKEN = (
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    tarfile.TarError,
    zipfile.BadZipFile,
    *(NotImplementedError, ValueError, OverflowError, IndexError, struct.error),
)


class Readable(Protocol):
    """The little that tarfile's stream mode asks of a file."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Member:
    """One regular file of an archive. `read` gives its bytes, and only before the next member is asked for."""

    path: PurePosixPath
    size: int
    read: Callable[[], bytes]


class BoundedReader:
    """Reads at most `limit` bytes from a stream and raises DataError at the first byte beyond."""

    def __init__(self, stream: Readable, limit: int, name: str) -> None:
        self._stream, self._left, self._limit, self._name = stream, limit, limit, name

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(chunk)
        if self._left < 0:
            raise DataError(f"{self._name} unpacks to more than {self._limit:,} bytes: it is not the expected file")
        return chunk


def looks_like_markup(head: bytes) -> bool:
    """Whether a file begins as an HTML or XML page: what error pages and login walls send instead of an archive."""
    return MARKUP.match(head) is not None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever the standard library raises on a broken file into one line."""
    try:
        yield
    except BROKEN as error:
        raise DataError(f"{path} is truncated or damaged ({reason(error)}): delete it and get it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror or error}): mend its permissions, or get it again") from error


def read_file(path: Path, limit: int) -> bytes:
    """The contents of a file, unpacked if it begins as gzip, at most `limit` bytes. DataError if there are more."""
    with readable(path), path.open("rb") as file:
        head = file.read(64)
        file.seek(0)
        if looks_like_markup(head):
            raise DataError(f"{path} is an HTML page, not data: delete it and get it again")
        if head.startswith(GZIP_MAGIC):
            with gzip.open(file) as unpacked:
                return BoundedReader(unpacked, limit, str(path)).read()
        return BoundedReader(file, limit, str(path)).read()


def members(path: Path, *, max_total: int = MAX_TOTAL_BYTES, max_member: int = MAX_MEMBER_BYTES) -> Iterator[Member]:
    """The regular files of a tar, tar.gz or zip archive, in its order.

    DataError for a name that leaves the archive (`../`, absolute, drive letter), a link or device, more members or
    bytes than the bounds, a truncated or damaged archive, or a page of HTML under an archive's name.
    """
    with readable(path), path.open("rb") as file:
        head = file.read(64)
        file.seek(0)
        if looks_like_markup(head):
            raise DataError(f"{path} is an HTML page, not an archive: delete it and get it again")
        if head.startswith(ZIP_MAGIC):
            found = _zip_members(file, path, max_total, max_member)
        elif head.startswith(GZIP_MAGIC):
            found = _tar_members(gzip.GzipFile(fileobj=file), path, max_total, max_member)
        else:
            found = _tar_members(file, path, max_total, max_member)
        for count, member in enumerate(found):
            if count >= MAX_MEMBERS:
                raise DataError(f"{path} has more than {MAX_MEMBERS:,} members: it is not the expected archive")
            yield replace(member, read=_guarded(member.read, path))


def _guarded(read: Callable[[], bytes], path: Path) -> Callable[[], bytes]:
    """`read` with its errors in one line: it runs in the caller's frame, outside `members`."""

    def guarded() -> bytes:
        with readable(path):
            return read()

    return guarded


def _tar_members(stream: Readable, path: Path, max_total: int, max_member: int) -> Iterator[Member]:
    bounded = cast(IO[bytes], BoundedReader(stream, max_total, str(path)))  # stream mode asks for read() alone
    # Stream mode never seeks, so that every byte, headers included, passes the bound.
    with tarfile.open(fileobj=bounded, mode="r|") as tar:
        for info in tar:
            _check_name(info.name, path)
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise DataError(f"{path} holds a link or device ({info.name}): an archive of images has none; not used")
            _check_size(info.name, info.size, path, max_member)

            def read(info: tarfile.TarInfo = info) -> bytes:
                file = tar.extractfile(info)
                assert file is not None  # a regular file, checked above
                return file.read()

            yield Member(PurePosixPath(info.name), info.size, read)


def _zip_members(file: IO[bytes], path: Path, max_total: int, max_member: int) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > max_total:
            raise DataError(f"{path} unpacks to more than {max_total:,} bytes: it is not the expected file")
        for info in infos:
            _check_name(info.filename, path)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                continue
            if kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
                raise DataError(f"{path} holds a link, device or encrypted file ({info.filename}): not used")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a bound
                raise DataError(f"{path}: {info.filename} is packed by method {info.compress_type}: expected stored or deflated")
            _check_size(info.filename, info.file_size, path, max_member)

            def read(info: zipfile.ZipInfo = info) -> bytes:
                return archive.read(info)

            yield Member(PurePosixPath(info.filename), info.file_size, read)


def _check_name(name: str, path: Path) -> None:
    parts = re.split(r"[/\\]", name)
    if parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", name) or not name.isprintable():
        raise DataError(f"{path} holds an unsafe name ({name!r}): absolute, leading out, or unprintable; not used")


def _check_size(name: str, size: int, path: Path, limit: int) -> None:
    if size > limit:
        raise DataError(f"{path}: {name} says {size:,} bytes, more than the {limit:,} that any member may have; not used")
