"""The commits named for sources are the commits that have them."""

import subprocess
from pathlib import Path

import pytest

from bench.environment import ROOT, sources_sha256
from bench.provenance import COMMITS, commit_of, shown

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
