"""Every kind of damage is found, and the line that says so names the file and the field."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import cli, errors
from bench.engine.train import results
from bench.environment import ROOT
from bench.experiment import Recipe, canonical_json, sha256_of
from bench.ledger import Ledger, Record
from bench.locks import LOCKS
from bench.verify.records import check_records, known_locks
from bench.verify.surroundings import check_folder, check_report
from tests.records import lines, run_of, sound_ledger

RECORDS = ROOT / "results/records"
RUNS = [run_of("cifar100/A_dual"), run_of("cifar100/stem_dual"), *(run_of("cifar100/scratch_dual", seed) for seed in (0, 1))]
PLAIN, VALIDATED, FIRST, SECOND = (Path(f"{run.key}.json") for run in RUNS)  # the first has no validation split
HASH = RUNS[0].configuration_sha256


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return sound_ledger(tmp_path / "results", RUNS)


def tamper(ledger: Ledger, edit: Callable[[Record], object], path: Path = PLAIN) -> None:
    """Edit a record and write it as the suite would."""
    record = json.loads((ledger.folder / path).read_bytes())
    edit(record)
    (ledger.folder / path).write_text(canonical_json(record))


def test_sound_records_have_no_findings(ledger: Ledger) -> None:
    for section in (check_records(ledger), check_folder(ledger), check_report(ledger)):
        assert lines(section) == []
    assert check_records(ledger).checked == "4 records"


def test_runs_without_results_are_sound(ledger: Ledger) -> None:
    nothing = {"final": None, "stopped_early": False, "weights_sha256": None, "epochs": []}

    def fail(record: Record) -> None:
        record["data"] = record["cost"] = None
        record["results"] = {"status": "failed", "error": "RuntimeError: it broke", **nothing}
        record["timings"]["epochs"] = []

    def diverge(record: Record) -> None:
        recipe = Recipe(**record["configuration"]["experiment"]["recipe"])
        record["results"] = results(record["results"]["epochs"][:2], recipe, diverged=True, weights_sha256=None)
        del record["timings"]["epochs"][2:]

    tamper(ledger, fail)
    tamper(ledger, diverge, VALIDATED)
    assert lines(check_records(ledger)) == []


def test_the_committed_ledger_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--results", str(ROOT / "results"), "--datasets", str(tmp_path)]) == 0, capsys.readouterr().out


# ---- damage to a record ------------------------------------------------------------------------------------------------------


def put(*place: str | int, value: Any) -> Callable[[Record], None]:
    """An edit that puts a value in a field's place, or takes the field away."""

    def edit(record: Any) -> None:
        *way, last = place
        for step in way:
            record = record[step]
        if value is GONE:
            del record[last]
        else:
            record[last] = value

    return edit


GONE = object()
EPOCHS = ("results", "epochs")
RECIPE = ("configuration", "experiment", "recipe")
PROBLEMS: dict[str, tuple[Callable[[Record], None], str]] = {
    # form
    "another schema": (put("schema", value=2), "schema: expected schema 1, found 2"),
    "no cost": (put("cost", value=GONE), "record: expected a record with schema, run"),
    "an unknown section": (put("more", value={}), "record: expected a record with schema, run, configuration, code, data, "),
    "an unknown status": (put("results", "status", value="fine"), "results.status: expected one of done, diverged"),
    "a count lost": (
        put(*EPOCHS, 1, "test", "correct", value=GONE),
        "results.epochs.2.test.correct: expected a whole number from 0",
    ),
    "a seed in words": (put("run", "seed", value="zero"), "run.seed: expected a whole number from 0, found 'zero'"),
    "a negative time": (
        put("timings", "epochs", 0, "train_seconds", value=-1.0),
        "timings.epochs.1.train_seconds: expected a positive",
    ),
    "no earlier session": (put("timings", "earlier", value=[]), "timings.earlier: expected a list that is not empty, found []"),
    "an earlier session that came nowhere": (
        put("timings", "earlier", value=[{"environment": {}, "code": {}}]),
        "timings.earlier.1.epochs: expected a whole number from 0, found nothing",
    ),
    "half a hash": (put("data", "train_sha256", value="e1f1"), "data.train_sha256: expected a SHA-256, found 'e1f1'"),
    "no gates": (put(*EPOCHS, 3, "gates", value=GONE), "results.epochs.4.gates: expected an object, found nothing"),
    "done without results": (put("results", "final", value=None), "results.final: expected an object, found None"),
    # cost
    "fewer parameters": (put("cost", "parameters", value=1), "cost.parameters: expected 28637766, found 1"),
    "fewer multiply-adds": (put("cost", "multiply_adds", value=1), "cost.multiply_adds: expected 95819520, found 1"),
    "less attention": (put("cost", "attention_parameters", value=6), "cost.attention_parameters: expected 740738, found 6"),
    "larger maps": (put("cost", "attention_maps", "P2", value=[77, 77]), "cost.attention_maps.P2: expected [4, 4], found [77, 77]"),
    # identity
    "another hash": (put("run", "configuration_sha256", value="0" * 64), f"run.configuration_sha256: expected '{HASH}'"),
    "another learning rate": (put(*RECIPE, "head_lr", value=0.5), "run.configuration_sha256: expected"),
    "another name": (put("run", "experiment", value="cifar100/B_heads4"), "run.experiment: expected 'cifar100/A_dual', found"),
    "another seed": (put("run", "seed", value=7), f"path: expected 'mini/cifar100/A_dual/seed7-{HASH[:8]}.json', found"),
    "another profile": (
        put("run", "profile", value="paper"),
        f"path: expected 'paper/cifar100/A_dual/seed0-{HASH[:8]}.json', found",
    ),
    "no weights": (put("configuration", "weights", value=None), "configuration.weights: expected name and SHA-256 of pretrained"),
    # data
    "other images": (put("data", "train_sha256", value="0" * 64), "data.train_sha256: expected 'e1f1a348"),
    "other test images": (put("data", "test_sha256", value="0" * 64), "data.test_sha256: expected 'e254914a"),
    "another data set": (put("data", "name", value="fashion_mnist"), "data.name: expected 'cifar100', found 'fashion_mnist'"),
    "an unknown data set": (put("data", "name", value="cifar10"), "data.name: expected one of cifar100, fashion_mnist"),
    "more test images": (put("data", "images", "test", value=9000), "data.images.test: expected 4000, found 9000"),
    "more training images": (put("data", "images", "train", value=9000), "data.images.train: expected 8000, found 9000"),
    # counts
    "more right than given": (
        put(*EPOCHS, 0, "test", "correct", value=4001),
        "results.epochs.1.test.correct: expected at most 4000",
    ),
    "part of a split": (put(*EPOCHS, 0, "test", "images", value=3999), "results.epochs.1.test.images: expected 4000, found 3999"),
    "too many steps": (put(*EPOCHS, 0, "train", "images", value=8000), "results.epochs.1.train.images: expected 7936, found 8000"),
    "validation from nowhere": (
        put(*EPOCHS, 0, "validation", value={"correct": 1, "images": 2, "loss": 1.0}),
        "results.epochs.1.validation.images: expected 0, found 2",
    ),
    # epochs
    "an epoch counted twice": (put(*EPOCHS, 2, "epoch", value=2), "results.epochs.3.epoch: expected 3, found 2"),
    "an epoch lost": (put(*EPOCHS, 3, value=GONE), "results.epochs: expected 4 epochs, found 3"),
    "a loss below zero": (
        put(*EPOCHS, 0, "test", "loss", value=-1.0),
        "results.epochs.1.test.loss: expected a finite number from 0",
    ),
    "a rate that the schedule has not": (
        put(*EPOCHS, 1, "learning_rate_factor", value=0.5),
        "results.epochs.2.learning_rate_factor: expected 0.5",  # 0.53...
    ),
    "no rate": (put(*EPOCHS, 1, "learning_rate_factor", value=GONE), "results.epochs.2.learning_rate_factor: expected 0.5"),
    # times and machine
    "no time": (put("timings", "finished", value="soon"), "timings: expected started and finished as two times of one kind, found"),
    "times of two kinds": (
        put("timings", "finished", value="2026-11-01T00:01:00"),
        "timings: expected started and finished as two times of one kind, found",
    ),
    "a CPU with a GPU's driver": (
        put("environment", "driver", value="580.65"),
        "environment.driver: expected null for a CPU, by environment.cuda, found '580.65'",
    ),
    "a GPU with a CPU's instructions": (
        lambda record: record["environment"].update(cuda="13.0", instructions="AVX2"),
        "environment.instructions: expected null for a GPU, by environment.cuda, found 'AVX2'",
    ),
    "times lost": (put("timings", "epochs", 0, value=GONE), "timings.epochs: expected 4 epochs, found 3"),
    # final numbers
    "a better accuracy": (
        put("results", "final", "best_test", "accuracy", value=77.0),
        "results.final.best_test.accuracy: expected 36.225",
    ),
    "another best epoch": (
        put("results", "final", "best_test", "epoch", value=4),
        "results.final.best_test.epoch: expected 3, found 4",
    ),
    "a better last epoch": (put(*EPOCHS, 3, "test", "correct", value=3999), "results.final.last_test.accuracy: expected 99.975"),
    "a stop that was none": (put("results", "stopped_early", value=True), "results.stopped_early: expected False, found True"),
    "a failure with results": (put("results", "status", value="failed"), "results.final: expected None, found {'best_test'"),
    "divergence with weights": (put("results", "status", value="diverged"), "results.weights_sha256: expected None, found"),
}


@pytest.mark.parametrize("damage", PROBLEMS)
def test_damage_is_named(ledger: Ledger, damage: str) -> None:
    edit, message = PROBLEMS[damage]
    tamper(ledger, edit)
    section = check_records(ledger)
    found = [line for line in lines(section) if line.startswith(f"{ledger.folder / PLAIN}: {message}")]
    assert found, "\n".join(lines(section))
    assert section.problems
    assert all(str(ledger.folder / PLAIN) in line for line in lines(section)), "the other records are sound"


def test_validation_is_recomputed(ledger: Ledger) -> None:
    tamper(ledger, put("results", "final", "test_at_best_validation", "accuracy", value=85.76), VALIDATED)
    tamper(ledger, put(*EPOCHS, 0, "validation", value=None), FIRST)
    found = "\n".join(lines(check_records(ledger)))
    assert f"{VALIDATED}: results.final.test_at_best_validation.accuracy: expected " in found and "found 85.76" in found
    assert f"{FIRST}: results.epochs.1.validation: expected 500, found None" in found


NOTES: dict[str, tuple[Callable[[Record], None], str]] = {
    "a dirty tree": (put("code", "dirty", value=True), "code.dirty: expected false, found true"),
    "no commit": (put("code", "commit", value=None), "code.commit: expected a commit, found null"),
    "an unknown lock": (put("code", "requirements_lock_sha256", value="0" * 64), "code.requirements_lock_sha256: expected that of"),
    "another torch than the lock's": (
        put("environment", "torch", value="2.11.0+cu130"),
        "environment.torch: expected 2.13.0, which its lock pins, found '2.11.0+cu130'",
    ),
    "an end before the start": (
        put("timings", "finished", value="1970-01-01T00:00:00+00:00"),
        "timings.finished: expected a time from 2026-11-01T00:00:00+00:00, found 1970",
    ),
    "epochs longer than the run": (
        put("timings", "epochs", 1, "train_seconds", value=1e6),
        "timings.epochs: expected at most 60 s together, found 1.00001e+06",
    ),
    "not deterministic": (
        put("environment", "deterministic", value=False),
        "environment.deterministic: expected true, found false",
    ),
    "a machine before": (
        put("timings", "earlier", value=[{"environment": {}, "code": {}, "epochs": 3}]),
        "timings.earlier: expected one machine and code for all epochs, found others up to epoch 3",
    ),
}


@pytest.mark.parametrize("weakness", NOTES)
def test_what_weakens_a_record_is_a_note(ledger: Ledger, weakness: str) -> None:
    edit, message = NOTES[weakness]
    tamper(ledger, edit)
    section = check_records(ledger)
    (line,) = lines(section)
    assert line.startswith(f"note: {ledger.folder / PLAIN}: {message}")
    assert section.problems == 0


def test_the_lock_names_a_version_and_not_a_build(ledger: Ledger) -> None:
    tamper(ledger, put("environment", "torch", value="2.13.0+cu130"))
    assert lines(check_records(ledger)) == []


def test_a_network_that_the_catalog_has_not_has_no_known_cost(ledger: Ledger) -> None:
    """Its parameters cannot be counted again; that the catalog has changed is a note."""
    tamper(ledger, put("configuration", "experiment", "model", "attention", "heads", value=3))
    tamper(ledger, put("cost", "parameters", value=1))
    assert not [line for line in lines(check_records(ledger)) if "cost." in line]


def test_a_row_of_several_machines_is_a_note(ledger: Ledger) -> None:
    """The two seeds of one row; that rows differ from each other is said where they are compared."""
    tamper(ledger, put("environment", "device", value="GPU"))
    assert lines(check_records(ledger)) == []
    tamper(ledger, put("environment", "device", value="GPU"), SECOND)
    tamper(ledger, put("environment", "bf16", value="fp32"), SECOND)
    section = check_records(ledger)
    assert lines(section) == [
        f"note: {ledger.folder / FIRST}: environment: expected one {what} in all 2 runs of the row, found several"
        for what in ("device", "mode of computing")
    ]
    assert section.problems == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("head_lr", value=0.5), "configuration.experiment.recipe.head_lr: expected 0.001 (the catalog's), found 0.5"),
        (put("momentum", value=0.9), "configuration.experiment.recipe.momentum: expected nothing (the catalog's), found 0.9"),
    ],
)
def test_a_change_of_the_catalog_is_a_note(ledger: Ledger, edit: Callable[[Record], None], message: str) -> None:
    """As if the recipe had been another one when the record was made: its hash and its path say so too."""
    record = json.loads((ledger.folder / PLAIN).read_bytes())
    edit(record["configuration"]["experiment"]["recipe"])
    digest = sha256_of(record["configuration"])
    record["run"]["configuration_sha256"] = digest
    (ledger.folder / PLAIN).unlink()
    (ledger.folder / PLAIN.with_name(f"seed0-{digest[:8]}.json")).write_text(canonical_json(record))
    section = check_records(ledger)
    assert [line.partition("json: ")[2] for line in lines(section)] == [message]
    assert section.problems == 0


def test_locks_of_earlier_commits_are_known() -> None:
    used = {json.loads(path.read_bytes())["code"]["requirements_lock_sha256"] for path in RECORDS.rglob("*.json")}
    assert hashlib.sha256((ROOT / LOCKS[0]).read_bytes()).hexdigest() in known_locks()
    if (ROOT / ".git").exists():
        assert used <= known_locks()


# ---- damage to the bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "JSON: expected a record, found no JSON: Expecting value"),
        (lambda text: text[:-20], "JSON: expected a record, found no JSON: Unterminated"),
        (lambda text: text.replace("2.5", "NaN", 1), "results.epochs.1.test.loss: expected a finite number from 0, found nan"),
        (
            lambda text: text.replace("0.05,", "1e999,", 1),
            "configuration.experiment.recipe.warmup_fraction: expected a finite number",
        ),
        (lambda text: json.dumps(json.loads(text)), "line 1: expected '{', found '{\"code\""),
        (lambda text: text.replace("\n", "\r\n"), "line 1: expected '{', found '{\\r'"),
        (lambda text: text.replace('"seed": 0', '"seed": 9,\n  "seed": 0'), "line "),
        (lambda text: text + "\n", "line "),
    ],
)
def test_damaged_bytes_are_found(ledger: Ledger, change: Callable[[str], str], message: str) -> None:
    path = ledger.folder / PLAIN
    before = path.read_bytes().decode()
    path.write_bytes(change(before).encode())
    assert path.read_bytes() != before.encode()
    found = lines(check_records(ledger))
    assert [line for line in found if line.startswith(f"{path}: {message}")], found


def test_nothing_stops_at_the_first_problem(ledger: Ledger) -> None:
    (ledger.folder / PLAIN).write_text("{")
    tamper(ledger, put("schema", value=3), VALIDATED)
    tamper(ledger, put("results", "final", "best_test", "accuracy", value=1.0), FIRST)
    tamper(ledger, put("run", "seed", value=5), FIRST)
    tamper(ledger, put("data", "test_sha256", value="0" * 64), SECOND)
    found = lines(check_records(ledger))
    assert [line.removeprefix(f"{ledger.folder}/").partition(": expected")[0] for line in found] == [
        f"{PLAIN}: JSON",
        f"{FIRST}: path",
        f"{FIRST}: results.final.best_test.accuracy",
        f"{SECOND}: data.test_sha256",
        f"{VALIDATED}: schema",
    ]


# ---- records beside each other -----------------------------------------------------------------------------------------------


def test_the_same_run_twice_is_found(ledger: Ledger) -> None:
    """Copied under another name; and copied as another seed, with the path that belongs to it."""
    copy = ledger.folder / PLAIN.with_name(f"seed5-{HASH[:8]}.json")
    shutil.copy(ledger.folder / PLAIN, copy)
    found = lines(check_records(ledger))
    assert f"{copy}: run.seed: expected another than in {ledger.folder / PLAIN}, found 0" in found
    tamper(ledger, put("run", "seed", value=5), PLAIN.with_name(copy.name))
    (line,) = lines(check_records(ledger))
    assert line.startswith(f"{copy}: results.weights_sha256: expected another than in {ledger.folder / PLAIN}, found ")


# ---- the command -------------------------------------------------------------------------------------------------------------


def test_exit_status_and_summary(ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["verify", "--results", str(ledger.results), "--datasets", str(tmp_path)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-5:] == [
        "records 4 records: 0 problems, 0 notes",
        "folder  4 files: 0 problems, 0 notes",
        "report  4 files: 0 problems, 0 notes",
        "locks   3 locks: 0 problems, 0 notes",
        "data    4 data sets: 0 problems, 2 notes",
    ]
    tamper(ledger, put("results", "final", "best_test", "accuracy", value=99.0))
    assert cli.main(command) == errors.EXIT_FAILED
    output = capsys.readouterr().out
    assert f"{ledger.folder / PLAIN}: results.final.best_test.accuracy: expected 36.225, found 99.0\n" in output
    assert "records 4 records: 1 problem, 0 notes" in output


@pytest.mark.parametrize("name", ["nowhere", "empty", "x" * 5000, "a\0b"], ids=lambda name: ascii(name)[:10])
def test_a_folder_without_records_is_a_mistake(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["verify", "--results", str(tmp_path / name)]) == errors.EXIT_USER
    error = capsys.readouterr().err
    assert error.startswith("error: RESULTS=") and error.count("\n") == 1
