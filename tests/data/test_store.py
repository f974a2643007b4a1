"""Prepared arrays: whole or not at all, quick to open, and never unverified."""

import errno
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data
from data import sources, store
from data.canonical import RawSplit, SplitSpec, dataset_of, verified_split
from data.errors import Damaged, DataError, DiskError, Missing
from data.make_tiny import first_per_class, write_idx_gz
from data.prepare import from_folders

from .conftest import ordinary_user
from .fakes import binary_files, leftovers, naive_sha256, small_cifar100, source_of, write_files, zip_bytes

REPOSITORY = Path(data.__file__).parents[1]
SPEC, RAW = small_cifar100()


@pytest.fixture
def source(monkeypatch):
    """The small set takes the place of the real one, so that `data.load` and `data.status` see it."""
    made = source_of(SPEC)
    monkeypatch.setitem(sources.SOURCES, "cifar100", made)
    return made


@pytest.fixture
def raw_folder(tmp_path):
    return write_files(tmp_path / "raw", binary_files(RAW))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def test_load_prepares_what_lies_under_the_root(source, root):
    write_files(root / "anywhere", binary_files(RAW))
    first = data.load("cifar100", root)
    second = data.load("cifar100", str(root))
    for dataset in (first, second):
        for split in ("train", "test"):
            arrays = getattr(dataset, split)
            assert naive_sha256(arrays.images, arrays.labels) == arrays.sha256 == SPEC.splits[split].sha256
    assert (first.mean, first.std) == (second.mean, second.std)
    assert first.classes == SPEC.classes
    assert leftovers(root) == ["anywhere", "cifar100"]


def test_datasets_names_the_root(source, root, raw_folder, monkeypatch):
    from_folders(source, [raw_folder], root)
    monkeypatch.setenv("DATASETS", str(root))
    assert data.load("cifar100").train.sha256 == SPEC.train.sha256
    monkeypatch.delenv("DATASETS")
    monkeypatch.chdir(root.parent)
    root.rename("datasets")
    assert data.load("cifar100").train.sha256 == SPEC.train.sha256


def test_a_second_load_of_a_large_set_is_quick(root):
    """60 MB of arrays: opening maps them and reads none."""
    images = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8)
    large = {"train": RawSplit(images, (np.arange(20_000) % 100).astype(np.uint8)), "test": RAW["test"]}
    sha256 = naive_sha256(large["train"].images, large["train"].labels)
    spec = replace(SPEC, train=SplitSpec(20_000, sha256))
    root.mkdir()
    store.write(dataset_of(spec, *(verified_split(large[s], spec, s) for s in ("train", "test"))), root)
    start = time.perf_counter()
    dataset = store.open_prepared(spec, root)
    assert time.perf_counter() - start < 0.3
    assert isinstance(dataset.train.images, np.memmap)


def test_unknown_and_missing_names(root):
    with pytest.raises(DataError, match=r"expected one of cifar100, fashion_mnist, tiny_fashion_mnist, synthetic_cifar100"):
        data.load("cifar10", root)
    with pytest.raises(DataError, match="run `make data`, or `make data FROM=DIR`") as caught:
        data.load("cifar100", root)
    assert "\n" not in str(caught.value)
    root.mkdir()
    with pytest.raises(DataError, match="run `make data`, or `make data FROM=DIR`"):
        data.load("fashion_mnist", root)
    assert list(root.iterdir()) == []
    assert data.status("cifar100", root).state == "missing"
    assert data.status("cifar10", root).state == "missing"


def flip_a_pixel(folder):
    path = folder / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped pixel": flip_a_pixel,
    "a truncated array": lambda f: os.truncate(f / "train_images.npy", 5000),
    "an empty array": lambda f: os.truncate(f / "test_labels.npy", 0),
    "a missing array": lambda f: (f / "test_images.npy").unlink(),
    "a pickle for an array": lambda f: np.save(f / "test_labels.npy", np.array([object()]), allow_pickle=True),
    "a zip for an array": lambda f: (f / "test_labels.npy").write_bytes(zip_bytes({"labels.npy": b"x"})),
    "another type": lambda f: np.save(f / "test_labels.npy", np.zeros(100, np.int8)),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "a manifest cut short": lambda f: os.truncate(f / "manifest.json", 40),
    "a manifest of something else": lambda f: (f / "manifest.json").write_text("[1, 2]"),
    "a manifest without numbers": lambda f: (f / "manifest.json").write_text(
        (f / "manifest.json").read_text().replace('"mean"', '"other"')
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_noticed_reported_and_repaired(source, root, raw_folder, name):
    from_folders(source, [raw_folder], root)
    DAMAGE[name](root / "cifar100")
    assert data.status("cifar100", root).state == "damaged"
    with pytest.raises(DataError, match="run `make data`"):
        data.load("cifar100", root)
    from_folders(source, [raw_folder], root)
    assert data.status("cifar100", root, verify=True).state == "ready"
    assert leftovers(root) == ["cifar100"]


def test_damage_that_kept_size_and_time_is_noticed(source, root, raw_folder):
    from_folders(source, [raw_folder], root)
    path = root / "cifar100" / "train_images.npy"
    stat = path.stat()
    flip_a_pixel(root / "cifar100")
    while path.stat().st_mtime_ns != stat.st_mtime_ns or path.stat().st_ctime_ns == stat.st_ctime_ns:  # its clock ticks in ms
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert data.status("cifar100", root).state == "damaged"


def test_verify_finds_damage_that_no_stamp_shows(source, root, raw_folder, monkeypatch):
    """As on a disk that no longer gives what was written."""
    from_folders(source, [raw_folder], root)
    stamps = store.Arrays(root / "cifar100", SPEC).stamps()
    flip_a_pixel(root / "cifar100")
    monkeypatch.setattr(store.Arrays, "stamps", lambda _: stamps)
    assert data.status("cifar100", root).state == "ready"
    assert data.status("cifar100", root, verify=True).state == "damaged"


def test_verify_finds_changed_statistics(source, root, raw_folder):
    mean = from_folders(source, [raw_folder], root).mean[0]
    manifest = root / "cifar100" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(repr(mean), "0.5"))
    assert "mean and std" in data.status("cifar100", root, verify=True).detail


@pytest.fixture
def hashed(monkeypatch):
    """How many images each hash was over."""
    counts = []
    monkeypatch.setattr(store, "sha256_of", lambda i, la, f=store.sha256_of: counts.append(len(la)) or f(i, la))
    return counts


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_copy_is_verified_once_and_then_trusted(source, root, raw_folder, tmp_path, hashed, keep_times):
    from_folders(source, [raw_folder], root)
    assert hashed == []  # what was just written is trusted
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copy2 if keep_times else shutil.copy)
    assert data.load("cifar100", copy).test.sha256 == SPEC.test.sha256
    assert hashed == [200, 100]
    data.load("cifar100", copy)
    assert hashed == [200, 100]


def test_what_an_earlier_version_wrote_is_verified_once_and_then_trusted(source, root, raw_folder, hashed):
    """Its manifest has no time of change."""
    dataset, folder = from_folders(source, [raw_folder], root), root / "cifar100"
    stamps = {name: kept[:2] for name, kept in store.Arrays(folder, SPEC).stamps().items()}
    sha256 = {split: want.sha256 for split, want in SPEC.splits.items()}
    store._write_manifest(folder, store._manifest("cifar100", sha256, dataset.mean, dataset.std, stamps))
    for _ in range(2):
        data.load("cifar100", root)
        assert hashed == [200, 100]


def test_a_bad_source_leaves_nothing_and_a_good_one_beside_it_is_used(source, root, tmp_path):
    bad = write_files(tmp_path / "in" / "a", binary_files({**RAW, "test": RAW["train"]}))
    with pytest.raises(DataError, match=r"expected 307,400 bytes|more than 307,400 bytes"):
        from_folders(source, [bad], root)
    assert leftovers(root) == []
    write_files(tmp_path / "in" / "b", binary_files(RAW))
    assert from_folders(source, [tmp_path / "in"], root).train.sha256 == SPEC.train.sha256


def test_a_folder_without_data_and_no_folder(source, root, tmp_path):
    with pytest.raises(Missing, match=r"nothing of it under .*; expected cifar-100-binary.tar.gz"):
        from_folders(source, [tmp_path], root)
    with pytest.raises(DataError, match="is not a folder"):
        from_folders(source, [tmp_path / "nowhere"], root)
    assert not root.exists()


def test_a_file_size_limit_stops_a_real_write(root, raw_folder):
    """RLIMIT_FSIZE makes the kernel refuse the write half-way, on every machine and for every user, as a full disk does."""
    code = """
import resource, sys
from pathlib import Path
from data.errors import DiskError
from data.prepare import from_folders
from tests.data.fakes import leftovers, small_cifar100, source_of
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
raw, root = map(Path, sys.argv[1:])
try:
    from_folders(source_of(small_cifar100()[0]), [raw], root)
except DiskError as error:
    print(leftovers(root), error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, raw_folder, root], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("[] cannot write under")
    assert "no room left" in result.stdout
    assert from_folders(source_of(SPEC), [raw_folder], root).train.sha256 == SPEC.train.sha256


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_that_shows_at_fsync(source, root, raw_folder, monkeypatch, code):
    """File systems with delayed allocation report a full disk only when the data are flushed."""

    def full(handle):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match=r"no room left for it: free about 500 MB, or .* DATASETS=DIR"):
            from_folders(source, [raw_folder], root)
    assert leftovers(root) == []
    assert from_folders(source, [raw_folder], root).train.sha256 == SPEC.train.sha256


def test_a_read_only_root_that_is_prepared_just_loads(source, open_folder, raw_folder):
    root = open_folder / "root"
    from_folders(source, [raw_folder], root)
    os.utime(root / "cifar100" / "test_labels.npy")  # has to be verified, and the new stamp cannot be noted
    for folder in (root / "cifar100", root):
        folder.chmod(0o555)
    with ordinary_user(root):
        assert not os.access(root, os.W_OK, effective_ids=True)
        assert data.load("cifar100", root).train.sha256 == SPEC.train.sha256
        assert data.status("cifar100", root, verify=True).state == "ready"


def test_a_read_only_root_that_is_not_prepared(source, open_folder):
    root = write_files(open_folder / "root", binary_files(RAW))
    root.chmod(0o555)
    with ordinary_user(root), pytest.raises(DiskError, match="not writable: change its permissions"):
        data.load("cifar100", root)
    assert leftovers(root) == ["cifar-100-binary"]


def test_a_root_that_may_not_be_entered(source, open_folder, raw_folder):
    root = open_folder / "closed" / "root"
    from_folders(source, [raw_folder], root)
    with ordinary_user(root.parent):
        root.parent.chmod(0o000)
        with pytest.raises(DataError, match=r"cannot be read .Permission denied."):
            data.load("cifar100", root)
        assert data.status("cifar100", root).state == "damaged"
        assert data.fetch.weights_path(root) is None
        root.parent.chmod(0o755)


def test_a_root_that_is_a_file(source, raw_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"cannot write under .*file"):
        from_folders(source, [raw_folder], tmp_path / "file")
    with pytest.raises(DataError, match="is not prepared"):
        data.load("cifar100", tmp_path / "file")


def test_two_processes_at_once_prepare_once(root, raw_folder, tmp_path):
    """Both start together; one writes, the other waits and opens what was written. Both end with verified arrays."""
    code = """
import sys, time
from pathlib import Path
from data import store
from data.prepare import from_folders
from tests.data.fakes import small_cifar100, source_of
raw, root, *errors = map(Path, sys.argv[1:])
source = source_of(small_cifar100()[0])
write = store.write
def slow_write(dataset, root):
    deadline = time.monotonic() + 20
    while not any("waiting" in path.read_text() for path in errors) and time.monotonic() < deadline:
        time.sleep(0.02)  # the lock is held until the other process has come to it
    write(dataset, root)
    print("wrote", end=" ")
store.write = slow_write
print(from_folders(source, [raw], root).train.sha256)
"""
    errors = [tmp_path / "errors-0", tmp_path / "errors-1"]
    command = [sys.executable, "-c", code, *map(str, (raw_folder, root, *errors))]
    processes = []
    for path in errors:
        path.touch()  # both are there before either process looks
    for path in errors:
        with path.open("w") as file:
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, cwd=REPOSITORY))
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    said = [path.read_text() for path in errors]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sorted(outputs) == [[SPEC.train.sha256], ["wrote", SPEC.train.sha256]]
    assert sum("another process is preparing it; waiting" in err for err in said) == 1
    assert leftovers(root) == ["cifar100"]


def test_what_a_killed_process_left_is_removed(source, root, raw_folder):
    stale = write_files(root / ".cifar100.123456.tmp", {"train_images.npy": b"half"})
    from_folders(source, [raw_folder], root)
    assert not stale.exists()
    assert leftovers(root) == ["cifar100"]


def test_folders_have_the_users_permissions(source, root, raw_folder):
    """A shared root must be readable by others if the user's umask says so."""
    old = os.umask(0o022)
    try:
        from_folders(source, [raw_folder], root)
    finally:
        os.umask(old)
    assert (root / "cifar100").stat().st_mode & 0o777 == 0o755
    assert (root / "cifar100" / "train_images.npy").stat().st_mode & 0o777 == 0o644


def test_prepared_for_other_hashes_is_damaged(source, root, raw_folder):
    from_folders(source, [raw_folder], root)
    with pytest.raises(Damaged, match="its SHA-256 are not those of cifar100"):
        store.open_prepared(replace(SPEC, test=replace(SPEC.test, sha256="0" * 64)), root)


def test_the_tiny_sets_maker_chooses_and_writes_the_same_bytes(tmp_path):
    split = verified_split(RAW["train"], SPEC, "train")
    images, labels = first_per_class(split, 1, 100)
    assert labels.tolist() == list(range(100))
    assert all(np.array_equal(images[c], split.images[2 * c]) for c in range(100))
    for name in ("a.gz", "b.gz"):
        write_idx_gz(tmp_path / name, labels)
        time.sleep(0.01)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert data.fashion_mnist.read_idx(tmp_path / "a.gz", (100,)).tolist() == list(range(100))
