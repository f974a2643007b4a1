"""Records: written whole or not at all, read with suspicion."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UserError
from bench.experiment import Weights, canonical_json
from bench.ledger import Ledger, read_record, write_atomically
from tests.conftest import small_run


def record(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The record of a run that failed before its first epoch."""
    sections = {
        "schema": 1,
        "run": {"experiment": "test/small", "profile": "smoke", "seed": seed, "configuration_sha256": "0" * 64},
        "configuration": {"experiment": {}, "weights": None},
        "code": {"commit": None, "dirty": None, "requirements_lock_sha256": "1" * 64},
        "data": None,
        "environment": {"device": "Processor", "threads": 1, "cuda": None},
        "cost": None,
        "results": {"status": "failed", "error": "RuntimeError: it broke", "final": None, "epochs": []},
        "timings": {"restarts": 0, "epochs": []},
    }
    return sections | changes


def test_written_records_are_read_back_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for seed in (10, 2):
        ledger.write(small_run(seed), record(seed))
    assert [entry["run"]["seed"] for _, entry in ledger.records()] == [10, 2], "ordered by path"
    assert ledger.find(small_run(2)) == record(2)
    assert ledger.find(small_run(3)) is None
    assert sorted(path.name for path in ledger.folder.rglob("*") if path.is_file()) == sorted(
        f"{small_run(seed).key.rpartition('/')[2]}.json" for seed in (2, 10)
    ), "nothing else is left"


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        Ledger(tmp_path).write(small_run(), record(cost=float("nan")))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a record in JSON"),
        ("{", "expected a record in JSON"),
        ("[]", "expected a record with schema, run, .*, found list"),
        ('{"schema": 1}', "found schema"),
        (json.dumps(record(schema=2)), "expected schema 1, found 2"),
        (json.dumps(record(results={"status": "fine"})), "expected one of done, .*, found 'fine'"),
        (json.dumps(record(results=None)), "found None"),
        ("[" * 100_000, "expected a record in JSON, found "),
        (json.dumps(record(cost={"parameters": float("nan")})), "cost.parameters: expected a whole number from 0, found nan"),
        (json.dumps(record(timings={"restarts": 0, "epochs": [{}]})), "timings.epochs.1.train_seconds: expected a positive number"),
        (json.dumps(record(run={"seed": 1})), "run.experiment: expected text, found nothing; restore the file or move it"),
        (
            json.dumps(record(code=record()["code"] | {"commit": "\ud800"})),
            r"code.commit: expected text in Unicode, found '\\ud800'",
        ),
        (json.dumps(record(data=[[[[[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]]]]])), "expected at most 20 levels of nesting, found more"),
    ],
)
def test_what_is_no_record_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "seed0.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_record(path)
    assert "seed0.json" in str(caught.value)


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a larger file"])
def test_what_cannot_be_a_record_is_not_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "seed0.json"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":  # to open it would wait for a writer
        os.mkfifo(path)
    else:
        monkeypatch.setattr("bench.ledger.LARGEST_FILE", 100)
        path.write_text(json.dumps(record()))
    with pytest.raises(UserError, match=r"seed0.json: expected a record in JSON, found (something that is no file|more than 100)"):
        read_record(path)


def test_fields_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    later = record()
    later["environment"]["execution"] = {"compiled": True}
    (tmp_path / "seed0.json").write_text(json.dumps(later))
    assert read_record(tmp_path / "seed0.json") == later


def test_a_name_that_no_file_system_takes_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "records/smoke/test/small").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot be searched \(File name too long: '.* \.\.\.\); choose another folder"):
        Ledger(tmp_path).find(small_run(seed=10**300))


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records would be missing from the report, as if they had not been run."""
    ledger = Ledger(tmp_path)
    for seed in (0, 1):
        ledger.write(small_run(seed), record(seed))
    closed, scandir = ledger.path(small_run()).parent, os.scandir

    def refuse(folder: Any) -> Any:  # the tests' user may read everything
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    assert len(ledger.paths()) == 2
    monkeypatch.setattr(os, "scandir", refuse)
    for search in (ledger.paths, ledger.contents):
        with pytest.raises(UserError, match=rf"cannot be searched \(Permission denied: '{str(closed)[:100]}"):
            search()


def test_a_ledger_without_a_folder_is_empty(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "absent").paths() == Ledger(tmp_path / "absent").contents() == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); free space or choose another folder"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "write",
    [
        "file.write(bytes(9_000_000))",
        # a checkpoint that is cut off within a tensor: its archive then fails to close, with an error of its own
        "__import__('torch').save([__import__('torch').zeros(500_000) for _ in range(9)], file)",
    ],
)
def test_a_write_that_outgrows_the_file_size_limit_leaves_nothing(write: str, tmp_path: Path) -> None:
    """The real system call fails here, as on a full disk (EFBIG in place of ENOSPC)."""
    program = (
        "import signal, sys; from pathlib import Path; from bench.ledger import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"write_atomically(Path(sys.argv[1]), lambda file: {write})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000)),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "UserError" in last and "cannot be written (File too large); free space" in last
    assert not list(tmp_path.iterdir())


def test_other_errors_of_a_writer_come_through(tmp_path: Path) -> None:
    def fail(file: Any) -> None:
        raise RuntimeError("not of the disk")

    with pytest.raises(RuntimeError, match="not of the disk"):
        write_atomically(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from bench.ledger import write_atomically\n"
        "die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), lambda file: (file.write(b'half'), file.flush(), die()))"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "other")])
    assert killed.returncode == -signal.SIGKILL
    (stray,) = tmp_path.iterdir()
    assert stray.read_bytes() == b"half"

    def write(file: Any) -> None:
        file.write(b"outer")
        write_atomically(tmp_path / "inner", lambda inner: inner.write(b"inner"))  # while the outer one is being written
        assert not stray.exists()

    write_atomically(tmp_path / "outer", write)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"outer": "outer", "inner": "inner"}


# ---- identity of a run -------------------------------------------------------------------------------------------------------


def test_key_changes_with_what_changes_the_result_and_with_nothing_else() -> None:
    run = small_run()
    same = replace(run, experiment=replace(run.experiment, reported=50.0, table="elsewhere", note="words"))
    assert same.key == run.key
    others = [
        small_run(seed=1),
        small_run(epochs=4),
        replace(run, profile="mini"),
        replace(run, weights=Weights("a.pth", "0" * 64)),
        replace(run, experiment=replace(run.experiment, dataset="synthetic_cifar100")),
    ]
    assert len({run.key, *(other.key for other in others)}) == 6


def test_an_option_that_is_not_used_is_not_in_the_configuration() -> None:
    recipe = small_run().configuration["experiment"]["recipe"]
    assert "patience" not in recipe and recipe["label_smoothing"] == 0.0
    assert small_run(patience=3, validation_fraction=0.1).configuration["experiment"]["recipe"]["patience"] == 3


def test_configuration_hash_does_not_depend_on_the_seed() -> None:
    assert small_run(0).configuration_sha256 == small_run(1).configuration_sha256


def test_canonical_json() -> None:
    assert canonical_json({"b": (1, 0.1), "a": None}) == '{\n "a": null,\n "b": [\n  1,\n  0.1\n ]\n}\n'
