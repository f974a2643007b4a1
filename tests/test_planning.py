"""The plan of a grid: arithmetic by hand, against records of a real GPU, and against a real small grid's clock."""

import time
from pathlib import Path

import pytest

from bench import cli, errors, planning, workers
from bench.catalog import EXPERIMENTS, find
from bench.environment import ROOT
from bench.errors import UserError
from bench.experiment import Run
from bench.ledger import Ledger
from bench.planning import Pace, gpus_that_help, makespan, pace_of, pace_of_epoch, planned, simulate, task_seconds
from bench.report.measurements import read_report
from bench.runs import plan
from tests.records import run_of
from tests.test_grid import chosen, shared

# The engine that made the committed records of `paper` on an H100, measured there with it.
H100 = ROOT / "tests" / "throughput_of_the_paper_records.json"
PAPER = [run_of(experiment.name, seed, "paper") for experiment in EXPERIMENTS for seed in range(10)]


def test_tasks_begin_in_turn_where_a_place_is_free_first() -> None:
    assert makespan([3, 2, 2, 1], 1) == 8
    assert makespan([3, 2, 2, 1], 2) == 4  # 3 1 beside 2 2
    assert makespan([1, 2, 2, 3], 2) == 5  # 1 2 beside 2 3
    assert makespan([3, 2, 2, 1], 9) == 3


def test_the_pace_of_an_epoch_is_that_of_the_baseline_and_others_follow_their_work() -> None:
    pace = pace_of_epoch(1.5)
    assert pace.seconds(run_of("cifar100/baseline", 0, "paper")) == 20 * 1.5
    assert pace.seconds(run_of("cifar100/stem_dual", 0, "paper")) == 4 * 20 * 1.5
    assert pace.seconds(run_of("cifar100/baseline", 0, "mini")) == pytest.approx(4 * 1.5 * 8_000 / 50_000)


def test_a_task_compiles_each_architecture_once() -> None:
    pace = Pace(lambda run: 10.0, compiling=30.0)
    same = [run_of("cifar100/baseline"), run_of("cifar100/baseline_F2", 1), run_of("fashion_mnist/baseline")]
    assert task_seconds(same, pace) == 30 + 3 * (10 + planning.BEGINNING_SECONDS)
    assert task_seconds([*same, run_of("cifar100/C_se")], pace) == 60 + 4 * (10 + planning.BEGINNING_SECONDS)


def test_what_a_measurement_predicts_is_what_the_same_gpu_took() -> None:
    """The committed record of the baseline on an H100: a process that began with it, compiling included."""
    run = run_of("cifar100/baseline", 0, "paper")
    pace = pace_of(read_report(H100))
    (record,) = [
        record
        for _, record in Ledger(ROOT / "results").records()
        if (record["run"]["profile"], record["run"]["experiment"], record["run"]["seed"]) == ("paper", "cifar100/baseline", 0)
        and "H100" in record["environment"]["device"]
    ]
    epochs = record["timings"]["epochs"]
    took = sum(epoch["train_seconds"] + epoch["evaluation_seconds"] for epoch in epochs)
    assert task_seconds([run], pace) == pytest.approx(took, rel=0.15)
    typical = sorted(epoch["train_seconds"] + epoch["evaluation_seconds"] for epoch in epochs)[10]
    assert pace.seconds(run) / 20 == pytest.approx(typical, rel=0.1)


def test_a_network_that_was_not_measured_is_as_fast_as_the_nearest() -> None:
    pace = pace_of(read_report(H100))
    near, own = (run_of(f"cifar100/{row}", 0, "paper") for row in ("C_se", "baseline_F2"))
    assert pace.seconds(near) == pace.seconds(own)
    products = planning.cost_of(find("cifar100/matched_vit").model, 100)["multiply_adds"] / 90_991_328
    training, evaluating = 30 * 50_000 / 43_975, 30 * 10_000 / 211_219
    assert pace.seconds(run_of("cifar100/matched_vit", 0, "paper")) == pytest.approx((training + evaluating) * products, rel=0.01)
    report = read_report(H100)
    with pytest.raises(UserError, match="expected a measurement with cifar100/baseline"):
        pace_of(report | {"families": {"ViT-Tiny": report["families"]["ViT-Tiny"]}})


def test_more_gpus_help_until_the_longest_run_decides() -> None:
    pace = pace_of(read_report(H100))
    enough = gpus_that_help(PAPER, pace)
    longest = max(task_seconds([run], pace) for run in PAPER)
    assert longest <= enough.makespan <= planning.HELPS * longest
    for gpus in (1, 2, 4, 8, enough.gpus):
        found = simulate(PAPER, gpus, pace)
        assert found.busy / gpus <= found.makespan <= found.busy / gpus + longest * 4
        assert found.gpus * found.makespan >= found.busy
    assert simulate(PAPER, 8, pace).makespan < simulate(PAPER, 4, pace).makespan < simulate(PAPER, 2, pace).makespan
    assert simulate(PAPER, 10 * enough.gpus, pace).makespan >= longest


def test_the_plan_says_hours_cost_and_where_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--gpus", "3", "--seeds", "0-9", "--price", "2", "--gpu-seconds-per-epoch", "3600", "--only", "cifar100/baseline"]
    assert cli.main(["plan", *flags]) == 0
    said = capsys.readouterr().out
    assert said.startswith("10 runs, profile paper")
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()[:1].isdigit()}
    assert rows["1"][-1] == "400.09", "ten runs of 20 hours and 2 seconds, four tasks that compile for 35, at 2 an hour"
    assert "More than 10 GPUs do not help: cifar100/baseline takes 20 h" in said
    assert "cost" not in planned(PAPER[:1], 1, pace_of_epoch(1), None)
    h100 = read_report(H100)
    cpu = planned(PAPER[:1], 1, pace_of(h100 | {"environment": h100["environment"] | {"cuda": None}}), None)
    assert "machine-hours" in cpu and "GPU" not in cpu, "what was measured on a CPU plans no GPUs"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "0", "--gpu-seconds-per-epoch", "1"], "--gpus: expected a whole number from 1 of at most 6 digits, found '0'"),
        (["--gpus", "9" * 5000, "--gpu-seconds-per-epoch", "1"], "--gpus: expected a whole number from 1 of at most 6 digits"),
        (
            ["--gpu-seconds-per-epoch", "nan"],
            "--gpu-seconds-per-epoch: expected a number above 0 and below 1,000,000,000, found 'nan'",
        ),
        (
            ["--gpu-seconds-per-epoch", "1", "--price", "free"],
            "--price: expected a number above 0 and below 1,000,000,000, found 'free'",
        ),
        (
            ["--throughput", "absent.json"],
            "absent.json: expected a throughput measurement, found none; `make bench-throughput` writes one",
        ),
        (
            ["--gpu-seconds-per-epoch", "1", "--seeds", "9-0"],
            "SEEDS: expected ranges from a lower to a higher number, as in SEEDS=0-2, found '9-0'",
        ),
        (["--gpu-seconds-per-epoch", "1", "--seeds", "0-999999"], "SEEDS: expected at most 10000 seeds, found 1000000"),
    ],
)
def test_a_mistake_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *flags]) == errors.EXIT_USER
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


def test_the_schedule_is_that_of_a_real_small_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four real runs by two processes: the clock of the whole against the simulation from the clocks of the four."""
    took: list[float] = []
    ends: list[float] = []

    class Timed(workers._Server):
        def ask(self, run: Run) -> None:
            self.asked = time.monotonic()
            super().ask(run)

        def answer(self) -> str | int:
            status = super().answer()
            ends.append(time.monotonic())
            took.append(ends[-1] - self.asked)
            return status

    its_settings = chosen(tmp_path, JOBS="2", ONLY="cifar100/baseline_F0", SEEDS="0-3")
    runs = plan(its_settings)
    monkeypatch.setattr(workers, "_Server", Timed)
    started = time.monotonic()
    assert shared(runs, its_settings) == ["done"] * 4
    whole = max(ends) - started  # the processes end afterwards
    assert len(took) == 4 and min(took) > 0
    assert makespan(took, 2) == pytest.approx(whole, rel=0.1)
    assert makespan(took, 1) > 1.5 * whole, "and with one process it would have taken longer"
