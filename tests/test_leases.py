"""Two processes never hold one run, whatever dies when, also without locks and from different machines."""

import errno
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

from bench import errors, leases
from bench.engine.checkpoint import Busy, CheckpointFolder
from bench.environment import ROOT
from bench.leases import FREE, Lease

# Holds the folder until it is told to stop, on a machine of the given name whose file system knows no locks.
HOLDER = """
import errno, fcntl, platform, sys
from pathlib import Path
from bench import leases
from bench.engine.checkpoint import Busy, CheckpointFolder

def flock(descriptor, operation):
    raise OSError(errno.ENOLCK, "no locks available")

fcntl.flock, platform.node = flock, lambda: sys.argv[2]
leases.BEAT_SECONDS, leases.LOOK_SECONDS, leases.LOOKS = 0.1, 0.1, 15
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
    assert [path.name for path in tmp_path.glob("lease.*")] == ["lease.2"]


def test_death_on_the_own_machine_is_seen_at_once_and_elsewhere_after_the_stated_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(leases.time, "sleep", looks.append)
    for machine, expected in (("here", 0), ("there", leases.LOOKS)):
        folder = tmp_path / machine
        with process(folder, "here") as first:
            assert says(first) == "held"
            first.kill()
            first.wait(60)
        looks.clear()
        monkeypatch.setattr(leases.platform, "node", lambda machine=machine: machine)
        lease = Lease(folder)
        assert lease.take()
        lease.release()
        assert looks == [leases.LOOK_SECONDS] * expected


def test_a_look_that_the_file_system_held_up_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stands still stops the holder's beats and the watcher's looks alike."""
    (tmp_path / "lease.1").write_bytes(b"somebody elsewhere")
    looks: list[float] = []
    clock = iter([0, 0, 0, leases.LOOK_SECONDS, *[0] * 2 * leases.LOOKS])
    monkeypatch.setattr(leases.time, "sleep", looks.append)
    monkeypatch.setattr(leases.time, "monotonic", lambda: next(clock))
    lease = Lease(tmp_path)
    assert lease.take()
    lease.release()
    assert len(looks) == 2 + leases.LOOKS


def test_an_empty_lease_is_watched_for_a_few_looks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its maker was killed before it could write."""
    (tmp_path / "lease.1").touch()
    looks: list[float] = []
    monkeypatch.setattr(leases.time, "sleep", looks.append)
    lease = Lease(tmp_path)
    assert lease.take()
    lease.release()
    assert len(looks) == leases.LOOKS_AT_NOTHING


def test_one_that_slept_before_it_wrote_backs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.01)
    late, quick = Lease(tmp_path), Lease(tmp_path)
    original = Lease._write

    def asleep(self: Lease, content: bytes) -> None:
        monkeypatch.setattr(Lease, "_write", original)
        assert quick.take()
        original(self, content)

    monkeypatch.setattr(Lease, "_write", asleep)
    assert not late.take()
    assert [path.name for path in tmp_path.iterdir()] == ["lease.2"]
    quick.release()


def test_a_full_disk_leaves_no_lease_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(leases.os, "write", full)
        Lease(tmp_path).take()
    assert not list(tmp_path.iterdir())
    lease = Lease(tmp_path)
    assert lease.take()
    with monkeypatch.context() as patched:
        patched.setattr(leases.os, "write", full)
        lease._beats += 1
        with pytest.raises(OSError, match="No space left"):
            lease._write(lease._content())
    assert leases._alive_here(leases._read(tmp_path / "lease.1")), "what a holder wrote stays until it can write again"
    lease.release()
    assert leases.alive([tmp_path]) == [False]
    assert (tmp_path / "lease.1").stat().st_size == leases.SIZE


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
    """Each finds the lease free, or its holder dead, in the same moment."""
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.05)  # a lease that is just being written is watched
    (tmp_path / "lease.7").write_bytes(FREE)
    for _ in range(20):
        barrier, taken = threading.Barrier(8), list[Lease]()

        def come(barrier: threading.Barrier = barrier, taken: list[Lease] = taken) -> None:
            lease = Lease(tmp_path)
            barrier.wait()
            if lease.take():
                taken.append(lease)

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].release()
    assert [path.name for path in tmp_path.iterdir()] == ["lease.27"]


def test_one_that_slept_between_its_look_and_its_lease_backs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lease.1").write_bytes(FREE)
    late, quick = Lease(tmp_path), [Lease(tmp_path), Lease(tmp_path)]
    original = leases._to_be_had

    def meanwhile(path: Path) -> bool:
        monkeypatch.setattr(leases, "_to_be_had", original)
        had = original(path)
        for lease in quick:  # lease.2 is taken, freed and cleared away by lease.3
            assert lease.take()
            lease.release()
        assert not (tmp_path / "lease.2").exists()
        return had

    monkeypatch.setattr(leases, "_to_be_had", meanwhile)
    assert not late.take()
    assert [path.name for path in tmp_path.iterdir()] == ["lease.3"]


def test_a_process_that_has_the_number_of_a_dead_one_is_another(tmp_path: Path) -> None:
    machine, number, start = leases._identity(os.getpid()) or ("", 0, 0)
    assert leases._alive_here(f'{{"process": ["{machine}", {number}, {start}]}}'.encode()) is True
    assert leases._alive_here(f'{{"process": ["{machine}", {number}, {start - 1}]}}'.encode()) is False
    assert leases._alive_here(f'{{"process": ["{machine} of yesterday", {number}, {start}]}}'.encode()) is None
    assert leases._alive_here(b"") is None and leases._alive_here(b'{"process": null}') is None


def test_locks_hold_as_before_where_there_are_any(tmp_path: Path) -> None:
    with CheckpointFolder(tmp_path).hold():
        assert leases.alive([tmp_path]) == [True]
        with pytest.raises(Busy), CheckpointFolder(tmp_path).hold():
            pass
        assert leases.alive([tmp_path]) == [True]
    assert leases.alive([tmp_path, tmp_path / "absent"]) == [False, False]
    started = time.monotonic()
    with CheckpointFolder(tmp_path).hold():
        assert time.monotonic() - started < leases.LOOK_SECONDS
