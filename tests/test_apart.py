"""A loop in another process: it does the steps that it is told to, and is gone afterwards."""

import io
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bench import memory
from bench.engine.execution import Choices
from bench.measure import apart
from tests.conftest import small_network

# Stands for the program: it notes its arguments and each number of steps in a file.
SCRIPT = """
import sys
def note(word):
    print(word, file=open(sys.argv[3], 'a'))
note(f'{sys.argv[1]} {sys.argv[2]}')
print('ready', flush=True)
for line in sys.stdin:
    note(line.strip())
    if line == '9\\n':
        sys.exit(7)
    print('done', flush=True)
"""


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "PROGRAM", (sys.executable, "-c", SCRIPT))


@pytest.mark.usefixtures("program")
def test_it_has_done_the_steps_when_the_call_returns(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with closing(apart.Apart("cifar100/baseline", Choices(depthwise="reference", kept=notes))) as loop:
        for steps in (2, 3):
            loop(steps)
            assert notes.read_text().splitlines()[-1] == str(steps)
        process = loop._process
    assert notes.read_text().splitlines()[0] == "cifar100/baseline reference"
    assert process.returncode is not None, "it has ended"


@pytest.mark.usefixtures("program")
def test_one_that_dies_is_noticed(tmp_path: Path) -> None:
    loop = apart.Apart("cifar100/baseline", Choices(kept=tmp_path / "notes"))
    with pytest.raises(RuntimeError, match="has died with status 7"):
        loop(9)


def test_one_that_cannot_begin_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "PROGRAM", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match="has died with status 3"):
        apart.Apart("cifar100/baseline", Choices())


def test_the_program_trains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    networks: list[nn.Module] = []

    def build(model: Any, *, classes: int, seed: int, initial: Any = None) -> nn.Module:
        networks.append(small_network(classes))
        return networks[-1]

    monkeypatch.setattr("bench.engine.network.build", build)
    monkeypatch.setattr(apart.loops, "IMAGES", 256)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n2\n"))
    monkeypatch.setattr(memory, "keep_freed", lambda: pytest.fail("freed memory goes back to the kernel"))
    apart._serve("cifar100/baseline", "reference", "")
    assert capsys.readouterr().out.split() == ["ready", "done", "done"]
    trained, before = networks[-1].state_dict(), small_network(100).state_dict()
    assert any(not trained[name].equal(value) for name, value in before.items())
