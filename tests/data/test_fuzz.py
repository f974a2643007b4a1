"""Readers of data sets: garbage gives a DataError in one line or a right answer, never anything else, a hang or a full memory."""

import gzip
import io
import json
import struct
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import archive, cifar100, fashion_mnist, store
from data.canonical import SplitSpec, channel_statistics, dataset_of, verified_split
from data.errors import DataError
from tests.fuzz import attempt, damaged, edited, examples, garbage

from .fakes import binary_files, idx, make_raw, naive_sha256, png, png_files, tar_bytes, zip_bytes

SPEC = replace(cifar100.SPEC, train=SplitSpec(2, ""), test=SplitSpec(1, ""))
RAW = make_raw(SPEC)

# ---- single files ------------------------------------------------------------------------------------------------------------

IMAGES = np.arange(3 * 5 * 4, dtype=np.uint8).reshape(3, 5, 4)


@examples(200)
@given(garbage(idx(IMAGES)), st.booleans())
def test_idx_files(tmp_path, content, compressed):
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if compressed else content)
    found = attempt(lambda: fashion_mnist.read_idx(path, IMAGES.shape), DataError)
    assert found is None or idx(found) == (content if compressed or content[:2] != b"\x1f\x8b" else gzip.decompress(content))


@examples(100)
@given(garbage(gzip.compress(idx(IMAGES))))
def test_compressed_idx_files(tmp_path, content):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    found = attempt(lambda: fashion_mnist.read_idx(path, IMAGES.shape), DataError)
    assert found is None or np.array_equal(found, IMAGES)  # gzip has a checksum


RECORDS = binary_files(RAW)["cifar-100-binary/train.bin"]


@examples(100)
@given(st.one_of(garbage(RECORDS), st.integers(0, 2**20).map(lambda seed: np.random.default_rng(seed).bytes(len(RECORDS)))))
def test_cifar_records(content):
    found = attempt(lambda: cifar100.decode_records(content, SPEC, "train", "train.bin"), DataError)
    assert found is None or bytes(found.images[1, 0, 0]) == content[3074 + 2 :: 1024][:3]


# ---- PNG ---------------------------------------------------------------------------------------------------------------------

IMAGE = png(RAW["train"].images[0])
CHUNKS = [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"iCCP", b"sRGB", b"tEXt", b"zTXt", b"iTXt", b"pHYs"]
CHUNKS += [b"eXIf", b"acTL", b"fcTL", b"fdAT", b"cICP", b"bKGD", b"tIME", b"XXXX"]


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@st.composite
def chunks(draw):
    """A PNG in which chunks of any content, with right lengths and checksums, stand before the pixels."""
    bodies = st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda text: b"name\0\0" + zlib.compress(text)))
    extra = draw(st.lists(st.builds(chunk, st.sampled_from(CHUNKS), bodies), max_size=4))
    header_ends = 8 + 25
    return IMAGE[:header_ends] + b"".join(extra) + IMAGE[header_ends:]


def resized(width, height, depth, colour):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return IMAGE[:8] + header + IMAGE[33:]


HEADERS = st.builds(resized, *[st.sampled_from([0, 1, 32, 2**16, 2**31 - 1, 2**32 - 1])] * 2, *[st.integers(0, 17)] * 2)


@examples(300)
@given(st.one_of(garbage(IMAGE), chunks(), HEADERS, chunks().flatmap(damaged)))
def test_png_files(content):
    found = attempt(lambda: cifar100.decode_png(content, SPEC, "a.png"), DataError)
    assert found is None or (found.shape == SPEC.image_shape and found.dtype == np.uint8)


# ---- archives ------------------------------------------------------------------------------------------------------------------

FILES = binary_files(RAW)
PNGS = png_files(RAW)
ARCHIVES = {
    "tar": tar_bytes(FILES, "w"),
    "tar of PNG": tar_bytes(PNGS, "w"),
    "zip": zip_bytes(FILES),
    "zip of PNG": zip_bytes(PNGS),
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("compressed", [False, True])
@examples(60)
@given(data=st.data())
def test_archives(tmp_path, name, compressed, data):
    content = data.draw(garbage(ARCHIVES[name]))
    path = tmp_path / "archive"
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    attempt(lambda: cifar100.read(path, SPEC), DataError)


def listed(path):
    return [(member.path, len(member.read())) for member in archive.members(path, max_total=2**20)]


FIELDS = st.one_of(st.binary(max_size=12), st.sampled_from([b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1", b"7" * 11, b"9", b" "]))
PAX = st.sampled_from(
    [
        *(b"size", b"path", b"linkpath", b"uid", b"mtime", b"hdrcharset", b"charset", b"GNU.sparse.map", b"GNU.sparse.size"),
        *(b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name", b"GNU.sparse.realsize", b"GNU.sparse.numblocks"),
    ]
)
VALUES = st.one_of(st.sampled_from([b"0", b"1", b"-1", b"1,1", b"x", b"9" * 30, b"9" * 5000, b"BINARY"]), st.binary(max_size=9))


@st.composite
def pax(draw):
    """Records of an extended header; now and then with a length that lies."""
    text = b""
    for key, value in draw(st.lists(st.tuples(PAX, VALUES), min_size=1, max_size=4)):
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + len(str(len(body) + 2))
        text += str(length + draw(st.sampled_from([0, 0, 0, 1, -3, 10**6]))).encode() + body
    return text


@st.composite
def tar_members(draw):
    """Headers of any content with right checksums, which tarfile takes for its own."""
    content = b""
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(b"\0001234567xgLKSDNMVAX"))
        body = draw(st.one_of(pax(), st.binary(max_size=600)))
        header = bytearray(512)
        header[:8] = draw(st.one_of(st.just(b"set/a.png"[:8]), st.binary(min_size=8, max_size=8)))
        header[124:136] = (b"%011o\0" % len(body) if draw(st.booleans()) else draw(FIELDS)).ljust(12, b"\0")[:12]
        header[136:148] = draw(FIELDS).ljust(12, b"\0")[:12]
        header[156] = kind
        header[257:265] = draw(st.sampled_from([b"ustar\x0000", b"ustar  \0", bytes(8)]))
        header[345:500] = draw(st.binary(max_size=155)).ljust(155, b"\0")
        header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
        content += bytes(header) + body + bytes(-len(body) % 512)
    return content + bytes(1024)


@examples(150)
@given(tar_members())
def test_tar_headers(tmp_path, content):
    path = tmp_path / "archive.tar"
    path.write_bytes(content)
    attempt(lambda: listed(path), DataError)
    attempt(lambda: cifar100.read(path, SPEC), DataError)


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def zip_by(method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        out.writestr("set/a.bin", bytes(range(256)) * 4)
        out.writestr("set/b.bin", b"text " * 99)
    return file.getvalue()


@pytest.mark.parametrize("method", METHODS)
@examples(60)
@given(data=st.data())
def test_zip_methods(tmp_path, method, data):
    path = tmp_path / "archive.zip"
    path.write_bytes(data.draw(damaged(zip_by(method))))
    attempt(lambda: listed(path), DataError)


# ---- prepared arrays ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The small set, prepared; the spec that goes with it, its root and its files."""
    hashes = {split: SplitSpec(len(raw.labels), naive_sha256(raw.images, raw.labels)) for split, raw in RAW.items()}
    spec = replace(SPEC, **hashes)
    root = tmp_path_factory.mktemp("root")
    store.write(dataset_of(spec, *(verified_split(RAW[split], spec, split) for split in ("train", "test"))), root)
    return spec, root, {path: path.read_bytes() for path in sorted((root / "cifar100").iterdir())}


def try_prepared(prepared, path, content):
    spec, root, files = prepared
    for other in files:
        other.write_bytes(content if other == path else files[other])
    found = attempt(lambda: store.open_prepared(spec, root), DataError)
    if found is not None:
        assert naive_sha256(found.train.images, found.train.labels) == spec.train.sha256
        assert (found.mean, found.std) == channel_statistics(RAW["train"].images)


@examples(80)
@given(data=st.data())
def test_prepared_arrays(prepared, data):
    path = data.draw(st.sampled_from(list(prepared[2])))
    try_prepared(prepared, path, data.draw(garbage(prepared[2][path])))


@examples(80)
@given(data=st.data())
def test_a_manifest_edited_by_hand(prepared, data):
    path = prepared[1] / "cifar100" / "manifest.json"
    manifest = data.draw(edited(json.loads(prepared[2][path])))
    try_prepared(prepared, path, json.dumps(manifest).encode())
