"""How many processes a GPU is worth: they begin together, and who cannot take part ends the count."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bench.engine.execution import Choices
from bench.measure import sharing
from tests.conftest import CPU, small_network

# Stands for the program: it notes when it was let go and when it was ready, in the folder that is its third argument.
SCRIPT = """
import pathlib, sys, time, os
notes = pathlib.Path(sys.argv[3])
place = len(list(notes.glob('begun-*')))
notes.joinpath(f'begun-{os.getpid()}').touch()
if len(list(notes.glob('begun-*'))) > int(sys.argv[1].split('/')[1]):
    sys.exit('no memory')
time.sleep(0.2)
notes.joinpath(f'ready-{os.getpid()}').write_text(str(time.time()))
print('ready', flush=True)
sys.stdin.readline()
notes.joinpath(f'went-{os.getpid()}').write_text(str(time.time()))
print(10.0)
"""


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PROGRAM", (sys.executable, "-c", SCRIPT))


def times(folder: Path, name: str) -> list[float]:
    return [float(path.read_text()) for path in folder.glob(f"{name}-*")]


@pytest.mark.usefixtures("program")
def test_all_begin_when_the_last_is_ready(tmp_path: Path) -> None:
    assert sharing._together(3, ["room/9", "cpu", str(tmp_path), "1"]) == 30
    assert len(times(tmp_path, "went")) == 3
    assert min(times(tmp_path, "went")) >= max(times(tmp_path, "ready"))


@pytest.mark.usefixtures("program")
def test_processes_without_memory_are_left_out_and_leave_nobody_behind(tmp_path: Path) -> None:
    """There is room for four processes in all: one, then two, then one of the next four."""
    assert sharing.shared_speeds("room/4", CPU, Choices(kept=tmp_path), seconds=1) == {"1": 10, "2": 20}
    assert len(times(tmp_path, "went")) == 3, "of the last four none was let go"


def test_a_process_that_dies_when_it_is_ready_ends_the_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dies = "import os; os.close(0); print('ready', flush=True)"
    monkeypatch.setattr(sharing, "PROGRAM", (sys.executable, "-c", dies))
    assert sharing.shared_speeds("room/4", CPU, Choices(kept=tmp_path), seconds=1) == {}


@pytest.mark.parametrize(
    ("speeds", "best"), [({"1": 230, "2": 231, "4": 240}, 4), ({"1": 230, "2": 229, "4": 234}, 1), ({"1": 10, "2": 19, "4": 19}, 2)]
)
def test_the_fewest_that_are_as_fast(speeds: dict[str, float], best: int) -> None:
    assert sharing.best_count(speeds) == best


def test_the_program_trains_and_tells_its_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(model: Any, *, classes: int, seed: int, initial: Any = None) -> nn.Module:
        return small_network(classes)

    monkeypatch.setattr("bench.engine.network.build", build)
    monkeypatch.setattr(sharing.loops, "IMAGES", 256)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    sharing._train("cifar100/baseline", CPU, Choices(compile="off", kept=tmp_path / "measured.json"), 0.1)
    ready, speed = capsys.readouterr().out.splitlines()
    assert ready == "ready" and float(speed) > 0
    assert (tmp_path / "measured.json").exists()
