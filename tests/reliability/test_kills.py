"""Processes that are killed, at any moment and again and again, and started again: in the end nothing shows it."""

import random
import signal
from pathlib import Path

import pytest

from tests import tally
from tests.reliability.equality import assert_equal
from tests.reliability.process import EXPERIMENTS, run, start, status_of

KILLS = 50  # at random moments, at least


def grid_of(*experiments: str, seeds: str = "0") -> tuple[str, ...]:
    return ("grid", f"--only={' '.join(experiments)}", f"--seeds={seeds}")


def report(results: Path) -> None:
    assert run(results, "report") == 0


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments with three seeds, never interrupted."""
    results = tmp_path_factory.mktemp("straight") / "results"
    assert run(results, *grid_of(*EXPERIMENTS, seeds="0 1 2")) == 0
    report(results)
    return results


@pytest.mark.slow
def test_killed_at_every_moment_of_a_run(tmp_path: Path) -> None:
    """Before each operation on a file, in the middle of each file, after each step: killed there once, then started again."""
    command = grid_of(EXPERIMENTS[0])
    assert run(tmp_path / "straight", *command) == 0
    moment, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        moment += 1
        results = tmp_path / f"killed {moment}"
        status = run(results, *command, moment=moment)
        assert run(results, *command) == 0
        assert_equal(results, tmp_path / "straight")
    assert status == 0, "it had no such moment"
    assert moment > 60, "three files at each epoch, the curves, the record, eight steps"
    tally.count("kills survived", moment - 1)


@pytest.mark.slow
def test_killed_again_and_again(straight: Path, tmp_path: Path) -> None:
    """A grid of six runs, killed at random moments: by itself at one that is counted, or from outside after some time."""
    chance = random.Random(0)
    kills = grids = 0
    while kills < KILLS:
        grids += 1
        results = tmp_path / f"killed {grids}"
        while status := killed(results, chance):
            assert status == -signal.SIGKILL
            kills += 1
        report(results)
        assert_equal(results, straight)
    tally.count("kills survived", kills)


def killed(results: Path, chance: random.Random) -> int:
    """Start the grid, kill it at a random moment, and return its exit status: 0 where it was done before."""
    command = grid_of(*EXPERIMENTS, seeds="0 1 2")
    if chance.random() < 0.5:
        return run(results, *command, moment=chance.randint(1, 120))
    process = start(results, *command)
    process.join(chance.uniform(0.3, 3))
    process.kill()
    return status_of(process)


@pytest.mark.parametrize("moment", [30, 45])
def test_killed_and_started_again(moment: int, tmp_path: Path) -> None:
    """The quick one of these tests."""
    command = grid_of(EXPERIMENTS[1])
    assert run(tmp_path / "straight", *command) == 0
    assert run(tmp_path / "killed", *command, moment=moment) == -signal.SIGKILL
    assert run(tmp_path / "killed", *command) == 0
    assert_equal(tmp_path / "killed", tmp_path / "straight")
    tally.count("kills survived")


@pytest.mark.slow
def test_killed_while_writing_the_report(straight: Path, tmp_path: Path) -> None:
    page = straight / "RESULTS.md"
    expected, moment = page.read_bytes(), 1
    while run(straight, "report", moment=moment) == -signal.SIGKILL:
        assert page.read_bytes() == expected
        report(straight)
        assert not list(straight.glob(".*"))
        moment += 1
    assert page.read_bytes() == expected
    assert moment > 3
    tally.count("kills survived", moment - 1)
