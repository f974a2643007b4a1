"""Small data sets under the names of the real ones, and no proxy between the tests and their loopback servers."""

import pytest

from data import fetch
from data.download import Patience
from data.fetch import Policy

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
