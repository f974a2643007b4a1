"""`make bench-throughput`: the whole measurement, its file, and what is written about it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from bench import cli, memory, throughput
from bench.catalog import EXPERIMENTS, find
from bench.engine.execution import Choices, Execution
from bench.environment import device_slug
from bench.errors import UserError
from bench.experiment import Experiment
from bench.measure import comparison, loops, roofline, timing
from bench.measure import throughput as measuring
from bench.measure.contents import (
    BARE,
    CONVENTIONAL,
    CONVENTIONAL_BEST,
    DEFAULT_LAYOUT,
    EAGER,
    MEMORY_RETURNED,
    NOT_DETERMINISTIC,
    NOT_FUSED,
    OURS,
)
from bench.report.measurements import read_report
from bench.report.throughput import compared, throughput_section
from tests.conftest import CPU, small_network


class Apart:
    """Stands for a loop in another process."""

    made: ClassVar[list["Apart"]] = []

    def __init__(self, experiment: str, choices: Choices) -> None:
        self.closed = False
        self.made.append(self)

    def __call__(self, steps: int) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="session")  # once a process, though the tests of a module may be spread over two
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A measurement of the small network in windows of one step."""
    kept = tmp_path_factory.mktemp("kept") / "measured.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.engine.network.build", lambda model, *, classes, seed, initial=None: small_network(classes))
        patch.setattr(roofline, "measured_peak", lambda device: {
            "fp32_flops_per_second": 1e11, "bf16_flops_per_second": 2e11, "bytes_per_second": 1e10,
        })  # fmt: skip
        patch.setattr(loops, "IMAGES", 512)
        patch.setattr(measuring, "BATCH_SIZES", {"cpu": (64, 128)})
        patch.setattr(comparison, "Apart", Apart)
        patch.setattr(memory, "can_keep", lambda: True)
        bench = measuring.Bench(
            CPU, Choices(depthwise="reference", kept=kept), window_seconds=0, windows=3, search=True, say=lambda line: None
        )
        rows = {"small": find("cifar100/baseline"), "again": find("cifar100/C_se")}
        found = bench.report(find("cifar100/baseline"), rows)
    return json.loads(json.dumps(found))


def test_networks_that_do_not_fit_together_are_measured_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third does not fit beside two others; a batch that does not fit at all ends the search."""
    living: list[str] = []

    class Steps:
        def __init__(self, name: str) -> None:
            self.name = name
            living.append(name)

        def __call__(self, count: int) -> None:
            log.append(self.name)

        def __del__(self) -> None:
            living.remove(self.name)

    def ours(experiment: Experiment, split: Any, execution: Any, *, batch_size: int, **_: Any) -> Steps:
        if len(living) == 2 or batch_size == 256:
            raise RuntimeError("CUDA error: out of memory" if batch_size == 128 else "DefaultCPUAllocator: can't allocate memory")
        return Steps(experiment.name)

    log: list[str] = []
    monkeypatch.setattr(measuring.loops, "ours", ours)
    inferred: list[int] = []
    monkeypatch.setattr(measuring.loops, "inference", lambda *_, **__: inferred.append)
    monkeypatch.setattr("bench.engine.network.build", lambda model, *, classes, seed, initial=None: small_network(classes))
    choices = Choices(depthwise="reference", kept=tmp_path / "measured.json")
    bench = measuring.Bench(CPU, choices, window_seconds=0, windows=3, search=True, say=lambda line: None)
    peak = {"fp32_flops_per_second": 1e11, "bf16_flops_per_second": 2e11, "bytes_per_second": 1e10}
    rows = [f"cifar100/{row}" for row in ("baseline", "C_se", "C_eca")]
    found = bench.networks({row: find(row) for row in rows}, peak)
    assert list(found) == rows and [found[row]["windows"] for row in rows] == [3, 3, 3]
    one, two, _ = rows
    warm, turns = [one, two], 3 * [one, two]
    assert log[:8] == [*warm, *turns]
    assert len(inferred) == 3 * 3, "windows alone: a CPU needs no warm-up for it"
    assert all(found[row]["best_batch"]["tried"] == [64, 128] for row in rows)
    for late in ("TRAINING_ENDS", "INFERENCE_ENDS", "SEARCH_ENDS"):
        monkeypatch.setattr(measuring, late, -1.0)
    inferred.clear()
    hurried = measuring.Bench(CPU, choices, window_seconds=0, windows=3, search=True, say=lambda line: None)
    row = hurried.networks({one: find(one)}, peak)[one]
    assert row["best_batch"] is None and row["windows"] == len(inferred) == 2
    monkeypatch.setattr(measuring.loops, "ours", lambda *_, **__: pytest.fail("not of memory"))
    with pytest.raises(pytest.fail.Exception, match="not of memory"):
        bench.networks({one: find(one)}, peak)


def test_loops_for_which_there_is_no_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 100 bytes; the fourth would begin with less than 200."""
    made: list[str] = []
    said: list[str] = []
    log: list[str] = []

    def make(name: str) -> Callable[[], loops.Steps]:
        return lambda: made.append(name) or (lambda steps: log.append(name))  # type: ignore[func-returns-value]

    monkeypatch.setattr("bench.engine.network.build", lambda model, *, classes, seed, initial=None: small_network(classes))
    monkeypatch.setattr(comparison.Comparison, "_best_flags", lambda *_, **__: loops.Flags())
    names = (OURS, BARE, EAGER, CONVENTIONAL, CONVENTIONAL_BEST)
    monkeypatch.setattr(comparison.Comparison, "_contenders", lambda *_: {name: make(name) for name in names})
    for module in (comparison, timing):
        monkeypatch.setattr(module, "memory_left", lambda device: 490 - 100 * len(made))
    compared = comparison.Comparison(CPU, Choices(depthwise="reference"), search=True, say=said.append)
    found = compared.of(find("cifar100/baseline"), window_seconds=0, windows=3, ends=0)
    assert made == list(found["images_per_second"]) == [OURS, BARE, EAGER]
    assert said[-1] == f"no more loops, for want of memory: {CONVENTIONAL} and those after it are left out"
    assert f"{OURS} / {BARE}" in found["ratios"]
    assert log == 5 * made and found["windows"] == 3, "a first step, a turn that is not timed, three windows"


def test_a_network_takes_the_memory_that_it_would_take_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"bytes": 1000}
    monkeypatch.setattr(measuring, "memory_in_use", lambda device: used["bytes"])
    monkeypatch.setattr(timing, "memory_left", lambda device: 10**4)

    def warmed_up(work: Callable[[], None], device: torch.device) -> int:
        work()
        used["bytes"] += 300
        return used["bytes"] + 50

    monkeypatch.setattr(measuring, "warmed_up", warmed_up)
    monkeypatch.setattr(measuring.loops, "ours", lambda *_, **__: lambda steps: None)
    bench = measuring.Bench(CPU, Choices(depthwise="reference"), window_seconds=0, windows=3, search=False, say=lambda line: None)
    entrants = bench._entrants({row: find("cifar100/baseline") for row in "abc"}, 1000)
    assert [entrant.peak_memory_bytes for entrant in entrants.values()] == [1350, 1350, 1350]
    monkeypatch.setattr(timing, "memory_left", lambda device: 5_000 - used["bytes"])  # 3,100 and 2,800, then 2,500
    waiting = {row: find("cifar100/baseline") for row in "abcd"}
    assert list(bench._entrants(waiting, 1000)) == ["a", "b"] and list(waiting) == ["c", "d"], "no room for twice 1,350 more"


def test_energy_is_counted_in_a_window_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    bench = measuring.Bench(CPU, Choices(depthwise="reference"), window_seconds=0, windows=3, search=False, say=lambda line: None)
    entrant = measuring._Entrant(done.append, Execution(), 100, 1.0, None)
    assert bench._joules(entrant, speed=1000.0) is None and not done, "a CPU does not tell"
    values = iter([500.0, 800.0])
    monkeypatch.setattr(bench._energy, "joules", lambda: next(values))
    assert bench._joules(entrant, speed=1250.0) == pytest.approx(300 / 2.5)
    assert done == [25], "two seconds' steps"


def test_a_measurement_holds_what_the_tables_show(report: dict[str, Any]) -> None:
    speeds = report["loops"]["images_per_second"]
    expected = {
        OURS, BARE, CONVENTIONAL, CONVENTIONAL_BEST, EAGER,
        NOT_DETERMINISTIC, DEFAULT_LAYOUT, NOT_FUSED, MEMORY_RETURNED,
    }  # fmt: skip
    assert expected <= set(speeds)
    assert f"{OURS} / {NOT_FUSED}" in report["loops"]["ratios"]
    assert [loop.closed for loop in Apart.made] == [True]
    assert all(0 < speed["low"] <= speed["median"] <= speed["high"] for speed in speeds.values())
    row = report["families"]["small"]
    assert row["seconds_per_epoch"] == pytest.approx(50_000 / row["training_images_per_second"]["median"])
    assert row["flops_per_second"] == pytest.approx(row["training_flops_per_image"] * row["training_images_per_second"]["median"])
    assert row["roofline_seconds_per_epoch"] > 0 and row["warm_up_seconds"] > 0
    assert row["joules_per_1000_images"] is None
    assert row["best_batch"]["tried"] == [64, 128] and row["best_batch"]["batch_size"] in (64, 128)
    assert row["windows"] == 3 and row["least_bytes_per_second"] > 0
    assert report["settings"]["windows"] == 3 and report["environment"]["deterministic"]


def test_the_section_shows_loops_ratios_and_networks(report: dict[str, Any], tmp_path: Path) -> None:
    assert throughput_section(tmp_path) == ""
    (tmp_path / f"{device_slug(report['environment'])}.json").write_text(json.dumps(report))
    text = throughput_section(tmp_path)
    assert text.startswith("## Throughput\n")
    assert "Measured peaks: 0.1 TFLOP/s in fp32, 0.2 in bf16, copies at 10 GB/s. Torch" in text
    for name in (*report["loops"]["images_per_second"], *report["loops"]["ratios"], "convnext_tiny, default stem"):
        assert f"| {name} " in text
    share = report["families"]["small"]["flops_per_second"] / 2e11
    assert f" {share:.0%} " in text


def test_the_section_shows_by_what_the_mode_was_chosen(report: dict[str, Any], tmp_path: Path) -> None:
    assert set(report["methods"]["bf16"]) == {"units", "fp32"}
    seconds = {"bf16": {"units": 0.002, "fp32": 0.001}, "depthwise 4x4x384 fp32": {"convolution": 0.0043, "pairs": 0.0015}}
    (tmp_path / "a.json").write_text(json.dumps(report | {"methods": seconds}))
    text = throughput_section(tmp_path)
    assert "| linear layer of a bf16 recipe | fp32 1, units 2 " in text
    assert "| depthwise 4x4x384 fp32        | pairs 1.5, convolution 4.3 " in text


def test_the_vendors_peak_and_the_energy_are_shown_where_known(report: dict[str, Any], tmp_path: Path) -> None:
    known = copy.deepcopy(report)
    known["vendor_peak"] = {"flops_per_second": 1e12, "bytes_per_second": 1e11}
    known["families"]["small"]["joules_per_1000_images"] = 41.25
    known["families"]["small"]["flops_per_second"] = 2.5e11
    (tmp_path / "gpu.json").write_text(json.dumps(known))
    text = throughput_section(tmp_path)
    assert "the vendor states 1 TFLOP/s in bf16, 100 GB/s." in text
    assert "of vendor's peak" in text and " 25% " in text and " 41.2 " in text


def test_processes_that_share_a_gpu_have_a_line(report: dict[str, Any], tmp_path: Path) -> None:
    assert report["sharing"] is None, "a CPU's threads are shared out"
    (tmp_path / "gpu.json").write_text(json.dumps(report | {"sharing": {"1": 44_000.4, "2": 45_000.0}}))
    line = "each training `cifar100/baseline`, not compiled: 44,000 images/s with JOBS=1, 45,000 images/s with JOBS=2."
    assert line in throughput_section(tmp_path)


def test_compare_tells_changes_from_noise(report: dict[str, Any]) -> None:
    assert compared(report, report) == "no speed changed beyond noise"
    faster = copy.deepcopy(report)
    speed = faster["families"]["small"]["training_images_per_second"]
    factor = 1.5 * speed["high"] / speed["low"]
    faster["families"]["small"]["training_images_per_second"] = {name: value * factor for name, value in speed.items()}
    faster["environment"]["torch"] = "9.9"
    lines = compared(report, faster).splitlines()
    assert lines[0].startswith("environment: torch: 2.") and lines[0].endswith("-> 9.9")
    assert lines[1].startswith("small: training: ") and lines[1].endswith(f" {factor:.3g} times as fast")
    assert len(lines) == 2


def test_compare_tells_what_cannot_be_compared(report: dict[str, Any]) -> None:
    other = copy.deepcopy(report)
    del other["families"]["again"], other["loops"]["images_per_second"][EAGER]
    other["families"]["small"] |= {"batch_size": 64, "inference_batch_size": 7}
    other["loops"]["best_flags"]["workers"] = 9
    ours, theirs = (file["loops"]["best_flags"]["workers"] for file in (report, other))
    lines = compared(report, other).splitlines()
    assert lines[:2] == [f"loop only in the first: {EAGER}", "network only in the first: again"]
    assert lines[2].startswith("loops: best flags: ") and f"{ours} workers -> " in lines[2] and f"{theirs} workers" in lines[2]
    assert lines[3:] == ["small: batch: 128 -> 64", "small: inference batch: 500 -> 7", "no speed changed beyond noise"]
    assert "network only in the second: again" in compared(other, report)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loops", {}), ("families", []), ("families.small.experiment", "gone"), ("sharing", {"many": 1.0}),
        ("loops.images_per_second.ours", "fast"), ("loops.ratios", [1]), ("peak", None),
        ("families.small.execution", None), ("families.small.training_images_per_second.median", 0),
        ("families.small.best_batch", 3), ("environment.device", 7), ("seconds", 1e999),
    ],
)  # fmt: skip
def test_a_field_that_is_not_as_it_should_be_is_named(
    field: str, value: Any, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copy.deepcopy(report)
    *path, last = field.split(".")
    place = damaged
    for name in path:
        place = place[name]
    place[last] = value
    (tmp_path / "throughput").mkdir()
    file = tmp_path / "throughput" / "a.json"
    file.write_text(json.dumps(damaged))
    for command in (["compare", str(file), str(file)], ["report", "--results", str(tmp_path)]):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"a.json: expected a throughput measurement; {field}" in said


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 0}', '{"schema": 1}', pytest.param("[" * 100_000, id="deep")])
def test_a_file_that_is_no_measurement_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"a.json: expected a throughput measurement"):
        read_report(path)
    assert cli.main(["compare", str(path), str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_compare_prints_the_changes(report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(report))
    assert cli.main(["compare", str(path), str(path)]) == 0
    assert capsys.readouterr().out == "no speed changed beyond noise\n"


def test_the_file_is_named_after_the_device() -> None:
    def name(**described: Any) -> str:
        return device_slug(described)

    assert (
        name(device="Intel(R) Xeon(R) CPU @ 2.0GHz", instructions=None, threads=2, cuda=None)
        == "intel-r-xeon-r-cpu-2-0ghz-2-threads"
    )
    assert name(device="NVIDIA H200", threads=16, cuda="13.0") == "nvidia-h200"
    assert name(device="EPYC", instructions="AVX2", threads=1, cuda=None) == "epyc-avx2-1-thread"


def test_every_family_of_the_catalog_is_measured() -> None:
    measured = {(find(name).model.family, find(name).model.stem) for name in throughput.NETWORKS.values()}
    assert measured == {(experiment.model.family, experiment.model.stem) for experiment in EXPERIMENTS}
    kinds = {find(name).model.attention.kind for name in throughput.NETWORKS.values() if find(name).model.attention}  # type: ignore[union-attr]
    assert kinds == {experiment.model.attention.kind for experiment in EXPERIMENTS if experiment.model.attention}
    assert set(throughput.QUICK) <= set(throughput.NETWORKS)


def test_the_command_measures_what_is_asked_for(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(self: measuring.Bench, headline: Any, families: dict[str, Any]) -> dict[str, Any]:
        asked.append((headline.name, list(families), self._windows))
        return report

    monkeypatch.setattr(measuring.Bench, "report", measure)
    arguments = ["throughput", "--device", "cpu", "--results", str(tmp_path)]
    assert cli.main(arguments) == 0
    (whole,) = (tmp_path / "throughput").iterdir()
    assert read_report(whole) == report and f"wrote {whole}" in capsys.readouterr().out
    assert cli.main([*arguments, "--quick"]) == 0
    assert cli.main([*arguments, "--only", "cifar100/C_*"]) == 0
    assert asked[0] == ("cifar100/baseline", list(throughput.NETWORKS), 3)
    assert asked[1] == ("cifar100/baseline", list(throughput.QUICK), 3)
    assert asked[2][1] == [name for name in throughput.NETWORKS if throughput.NETWORKS[name].startswith("cifar100/C_")]
    part = whole.with_name(f"{whole.stem}-part.json")
    assert sorted((tmp_path / "throughput").iterdir()) == sorted([whole, part]), "no part takes the place of the whole"
    section = throughput_section(tmp_path / "throughput")
    few = f", {len(report['families'])} of {len(throughput.NETWORKS)} networks\n"
    assert section.count(f", a part of the measurements{few}") == 1 and section.count(few) == 2


def test_a_folder_that_cannot_be_written_is_found_before_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring.Bench, "report", lambda *_: pytest.fail("measured"))
    (tmp_path / "throughput").write_text("")
    assert cli.main(["throughput", "--device", "cpu", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "throughput: Not a directory: expected a folder that this user may write to" in said


@pytest.mark.parametrize(("command", "continues"), [(["throughput"], False), (["grid"], True)])
def test_an_interrupted_command_says_whether_it_continues(
    command: list[str], continues: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, command[0], interrupted)
    assert cli.main(command) == 130
    assert ("checkpoint" in capsys.readouterr().err) == continues
