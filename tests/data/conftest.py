"""No proxy and no long waits between the tests and their loopback servers; folders and a user whom mode bits bind."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data import fetch
from data.download import Patience
from data.fetch import Policy

NOBODY = 65534
QUICK = Policy(
    rounds=(
        Patience(connect_s=2, read_s=0.5, minimum_rate=2_000, window_s=0.5),
        Patience(connect_s=2, read_s=0.5, minimum_rate=2_000, window_s=0.5),
    ),
    pauses_s=(0, 0),
)


@pytest.fixture(autouse=True)
def loopback_without_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(autouse=True)
def quick_policy(monkeypatch):
    monkeypatch.setattr(fetch, "POLICY", QUICK)


@contextmanager
def ordinary_user(folder: Path) -> Iterator[None]:
    """Mode bits do not bind root, who may run these tests: give `folder` to nobody and become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that any user may reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="data-test-"))
    path.chmod(0o755)
    yield path
    for folder in (path, *(p for p in path.rglob("*") if p.is_dir())):
        folder.chmod(0o755)
    shutil.rmtree(path)
