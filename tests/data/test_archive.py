"""Hostile and broken archives: an error in one line, nothing written, memory bounded."""

import gzip
import io
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from data import archive
from data.errors import DataError

from .fakes import tar_bytes, zip_bytes
from .server import PAGE

FILES = {"set/a.bin": b"first" * 100, "set/b.bin": b"second" * 100}
UNSAFE = [
    "../evil.bin",
    "two\nlines.bin",
    "set/../../evil.bin",
    "/etc/evil.bin",
    "..\\evil.bin",
    "C:\\evil.bin",
    "\\\\host\\evil.bin",
]


def contents(path, **limits):
    return {str(m.path): m.read() for m in archive.members(path, **limits)}


@pytest.mark.parametrize("content", [tar_bytes(FILES), tar_bytes(FILES, "w"), zip_bytes(FILES)], ids=["gz", "tar", "zip"])
def test_reads_every_member(tmp_path, content):
    path = tmp_path / "archive"
    path.write_bytes(content)
    assert contents(path) == FILES


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
@pytest.mark.parametrize("name", UNSAFE)
def test_refuses_names_that_leave_the_archive(tmp_path, name, pack):
    path = tmp_path / "inside" / "archive"
    path.parent.mkdir()
    path.write_bytes(pack({name: b"x"}))
    with pytest.raises(DataError, match="unsafe name"):
        contents(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["inside", "archive"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_refuses_links_and_devices_in_a_tar(tmp_path, kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("set/train.bin")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="link or device"):
        contents(path)


def test_refuses_a_link_in_a_zip(tmp_path):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("set/train.bin")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="link, device or encrypted"):
        contents(path)


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_bounds_what_one_member_and_all_may_unpack_to(tmp_path, pack):
    path = tmp_path / "archive"
    path.write_bytes(pack({"a": bytes(60_000), "b": bytes(60_000)}))
    with pytest.raises(DataError, match="says 60,000 bytes"):
        contents(path, max_member=50_000)
    with pytest.raises(DataError, match="unpacks to more than 100,000 bytes"):
        contents(path, max_total=100_000)


def test_bounds_the_headers_too(tmp_path):
    """A PAX header may claim to be as long as it likes, and tarfile reads it whole: the bound has to lie below tarfile."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 50_000_000
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(50_000_000), 1))
    assert path.stat().st_size < 500_000
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        contents(path, max_total=1_000_000)


def test_bounds_the_number_of_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 5)
    path = tmp_path / "archive"
    path.write_bytes(tar_bytes({str(n): b"" for n in range(6)}))
    with pytest.raises(DataError, match="more than 5 members"):
        contents(path)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_a_truncated_archive(tmp_path, pack, keep):
    content = pack({f"{n}": bytes(range(256)) * 8 for n in range(50)})
    path = tmp_path / "archive"
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match="truncated or damaged"):
        contents(path)


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_damage_inside_a_large_member(tmp_path, pack):
    """It shows when the member is read, which the caller does: the error has to be one line there, too."""
    body = np.random.default_rng(0).bytes(3_000_000)
    content = bytearray(pack({"train.bin": body, "test.bin": body}))
    path = tmp_path / "archive"
    content[1_500_000:1_500_100] = bytes(100)
    path.write_bytes(content[:4_000_000] if pack is tar_bytes else content)
    with pytest.raises(DataError, match="truncated or damaged") as caught:
        contents(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes])
def test_random_damage_never_ends_in_another_exception(tmp_path, pack):
    """Either the archive still reads, or a DataError says why not."""
    good = pack({f"set/{n}.bin": bytes(range(256)) * 4 for n in range(8)})
    path = tmp_path / "archive"
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(300):
        content = bytearray(good)
        for place in rng.integers(0, len(good), 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            outcomes.add(len(contents(path)))
        except DataError as error:
            assert "\n" not in str(error)
            outcomes.add("error")
    assert "error" in outcomes


def test_a_flipped_byte_in_a_gzip(tmp_path):
    content = bytearray(gzip.compress(bytes(range(256)) * 100))
    content[-6] ^= 1  # in the CRC
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated or damaged"):
        archive.read_file(path, 10**6)


@pytest.mark.parametrize("read", [contents, lambda path: archive.read_file(path, 10**6)])
def test_an_html_page_under_an_archives_name(tmp_path, read):
    path = tmp_path / "cifar-100-binary.tar.gz"
    path.write_bytes(b"\n " + PAGE)
    with pytest.raises(DataError, match="HTML page"):
        read(path)


def test_a_file_longer_than_expected_is_not_read_whole(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        archive.read_file(path, 1000)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        contents(tmp_path / "nothing.tar")
