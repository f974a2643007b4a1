"""Two processes never hold one run, whatever dies when, also without locks and from different machines."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import claims, errors
from bench.claims import FREE, Claim
from bench.engine.checkpoint import Busy, CheckpointFolder
from bench.environment import ROOT

# Holds the folder until it is told to stop, on a machine of the given name whose file system knows no locks.
HOLDER = """
import errno, fcntl, platform, sys
from pathlib import Path
from bench import claims
from bench.engine.checkpoint import Busy, CheckpointFolder

def flock(descriptor, operation):
    raise OSError(errno.ENOLCK, "no locks available")

fcntl.flock, platform.node = flock, lambda: sys.argv[2]
claims.BEAT_SECONDS, claims.LOOK_SECONDS, claims.LOOKS = 0.1, 0.1, 15
try:
    with CheckpointFolder(Path(sys.argv[1])).hold():
        print("held", flush=True)
        sys.stdin.read()
except Busy:
    print("busy", flush=True)
"""


@contextmanager
def process(folder: Path, machine: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder), machine]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def says(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def ends(started: subprocess.Popen[str]) -> int:
    assert started.stdin is not None
    started.stdin.close()
    return started.wait(60)


@pytest.mark.parametrize("machine", ["here", "there"])
def test_a_living_holder_keeps_its_run_without_locks(tmp_path: Path, machine: str) -> None:
    with process(tmp_path, "here") as first:
        assert says(first) == "held"
        with process(tmp_path, machine) as second:
            assert says(second) == "busy"
        assert ends(first) == 0
    with process(tmp_path, machine) as third:
        assert says(third) == "held", "a holder that left let it go"


@pytest.mark.parametrize("machine", ["here", "there"])
def test_a_dead_holder_holds_nothing(tmp_path: Path, machine: str) -> None:
    with process(tmp_path, "here") as first:
        assert says(first) == "held"
        first.kill()
        first.wait(60)
    with process(tmp_path, machine) as second:
        assert says(second) == "held"
    assert [path.name for path in tmp_path.glob("claim.*")] == ["claim.2"]


def test_death_on_the_own_machine_is_seen_at_once_and_elsewhere_after_the_stated_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(claims.time, "sleep", looks.append)
    for machine, expected in (("here", 0), ("there", claims.LOOKS)):
        folder = tmp_path / machine
        with process(folder, "here") as first:
            assert says(first) == "held"
            first.kill()
            first.wait(60)
        looks.clear()
        monkeypatch.setattr(claims.platform, "node", lambda machine=machine: machine)
        claim = Claim(folder)
        assert claim.take()
        claim.release()
        assert looks == [claims.LOOK_SECONDS] * expected


def test_a_look_that_the_file_system_held_up_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stands still stops the holder's beats and the watcher's looks alike."""
    (tmp_path / "claim.1").write_bytes(b"somebody elsewhere")
    looks: list[float] = []
    clock = iter([0, 0, 0, claims.LOOK_SECONDS, *[0] * 2 * claims.LOOKS])
    monkeypatch.setattr(claims.time, "sleep", looks.append)
    monkeypatch.setattr(claims.time, "monotonic", lambda: next(clock))
    claim = Claim(tmp_path)
    assert claim.take()
    claim.release()
    assert len(looks) == 2 + claims.LOOKS


def test_a_holder_that_stood_still_leaves_when_it_comes_to(tmp_path: Path) -> None:
    with process(tmp_path, "here") as first:
        assert says(first) == "held"
        first.send_signal(signal.SIGSTOP)
        with process(tmp_path, "there") as second:
            assert says(second) == "held"
            first.send_signal(signal.SIGCONT)
            assert first.wait(60) == errors.EXIT_TERMINATED
            assert first.stderr is not None and "another process took this run over" in first.stderr.read()
            with process(tmp_path, "here") as third:
                assert says(third) == "busy"
            assert ends(second) == 0


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds the claim free, or its holder dead, in the same moment."""
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.05)  # a claim that is just being written is watched
    (tmp_path / "claim.7").write_bytes(FREE)
    for _ in range(20):
        barrier, taken = threading.Barrier(8), list[Claim]()

        def come(barrier: threading.Barrier = barrier, taken: list[Claim] = taken) -> None:
            claim = Claim(tmp_path)
            barrier.wait()
            if claim.take():
                taken.append(claim)

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].release()
    assert [path.name for path in tmp_path.iterdir()] == ["claim.27"]


def test_one_that_slept_between_its_look_and_its_claim_backs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "claim.1").write_bytes(FREE)
    late, quick = Claim(tmp_path), [Claim(tmp_path), Claim(tmp_path)]
    original = claims._to_be_had

    def meanwhile(path: Path) -> bool:
        monkeypatch.setattr(claims, "_to_be_had", original)
        had = original(path)
        for claim in quick:  # claim.2 is taken, freed and cleared away by claim.3
            assert claim.take()
            claim.release()
        assert not (tmp_path / "claim.2").exists()
        return had

    monkeypatch.setattr(claims, "_to_be_had", meanwhile)
    assert not late.take()
    assert [path.name for path in tmp_path.iterdir()] == ["claim.3"]


def test_a_process_that_has_the_number_of_a_dead_one_is_another(tmp_path: Path) -> None:
    machine, number, start = claims._identity(os.getpid()) or ("", 0, 0)
    assert claims._alive_here(f'{{"process": ["{machine}", {number}, {start}]}}'.encode()) is True
    assert claims._alive_here(f'{{"process": ["{machine}", {number}, {start - 1}]}}'.encode()) is False
    assert claims._alive_here(f'{{"process": ["{machine} of yesterday", {number}, {start}]}}'.encode()) is None
    assert claims._alive_here(b"") is None and claims._alive_here(b'{"process": null}') is None


def test_locks_hold_as_before_where_there_are_any(tmp_path: Path) -> None:
    with CheckpointFolder(tmp_path).hold():
        assert claims.alive([tmp_path]) == [True]
        with pytest.raises(Busy), CheckpointFolder(tmp_path).hold():
            pass
        assert claims.alive([tmp_path]) == [True]
    assert claims.alive([tmp_path, tmp_path / "absent"]) == [False, False]
    started = time.monotonic()
    with CheckpointFolder(tmp_path).hold():
        assert time.monotonic() - started < claims.LOOK_SECONDS
