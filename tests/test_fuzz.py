"""Readers of untrusted files: garbage gives one clear line or a right answer, never another exception, a hang or a full memory."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import cli, errors
from bench.engine.checkpoint import CheckpointFolder
from bench.errors import UserError
from bench.experiment import canonical_json
from bench.ledger import Ledger
from bench.report.results import headline_table
from bench.report.write import report_pages
from bench.verify import render
from bench.verify.records import check_records
from bench.verify.surroundings import check_folder, check_report
from models.errors import WeightsError
from models.weights import read_state_dict
from tests.fuzz import MEBIBYTES, attempt, edited, examples, flipped, garbage
from tests.records import record_of, run_of

# ---- records ---------------------------------------------------------------------------------------------------------------

RUNS = [run_of(name) for name in ("cifar100/A_dual", "cifar100/stem_dual", "fashion_mnist/baseline")]
RECORDS = {Path(f"{run.key}.json"): canonical_json(record_of(run)).encode() for run in RUNS}
FIRST = next(iter(RECORDS))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with three sound records."""
    folder = tmp_path_factory.mktemp("results")
    for path, content in RECORDS.items():
        (folder / "records" / path).parent.mkdir(parents=True)
        (folder / "records" / path).write_bytes(content)
    return folder


def report(results: Path) -> bytes:
    found = list(Ledger(results).records())
    return "".join([headline_table(found), *dict(report_pages(results, found)).values()]).encode()


def try_record(results: Path, content: bytes) -> None:
    """Put the content in the place of a record; report and verification must bear it."""
    (results / "records" / FIRST).write_bytes(content)
    attempt(lambda: report(results), UserError)
    sections = attempt(lambda: [check(Ledger(results)) for check in (check_records, check_folder, check_report)])
    assert sections and render(sections).replace("\n", "").isprintable()


@examples(60)
@given(edited(json.loads(RECORDS[FIRST])))
def test_a_record_edited_by_hand(results: Path, record: Any) -> None:
    try_record(results, json.dumps(record).encode())


@examples(30)
@given(garbage(RECORDS[FIRST]))
def test_a_record_of_garbage(results: Path, content: bytes) -> None:
    try_record(results, content)


# ---- checkpoints -------------------------------------------------------------------------------------------------------------

CPU = torch.device("cpu")
CONFIGURATION = "c" * 64
STATE: dict[str, Any] = {
    "configuration_sha256": CONFIGURATION,
    "network": {"weight": torch.arange(60.0).reshape(3, 20), "bias": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer": {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.full((3, 20), 0.5)}}, "param_groups": [{"lr": 1e-3}]},
    "epochs": [{"epoch": 1, "test": {"correct": 3, "images": 20, "loss": 2.5}}],
    "timings": [{"train_seconds": 1.5, "evaluation_seconds": 0.5}],
    "restarts": 1,
}


def checkpoint_bytes(folder: Path) -> bytes:
    checkpoint = CheckpointFolder(folder)
    checkpoint.save(STATE)
    return checkpoint.last.read_bytes()


def same(one: Any, other: Any) -> bool:
    """Equality down to the bits of tensors."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def test_a_checkpoint_that_nothing_happened_to(tmp_path: Path) -> None:
    checkpoint_bytes(tmp_path)
    state = CheckpointFolder(tmp_path).load(CONFIGURATION, CPU)
    assert state and all(same(state[name], STATE[name]) for name in STATE)


@examples(120)
@given(st.data())
def test_a_checkpoint_of_garbage(tmp_path: Path, data: st.DataObject) -> None:
    good = checkpoint_bytes(tmp_path)
    content = data.draw(st.one_of(flipped(good), garbage(good)))
    checkpoint = CheckpointFolder(tmp_path)
    checkpoint.last.write_bytes(content)
    state = attempt(lambda: checkpoint.load(CONFIGURATION, CPU), UserError)
    assert state is None or all(same(state.get(name), STATE[name]) for name in STATE), "another state than was saved"


# ---- weights -----------------------------------------------------------------------------------------------------------------

WEIGHTS = {"features.0.0.weight": torch.arange(24.0).reshape(2, 3, 4), "classifier.2.bias": torch.ones(5, dtype=torch.float16)}


def saved(content: Any, kind: str) -> bytes:
    """A file of weights, as the library of its kind writes it."""
    if kind == ".safetensors":
        return safetensors.torch.save(content)
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=kind == ".pth")
    return file.getvalue()


KINDS = (".pth", ".safetensors", " (legacy).pth")


@pytest.mark.parametrize("kind", KINDS)
@examples(120)
@given(data=st.data())
def test_weights_of_garbage(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    path = tmp_path / f"weights{kind}"
    path.write_bytes(data.draw(garbage(saved(WEIGHTS, kind))))
    state = attempt(lambda: read_state_dict(path), WeightsError)
    assert state is None or all(torch.isfinite(tensor).all() for tensor in state.values())


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@examples(120)
@given(st.data())
def test_weights_whose_pickle_is_garbage(tmp_path: Path, data: st.DataObject) -> None:
    """The archive is sound, so that the damage reaches the unpickler."""
    members = members_of(saved(WEIGHTS, ".pth"))
    name = next(name for name in members if name.endswith("data.pkl"))
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped(members | {name: data.draw(garbage(members[name]))}))
    attempt(lambda: read_state_dict(path), WeightsError)


def headed(header: str, content: bytes = b"") -> bytes:
    """A safetensors file with a header of our own."""
    return len(header).to_bytes(8, "little") + header.encode() + content


def claiming(**tensor: Any) -> bytes:
    return headed(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | tensor}), bytes(4))


def patched(old: bytes, new: bytes) -> bytes:
    """A torch.save of seven numbers whose pickle says something else."""
    members = members_of(saved({"a": torch.zeros(7)}, ".pth"))
    name = next(name for name in members if name.endswith("data.pkl"))
    assert old in members[name]
    return zipped(members | {name: members[name].replace(old, new)})


TERA = b"\x8a\x06" + (10**12).to_bytes(6, "little")  # a pickled 10^12
CLAIMS = {
    "length.safetensors": (2**62).to_bytes(8, "little") + b"{}",
    "shape.safetensors": claiming(shape=[10**12]),
    "overflow.safetensors": claiming(shape=[2**40, 2**40]),
    "offsets.safetensors": claiming(shape=[10**9], data_offsets=[0, 4 * 10**9]),
    "type.safetensors": claiming(dtype="F99"),
    "nested.safetensors": headed("[" * 100_000),
    "storage.pth": patched(b"K\x07", TERA),
    "size.pth": patched(b"K\x07\x85", TERA + b"\x85"),
    "repeated.pth": saved({"a": torch.zeros(1).expand(10**11)}, ".pth"),
    "repeated (legacy).pth": saved({"a": torch.zeros(1).expand(10**11)}, " (legacy).pth"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_weights_that_claim_to_be_gigantic(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(CLAIMS[name])
    assert attempt(lambda: read_state_dict(path), WeightsError) is None


def test_weights_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    members = members_of(saved({"a": torch.zeros(10**6)}, ".pth"))
    storage = next(name for name in members if name.endswith("data/0"))
    path.write_bytes(zipped(members | {storage: bytes(MEBIBYTES * 2**20)}, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 2**20
    assert attempt(lambda: read_state_dict(path), WeightsError) is None


# ---- pickle bombs ------------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self._target,)


BOMBS = {
    "zip": lambda bomb: saved(bomb, ".pth"),
    "zip, in a state dict": lambda bomb: saved({**WEIGHTS, "bomb": bomb}, ".pth"),
    "zip, in a checkpoint": lambda bomb: saved({"schema": 1, "configuration_sha256": CONFIGURATION, "bomb": bomb}, ".pth"),
    "legacy": lambda bomb: saved(bomb, " (legacy).pth"),
    "pickle": pickle.dumps,
    "pickle of protocol 0": lambda bomb: pickle.dumps(bomb, 0),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_bomb_does_nothing(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "exploded"
    content = BOMBS[kind](Bomb(target))
    for name in ("weights.pth", "weights.safetensors", "weights"):
        (tmp_path / name).write_bytes(content)
        assert attempt(lambda path=tmp_path / name: read_state_dict(path), WeightsError) is None
    checkpoint = CheckpointFolder(tmp_path)
    checkpoint.last.write_bytes(content)
    assert attempt(lambda: checkpoint.load(CONFIGURATION, CPU), UserError) is None
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))  # noqa: S301 - ours: to see that it is a bomb
    assert target.is_dir()


# ---- names on the command line -----------------------------------------------------------------------------------------------

HOSTILE = ["../x", "../../../../x", "/x", "cifar100/../../x", "a\0b", "x" * 5000, "two\nlines", "\ud800", "-", "~/x", "$HOME", "."]


def refused(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end as a user's mistake, in one line, and leave nothing behind; return the line."""
    inside = folder / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert cli.main([*arguments, "--results", str(inside / "results")]) == errors.EXIT_USER
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert list(folder.rglob("*")) == [inside]
    return message


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["run", "NAME"], "is not in the catalog"),
        (["run", "--profile", "NAME", "cifar100/baseline"], "PROFILE: expected one of"),
        (["run", "--seed=NAME", "cifar100/baseline"], "SEEDS: expected whole numbers from 0"),
        (["grid", "--only=NAME"], "matches no experiment"),
        (["grid", "--profile=NAME"], "PROFILE: expected one of"),
        (["report", "--only=x", "--seeds=NAME"], "SEEDS: expected whole numbers from 0"),
    ],
)
def test_no_name_leads_out_of_the_results_folder(
    command: list[str],
    message: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [argument.replace("NAME", name) for argument in command]
    assert message in refused(arguments, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("seed", ["0 1", "9" * 300, "9" * 5000], ids=len)
def test_a_seed_that_names_no_file(
    seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["run", "cifar100/baseline", "--profile", "smoke", "--seed", seed], tmp_path, monkeypatch, capsys)
