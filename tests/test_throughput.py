"""Speeds: the timing, the ceilings, the loops that are compared, and what is written about them."""

import copy
import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import data
from bench import cli, throughput
from bench.catalog import EXPERIMENTS, find
from bench.engine.device_data import DeviceSplit
from bench.engine.execution import Choices, Execution
from bench.environment import device_slug
from bench.errors import UserError
from bench.measure import energy, loops, roofline, timing
from bench.measure import throughput as measuring
from bench.measure.timing import Spread, interleaved, peak_memory, ratio
from bench.report.throughput import compared, read_report, throughput_section
from tests.conftest import CPU, small_network

# ---- timing ------------------------------------------------------------------------------------------------------------


def test_contenders_take_turns_in_windows_of_the_same_length(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, int]] = []
    clock = {"now": 0.0}

    def contender(name: str, seconds: float) -> Callable[[int], None]:
        def do(steps: int) -> None:
            log.append((name, steps))
            clock["now"] += steps * seconds

        return do

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["now"])
    speeds = interleaved(
        {"fast": contender("fast", 0.1), "slow": contender("slow", 4.0)}, images=8, device=CPU, window_seconds=1, windows=2
    )
    assert log == [("fast", 1), ("slow", 1), ("fast", 10), ("slow", 1), ("fast", 10), ("slow", 1)]
    assert speeds == {"fast": pytest.approx([80, 80]), "slow": [2, 2]}
    assert ratio(speeds, "fast", "slow").median == pytest.approx(40)


@pytest.mark.parametrize(("first", "enough"), [(1.9, 5), (4, 3), (12, 2)])
def test_a_lone_contenders_first_step_is_a_window_where_a_step_fills_one(
    first: float, enough: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what takes 4 seconds a step three windows are enough, of what takes 12 two."""
    calls: list[int] = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: sum(first + 0.1 * call for call in range(len(calls))))
    speeds = interleaved({"slow": calls.append}, images=8, device=CPU, window_seconds=1, windows=5)
    assert calls == [1] * enough
    assert speeds == {"slow": pytest.approx([8 / (first + 0.1 * call) for call in range(enough)])}


def test_turns_go_on_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}

    def contender(steps: int) -> None:
        clock["now"] += steps * 0.5

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["now"])
    both = {"one": contender, "other": contender}
    speeds = interleaved(both, images=8, device=CPU, window_seconds=1, windows=2, least_seconds=7)
    assert list(map(len, speeds.values())) == [4, 4], "a turn of both takes two seconds"


def test_a_ratio_is_taken_turn_by_turn() -> None:
    speeds = {"one": [10.0, 20.0, 40.0], "other": [10.0, 10.0, 10.0]}
    assert ratio(speeds, "one", "other") == Spread(median=2, low=1, high=4)


@pytest.mark.parametrize(("machine", "reserved"), [(16 * 10**9, 10**9), (2 * 10**9, 5 * 10**8)])
def test_after_a_warm_up_as_much_memory_is_at_hand(machine: int, reserved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reserves: list[int] = []
    monkeypatch.setattr(timing, "peak_memory", lambda work, device: work())
    monkeypatch.setattr(timing, "available_memory", lambda: machine)
    monkeypatch.setattr("bench.memory.reserve", reserves.append)
    assert timing.warmed_up(lambda: 10**9, CPU) == 10**9
    assert reserves == [reserved], "no more than a part of the machine's"
    timing.warmed_up(lambda: 10**9, torch.device("cuda"))
    assert len(reserves) == 1


def test_peak_memory_sees_what_is_freed_again() -> None:
    size = 300_000_000
    before = peak_memory(lambda: None, CPU)
    peak = peak_memory(lambda: torch.ones(size // 4).sum(), CPU)
    after = peak_memory(lambda: None, CPU)
    if before is None or peak is None or after is None:
        pytest.skip("this system does not tell a process's peak")
    assert peak - before > 0.9 * size and peak - after > 0.9 * size


def test_what_was_freed_before_is_no_part_of_the_peak() -> None:
    before = peak_memory(lambda: None, CPU)
    pieces = [torch.ones(15_000) for _ in range(5_000)]  # of a size that glibc does not map apart; 300 MB
    pinned = torch.ones(15_000)  # above them, so that freeing them gives nothing back
    del pieces
    after = peak_memory(lambda: None, CPU)
    if before is None or after is None or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this system does not tell a process's peak, or keeps what is freed")
    assert pinned.sum() == 15_000 and after - before < 50_000_000


def test_energy_is_read_from_the_drivers_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def total(handle: object, millijoules: Any) -> int:
        millijoules._obj.value = 12_500
        return 0

    asked = []
    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetHandleByUUID=lambda name, handle: asked.append(name) or 0,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    assert energy.EnergyCounter(torch.device("cuda")).joules() == 12.5
    assert asked == [b"GPU-1234"]
    library.nvmlDeviceGetTotalEnergyConsumption = lambda handle, millijoules: 3  # not supported
    assert energy.EnergyCounter(torch.device("cuda")).joules() is None
    assert energy.EnergyCounter(CPU).joules() is None


# ---- ceilings ----------------------------------------------------------------------------------------------------------


def test_vendors_peaks_by_name() -> None:
    assert roofline.vendor_peak("NVIDIA H200") == {"flops_per_second": 989.4e12, "bytes_per_second": 4800e9}
    nvl, sxm = roofline.vendor_peak("NVIDIA H100 NVL"), roofline.vendor_peak("NVIDIA H100 80GB HBM3")
    assert nvl and sxm and nvl["bytes_per_second"] == 3900e9 and sxm["bytes_per_second"] == 3350e9
    assert roofline.vendor_peak("AMD EPYC 9B45") is None


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic() -> None:
    peak = {"fp32_flops_per_second": 10.0, "bf16_flops_per_second": 40.0, "bytes_per_second": 100.0}
    assert roofline.least_seconds(400, 100, peak, "bf16") == 10
    assert roofline.least_seconds(400, 100, peak, "fp32") == 40
    assert roofline.least_seconds(400, 3000, peak, "bf16") == 30


def test_least_bytes_by_hand() -> None:
    """A linear layer keeps its input for backward, and a GELU its own."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5), nn.GELU())
    parameters = 48 * 5 + 5
    assert roofline.least_bytes(network, 2, side=4) == 10 * 4 * parameters + 2 * 2 * (2 * 48 + 2 * 5)


def test_measured_peaks_are_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "seconds_of", lambda work, device: 0.05)
    peak = roofline.measured_peak(CPU)
    assert peak["fp32_flops_per_second"] == peak["bf16_flops_per_second"] == 2 * 2048**3 / 0.05
    assert peak["bytes_per_second"] == 2 * 4 * 2**26 / 0.05


def test_a_slow_type_is_not_measured_on_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores without bf16 units take a minute for the eight products that cores with them do in a second."""
    monkeypatch.setattr(roofline, "seconds_of", lambda work, device: 13.0)
    assert roofline.measured_peak(CPU)["bf16_flops_per_second"] == 2 * 256**3 / 13.0


# ---- loops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [loops.Flags(workers=0), loops.Flags(bf16=True, channels_last=True, fused=True, workers=1)])
def test_the_conventional_loop_learns(flags: loops.Flags) -> None:
    """It is no straw man: in 200 steps on 20 images it gets most of them right, crops and flips and all."""
    dataset = data.load("tiny_fashion_mnist")
    images = np.pad(dataset.train.images[:200:10], ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(3, axis=3)
    loop = loops.Conventional(
        small_network(), images, dataset.train.labels[:200:10], batch_size=20, device=CPU, flags=flags, learning_rate=1e-2
    )
    loop(1)
    first = loop.loss
    loop(199)
    assert loop.accuracy > 0.5 and loop.loss < 0.7 * first


def test_every_loop_trains_the_same_network_from_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = []

    def build(model: Any, *, classes: int, seed: int, initial: Any = None) -> nn.Module:
        networks.append(small_network(classes))
        return networks[-1]

    monkeypatch.setattr(loops.networks, "build", build)
    experiment = find("cifar100/baseline")
    images, labels = loops.random_images(40, 10)
    split = DeviceSplit(images, labels, padding=4, mean=loops.MEAN, std=loops.STD, device=CPU)
    before = {name: value.clone() for name, value in small_network().state_dict().items()}
    loops.ours(experiment, split, Execution(), batch_size=10, classes=10, device=CPU)(5)  # over the end of an epoch
    loops.bare_step(experiment, Execution(), batch_size=10, classes=10, device=CPU)(2)
    eager = small_network()
    loops.eager_on_device(eager, split, batch_size=10, device=CPU, flags=loops.Flags())(5)
    for network in (*networks, eager):
        assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    loops.inference(experiment, Execution(), batch_size=10, classes=10, device=CPU)(1)
    assert all(torch.equal(value, before[name]) for name, value in networks[-1].state_dict().items())


def test_modes_of_the_process_are_put_back() -> None:
    torch.use_deterministic_algorithms(True)
    with loops.deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark


# ---- the whole measurement ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """A measurement of the small network in windows of one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.engine.network.build", lambda model, *, classes, seed, initial=None: small_network(classes))
        patch.setattr(roofline, "measured_peak", lambda device: {
            "fp32_flops_per_second": 1e11, "bf16_flops_per_second": 2e11, "bytes_per_second": 1e10,
        })  # fmt: skip
        patch.setattr(measuring, "IMAGES", 512)
        patch.setattr(measuring, "BATCH_SIZES", {"cpu": (64, 128)})
        bench = measuring.Bench(
            CPU, Choices(depthwise="reference"), window_seconds=0, windows=3, search=True, say=lambda line: None
        )
        found = bench.report(find("cifar100/baseline"), {"small": find("cifar100/baseline")})
    return json.loads(json.dumps(found))


def test_a_measurement_holds_what_the_tables_show(report: dict[str, Any]) -> None:
    speeds = report["loops"]["images_per_second"]
    expected = {
        measuring.OURS, measuring.BARE, measuring.CONVENTIONAL, measuring.CONVENTIONAL_BEST, measuring.EAGER,
        measuring.NOT_DETERMINISTIC,
    }  # fmt: skip
    assert expected <= set(speeds)
    assert all(0 < speed["low"] <= speed["median"] <= speed["high"] for speed in speeds.values())
    row = report["families"]["small"]
    assert row["seconds_per_epoch"] == pytest.approx(50_000 / row["training_images_per_second"]["median"])
    assert row["flops_per_second"] == pytest.approx(row["training_flops_per_image"] * row["training_images_per_second"]["median"])
    assert row["roofline_seconds_per_epoch"] > 0 and row["warm_up_seconds"] > 0
    assert row["joules_per_1000_images"] is None
    assert row["best_batch"]["tried"] == [64, 128] and row["best_batch"]["batch_size"] in (64, 128)
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


def test_the_vendors_peak_and_the_energy_are_shown_where_known(report: dict[str, Any], tmp_path: Path) -> None:
    known = copy.deepcopy(report)
    known["vendor_peak"] = {"flops_per_second": 1e12, "bytes_per_second": 1e11}
    known["families"]["small"]["joules_per_1000_images"] = 41.25
    known["families"]["small"]["flops_per_second"] = 2.5e11
    (tmp_path / "gpu.json").write_text(json.dumps(known))
    text = throughput_section(tmp_path)
    assert "the vendor states 1 TFLOP/s in bf16, 100 GB/s." in text
    assert "of vendor's peak" in text and " 25% " in text and " 41.2 " in text


def test_compare_tells_changes_from_noise(report: dict[str, Any]) -> None:
    assert compared(report, report) == "no speed changed beyond noise"
    faster = copy.deepcopy(report)
    speed = faster["families"]["small"]["training_images_per_second"]
    factor = 1.5 * speed["high"] / speed["low"]
    faster["families"]["small"]["training_images_per_second"] = {name: value * factor for name, value in speed.items()}
    faster["environment"]["torch"] = "9.9"
    lines = compared(report, faster).splitlines()
    assert lines[0].startswith("environment: torch: 2.") and lines[0].endswith("-> 9.9")
    assert lines[1].startswith("small: training: ") and lines[1].endswith(f"{factor:.2f} times as fast")
    assert len(lines) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 0}', '{"schema": 1}'])
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
    assert cli.main([*arguments, "--quick"]) == 0
    assert cli.main([*arguments, "--only", "cifar100/C_*"]) == 0
    assert asked[0] == ("cifar100/baseline", list(throughput.QUICK), 3)
    assert asked[1][1] == [name for name in throughput.NETWORKS if throughput.NETWORKS[name].startswith("cifar100/C_")]
    (path,) = (tmp_path / "throughput").iterdir()
    assert read_report(path) == report and f"wrote {path}" in capsys.readouterr().out
