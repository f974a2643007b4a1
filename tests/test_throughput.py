"""Speeds: the timing, the ceilings, the loops that are compared, and what is written about them."""

import copy
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import data
from bench import cli, environment, throughput
from bench.catalog import EXPERIMENTS, find
from bench.engine.device_data import DeviceSplit
from bench.engine.execution import Choices, Execution
from bench.environment import device_slug
from bench.errors import UserError
from bench.experiment import Experiment
from bench.measure import energy, loops, roofline, timing
from bench.measure import throughput as measuring
from bench.measure.timing import Spread, interleaved, peak_memory, ratio
from bench.report.measurements import read_report
from bench.report.throughput import compared, throughput_section
from models.attention import SelfAttention
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
        {"fast": contender("fast", 0.1), "slow": contender("slow", 4.0)},
        images={"fast": 8, "slow": 6},
        device=CPU,
        window_seconds=1,
        windows=2,
    )
    assert log == [("fast", 1), ("slow", 1), ("fast", 10), ("slow", 1), ("fast", 10), ("slow", 1)]
    assert speeds == {"fast": pytest.approx([80, 80]), "slow": [1.5, 1.5]}
    assert ratio(speeds, "fast", "slow").median == pytest.approx(80 / 1.5)


@pytest.mark.parametrize(("slow", "turns"), [(1.9, 5), (4, 3), (15, 3)])
def test_three_turns_are_enough_where_a_step_is_slow(slow: float, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: slow * len(calls))
    speeds = interleaved({"slow": calls.append}, images={"slow": 8}, device=CPU, window_seconds=1, windows=5)
    assert speeds == {"slow": pytest.approx([8 / slow] * turns)}
    assert len(calls) == 1 + turns, "and a first step, which is no window"


def test_turns_go_on_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}

    def contender(steps: int) -> None:
        clock["now"] += steps * 0.5

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["now"])
    both = {"one": contender, "other": contender}
    speeds = interleaved(both, images={"one": 8, "other": 8}, device=CPU, window_seconds=1, windows=2, least_seconds=7)
    assert list(map(len, speeds.values())) == [4, 4], "a turn of both takes two seconds"


def test_a_ratio_is_taken_turn_by_turn() -> None:
    speeds = {"one": [10.0, 20.0, 40.0], "other": [10.0, 10.0, 10.0]}
    assert ratio(speeds, "one", "other") == Spread(median=2, low=1, high=4)


@pytest.mark.parametrize(("machine", "reserved"), [(16 * 10**9, 10**9), (2 * 10**9, 5 * 10**8)])
def test_after_a_warm_up_as_much_memory_is_at_hand(machine: int, reserved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reserves: list[int] = []
    monkeypatch.setattr(timing, "peak_memory", lambda work, device: work())
    monkeypatch.setattr("bench.limits.available_memory", lambda: machine)
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
    small, large = roofline.vendor_peak("NVIDIA A100-PCIE-40GB"), roofline.vendor_peak("NVIDIA A100-SXM4-80GB")
    assert small and large and small["bytes_per_second"] == 1555e9 and large["bytes_per_second"] == 2039e9
    for unknown in ("AMD EPYC 9B45", "NVIDIA L40", "NVIDIA GH200 480GB", "NVIDIA GeForce RTX 3090 Ti"):
        assert roofline.vendor_peak(unknown) is None
    assert roofline.vendor_peak("NVIDIA GeForce RTX 3090") == {"flops_per_second": 71e12, "bytes_per_second": 936e9}


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic() -> None:
    peak = {"fp32_flops_per_second": 10.0, "bf16_flops_per_second": 40.0, "bytes_per_second": 100.0}
    assert roofline.least_seconds(400, 100, peak, "bf16") == 10
    assert roofline.least_seconds(400, 100, peak, "fp32") == 40
    assert roofline.least_seconds(400, 3000, peak, "bf16") == 30


@pytest.mark.parametrize("size", [2, 4])
def test_least_bytes_by_hand(size: int) -> None:
    """A linear layer keeps its input for backward, and a GELU its own; what a linear layer keeps of its weight is counted there."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5), nn.GELU(), nn.Linear(5, 7), nn.Linear(7, 2))
    parameters = (48 * 5 + 5) + (5 * 7 + 7) + (7 * 2 + 2)
    activations = 2 * (48 + 5 + 5 + 7)
    assert roofline.least_bytes(network, 2, side=4, activation_bytes=size) == 10 * 4 * parameters + 2 * size * activations


def test_fused_attention_keeps_no_scores() -> None:
    """Its tokens, then queries, keys and values, which share a tensor, and what is projected."""
    network = nn.Sequential(nn.Flatten(2), SelfAttention(width=16, heads=2))
    parameters = 4 * 16**2 + 4 * 16
    images, tokens = 2, 3
    numbers = images * tokens * (16 + 3 * 16 + 16)
    assert roofline.least_bytes(network, images, side=4, activation_bytes=2) == 10 * 4 * parameters + 2 * 2 * numbers


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


class Watched:
    """Networks that note which images they are given: image k is of the one colour 6k, and no crop moves the middle away."""

    def __init__(self) -> None:
        self.networks: list[nn.Module] = []
        self.batches: list[list[int]] = []
        self.images = np.arange(40, dtype=np.uint8)[:, None, None, None] * 6 * np.ones((1, 32, 32, 3), np.uint8)
        self.labels = np.arange(40, dtype=np.uint8) % 10

    def build(self, model: Any = None, *, classes: int = 10, seed: int = 0, initial: Any = None) -> nn.Module:
        network = small_network(classes)
        network.register_forward_pre_hook(self._note)
        self.networks.append(network)
        return network

    def _note(self, network: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        middle = given[0].detach().float()[:, 0, 16, 16] * loops.STD[0] + loops.MEAN[0]
        self.batches.append((middle * 255 / 6).round().int().tolist())


@pytest.mark.parametrize("name", ["ours", "eager", "conventional"])
def test_every_loop_trains_on_every_image_once_an_epoch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(loops.networks, "build", watched.build)
    split = DeviceSplit(watched.images, watched.labels, padding=4, mean=loops.MEAN, std=loops.STD, device=CPU)
    flags = loops.Flags(workers=0)
    do = {
        "ours": lambda: loops.ours(find("cifar100/baseline"), split, Execution(), batch_size=10, classes=10, device=CPU),
        "eager": lambda: loops.eager_on_device(watched.build(), split, batch_size=10, device=CPU, flags=flags),
        "conventional": lambda: loops.Conventional(
            watched.build(), watched.images, watched.labels, batch_size=10, device=CPU, flags=flags
        ),
    }[name]()
    before = {name: value.clone() for name, value in watched.networks[0].state_dict().items()}
    do(3)
    do(5)  # over the end of an epoch
    first, second = (list(chain(*watched.batches[start : start + 4])) for start in (0, 4))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second or name == "eager", "another order; the eager loop repeats its one epoch"
    assert any(not torch.equal(value, before[name]) for name, value in watched.networks[0].state_dict().items())


def test_the_bare_step_trains_and_inference_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    monkeypatch.setattr(loops.networks, "build", watched.build)
    before = {name: value.clone() for name, value in small_network().state_dict().items()}
    loops.bare_step(find("cifar100/baseline"), Execution(), batch_size=10, classes=10, device=CPU)(2)
    loops.inference(find("cifar100/baseline"), Execution(), batch_size=10, classes=10, device=CPU)(1)
    trained, used = (network.state_dict() for network in watched.networks)
    assert any(not torch.equal(value, before[name]) for name, value in trained.items())
    assert all(torch.equal(value, before[name]) for name, value in used.items())


def test_modes_of_the_process_are_put_back() -> None:
    """Outside of deterministic mode the library is as it comes: with TF32 in convolutions."""
    comes = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.backends.cudnn.conv.fp32_precision)"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    environment.make_deterministic()
    convolutions = torch.backends.cudnn.conv
    for on, precision in ((False, comes), (True, "ieee")):
        with loops.deterministic(on):
            assert torch.are_deterministic_algorithms_enabled() == on and torch.backends.cudnn.benchmark != on
            assert convolutions.fp32_precision == precision
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert convolutions.fp32_precision == "ieee"


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
        rows = {"small": find("cifar100/baseline"), "again": find("cifar100/C_se")}
        found = bench.report(find("cifar100/baseline"), rows)
    return json.loads(json.dumps(found))


def test_networks_that_do_not_fit_together_are_measured_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(measuring.loops, "inference", lambda *_, **__: lambda steps: None)
    monkeypatch.setattr("bench.engine.network.build", lambda model, *, classes, seed, initial=None: small_network(classes))
    choices = Choices(depthwise="reference")
    bench = measuring.Bench(CPU, choices, window_seconds=0, windows=3, search=True, say=lambda line: None)
    peak = {"fp32_flops_per_second": 1e11, "bf16_flops_per_second": 2e11, "bytes_per_second": 1e10}
    rows = [f"cifar100/{row}" for row in ("baseline", "C_se", "C_eca")]
    found = bench.networks({row: find(row) for row in rows}, peak)
    assert list(found) == rows and [found[row]["windows"] for row in rows] == [3, 3, 3]
    one, two, _ = rows
    warm, first, turns = [one, two], [one, two], 3 * [one, two]
    assert log[:10] == [*warm, *first, *turns]
    assert all(found[row]["best_batch"]["tried"] == [64, 128] for row in rows)
    monkeypatch.setattr(measuring.loops, "ours", lambda *_, **__: pytest.fail("not of memory"))
    with pytest.raises(pytest.fail.Exception, match="not of memory"):
        bench.networks({one: find(one)}, peak)


def test_a_network_takes_the_memory_that_it_would_take_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"bytes": 1000}
    monkeypatch.setattr(measuring, "memory_in_use", lambda device: used["bytes"])
    monkeypatch.setattr(measuring, "memory_left", lambda device: 10**4)

    def warmed_up(work: Callable[[], None], device: torch.device) -> int:
        work()
        used["bytes"] += 300
        return used["bytes"] + 50

    monkeypatch.setattr(measuring, "warmed_up", warmed_up)
    monkeypatch.setattr(measuring.loops, "ours", lambda *_, **__: lambda steps: None)
    bench = measuring.Bench(CPU, Choices(depthwise="reference"), window_seconds=0, windows=3, search=False, say=lambda line: None)
    entrants = bench._entrants({row: find("cifar100/baseline") for row in "abc"}, 1000)
    assert [entrant.peak_memory_bytes for entrant in entrants.values()] == [1350, 1350, 1350]
    monkeypatch.setattr(measuring, "memory_left", lambda device: 5_000 - used["bytes"])  # 3,100 and 2,800, then 2,500
    waiting = {row: find("cifar100/baseline") for row in "abcd"}
    assert list(bench._entrants(waiting, 1000)) == ["a", "b"] and list(waiting) == ["c", "d"], "no room for twice 1,350 more"


def test_memory_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    left = timing.memory_left(CPU)
    if left is None:
        pytest.skip("this system does not tell")
    assert 10**8 < left < 10**14
    monkeypatch.setattr(timing, "memory_in_use", lambda device: 10**9)
    monkeypatch.setattr("bench.limits.read", lambda path: {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 5000000 kB\n"}[path])
    for machine, expected in ((16 * 10**9, 5 * 10**6 * 1024), (4 * 10**9, 3 * 10**9)):
        monkeypatch.setattr("bench.limits.available_memory", lambda machine=machine: machine)
        assert timing.memory_left(CPU) == expected


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
    assert lines[1].startswith("small: training: ") and lines[1].endswith(f"{factor:.2f} times as fast")
    assert len(lines) == 2


def test_compare_tells_what_cannot_be_compared(report: dict[str, Any]) -> None:
    other = copy.deepcopy(report)
    del other["families"]["again"], other["loops"]["images_per_second"][measuring.EAGER]
    other["families"]["small"] |= {"batch_size": 64, "inference_batch_size": 7}
    other["loops"]["best_flags"]["workers"] = 9
    ours, theirs = (file["loops"]["best_flags"]["workers"] for file in (report, other))
    lines = compared(report, other).splitlines()
    assert lines[:2] == [f"loop only in the first: {measuring.EAGER}", "network only in the first: again"]
    assert lines[2].startswith("loops: best flags: ") and f"{ours} workers -> " in lines[2] and f"{theirs} workers" in lines[2]
    assert lines[3:] == ["small: batch: 128 -> 64", "small: inference batch: 500 -> 7", "no speed changed beyond noise"]
    assert "network only in the second: again" in compared(other, report)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loops", {}), ("families", []), ("loops.images_per_second.ours", "fast"), ("loops.ratios", [1]), ("peak", None),
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
    assert asked[0] == ("cifar100/baseline", list(throughput.NETWORKS), 5)
    assert asked[1] == ("cifar100/baseline", list(throughput.QUICK), 3)
    assert asked[2][1] == [name for name in throughput.NETWORKS if throughput.NETWORKS[name].startswith("cifar100/C_")]
    part = whole.with_name(f"{whole.stem}-part.json")
    assert sorted((tmp_path / "throughput").iterdir()) == sorted([whole, part]), "no part takes the place of the whole"
    assert throughput_section(tmp_path / "throughput").count(", a part of the measurements\n") == 1


def test_a_folder_that_cannot_be_written_is_found_before_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring.Bench, "report", lambda *_: pytest.fail("measured"))
    (tmp_path / "throughput").write_text("")
    assert cli.main(["throughput", "--device", "cpu", "--results", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "continues"), [(["throughput"], False), (["grid"], True)])
def test_an_interrupted_command_says_whether_it_continues(
    command: list[str], continues: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, command[0], interrupted)
    assert cli.main(command) == 130
    assert ("checkpoint" in capsys.readouterr().err) == continues
