"""How steps are computed: every mode gives the same numbers to rounding, the choice is measured once, and a run keeps it."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import data
from bench.catalog import find
from bench.engine import ranks
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.device_data import DeviceSplit, draw_epoch
from bench.engine.execution import Execution, layers_of
from bench.engine.network import FAMILIES
from bench.engine.optimizer import adamw
from bench.engine.step import TrainingStep
from bench.engine.train import build_network, put_on_device, train
from bench.experiment import Recipe, Run, canonical_json
from bench.profiles import smoke
from bench.report import environments
from models.attention import Gated, ScaledDotProduct
from models.convnext import convnext_tiny, insert_attention
from models.depthwise import DepthwiseConv2d, depthwise_maps
from models.description import Attention
from models.patches import PatchConv2d
from models.vit import vit
from tests.conftest import CPU, Recorder, small_network, small_run, train_small

PAIRS = Execution(depthwise={1: "pairs", 2: "pairs", 4: "pairs"})
PATCHES = Execution(patches="matrix")
MATRIX = Execution(depthwise={1: "matrix", 2: "matrix", 4: "matrix", 8: "matrix"})


def losses(record: dict[str, Any]) -> list[float]:
    return [entry[split]["loss"] for entry in record["epochs"] for split in ("train", "test")]


# ---- the modes agree ---------------------------------------------------------------------------------------------------


# torch's own tracer makes an instance of the autograd function that it traces, and deprecates doing so
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("execution", "precision", "tolerance"),
    [
        (PAIRS, "fp32", 1e-5),
        (MATRIX, "fp32", 1e-5),
        (PATCHES, "fp32", 1e-5),
        (Execution(compiled=True), "fp32", 1e-5),
        (replace(PAIRS, compiled=True), "fp32", 1e-5),
        (PAIRS, "bf16", 3e-3),
        (PATCHES, "bf16", 3e-3),
    ],
)
def test_every_mode_gives_the_references_losses(execution: Execution, precision: str, tolerance: float, tmp_path: Path) -> None:
    """Over 12 steps; a wrong operand, mask or rate would move the losses by far more."""
    run = small_run(precision=precision)
    reference = train_small(run, tmp_path / "reference")
    found = train_small(run, tmp_path / "other", execution=execution)
    assert losses(found) == pytest.approx(losses(reference), rel=tolerance)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 3e-3)])
def test_attention_by_products_gives_the_references_losses(precision: str, tolerance: float, tmp_path: Path) -> None:
    run = small_run(precision=precision)
    reference = train_small(run, tmp_path / "reference", network=open_gates(attentive()))
    network = open_gates(attentive())
    found = train_small(run, tmp_path / "other", network=network, execution=Execution(attention="products"))
    assert losses(found) == pytest.approx(losses(reference), rel=tolerance)
    assert [module.method for module in network.modules() if isinstance(module, ScaledDotProduct)] == ["products"] * 2


def attentive() -> nn.Module:
    network = small_network()
    insert_attention(network, {"P2": Attention("mhsa", heads=2), "P3": Attention("mhsa")})  # type: ignore[arg-type]
    return network


def open_gates(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Gated):
                module.alpha.fill_(1.0)
    return network


def test_the_report_knows_the_reference_mode() -> None:
    """It reads records without torch, and fills in what those from before a choice do not say."""
    assert {"blocks": "layers"} | Execution().described() == environments.REFERENCE


def test_the_faster_methods_are_really_on(tmp_path: Path) -> None:
    network = small_network()
    train_small(small_run(epochs=1), tmp_path, network=network, execution=replace(PAIRS, patches="matrix"))
    methods = [module.method for module in network.modules() if isinstance(module, PatchConv2d)]
    assert methods == ["matrix"] * 4, "the stem and three downsampling layers"
    convolutions = [module for module in network.modules() if isinstance(module, DepthwiseConv2d)]
    assert len(convolutions) == 4 and all(module.methods == PAIRS.depthwise for module in convolutions)


def test_without_units_bf16_is_fp32(tmp_path: Path) -> None:
    """The very same computation, whose results are those of units to their rounding."""
    in_fp32 = train_small(small_run(precision="bf16"), tmp_path / "without", execution=Execution(bf16="fp32"))
    assert in_fp32 == train_small(small_run(precision="fp32"), tmp_path / "fp32")
    units = losses(train_small(small_run(precision="bf16"), tmp_path / "units"))
    assert losses(in_fp32) == pytest.approx(units, rel=3e-3) and losses(in_fp32) != units


# ---- one step ----------------------------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts how often a value goes from a tensor to Python, which on a GPU would wait for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def small_step(execution: Execution, steps: int = 4) -> tuple[TrainingStep, DeviceSplit]:
    dataset = data.load("tiny_fashion_mnist")
    split = DeviceSplit(dataset.train.images[:40], dataset.train.labels[:40], padding=4, mean=(0.3,), std=(0.3,), device=CPU)
    network, recipe = small_network(), Recipe(epochs=1, batch_size=10)
    optimizer = adamw(network, recipe, FAMILIES["convnext_tiny"].part_of)
    step = TrainingStep(network, optimizer, split, recipe, execution, steps=steps)
    step.begin_epoch(draw_epoch(40, seed=0, epoch=1, padding=4, flip=True, blocks=step.blocks, device=CPU), [1.0] * steps)
    return step, split


@pytest.mark.parametrize("execution", [Execution(), PAIRS, MATRIX])
def test_nothing_is_read_back_inside_an_epoch(execution: Execution) -> None:
    step, _ = small_step(execution)
    step()  # the optimizer makes its state
    with Reads() as reads:
        step()
        step()
    assert reads.count == 0
    with reads:
        step.end_epoch()
    assert reads.count > 0, "the counter counts"


@pytest.mark.parametrize("processes", [1, 2])
def test_no_step_after_a_bad_loss_touches_the_weights(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many processes see a bad loss: what they say is summed, and the optimizer heeds 1 alone."""
    monkeypatch.setattr(ranks, "total", lambda value: value * processes)
    dataset = data.load("tiny_fashion_mnist")
    images = np.zeros((20, 32, 32, 3), np.uint8)
    split = DeviceSplit(images, dataset.train.labels[:20], padding=0, mean=(0.5,), std=(0.5,), device=CPU)
    network, recipe = small_network(), Recipe(epochs=1, batch_size=10)
    step = TrainingStep(network, adamw(network, recipe, FAMILIES["convnext_tiny"].part_of), split, recipe, Execution(), steps=2)
    step.begin_epoch(draw_epoch(20, seed=0, epoch=1, padding=0, flip=False, blocks=step.blocks, device=CPU), [1.0, 1.0])
    bad = True
    network.register_forward_hook(lambda module, inputs, logits: logits * float("nan") if bad else None)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step()
    bad = False
    step()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not np.isfinite(step.end_epoch()[0])


def test_checkpoints_may_be_further_apart_than_epochs(tmp_path: Path) -> None:
    saved = []

    class Looks(Recorder):
        def epoch(self, entry: dict[str, Any], timing: dict[str, Any]) -> None:
            saved.append((tmp_path / "last.pt").exists())

    run = small_run()
    seldom = train_small(run, tmp_path, Looks(), checkpoint_seconds=3600)
    assert saved == [False, False, False]
    assert (tmp_path / "best.pt").exists()
    assert canonical_json(seldom) == canonical_json(train_small(run, tmp_path / "every"))
    best = [torch.load(folder / "best.pt", weights_only=True) for folder in (tmp_path, tmp_path / "every")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[1])


# ---- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_the_mode_it_began_with(tmp_path: Path) -> None:
    run = small_run(precision="bf16")
    straight = train_small(run, tmp_path / "straight", execution=PAIRS)
    with pytest.raises(KeyboardInterrupt):
        train_small(run, tmp_path / "interrupted", Recorder((2, 1)), execution=PAIRS)
    dataset = data.load(run.experiment.dataset)
    results, progress = train(
        run,
        splits=put_on_device(run, dataset, CPU),
        network=small_network(),
        checkpoint=CheckpointFolder(tmp_path / "interrupted"),
        observer=Recorder(),
        execution=MATRIX,
    )
    assert progress.execution == PAIRS
    assert canonical_json(results) == canonical_json(straight)


def test_a_run_after_others_in_one_process_gives_the_same(tmp_path: Path) -> None:
    """Other networks, regimes and data between them, with all that makes steps fast. tests/reliability/test_soak.py is longer."""
    every_method = replace(PAIRS, depthwise=PAIRS.depthwise | {1: "matrix"}, patches="matrix", attention="products")

    def results(row: str, folder: str) -> str:
        run = Run(experiment=smoke(find(row)), profile="smoke", seed=0)
        recipe = replace(run.experiment.recipe, epochs=1, frozen_epochs=0, batch_size=10)
        run = replace(run, experiment=replace(run.experiment, recipe=recipe, train_images=20, test_images=10))
        dataset = data.load(run.experiment.dataset)
        network = build_network(run, len(dataset.classes), None, CPU)
        return canonical_json(train_small(run, tmp_path / folder, network=network, execution=every_method))

    alone = results("cifar100/A_dual", "alone")
    for row in ("cifar100/scratch_mixer_tiny", "fashion_mnist/baseline", "cifar100/C_se"):
        assert results(row, row) != alone
    assert results("cifar100/A_dual", "after others") == alone


def test_the_mode_in_words() -> None:
    assert Execution().described() | {"blocks": "layers"} == asdict(Execution()) | {"depthwise": "convolution"}
    assert replace(PAIRS, depthwise={4: "pairs", 1: "matrix"}).described()["depthwise"] == "1x1 matrix, 4x4 pairs"
    fused = replace(PAIRS, blocks="fused").described()
    assert [fused[name] for name in ("blocks", "depthwise", "patches", "attention")] == ["fused"] * 4


@pytest.mark.parametrize(("stem", "sides"), [("default", {1, 2, 4, 8}), ("cifar", {2, 4, 8, 16})])
def test_maps_of_depthwise_convolutions(stem: str, sides: set[int]) -> None:
    network = convnext_tiny(classes=10, stem=stem)  # type: ignore[arg-type]
    assert depthwise_maps(layers_of(network)) == set(zip(sorted(sides, reverse=True), (96, 192, 384, 768), strict=True))
    assert depthwise_maps(layers_of(vit(classes=10))) == set()


def test_a_real_network_trains_in_every_mode(tmp_path: Path) -> None:
    run = small_run(epochs=1)
    run = replace(run, experiment=replace(run.experiment, train_images=20))
    found = [
        losses(train_small(run, tmp_path / name, network=build_network(run, 10, None, CPU), execution=execution))
        for name, execution in {"reference": Execution(), "pairs": PAIRS, "matrix": MATRIX}.items()
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-4) and found[2] == pytest.approx(found[0], rel=1e-4)
