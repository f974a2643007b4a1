"""Shards are a partition that balances, keeps architectures together, and leads to the report of one serial grid."""

from collections import defaultdict
from pathlib import Path

import pytest

from bench import cli, errors, grid
from bench.catalog import EXPERIMENTS
from bench.errors import UserError
from bench.experiment import Run, canonical_json
from bench.ledger import Ledger, Record
from bench.report.write import write_report
from bench.shards import shard_of, shards, work
from tests.conftest import small_network
from tests.records import run_of
from tests.test_grid import records, without_timings

TEN_SEEDS = [run_of(experiment.name, seed, "paper") for experiment in EXPERIMENTS for seed in range(10)]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 64, 1000])
def test_every_run_lies_in_one_shard_and_none_has_more_than_one_run_too_much(count: int) -> None:
    cut = shards(TEN_SEEDS, count)
    assert len(cut) == count
    assert sorted(run.key for part in cut for run in part) == sorted(run.key for run in TEN_SEEDS)
    share, longest = sum(map(work, TEN_SEEDS)) / count, max(map(work, TEN_SEEDS))
    assert max(sum(map(work, part)) for part in cut) <= share + longest


def test_whether_runs_come_by_experiment_or_by_seed_does_not_matter() -> None:
    by_seed = sorted(TEN_SEEDS, key=lambda run: run.seed)
    assert shards(by_seed, 8) == shards(TEN_SEEDS, 8)


def places(cut: list[list[Run]]) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """The shards of each architecture and of each experiment."""
    architectures, experiments = defaultdict(set), defaultdict(set)
    for index, part in enumerate(cut):
        for run in part:
            model = run.experiment.model
            architectures[f"{model.family} {model.stem} {model.attention} {model.sites}"].add(index)
            experiments[run.experiment.name].add(index)
    return architectures, experiments


def test_an_architecture_is_cut_as_seldom_as_its_work_allows() -> None:
    architectures, _ = places(shards(TEN_SEEDS, 8))
    assert sum(len(found) - 1 for found in architectures.values()) <= 7, "seven cuts make eight shards"


def test_the_seeds_of_a_row_are_spread_where_its_architecture_is_cut() -> None:
    _, experiments = places(shards(TEN_SEEDS, 128))
    assert min(len(experiments[f"cifar100/baseline{regime}"]) for regime in ("", "_F0", "_F1", "_F2")) >= 3
    assert len(experiments["cifar100/scratch_convnext"]) == 10


@pytest.mark.parametrize("choice", ["3/3", "1", "/", "0/0", "-1/2", "a/b", "1/2/3", "0/" + "9" * 5000, "9" * 5000 + "/1"])
def test_what_is_no_shard_is_refused(choice: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="expected I/N with I from 0 to N - 1"):
        shard_of(TEN_SEEDS, choice)
    assert cli.main(["grid", "--profile", "smoke", f"--shard={choice}"]) == errors.EXIT_USER
    assert capsys.readouterr().err.count("\n") == 1


def test_shards_give_the_report_of_one_serial_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "build_network", lambda run, classes, initial, device: small_network(classes, run.seed))
    common = ["grid", "--profile", "smoke", "--device", "cpu", "--only", "*/baseline* cifar100/E3_*", "--seeds", "0 1"]
    serial, sharded = tmp_path / "serial", tmp_path / "sharded"
    assert cli.main([*common, "--results", str(serial)]) == 0
    for index in (2, 0, 1):
        assert cli.main([*common, "--results", str(sharded), "--shard", f"{index}/3"]) == 0
    assert capsys.readouterr().out.count("4 runs, 4 due") == 3
    assert same_records(serial, sharded)
    assert report_with_timings_of(serial, sharded) == (serial / "RESULTS.md").read_text()


def same_records(one: Path, two: Path) -> bool:
    """Whether two ledgers hold the same runs with the same outcome; clocks differ."""
    ours, theirs = ({name: without_timings(record) for name, record in records(folder).items()} for folder in (one, two))
    return ours == theirs


def report_with_timings_of(serial: Path, other: Path) -> str:
    """The other ledger's report, once its records have the serial ones' timings; both reports are written."""
    by_run = {run_key(record): record["timings"] for _, record in Ledger(serial).records()}
    for path, record in Ledger(other).records():
        path.write_text(canonical_json(record | {"timings": by_run[run_key(record)]}))
    write_report(serial)
    write_report(other)
    return (other / "RESULTS.md").read_text()


def run_key(record: Record) -> str:
    return f"{record['run']['experiment']} {record['run']['seed']}"
