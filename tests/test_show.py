"""One run on the terminal, and two side by side."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from bench import cli, errors
from bench.errors import UserError
from bench.experiment import Run, Weights, canonical_json
from bench.ledger import SECTIONS, Ledger, Record
from bench.report.show import differences, find_run, flat, is_run, plot, shown
from tests.records import record_of, run_of

DUAL, BASELINE = run_of("cifar100/A_dual"), run_of("cifar100/baseline", 1)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path)
    ledger.write(DUAL, in_order(DUAL, (1170, 1359, 1449, 1439)))
    ledger.write(BASELINE, in_order(BASELINE, (1170, 1359, 1449, 1500)))
    return tmp_path


def in_order(run: Run, correct: tuple[int, ...]) -> Record:
    """A record whose sections stand as a ledger wants them to be written."""
    record = record_of(run, correct)
    return {name: record[name] for name in SECTIONS}


def find(results: Path, name: str, seed: int = 0, profile: str = "mini") -> Path:
    return find_run(results, name, seed=seed, profile=profile)[0]


def test_a_run_is_found_by_key_by_file_and_by_experiment_and_seed(results: Path) -> None:
    path = Ledger(results).path(DUAL)
    assert find(results, DUAL.key) == find(results, str(path)) == find(results, "cifar100/A_dual") == path
    assert find(results, "cifar100/baseline", 1) == Ledger(results).path(BASELINE)


def test_the_profile_decides_among_several(results: Path) -> None:
    smoke = run_of("cifar100/A_dual", profile="smoke")
    Ledger(results).write(smoke, in_order(smoke, (1, 2)))
    assert find(results, "cifar100/A_dual", profile="smoke") == Ledger(results).path(smoke)
    assert find(results, "cifar100/A_dual") == Ledger(results).path(DUAL)
    with pytest.raises(
        UserError, match=r"profile paper, seed 0: expected a record in .* found those of profile mini seed0, profile smoke seed0$"
    ):
        find(results, "cifar100/A_dual", profile="paper")


def test_records_of_one_profile_with_different_weights_are_told_apart(results: Path) -> None:
    other = replace(DUAL, weights=Weights("mine.pth", "0" * 64))
    Ledger(results).write(other, in_order(other, (1, 2)))
    with pytest.raises(UserError, match=f"expected one record, found 2; name one of ({DUAL.key}|{other.key}), "):
        find(results, "cifar100/A_dual")


@pytest.mark.parametrize(
    ("name", "seed", "message"),
    [
        ("cifar100/A_dual", 3, "found those of profile mini seed0$"),
        ("cifar100/nothing", 0, "found none; `python -m bench list`"),
        ("../A_dual", 0, "found none"),
        ("x" * 5000, 0, "found none"),
        ("nowhere.json", 0, "expected a record in JSON"),
    ],
)
def test_a_run_that_is_not_there_is_a_mistake(results: Path, name: str, seed: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(results, name, seed)


def test_show_prints_numbers_curves_and_what_was_run(results: Path) -> None:
    text = shown(find_run(results, DUAL.key, seed=0, profile="mini"))
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("mini, cifar100/A_dual, seed 0: done\n")
    for words in (
        "best test (%) 36.23",
        "last test (%) 35.98",
        "parameters 28,637,766",
        "alpha P2 -0.05",
        "training s/epoch, median 4.00",
        "experiment.recipe.backbone_lr 0.0001",
        "experiment.model.sites P2, P3",
        "torch 2.13.0",
        "test accuracy (%), epochs 1 to 4",
    ):
        assert words.split() in lines, words


def test_show_of_a_run_without_results(results: Path) -> None:
    path = Ledger(results).path(DUAL)
    record = json.loads(path.read_bytes())
    record["results"] |= {"status": "out_of_memory", "error": "OutOfMemoryError: 8 GiB", "final": None, "epochs": []}
    record |= {"data": None, "cost": None}
    record["timings"]["epochs"] = []
    path.write_text(canonical_json(record))
    text = shown(find_run(results, DUAL.key, seed=0, profile="mini"))
    assert text.startswith("mini, cifar100/A_dual, seed 0: out_of_memory: OutOfMemoryError: 8 GiB\n")
    assert "epochs 1 to" not in text and "best test" not in text


def test_compare_prints_what_differs_and_nothing_that_does_not(results: Path) -> None:
    text = differences(*(find_run(results, run.key, seed=0, profile="mini") for run in (BASELINE, DUAL)))
    lines = [line.split() for line in text.splitlines()]
    for words in (
        "experiment.regime full F2",
        "experiment.model.attention.heads — 4",
        "seed 1 0",
        "best test (%) 37.50 36.23 -1.27 points",
        "attention parameters 0 740,738 +740,738",
        "alpha P2 — -0.05",
    ):
        assert words.split() in lines, words
    assert "batch_size" not in text and "environment" not in text
    assert text.endswith("One run of each decides nothing; RESULTS.md compares over seeds.")


def test_a_record_is_told_from_a_measurement_by_its_content(results: Path, tmp_path: Path) -> None:
    assert is_run("cifar100/A_dual") and is_run(DUAL.key) and is_run(str(Ledger(results).path(DUAL)))
    (tmp_path / "speed.json").write_text('{"loops": 1}')
    assert not is_run(str(tmp_path / "speed.json")) and not is_run("nowhere.json")


def test_a_plot_touches_its_highest_and_lowest_value_and_has_no_gap() -> None:
    lines = plot([0.0, 10.0, 5.0], width=10, height=3).splitlines()
    assert [line.partition("┤")[0].strip() for line in lines] == ["10.00", "", "0"]
    dots = [[ord(mark) - 0x2800 for mark in line.partition("┤")[2].ljust(10, chr(0x2800))] for line in lines]
    assert all(unicodedata.name(mark).startswith("BRAILLE") for line in lines for mark in line.partition("┤")[2])
    assert all(any(row[column] for row in dots) for column in range(10)), "every column has a dot"
    assert any(dots[0]) and dots[2][0] and not dots[2][9]
    assert plot([2.0, 2.0]).count("┤") == 6, "a constant has a line too"


def test_leaves_have_dotted_names() -> None:
    assert flat({"a": {"b": 1, "c": [2, 3]}, "d": None}) == {"a.b": 1, "a.c": "2, 3", "d": None}


def test_the_commands(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "cifar100/A_dual", "--profile", "mini", "--results", str(results)]) == 0
    assert "best test (%)" in capsys.readouterr().out
    assert cli.main(["compare", DUAL.key, "cifar100/baseline", "--seed", "1", "--profile", "mini", "--results", str(results)]) == 0
    assert "experiment.regime" in capsys.readouterr().out
    for arguments in (["show", "nothing"], ["show", "cifar100/A_dual", "--seed", "0 1"], ["compare", DUAL.key, "speed.json"]):
        assert cli.main([*arguments, "--results", str(results)]) == errors.EXIT_USER
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
