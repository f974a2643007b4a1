"""A record that was damaged or made by hand ends a command in one line with its file and field, or in a right page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import cli, errors
from bench.experiment import canonical_json
from bench.ledger import Ledger
from bench.report.write import write_report
from tests.records import record_of, run_of

DUAL, BASELINE = run_of("cifar100/A_dual"), run_of("cifar100/baseline")
Edit = Callable[[dict[str, Any]], object]


def ledger_with(folder: Path, edit: Edit = lambda record: None) -> Path:
    """A ledger of a gated and a plain row with two seeds each, all of them edited. Return the file of the plain one's first."""
    ledger = Ledger(folder)
    for name in ("cifar100/A_dual", "cifar100/baseline"):
        for seed in (0, 1):
            run = run_of(name, seed)
            record = record_of(run, (1170, 1359, 1449, 1439 + seed))
            edit(record)
            path = ledger.path(run)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(canonical_json(record))
    return ledger.path(BASELINE)


def damage(path: Path, edit: Edit) -> None:
    record = json.loads(path.read_bytes())
    edit(record)
    path.write_text(canonical_json(record))


def lose_a_count(record: dict[str, Any]) -> None:
    del record["results"]["epochs"][1]["test"]["correct"]


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda record: record["cost"].update(attention_maps=None), "cost.attention_maps: expected an object, found None"),
        (
            lambda record: record["cost"].update(attention_parameters="many"),
            "cost.attention_parameters: expected a whole number from 0, found 'many'",
        ),
        (
            lambda record: record["results"]["epochs"][-1].update(gates=None),
            "results.epochs.4.gates: expected an object, found None",
        ),
        (lambda record: record["environment"].update(bf16="int8"), "environment.bf16: expected units or fp32, found 'int8'"),
        (lose_a_count, "results.epochs.2.test.correct: expected a whole number from 0, found nothing"),
        (
            lambda record: record["timings"]["epochs"][0].update(train_seconds=1e-99),
            "timings.epochs.1.train_seconds: expected a positive number of seconds, 1e-06 to 1e+09, found 1e-99",
        ),
    ],
)
@pytest.mark.parametrize("command", [["report"], ["figures"], ["show", BASELINE.key], ["compare", DUAL.key, BASELINE.key]])
def test_a_field_of_another_kind_is_named(
    edit: Edit, field: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ledger_with(tmp_path)
    damage(path, edit)
    assert cli.main([*command, "--results", str(tmp_path)]) == errors.EXIT_USER
    assert capsys.readouterr().err == f"error: {path}: {field}; restore the file or move it out of the ledger\n"


@pytest.mark.parametrize("field", ["attention_parameters", "attention_maps"])
def test_what_a_gated_network_costs_may_not_be_absent(field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger_with(tmp_path)
    path = Ledger(tmp_path).path(DUAL)
    damage(path, lambda record: record["cost"].pop(field))
    assert cli.main(["report", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"cost.{field}: expected" in said and "found nothing" in said


@pytest.mark.parametrize("others", [False, True])
def test_an_unknown_profile_is_named(others: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ledger_with(tmp_path)
    damage(path, lambda record: record["run"].update(profile="huge"))
    for file in Ledger(tmp_path).paths():
        if not others and file != path:
            file.unlink()
    assert cli.main(["report", "--results", str(tmp_path)]) == errors.EXIT_USER
    message = capsys.readouterr().err
    expected = (
        f"{path}: run.profile: expected one of paper, mini, smoke, found 'huge'; restore the file or move it out of the ledger"
    )
    assert message == f"error: {expected}\n"


def test_a_gigantic_gate_is_a_number_like_others(tmp_path: Path) -> None:
    def gigantic(record: dict[str, Any]) -> None:
        for epoch in record["results"]["epochs"]:
            epoch["gates"] = dict.fromkeys(epoch.get("gates", {}), 1e99)

    ledger_with(tmp_path, gigantic)
    write_report(tmp_path)
    assert f"{1e99:.3f}" in (tmp_path / "RESULTS.md").read_text()


def test_the_text_of_an_error_stays_in_its_cell(tmp_path: Path) -> None:
    def fail(record: dict[str, Any]) -> None:
        record["results"] |= {"status": "failed", "error": "a | b\nc", "final": None}

    ledger_with(tmp_path, fail)
    write_report(tmp_path)
    rows = [line for line in (tmp_path / "RESULTS.md").read_text().splitlines() if line.startswith("| [mini/")]
    assert len(rows) == 4 and all("| failed: a \\| b c " in line for line in rows)
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "<td>failed: a | b\nc</td>" in (tmp_path / "report.html").read_text()
