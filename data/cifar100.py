"""CIFAR-100: 50,000 + 10,000 RGB images, 32 x 32, 100 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
Read from the official binary edition (archive or folder) or from the PNG folders of its mirrors (archive or folder).
The official Python edition is a pickle, which could run any code, and is never opened.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from .archive import members, read_file, readable
from .canonical import Bytes, RawDataset, RawSplit, Spec, SplitSpec
from .errors import DataError, reason
from .walk import Folder, folders

# In the order of the official fine_label_names.txt, which is alphabetical.
FINE_LABEL_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLASSES = tuple(FINE_LABEL_NAMES.split())
SPEC = Spec(
    name="cifar100",
    classes=CLASSES,
    image_shape=(32, 32, 3),
    train=SplitSpec(50_000, "e1f1a348202dcc78906fdc6c28a1407d532a5f499e12795740deb0015ab4b6ae"),
    test=SplitSpec(10_000, "e254914a5ee03c84d5a797477d2dde9954994874bde26282e6a4ea36c74c408b"),
)
COARSE_CLASSES = 20
RECORD_BYTES = 2 + 3072  # coarse label, fine label, then the red, green and blue planes
MAX_PNG_BYTES = 64 * 1024
ARCHIVE = re.compile(r"cifar[-_]?100(?!.*python).*\.(tar\.gz|tgz|tar|zip)", re.IGNORECASE)
EXPECTED = (
    "cifar-100-binary.tar.gz, train.bin and test.bin, or PNG folders train/<coarse>/<fine> and test/<coarse>/<fine> "
    "(cifar-100-python is a pickle and is never opened)"
)


def find(top: Path) -> Iterator[Path]:
    """Archives and folders under `top` that look like CIFAR-100."""
    for folder in folders(top):
        names = set(folder.files)
        if {"train.bin", "test.bin"} <= names:
            yield folder.path
        if _has_png_folders(folder):
            folder.subfolders[:] = [s for s in folder.subfolders if s not in ("train", "test")]
            yield folder.path
        yield from (folder.path / name for name in folder.files if ARCHIVE.fullmatch(name))


def read(source: Path, spec: Spec = SPEC) -> RawDataset:
    """Both splits from an archive or a folder, in its own order. DataError says what is wrong with it."""
    if source.is_dir():
        if (source / "train.bin").is_file():
            return {split: _read_bin(source / f"{split}.bin", spec, split) for split in spec.splits}
        return _read_png_folder(source, spec)
    return _read_archive(source, spec)


def decode_records(content: bytes, spec: Spec, split: str, name: str) -> RawSplit:
    """Binary records into images [N, 32, 32, 3] and fine labels [N].

    A record is <coarse label><fine label><3 x 32 x 32 bytes, channel-major>. DataError for another length or a label
    out of range.
    """
    count = spec.splits[split].count
    if len(content) != count * RECORD_BYTES:
        raise DataError(
            f"{name}: expected {count * RECORD_BYTES:,} bytes ({count:,} records), found {len(content):,}: "
            "it is truncated or another file; get it again"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(count, RECORD_BYTES)
    for column, kind, limit in ((0, "coarse", COARSE_CLASSES), (1, "fine", len(spec.classes))):
        worst = int(records[:, column].max())
        if worst >= limit:
            raise DataError(f"{name}: expected {kind} labels below {limit}, found {worst}: it is damaged; get it again")
    images = records[:, 2:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return RawSplit(np.ascontiguousarray(images), records[:, 1].copy())


class PngCollector:
    """Gathers images from paths .../<split>/[<coarse>/]<fine>/<anything>.png."""

    def __init__(self, spec: Spec, name: str) -> None:
        self._spec, self._name = spec, name
        self._label_of = {fine: label for label, fine in enumerate(spec.classes)}
        self._images: dict[str, list[Bytes]] = {split: [] for split in spec.splits}
        self._labels: dict[str, list[int]] = {split: [] for split in spec.splits}

    @property
    def empty(self) -> bool:
        return not any(self._images.values())

    def add(self, path: PurePosixPath, content: bytes) -> None:
        """One PNG file; DataError if its folder names no class or split, or it is no 32 x 32 RGB image."""
        fine = path.parent.name.lower().replace("-", "_").replace(" ", "_")
        split = next((part for part in reversed(path.parts[:-2]) if part in self._images), None)
        if split is None or fine not in self._label_of:
            raise DataError(f"{self._name}: expected <split>/<coarse>/<fine>/*.png, found {path}: not CIFAR-100")
        if len(self._labels[split]) == self._spec.splits[split].count:
            raise DataError(f"{self._name}: more than {self._spec.splits[split].count:,} {split} images: not CIFAR-100")
        self._images[split].append(decode_png(content, self._spec, f"{self._name}: {path}"))
        self._labels[split].append(self._label_of[fine])

    def finish(self) -> RawDataset:
        """Everything collected; DataError if a split is not complete."""
        raw: RawDataset = {}
        for split, want in self._spec.splits.items():
            if len(self._labels[split]) != want.count:
                found = len(self._labels[split])
                raise DataError(f"{self._name}: expected {want.count:,} {split} images, found {found:,}: incomplete")
            raw[split] = RawSplit(np.stack(self._images[split]), np.array(self._labels[split], dtype=np.uint8))
        return raw


def decode_png(content: bytes, spec: Spec, name: str) -> Bytes:
    """One PNG as uint8 [H, W, C].

    The size is checked before a pixel is decoded: a few bytes of PNG can ask for gigabytes.
    """
    from PIL import Image  # here, because a prepared data set needs only numpy

    height, width, _ = spec.image_shape
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.size != (width, height) or image.mode != "RGB":
                raise DataError(f"{name}: expected a {width} x {height} RGB image, found {image.size} {image.mode}")
            return np.array(image, dtype=np.uint8)
    except DataError:
        raise
    except Exception as error:  # Pillow lets through what it meets in a damaged file: IndexError, struct.error, ...
        raise DataError(f"{name} is not a readable PNG ({reason(error)}): get the archive again") from error


def _read_bin(path: Path, spec: Spec, split: str) -> RawSplit:
    return decode_records(read_file(path, spec.splits[split].count * RECORD_BYTES), spec, split, str(path))


def _read_archive(path: Path, spec: Spec) -> RawDataset:
    binary: RawDataset = {}
    pngs = PngCollector(spec, str(path))
    for member in members(path):
        name = member.path.name
        if name.startswith("._"):  # what macOS adds beside every file
            continue
        if name in ("train.bin", "test.bin"):
            split = name.removesuffix(".bin")
            binary[split] = decode_records(member.read(), spec, split, f"{path}: {name}")
        elif name.lower().endswith(".png"):
            _check_png_size(member.size, f"{path}: {member.path}")
            pngs.add(member.path, member.read())
    if not pngs.empty:
        return pngs.finish()
    if set(binary) == set(spec.splits):
        return binary
    found = " and ".join(sorted(binary)) or "none of it"
    raise DataError(f"{path}: expected {EXPECTED}, found {found}: it is another archive, or not complete")


def _read_png_folder(top: Path, spec: Spec) -> RawDataset:
    pngs = PngCollector(spec, str(top))
    for split in spec.splits:
        for folder in folders(top / split):
            for name in folder.files:
                if name.lower().endswith(".png") and not name.startswith("._"):
                    path = folder.path / name
                    with readable(path):
                        _check_png_size(path.stat().st_size, str(path))
                        content = path.read_bytes()
                    pngs.add(PurePosixPath(path.relative_to(top).as_posix()), content)
    return pngs.finish()


def _check_png_size(size: int, name: str) -> None:
    if size > MAX_PNG_BYTES:
        raise DataError(f"{name}: {size:,} bytes are too many for a PNG of 32 x 32: it is not CIFAR-100")


def _has_png_folders(folder: Folder) -> bool:
    if not {"train", "test"} <= set(folder.subfolders):
        return False
    train = folder.path / "train"
    with readable(train):
        return (train / CLASSES[0]).is_dir() or any(train.glob(f"*/{CLASSES[0]}"))
