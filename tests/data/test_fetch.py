"""Fetching over a real loopback server that behaves as mirrors do."""

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import data
from data import fetch, sources
from data.download import MirrorError, Patience, download
from data.errors import DataError, DiskError
from data.sources import RemoteFile

from .conftest import ordinary_user
from .fakes import (
    binary_files,
    idx_files,
    leftovers,
    png_files,
    small_cifar100,
    small_fashion_mnist,
    source_of,
    tar_bytes,
    write_files,
)
from .server import PAGE, dead_url, serving

REPOSITORY = Path(data.__file__).parents[1]
SPEC, RAW = small_cifar100()
BINARY = tar_bytes(binary_files(RAW))
PNGS = tar_bytes(png_files(RAW))
NAME = "cifar-100-binary.tar.gz"
QUICK = Patience(connect_s=2, read_s=0.5, minimum_rate=2_000, window_s=0.5)


def remote(*urls, content=BINARY, name=NAME, known=True):
    digest = hashlib.md5(content).hexdigest()
    return RemoteFile(name, tuple(f"{url}/{name}" for url in urls), f"md5:{digest}" if known else None, 5_000_000)


def cifar100_from(*offers):
    return source_of(SPEC, tuple((offer,) for offer in offers))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def said():
    return []


def test_a_good_mirror(root, said):
    with serving({NAME: BINARY}) as mirror:
        dataset = fetch.dataset(cifar100_from(remote(mirror.url)), root, say=said.append)
        assert dataset.train.sha256 == SPEC.train.sha256
        assert said == [f"{NAME}: fetching from {mirror.url.removeprefix('http://')}"]
        fetch.dataset(cifar100_from(remote(mirror.url)), root, say=said.append)  # ready: no request
        assert len(mirror.requests) == len(said) == 1
    assert leftovers(root) == ["cifar100", "downloads"]
    assert leftovers(root / "downloads" / "cifar100") == [NAME]


def test_fashion_mnists_four_files(root, said):
    spec, raw = small_fashion_mnist()
    files = idx_files(raw)
    with serving(files) as mirror:
        offer = tuple(remote(mirror.url, content=content, name=name) for name, content in files.items())
        dataset = fetch.dataset(source_of(spec, (offer,)), root, say=said.append)
    assert dataset.test.sha256 == spec.test.sha256


BAD_BEHAVIOUR = {
    "missing": "HTTP status 404",
    "broken": "HTTP status 500",
    "html": "served an HTML page instead of the file",
    "html_as_gzip": "served an HTML page instead of the file",
    "truncated": "the connection closed before the end of the file",
    "stalled": "stalled: nothing came for 0.5 s",
    "drip": "too slow: 0 kB/s",
}


@pytest.mark.parametrize("behaviour", BAD_BEHAVIOUR)
def test_a_bad_mirror_is_named_and_left_for_the_next(root, said, behaviour):
    with serving({NAME: BINARY}, behaviour) as bad, serving({NAME: BINARY}) as good:
        dataset = fetch.dataset(cifar100_from(remote(bad.url, good.url)), root, say=said.append)
    assert dataset.train.sha256 == SPEC.train.sha256
    host = bad.url.removeprefix("http://")
    assert f"{NAME}: {host} failed: {BAD_BEHAVIOUR[behaviour]}" in "\n".join(said)
    assert len(bad.requests) == 1
    assert leftovers(root / "downloads" / "cifar100") == [NAME]


@pytest.mark.parametrize("behaviour", BAD_BEHAVIOUR)
def test_a_bad_mirror_alone_ends_in_one_line_and_leaves_nothing_that_harms(root, said, behaviour):
    with serving({NAME: BINARY}, behaviour) as mirror:
        source = cifar100_from(remote(mirror.url))
        with pytest.raises(DataError, match=BAD_BEHAVIOUR[behaviour]) as caught:
            fetch.dataset(source, root, say=said.append)
        assert "or `make data FROM=DIR`" in str(caught.value)
        assert "\n" not in str(caught.value)
        again = behaviour in ("broken", "truncated", "stalled", "drip")
        assert len(mirror.requests) == (2 if again else 1)  # a page or a 404 is not asked for twice
        assert not (root / "cifar100").exists()
        mirror.behaviour = "good"
        assert fetch.dataset(source, root, say=said.append).train.sha256 == SPEC.train.sha256


def test_a_dead_port_then_a_good_mirror(root, said):
    with serving({NAME: BINARY}) as good:
        dataset = fetch.dataset(cifar100_from(remote(dead_url(), good.url)), root, say=said.append)
    assert dataset.train.sha256 == SPEC.train.sha256
    assert "Connection refused" in said[1]


def test_a_host_that_does_not_exist(tmp_path):
    with pytest.raises(MirrorError) as caught:
        download(remote("http://host.invalid"), f"http://host.invalid/{NAME}", tmp_path, QUICK)
    assert caught.value.again


def test_a_mirror_with_the_wrong_bytes(root, said):
    wrong = tar_bytes(binary_files(RAW), shuffled=1) + b"\0"
    with serving({NAME: wrong}) as bad, serving({NAME: BINARY}) as good:
        source = cifar100_from(remote(bad.url, good.url))
        assert fetch.dataset(source, root, say=said.append).test.sha256 == SPEC.test.sha256
    assert f"expected md5:{hashlib.md5(BINARY).hexdigest()}, found {hashlib.md5(wrong).hexdigest()}" in said[1]


def test_the_png_mirror_stands_in_when_the_official_host_is_slow(root, said):
    with serving({NAME: BINARY}, "drip") as slow, serving({"cifar100.tgz": PNGS}) as png_mirror:
        source = cifar100_from(remote(slow.url), remote(png_mirror.url, content=PNGS, name="cifar100.tgz", known=False))
        assert fetch.dataset(source, root, say=said.append).train.sha256 == SPEC.train.sha256
    assert "too slow" in said[1]


OTHER = tar_bytes(png_files({"train": RAW["train"], "test": replace(RAW["test"], labels=RAW["test"].labels[::-1])}))


def test_an_archive_without_a_published_hash_is_judged_by_its_arrays(root, said):
    with serving({"cifar100.tgz": OTHER}) as liar:
        source = cifar100_from(remote(liar.url, content=OTHER, name="cifar100.tgz", known=False))
        with pytest.raises(DataError, match="these are other images or labels"):
            fetch.dataset(source, root, say=said.append)
        assert leftovers(root / "downloads" / "cifar100") == []
        assert len(liar.requests) == 1
        liar.files["cifar100.tgz"] = PNGS
        assert fetch.dataset(source, root, say=said.append).train.sha256 == SPEC.train.sha256


def test_only_the_addresses_that_lied_are_given_up(root, said):
    """However many they are: a later round is for a slow address."""
    lie = {"cifar100.tgz": OTHER}
    with serving(lie) as first, serving(lie) as second, serving(lie) as third, serving({"cifar100.tgz": PNGS}) as good:
        source = cifar100_from(remote(good.url, content=PNGS, name="cifar100.tgz", known=False))
        liars = [first, second, third]
        dataset = fetch.dataset(source, root, [liar.url for liar in liars], say=said.append)
        assert dataset.train.sha256 == SPEC.train.sha256
        assert [len(mirror.requests) for mirror in (*liars, good)] == [1, 1, 1, 1]
    failed = [line.partition(": expected SHA-256")[0] for line in said if "failed" in line]
    assert failed == [f"cifar100.tgz: {liar.url.removeprefix('http://')} failed: cifar100 test" for liar in liars]


def test_a_bad_file_that_was_there_is_blamed_on_nobody_and_fetched_anew(root, said):
    """Even one with its published hash: what it was made into tells."""
    write_files(root / "downloads" / "cifar100", {NAME: OTHER})
    with serving({NAME: OTHER}) as mirror:
        with pytest.raises(DataError, match="these are other images or labels"):
            fetch.dataset(cifar100_from(remote(mirror.url, content=OTHER)), root, say=said.append)
        assert len(mirror.requests) == 1
    assert leftovers(root / "downloads" / "cifar100") == []


@pytest.mark.parametrize("known", [True, False])
def test_a_broken_file_in_the_downloads_is_fetched_again(root, said, known):
    name = NAME if known else "cifar100.tgz"
    content = BINARY if known else PNGS
    write_files(root / "downloads" / "cifar100", {name: content[:5000]})
    with serving({name: content}) as mirror:
        source = cifar100_from(remote(mirror.url, content=content, name=name, known=known))
        assert fetch.dataset(source, root, say=said.append).train.sha256 == SPEC.train.sha256
    assert "not usable" in said[0]


@pytest.mark.parametrize("behaviour", ["truncated", "stalled"])
def test_an_interrupted_transfer_continues(tmp_path, behaviour):
    with serving({NAME: BINARY}, behaviour, stop_after=300_000) as mirror:
        file = remote(mirror.url)
        with pytest.raises(MirrorError):
            download(file, file.urls[0], tmp_path, QUICK)
        assert (tmp_path / f"{NAME}.part").stat().st_size == 300_000
        mirror.behaviour = "good"
        assert download(file, file.urls[0], tmp_path, QUICK).read_bytes() == BINARY
        assert mirror.requests == [(NAME, ""), (NAME, "bytes=300000-")]
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("change", ["no ranges", "another file", "another mirror", "no note", "part too long"])
def test_what_cannot_be_continued_starts_again(tmp_path, change):
    newer = BINARY + b"\0" * 512
    with serving({NAME: BINARY}, "truncated", stop_after=300_000) as mirror, serving({NAME: BINARY}) as other:
        file = remote(mirror.url, other.url)
        with pytest.raises(MirrorError):
            download(file, file.urls[0], tmp_path, QUICK)
        mirror.behaviour = "no_ranges" if change == "no ranges" else "good"
        if change == "another file":
            mirror.files[NAME] = newer
            file = remote(mirror.url, content=newer)
        elif change == "no note":
            (tmp_path / f"{NAME}.part.json").write_text("{")
        elif change == "part too long":
            with (tmp_path / f"{NAME}.part").open("ab") as part:
                part.write(bytes(len(BINARY)))
        url = file.urls[1 if change == "another mirror" else 0]
        if change == "part too long":
            with pytest.raises(MirrorError):  # the server cannot continue beyond its end; the part is given up
                download(file, url, tmp_path, QUICK)
        assert download(file, url, tmp_path, QUICK).read_bytes() == mirror.files[NAME]
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_a_damaged_part_is_found_by_the_hash_and_fetched_again(root, said):
    with serving({NAME: BINARY}, "truncated", stop_after=300_000) as mirror:
        source = cifar100_from(remote(mirror.url))
        with pytest.raises(DataError):
            fetch.dataset(source, root, say=said.append)
        part = root / "downloads" / "cifar100" / f"{NAME}.part"
        part.write_bytes(bytes(part.stat().st_size))
        mirror.behaviour = "good"
        assert fetch.dataset(source, root, say=said.append).train.sha256 == SPEC.train.sha256
    assert "expected md5:" in "\n".join(said)


def test_a_slow_host_is_accepted_when_there_is_no_other(root, said, monkeypatch):
    """Later rounds are patient: better slow than not at all."""
    patient = replace(QUICK, minimum_rate=0)
    monkeypatch.setattr(
        fetch, "POLICY", fetch.Policy(rounds=(replace(QUICK, window_s=0, minimum_rate=1e12), patient), pauses_s=(0, 0))
    )
    with serving({NAME: BINARY}) as mirror:
        assert fetch.dataset(cifar100_from(remote(mirror.url)), root, say=said.append).train.sha256 == SPEC.train.sha256
        assert len(mirror.requests) == 2
    assert "too slow" in said[1]


def test_more_bytes_than_the_file_can_have(tmp_path):
    with serving({NAME: BINARY}) as mirror:
        file = replace(remote(mirror.url), max_bytes=1000)
        with pytest.raises(MirrorError, match="more than the 1,000 expected"):
            download(file, file.urls[0], tmp_path, QUICK)
    assert list(tmp_path.iterdir()) == []


def test_extra_mirrors_come_first_and_known_ones_after(root, said):
    with serving({NAME: BINARY}) as extra, serving({NAME: BINARY}) as known:
        source = cifar100_from(remote(known.url))
        fetch.dataset(source, root / "a", [extra.url + "/"], say=said.append)
        assert (len(extra.requests), len(known.requests)) == (1, 0)
        extra.behaviour = "missing"
        fetch.dataset(source, root / "b", [extra.url], say=said.append)
        assert (len(extra.requests), len(known.requests)) == (2, 1)


def test_a_mirror_that_is_no_address_is_left_for_the_next(root, said):
    with serving({NAME: BINARY}) as known:
        dataset = fetch.dataset(cifar100_from(remote(known.url)), root, ["http://[::1"], say=said.append)
    assert dataset.train.sha256 == SPEC.train.sha256
    assert said[1].startswith(f"{NAME}: [::1 failed: ")


def test_files_under_the_root_spare_the_network(root, said):
    write_files(root / "mine", binary_files(RAW))
    source = cifar100_from(remote(dead_url()))
    assert fetch.dataset(source, root, say=said.append).train.sha256 == SPEC.train.sha256
    assert said == []


def test_a_full_disk_while_fetching(tmp_path):
    """The kernel refuses the write at 200 kB (RLIMIT_FSIZE: works everywhere); one line, and no half file left on a full disk."""
    code = """
import resource, sys
from pathlib import Path
from data.download import Patience, download
from data.errors import DiskError
from data.sources import RemoteFile
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
url, folder = sys.argv[1], Path(sys.argv[2])
try:
    download(RemoteFile("file.tar.gz", (url,), None, 5_000_000), url, folder, Patience(2, 2, 0, 10))
except DiskError as error:
    print([p.name for p in folder.iterdir()], error)
"""
    with serving({NAME: BINARY}) as mirror:
        command = [sys.executable, "-c", code, f"{mirror.url}/{NAME}", str(tmp_path)]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("[] cannot write under")
    assert "no room left" in result.stdout


def test_a_root_that_cannot_be_written(tmp_path, said):
    (tmp_path / "file").write_text("")
    with serving({NAME: BINARY}) as mirror, pytest.raises(DiskError, match="cannot write under"):
        fetch.dataset(cifar100_from(remote(mirror.url)), tmp_path / "file", say=said.append)
    assert mirror.requests == []


def test_two_processes_fetching_at_once_ask_once(root):
    code = """
import sys, time
from pathlib import Path
from data import fetch
from data.sources import RemoteFile
from tests.data.fakes import small_cifar100, source_of
url, root, start = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
remote = RemoteFile("cifar-100-binary.tar.gz", (url,), None, 5_000_000)
source = source_of(small_cifar100()[0], ((remote,),))
time.sleep(max(0, start - time.time()))
print(fetch.dataset(source, root).train.sha256)
"""
    with serving({NAME: BINARY}) as mirror:
        command = [sys.executable, "-c", code, f"{mirror.url}/{NAME}", str(root), str(time.time() + 1)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
        processes = [subprocess.Popen(command, env=os.environ | {"NO_PROXY": "127.0.0.1"}, **pipes) for _ in range(2)]
        outputs = [process.communicate(timeout=30) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        assert [out.strip() for out, _ in outputs] == [SPEC.train.sha256] * 2
        assert len(mirror.requests) == 1


WEIGHTS = bytes(range(256)) * 2048  # 0.5 MiB
WEIGHTS_NAME = sources.IMAGENET_WEIGHTS.filename


@pytest.fixture
def weights(monkeypatch):
    """A small file in the place of the 109 MiB of weights, by its own hash and size."""

    def use(url):
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        file = RemoteFile(WEIGHTS_NAME, (f"{url}/{WEIGHTS_NAME}",), f"sha256:{digest}", 10**6)
        monkeypatch.setattr(sources, "IMAGENET_WEIGHTS", file)
        monkeypatch.setattr(sources, "IMAGENET_WEIGHTS_MIB", 0.5)

    return use


def test_weights_are_fetched_once_and_verified(root, weights):
    with serving({WEIGHTS_NAME: WEIGHTS}) as mirror:
        weights(mirror.url)
        assert fetch.weights_path(root) is None
        path = fetch.imagenet_weights(root)
        assert path == root / "weights" / "convnext_tiny-983f1562.pth" == fetch.weights_path(root)
        assert path.read_bytes() == WEIGHTS
        assert fetch.imagenet_weights(root) == path
        assert len(mirror.requests) == 1
        path.write_bytes(WEIGHTS[:-1] + b"x")
        assert fetch.imagenet_weights(root).read_bytes() == WEIGHTS  # damaged: fetched again
        path.write_bytes(WEIGHTS[:-5000])
        assert fetch.weights_path(root) is None


def test_weights_with_the_wrong_hash_are_not_kept(root, weights):
    with serving({WEIGHTS_NAME: WEIGHTS[::-1]}) as mirror:
        weights(mirror.url)
        with pytest.raises(DataError, match=r"expected sha256:.*, found"):
            fetch.imagenet_weights(root)
    assert leftovers(root / "weights") == []


def test_weights_from_a_folder(root, weights, tmp_path):
    weights(dead_url())
    assert fetch.imagenet_weights_from([tmp_path], root) is None
    write_files(tmp_path / "in" / "deep", {WEIGHTS_NAME: WEIGHTS})
    assert fetch.imagenet_weights_from([tmp_path / "in"], root) == fetch.weights_path(root)


def test_the_first_good_weights_of_several_are_taken(root, weights, tmp_path):
    """Damaged ones may lie in the very place where they belong."""
    weights(dead_url())
    write_files(root / "weights", {WEIGHTS_NAME: WEIGHTS[:-10]})
    write_files(tmp_path / "usb", {WEIGHTS_NAME: WEIGHTS})
    assert fetch.imagenet_weights_from([root, tmp_path], root).read_bytes() == WEIGHTS
    assert leftovers(root / "weights") == [WEIGHTS_NAME]


def test_weights_of_which_none_is_good_are_all_named(weights, open_folder):
    weights(dead_url())
    root = open_folder / "root"
    bad, link, closed = paths = [open_folder / folder / WEIGHTS_NAME for folder in ("bad", "link", "unreadable")]
    for path in paths:
        path.parent.mkdir()
    bad.write_bytes(PAGE)
    link.symlink_to("nowhere")
    closed.write_bytes(WEIGHTS)
    with ordinary_user(closed.parent):
        closed.chmod(0o000)
        with pytest.raises(DataError) as caught:
            fetch.imagenet_weights_from([open_folder], root)
    reasons = str(caught.value).split("; ")
    assert [reason.partition("sha256:")[0] for reason in reasons[:2]] == [f"{path}: its hash is not " for path in (bad, link)]
    assert reasons[2].startswith(f"cannot read {closed} (Permission denied)")
    assert not root.exists()


def test_weights_that_changed_while_copied_are_not_kept(root, weights, tmp_path, monkeypatch):
    weights(dead_url())
    write_files(tmp_path / "usb", {WEIGHTS_NAME: WEIGHTS})
    monkeypatch.setattr(fetch.shutil, "copyfile", lambda source, target: target.write_bytes(WEIGHTS[:-1]))
    with pytest.raises(DataError, match=r"its copy under .* is not the same"):
        fetch.imagenet_weights_from([tmp_path / "usb"], root)
    assert leftovers(root / "weights") == []


def test_weights_that_may_not_be_read(weights, open_folder):
    weights(dead_url())
    root = open_folder / "root"
    path = write_files(root / "weights", {WEIGHTS_NAME: WEIGHTS}) / WEIGHTS_NAME
    with ordinary_user(root):
        for closed in (path, path.parent):
            closed.chmod(0o000)
            for ask in (lambda: fetch.imagenet_weights(root), lambda: fetch.imagenet_weights_from([open_folder], root)):
                with pytest.raises(DataError, match=r"cannot read .*Permission denied.: mend its permissions"):
                    ask()
            assert fetch.weights_path(root) == (path if closed == path else None)
            closed.chmod(0o755)


def test_every_known_address_and_hash_is_well_formed():
    files = [f for s in sources.SOURCES.values() for offer in s.offers for f in offer] + [sources.IMAGENET_WEIGHTS]
    assert len(files) == 7
    for file in files:
        assert all(url.startswith("http") and url.endswith("/" + file.filename) for url in file.urls)
        algorithm, _, digest = (file.known_hash or "md5:" + "0" * 32).partition(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
    assert sources.IMAGENET_WEIGHTS.known_hash.removeprefix("sha256:").startswith("983f1562")
