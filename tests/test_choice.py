"""How the mode of a run is chosen: by measurements, which are kept."""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import machine
from bench.engine import execution
from bench.engine.execution import COMPILE_FROM_STEPS, TIMED, Choices, Execution, Measurements, choose, layers_of
from bench.errors import UserError
from models.depthwise import depthwise_maps
from models.patches import patch_layers
from tests.conftest import CPU, small_network
from tests.test_execution import attentive


def fake_times(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Let every alternative take the seconds given, in the order of measurement; return the log of what was measured."""
    log: list[str] = []

    def once(self: Measurements, key: str, ways: object, measure: object) -> dict[str, float]:
        log.append(key)
        return seconds

    monkeypatch.setattr(Measurements, "_once", once)
    return log


@pytest.mark.parametrize(
    ("seconds", "method"),
    [
        ({"convolution": 1.0, "pairs": 0.5, "matrix": 0.6}, "pairs"),
        ({"convolution": 1.0, "pairs": 0.5, "matrix": 0.45}, "pairs"),
        ({"convolution": 1.0, "pairs": 0.5, "matrix": 0.4}, "matrix"),
        ({"convolution": 1.0, "pairs": 0.9, "matrix": 2.0}, "convolution"),
        ({"convolution": 1.0, "pairs": 1.1, "matrix": 2.0}, "convolution"),
    ],
)
def test_a_method_must_be_clearly_faster(seconds: dict[str, float], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_times(monkeypatch, seconds | {"units": 1.0, "fp32": 1.0})
    execution = choose(small_network(), "bf16", CPU, Choices(), steps=10)
    expected = {} if method == "convolution" else dict.fromkeys([1, 2, 4, 8], method)
    patches = "matrix" if seconds["matrix"] < 0.8 else "convolution"  # of the same fake times
    assert execution == Execution(depthwise=expected, patches=patches)


@pytest.mark.parametrize(("products", "method"), [(0.5, "products"), (0.9, "fused")])
def test_attention_too_must_be_clearly_faster(products: float, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_times(monkeypatch, dict.fromkeys(["units", "convolution", "pairs", "matrix", "fused"], 1.0) | {"products": products})
    assert choose(attentive(), "fp32", CPU, Choices(), steps=10).attention == method
    assert [key for key in log if key.startswith("attention")] == [
        "attention 4 tokens, 1 x 32 fp32",
        "attention 16 tokens, 2 x 8 fp32",
    ]


def test_reference_and_fp32_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_times(monkeypatch, {})
    assert choose(small_network(), "fp32", CPU, Choices(depthwise="reference"), steps=10) == Execution()
    assert log == []


@pytest.mark.parametrize(("units", "chosen"), [(3.0, "fp32"), (1.1, "units"), (0.5, "units")])
def test_bf16_without_units_is_computed_in_fp32(units: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_times(monkeypatch, {"units": units, "fp32": 1.0})
    assert Measurements(CPU, None).bf16() == chosen


@pytest.mark.parametrize(
    ("capability", "units", "chosen"),
    [((7, 5), 3.0, "fp32"), ((7, 5), 0.9, "units"), ((8, 0), 3.0, "units"), ((12, 0), 3.0, "units")],
)
def test_a_gpu_older_than_ampere_is_asked(
    capability: tuple[int, int], units: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what follows is measured in the precision that it answers."""
    alternatives = dict.fromkeys(["convolution", "matrix", "triton", "fp32", "layers", "fused"], 1.0)
    log = fake_times(monkeypatch, alternatives | {"units": units})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(machine, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(execution, "triton_works", lambda: True)
    assert choose(small_network(), "bf16", torch.device("cuda", 0), Choices(), steps=10).bf16 == chosen
    measured = {key.split()[-1] for key in log if key != "bf16"}
    assert measured == {"fp32" if chosen == "fp32" else "bf16"} and any(key.startswith("blocks") for key in log)


class Clock:
    """Time that passes only while work of :meth:`taking` is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: Counter[str] = Counter()
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def taking(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def work() -> None:
            self.calls[name] += 1
            self.now += seconds()

        return work


@pytest.mark.parametrize("begins", [0.0, 0.05, 0.1])
def test_a_burst_of_other_work_does_not_choose(begins: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lasts as long as all measurements of one way would, one after the other."""
    clock = Clock(monkeypatch)

    def slowed(seconds: float) -> float:
        return seconds * (5 if begins <= clock.now < begins + 0.35 else 1)

    ways = {name: clock.taking(name, partial(slowed, seconds)) for name, seconds in {"slow": 0.015, "fast": 0.01}.items()}
    assert Measurements(CPU, None)._in_turns(ways) == pytest.approx({"slow": 0.015, "fast": 0.01})


@pytest.mark.parametrize(("seconds", "calls"), [(0.01, 1 + TIMED), (0.45, 2)])
def test_a_slow_method_is_not_measured_again(seconds: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ways = {"this": clock.taking("this", lambda: seconds), "fast": clock.taking("fast", lambda: 0.001)}
    assert Measurements(CPU, None)._in_turns(ways) == pytest.approx({"this": seconds, "fast": 0.001})
    assert clock.calls == {"this": calls, "fast": 1 + TIMED}


def test_compilation_is_decided_by_the_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(choices: Choices, steps: int) -> bool:
        return choose(small_network(), "fp32", CPU, replace(choices, depthwise="reference"), steps=steps).compiled

    assert not compiled(Choices(), 10**9), "measured: it does not pay on a CPU"
    assert compiled(Choices(compile="on"), 1)
    monkeypatch.setitem(COMPILE_FROM_STEPS, "cpu", 1000)
    assert [compiled(Choices(), steps) for steps in (999, 1000)] == [False, True]
    assert not compiled(Choices(compile="off"), 1000)


def test_a_cuda_graph_needs_cuda() -> None:
    with pytest.raises(UserError, match="CUDA_GRAPH=on: expected a CUDA device, found cpu"):
        choose(small_network(), "fp32", CPU, Choices(cuda_graph="on"), steps=1)


def test_measurements_are_kept_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "deep" / "measured.json"
    first = choose(small_network(), "bf16", CPU, Choices(kept=kept), steps=1)
    (by_key,) = json.loads(kept.read_text()).values()
    depthwise = {f"depthwise {s}x{s}x{w}" for s, w in depthwise_maps(layers_of(small_network()))}
    patches = {f"patches {k}x{k} of {s}x{s}x{c} to {w}" for s, c, w, k in patch_layers(layers_of(small_network()))}
    arithmetic = "bf16" if first.bf16 == "units" else "fp32"
    assert set(by_key) == {"bf16"} | {f"{layer} {arithmetic}" for layer in depthwise | patches}
    for times in by_key.values():  # whatever was measured, from now on it is what the file says
        times.update(dict.fromkeys(times, 1.0) | {name: 0.1 for name in times if name in ("matrix", first.bf16)})
    kept.write_text(json.dumps({Measurements(CPU, kept)._machine: by_key}))
    monkeypatch.setattr(Measurements, "_in_turns", lambda self, ways: pytest.fail("measured again"))
    again = choose(small_network(), "bf16", CPU, Choices(kept=kept), steps=1)
    assert (set(again.depthwise.values()), again.patches, again.bf16) == ({"matrix"}, "matrix", first.bf16)


def test_processes_that_begin_together_measure_each_thing_once(tmp_path: Path) -> None:
    """One after another, and what one has measured the others take: all runs of a ledger compute in one mode."""
    kept, chosen, measured = tmp_path / "new" / "measured.json", [], []

    def once(name: str) -> None:
        measurements = Measurements(CPU, kept)  # reads what is kept now: nothing
        ready.wait()

        def measure() -> dict[str, float]:
            measured.append(name)
            time.sleep(0.1)  # the others come meanwhile
            return {"units": 1.0, "fp32": 2.0} if len(measured) == 1 else {"units": 2.0, "fp32": 1.0}

        chosen.append(measurements._once("bf16", ("units", "fp32"), measure))
        measurements._once(name, ("a",), lambda: {"a": 1.0})

    ready = threading.Barrier(3)
    threads = [threading.Thread(target=once, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(measured) == 1 and chosen == 3 * [{"units": 1.0, "fp32": 2.0}]
    (by_key,) = json.loads(kept.read_text()).values()
    assert set(by_key) == {"bf16", "x", "y", "z"}, "nothing is lost"


def test_measurements_that_cannot_be_kept_are_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match=r"results: .*(Not a directory|File exists).*; choose another folder with RESULTS="):
        Measurements(CPU, tmp_path / "results" / "measured.json").bf16()


def test_what_was_measured_of_other_code_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "measured.json"
    monkeypatch.setattr(Measurements, "_in_turns", lambda self, ways: dict.fromkeys(ways, 1.0))
    assert Measurements(CPU, kept).bf16() == "units"
    monkeypatch.setattr(Measurements, "_in_turns", lambda self, ways: {"units": 2.0, "fp32": 1.0})
    assert Measurements(CPU, kept).bf16() == "units"
    monkeypatch.setitem(execution.METHODS, "cpu", execution.METHODS["cpu"] + 1)
    assert Measurements(CPU, kept).bf16() == "fp32"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"machine": 1}', '{"machine": {"key": {"name": "fast"}}}', pytest.param("[" * 100_000, id="deep")]
)
def test_a_damaged_file_of_measurements_is_refused(content: str, tmp_path: Path) -> None:
    kept = tmp_path / "measured.json"
    kept.write_text(content)
    with pytest.raises(UserError, match=r"measured.json: expected measurements in JSON.*delete the file"):
        choose(small_network(), "bf16", CPU, Choices(kept=kept), steps=1)


@pytest.mark.parametrize("seconds", [{}, {"units": 1.0}, {"units": 1.0, "fp32": 0.0}, {"units": math.nan, "fp32": 1.0}])
def test_kept_seconds_that_cannot_be_are_refused(seconds: dict[str, float], tmp_path: Path) -> None:
    kept = tmp_path / "measured.json"
    kept.write_text(json.dumps({Measurements(CPU, kept)._machine: {"bf16": seconds}}))
    with pytest.raises(UserError, match=r"measured.json: expected seconds of units and fp32 for bf16, found .*delete the file"):
        choose(small_network(), "bf16", CPU, Choices(kept=kept), steps=1)
