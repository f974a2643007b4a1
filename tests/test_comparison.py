"""The rows of the table of loops: each is what its name says, ours with one thing changed."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from bench.catalog import find
from bench.engine.execution import Choices, Execution
from bench.measure import comparison, loops
from bench.measure.contents import (
    BARE,
    COMPILED,
    CONVENTIONAL,
    CONVENTIONAL_BEST,
    DEFAULT_LAYOUT,
    EAGER,
    IN_FP32,
    LIBRARY_BF16,
    LOOPS,
    MEMORY_RETURNED,
    NO_GRAPH,
    NOT_COMPILED,
    NOT_DETERMINISTIC,
    NOT_FUSED,
    NOT_FUSED_BLOCKS,
    OURS,
    PLAIN,
    RATIOS,
    REFERENCE_DEPTHWISE,
    REFERENCE_PATCHES,
)

BEST = loops.Flags(bf16=True, channels_last=True, workers=7)
METHODS: dict[str, Any] = {"depthwise": {1: "matrix"}, "patches": "matrix", "attention": "products"}


class Row(NamedTuple):
    """What a loop would do."""

    kind: str
    deterministic: bool
    differs: dict[str, Any]  # from our own execution, from the recipe, from the engine's own settings; or flags


def rows(monkeypatch: pytest.MonkeyPatch, device: str, execution: Execution, *, slowdown: float = 1.0) -> dict[str, Row]:
    """Every contender made, none of them timed."""

    def changed(experiment: Any, its: Execution) -> dict[str, Any]:
        mode = {name: value for name, value in asdict(its).items() if value != asdict(execution)[name]}
        return mode | ({} if experiment.recipe.precision == "bf16" else {"precision": experiment.recipe.precision})

    def ours(experiment: Any, split: Any, its: Execution, *, batch_size: int, classes: int, device: Any, **without: bool) -> Any:
        return "ours", changed(experiment, its) | without

    fakes: dict[str, Callable[..., Any]] = {
        "ours": ours,
        "bare_step": lambda experiment, its, **_: ("bare", changed(experiment, its)),
        "Conventional": lambda *_, flags, **__: ("conventional", vars(flags)),
        "eager_on_device": lambda *_, flags, **__: ("eager", vars(flags)),
        "in_mode": lambda steps, *, on: Row(steps[0], on, steps[1]),
        "execution_of": lambda experiment, *_: Execution(depthwise={2: "pairs"}, compiled=True),  # in fp32
        "random_split": lambda device: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(loops, name, fake)
    monkeypatch.setattr(comparison.memory, "can_keep", lambda: True)
    apart = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(comparison, "Apart", lambda *_: apart)
    monkeypatch.setattr(comparison, "Measurements", lambda *_: SimpleNamespace(bf16_slowdown=lambda: slowdown))
    compared = comparison.Comparison(torch.device(device), Choices(), search=True, say=lambda line: None)
    with ExitStack() as stack:
        made = compared._contenders(find("cifar100/baseline"), execution, BEST, stack)
        found = {name: make() for name, make in made.items()}
    assert found.pop(MEMORY_RETURNED, apart) is apart
    return found


def expected_on_all(plain: dict[str, Any]) -> dict[str, Row]:
    """Rows of any device; ``plain`` is what the layer by layer mode changes."""
    return {
        OURS: Row("ours", True, {}),
        BARE: Row("bare", True, {}),
        CONVENTIONAL: Row("conventional", False, vars(loops.Flags(workers=7))),
        CONVENTIONAL_BEST: Row("conventional", False, vars(BEST)),
        EAGER: Row("eager", False, vars(BEST)),
        NOT_DETERMINISTIC: Row("ours", False, plain),
        DEFAULT_LAYOUT: Row("ours", True, plain | {"channels_last": False}),
        NOT_FUSED: Row("ours", True, plain | {"fused": False}),
        REFERENCE_DEPTHWISE: Row("ours", True, plain | {"depthwise": {}}),
        REFERENCE_PATCHES: Row("ours", True, plain | {"patches": "convolution"}),
    }


def test_rows_of_a_processor_without_fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    execution = Execution(**METHODS, bf16="fp32")
    assert rows(monkeypatch, "cpu", execution) == expected_on_all({}) | {LIBRARY_BF16: Row("ours", True, {"bf16": "units"})}
    assert LIBRARY_BF16 not in rows(monkeypatch, "cpu", execution, slowdown=20.0), "a step would take minutes"


IN_FP32_ROW = Row("ours", True, {"depthwise": {2: "pairs"}, "patches": "convolution", "attention": "fused", "precision": "fp32"})


def test_rows_of_a_processor_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(monkeypatch, "cpu", Execution(**METHODS)) == expected_on_all({}) | {IN_FP32: IN_FP32_ROW}
    plain = rows(monkeypatch, "cpu", Execution())
    assert REFERENCE_DEPTHWISE not in plain and REFERENCE_PATCHES not in plain, "it would be ours again"


def test_rows_of_a_gpu_with_fused_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lacks one part of ours is computed layer by layer, and there is a row of layers to hold it against."""
    layers = {"blocks": "layers"}
    in_fp32 = Row(*IN_FP32_ROW[:2], IN_FP32_ROW.differs | layers | {"cuda_graph": False})
    assert rows(monkeypatch, "cuda", Execution(**METHODS, blocks="fused", cuda_graph=True)) == expected_on_all(layers) | {
        NOT_FUSED_BLOCKS: Row("ours", True, layers),
        NO_GRAPH: Row("ours", True, {"cuda_graph": False}),
        COMPILED: Row("ours", True, layers | {"compiled": True}),
        IN_FP32: in_fp32,
    }


def test_rows_of_a_gpu_that_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"compiled": False}
    found = rows(monkeypatch, "cuda", Execution(**METHODS, compiled=True, cuda_graph=True))
    assert found.pop(NO_GRAPH) == Row("ours", True, {"cuda_graph": False})
    assert found.pop(NOT_COMPILED) == Row("ours", True, whole)
    assert found.pop(IN_FP32).differs["compiled"] is False
    assert found == expected_on_all(whole)


def test_every_row_has_a_place_and_is_held_against_another() -> None:
    assert {name for pair in RATIOS for name in pair} == set(LOOPS)
    for reference in (OURS, NOT_COMPILED, NOT_FUSED_BLOCKS):
        assert {(reference, name) for name in PLAIN} <= set(RATIOS)


@pytest.mark.parametrize(("device", "workers"), [("cpu", (0, 2)), ("cuda", (4, 8))])
@pytest.mark.parametrize("units", [True, False])
def test_the_best_flags_are_the_fastest(
    device: str, workers: tuple[int, int], units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each flag is tried alone, from the usual best; the first of equally fast ones stays."""
    few, many = workers
    start = loops.Flags(bf16=units, channels_last=True, fused=True, workers=few)
    tried: list[loops.Flags] = []

    def best_if(fast: loops.Flags | None) -> loops.Flags:
        tried.clear()

        def conventional(*_: Any, flags: loops.Flags, **__: Any) -> Callable[[int], None]:
            tried.append(flags)
            return lambda count: None

        monkeypatch.setattr(loops, "random_split", lambda device: None)
        monkeypatch.setattr(loops, "Conventional", conventional)
        monkeypatch.setattr(comparison, "seconds_of", lambda do, device: 1.0 if tried[-1] == fast else 2.0)
        compared = comparison.Comparison(torch.device(device), Choices(), search=True, say=lambda line: None)
        return compared._best_flags(find("cifar100/baseline"), units=units)

    assert best_if(None) == start
    assert tried[0] == start
    changes = [{name: value for name, value in vars(flags).items() if value != vars(start)[name]} for flags in tried[1:]]
    assert changes == [{"workers": many}, {"channels_last": False}, {"fused": False}] + ([{"bf16": False}] if units else [])
    for flags in tried[1:].copy():
        assert best_if(flags) == flags
