"""`python -m data`, which `make data` runs."""

import hashlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data
from data import __main__ as cli
from data import fetch, sources
from data.errors import DataError
from data.sources import RemoteFile

from .fakes import (
    binary_files,
    idx_files,
    leftovers,
    small_cifar100,
    small_fashion_mnist,
    source_of,
    tar_bytes,
    write_files,
)
from .server import dead_url, serving

CIFAR, CIFAR_RAW = small_cifar100()
FASHION, FASHION_RAW = small_fashion_mnist()
ARCHIVE = "cifar-100-binary.tar.gz"
FILES = {ARCHIVE: tar_bytes(binary_files(CIFAR_RAW)), **idx_files(FASHION_RAW)}
WEIGHTS = {sources.IMAGENET_WEIGHTS.filename: b"weights" * 1000}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def small_sources(monkeypatch):
    """The small sets and weights under the real names, served nowhere unless a test gives a mirror."""
    nowhere = dead_url()

    def remote(name, content):
        return RemoteFile(name, (f"{nowhere}/{name}",), f"sha256:{hashlib.sha256(content).hexdigest()}", 5_000_000)

    archive = (remote(ARCHIVE, FILES[ARCHIVE]),)
    idx_offer = tuple(remote(name, FILES[name]) for name in idx_files(FASHION_RAW))
    monkeypatch.setitem(sources.SOURCES, "cifar100", source_of(CIFAR, (archive,)))
    monkeypatch.setitem(sources.SOURCES, "fashion_mnist", source_of(FASHION, (idx_offer,)))
    ((name, content),) = WEIGHTS.items()
    monkeypatch.setattr(sources, "IMAGENET_WEIGHTS", remote(name, content))
    monkeypatch.setattr(sources, "IMAGENET_WEIGHTS_MIB", round(len(content) / 2**20, 3))


def split_lines(state):
    return [
        f"{spec.name:<14} {split:<5} {want.count:>6,} images  sha256:{want.sha256}  {state}"
        for spec in (CIFAR, FASHION)
        for split, want in spec.splits.items()
    ]


def test_from_a_folder_and_again(root, tmp_path, capsys):
    write_files(tmp_path / "a", binary_files(CIFAR_RAW))
    write_files(tmp_path / "b" / "deep", idx_files(FASHION_RAW))
    arguments = ["--root", str(root), "--from", str(tmp_path / "a"), "--from", str(tmp_path / "b")]
    assert cli.main([*arguments, "--no-weights"]) == 0
    assert capsys.readouterr().out.splitlines() == split_lines("verified")
    assert cli.main([*arguments, "--no-weights"]) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines(), err) == (split_lines("ready"), "")
    assert data.load("cifar100", root).train.sha256 == CIFAR.train.sha256


def test_folders_without_the_weights_are_named(root, tmp_path, capsys):
    write_files(tmp_path / "a", {**binary_files(CIFAR_RAW), **idx_files(FASHION_RAW)})
    (tmp_path / "b").mkdir()
    arguments = ["--root", str(root), "--from", str(tmp_path / "a"), "--from", str(tmp_path / "b")]
    assert cli.main(arguments) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == split_lines("verified")
    assert last.startswith(f"convnext_tiny-983f1562.pth  not under {tmp_path / 'a'}, {tmp_path / 'b'}; put the file there")
    write_files(tmp_path / "b", WEIGHTS)
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  verified")


def test_over_the_network_with_weights(root, capsys, monkeypatch):
    monkeypatch.setenv("DATASETS", str(root))
    with serving({**FILES, **WEIGHTS}) as mirror:
        assert cli.main(["--mirror", mirror.url]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[:4] == split_lines("verified")
        assert out[4].startswith("convnext_tiny-983f1562.pth  sha256:")
        asked = len(mirror.requests)
        assert cli.main(["--mirror", mirror.url]) == 0
        assert len(mirror.requests) == asked == 6
    assert fetch.weights_path() == root / "weights" / "convnext_tiny-983f1562.pth"


def test_without_the_weights_the_data_remain(root, capsys):
    with serving(FILES) as mirror:
        assert cli.main(["--root", str(root), "--mirror", mirror.url]) == 2
        err = capsys.readouterr().err.splitlines()
        assert err[-1].startswith("convnext_tiny-983f1562.pth could not be fetched (")
        assert cli.main(["--root", str(root), "--mirror", mirror.url, "--no-weights"]) == 0
    assert capsys.readouterr().out.splitlines() == split_lines("ready")


def test_only_takes_one_set(root, tmp_path, capsys):
    write_files(tmp_path / "in", idx_files(FASHION_RAW))
    assert cli.main(["--root", str(root), "--from", str(tmp_path / "in"), "--only", "fashion_mnist"]) == 0
    assert capsys.readouterr().out.splitlines() == split_lines("verified")[2:]
    assert leftovers(root) == ["fashion_mnist"]


def test_one_set_that_fails_does_not_stop_the_other(root, tmp_path, capsys):
    write_files(tmp_path / "in", {**idx_files(FASHION_RAW), ARCHIVE: FILES[ARCHIVE][:9000]})
    assert cli.main(["--root", str(root), "--from", str(tmp_path / "in"), "--no-weights"]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == split_lines("verified")[2:]
    assert len(err.splitlines()) == 1
    assert "truncated or damaged" in err


def test_an_interrupt_is_not_a_traceback(root, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "dataset", interrupted)
    assert cli.main(["--root", str(root)]) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to continue\n"


def run(arguments, **options):
    root = Path(data.__file__).parents[1]
    return subprocess.run([sys.executable, "-m", "data", *arguments], cwd=root, text=True, **options)


def test_a_users_mistake_is_one_line_and_status_2(tmp_path):
    result = run(["--root", str(tmp_path / "root"), "--from", str(tmp_path), "--only", "cifar100"], capture_output=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"cifar100: nothing of it under {tmp_path}; expected cifar-100-binary.tar.gz")
    result = run(["--only", "imagenet"], capture_output=True)
    assert result.returncode == 2
    assert "invalid choice: 'imagenet'" in result.stderr


@pytest.mark.parametrize("given", ["root", "variable"])
def test_a_home_folder_that_is_not_there(monkeypatch, capsys, given):
    folder = "~no-such-user/datasets"
    if given == "variable":
        monkeypatch.setenv("DATASETS", folder)
    assert cli.main(["--root", folder] if given == "root" else []) == 2
    expected = f"{folder}: expected the home folder of a user, found none: write the path without ~\n"
    assert capsys.readouterr() == ("", expected)
    with pytest.raises(DataError, match="expected the home folder of a user, found none"):
        data.load("cifar100", folder)


@pytest.mark.parametrize("url", ["http://[::1", "host/folder", "ftp://host/folder", "https://"])
def test_a_mirror_that_is_no_address(capsys, url):
    with pytest.raises(SystemExit) as left:
        cli.main(["--mirror", url])
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: argument --mirror: expected an address such as https://host/folder, found {url!r}; ")
    assert (out, err.count("\n")) == ("", 1)


def without_a_reader():
    reading, writing = os.pipe()
    os.close(reading)
    return writing


# /dev/full is Linux's
OUTPUTS = {"Broken pipe": without_a_reader} | (
    {"No space left on device": lambda: os.open("/dev/full", os.O_WRONLY)} if Path("/dev/full").exists() else {}
)


@pytest.mark.parametrize("reason", OUTPUTS)
def test_an_output_that_takes_nothing_is_one_line_and_the_rest_is_prepared(reason, root, tmp_path, capsys, monkeypatch):
    write_files(tmp_path / "in", {**binary_files(CIFAR_RAW), **idx_files(FASHION_RAW), **WEIGHTS})
    with os.fdopen(OUTPUTS[reason](), "w") as output:  # closing it writes what is left, as Python does at its end
        monkeypatch.setattr(sys, "stdout", output)
        assert cli.main(["--root", str(root), "--from", str(tmp_path / "in")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"standard output: cannot be written ({reason})")
    assert leftovers(root) == ["cifar100", "fashion_mnist", "weights"]


def test_a_folders_name_need_not_be_text(root, tmp_path, monkeypatch):
    folder = write_files(tmp_path / os.fsdecode(b"\xff"), {**binary_files(CIFAR_RAW), **idx_files(FASHION_RAW)})
    with (tmp_path / "output").open("w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert cli.main(["--root", str(root), "--from", str(folder)]) == 0
    assert f"not under {tmp_path}/\\udcff; put the file there" in (tmp_path / "output").read_text()


def test_a_real_ctrl_c_while_a_mirror_stalls(tmp_path):
    with serving(FILES, "stalled", stop_after=300_000) as mirror:
        command = [sys.executable, "-m", "data", "--root", tmp_path, "--only", "cifar100", "--mirror", mirror.url]
        options = {"cwd": Path(data.__file__).parents[1], "env": os.environ | {"NO_PROXY": "127.0.0.1"}}
        # a shell starts background jobs with Ctrl-C ignored, and the child would inherit that from the tests
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        part = tmp_path / "downloads" / "cifar100" / f"{ARCHIVE}.part"
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size == 300_000) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[1:] == ["interrupted: run the same command again to continue"]
    assert part.stat().st_size == 300_000  # the next call continues from here


PROGRESS = """
import sys
from pathlib import Path
from data.download import Patience, download
from data.sources import RemoteFile
url, folder = sys.argv[1], Path(sys.argv[2])
download(RemoteFile("file.tar.gz", (url,), None, 5_000_000), url, folder, Patience(2, 2, 0, 10))
"""


def test_a_progress_bar_on_a_terminal_and_nothing_in_a_log(tmp_path):
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "TERM": "xterm", "COLUMNS": "100"}
    environment = {k: v for k, v in environment.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")}
    options = {"cwd": Path(data.__file__).parents[1], "env": environment, "check": True}
    with serving(FILES) as mirror:
        command = [sys.executable, "-c", PROGRESS, f"{mirror.url}/{ARCHIVE}"]
        log = subprocess.run([*command, str(tmp_path / "a")], stderr=subprocess.PIPE, **options)
        assert log.stderr == b""
        terminal, child = pty.openpty()
        subprocess.run([*command, str(tmp_path / "b")], stderr=child, **options)
        os.close(child)
        shown = os.read(terminal, 65536)
        os.close(terminal)
    assert b"file.tar.gz" in shown
    assert b"MB" in shown or b"kB" in shown
