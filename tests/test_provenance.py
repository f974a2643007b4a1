"""The commits named for sources are the commits that have them, and locks pin the torch that is named for them."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from bench.environment import ROOT, sources_sha256
from bench.locks import LOCKS, pins
from bench.provenance import COMMITS, LOCKED_TORCH, commit_of, locked_instead, shown

CLEAN = {"commit": "a" * 40, "dirty": False, "sources_sha256": "0" * 64}


@pytest.mark.parametrize(("digest", "commit"), COMMITS.items())
def test_the_sources_are_the_commits(digest: str, commit: str, tmp_path: Path) -> None:
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "bench", "data", "models"], capture_output=True)
    if archive.returncode:
        pytest.skip("this copy has no history")
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True)  # Python 3.11.2 cannot extract safely
    assert sources_sha256(tmp_path) == digest


def test_a_clean_tree_is_its_commit() -> None:
    assert commit_of(CLEAN) == "a" * 40 and shown(CLEAN) == "a" * 12


def test_changed_sources_are_no_commit_unless_they_are_known() -> None:
    changed = CLEAN | {"dirty": True}
    assert commit_of(changed) is None and shown(changed) == "a" * 12 + "-dirty"
    digest, commit = next(iter(COMMITS.items()))
    assert commit_of(changed | {"sources_sha256": digest}) == commit


def test_without_git_the_commit_is_unknown() -> None:
    assert shown({"commit": None, "dirty": None, "sources_sha256": "0" * 64}) == "unknown"


def torch_of(lock: bytes) -> str:
    (version,) = [pin.version for pin in pins(lock.decode()) if pin.name == "torch"]
    return version


def test_the_present_lock_is_known() -> None:
    lock = (ROOT / LOCKS[0]).read_bytes()
    assert LOCKED_TORCH[hashlib.sha256(lock).hexdigest()] == torch_of(lock), "add the lock to bench/provenance.py"


def test_every_committed_lock_is_known() -> None:
    git = ["git", "-C", str(ROOT)]
    log = subprocess.run([*git, "rev-list", "HEAD", "--", LOCKS[0]], capture_output=True, text=True)
    if log.returncode or not log.stdout:
        pytest.skip("this copy has no history")
    shown = [
        subprocess.run([*git, "show", f"{commit}:{LOCKS[0]}"], check=True, capture_output=True) for commit in log.stdout.split()
    ]
    found = {hashlib.sha256(each.stdout).hexdigest(): torch_of(each.stdout) for each in shown}
    assert found.items() <= LOCKED_TORCH.items(), "a copy with a part of the history has a part of the locks"


@pytest.mark.parametrize(
    ("torch", "locked"), [("2.13.0", None), ("2.13.0+cu130", None), ("2.11.0+cu130", "2.13.0"), ("2.13.0.dev1", "2.13.0")]
)
def test_another_torch_than_the_locks(torch: str, locked: str | None) -> None:
    for digest, expected in ((next(iter(LOCKED_TORCH)), locked), ("0" * 64, None)):
        assert locked_instead({"code": {"requirements_lock_sha256": digest}, "environment": {"torch": torch}}) == expected
