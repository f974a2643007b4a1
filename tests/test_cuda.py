"""What only a GPU can show: graphs, synchronisation, determinism, memory. Skipped where torch sees none."""

import copy
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import data
from bench import grid
from bench.catalog import find
from bench.engine import network as networks
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.device_data import DeviceSplit, draw_epoch
from bench.engine.evaluate import evaluate
from bench.engine.execution import Choices, Execution, choose
from bench.engine.graphs import WARM_UP
from bench.engine.optimizer import adamw
from bench.engine.parity import fused_blocks_agree
from bench.engine.step import TrainingStep
from bench.engine.train import build_network, put_on_device, train
from bench.experiment import Model, Precision, Recipe, Run, canonical_json
from bench.measure import loops, roofline, sharing
from bench.measure.energy import EnergyCounter
from bench.measure.profiling import profile_network
from bench.measure.throughput import Bench
from bench.measure.timing import peak_memory
from bench.profiles import smoke
from bench.report.measurements import read_report
from bench.runs import plan
from models.attention import Gated
from models.beside import gradients_beside
from models.depthwise import Method
from models.description import Attention
from models.patches import compute_patches_by
from models.stochastic_depth import give_factors, rates
from tests.conftest import Recorder
from tests.test_depthwise import outputs_and_gradients, reference, use_methods
from tests.test_grid import chosen

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
CUDA = torch.device("cuda", 0)
GRAPH = Execution(cuda_graph=True)
TRITON: dict[int, Method] = dict.fromkeys((1, 2, 4, 8, 16), "triton")
FUSED = replace(GRAPH, blocks="fused")
EVERYTHING = replace(GRAPH, depthwise=TRITON, patches="matrix", compiled=True)


def small(name: str, **recipe: Any) -> Run:
    """An experiment of the catalog at the smoke budget, three epochs of eight steps."""
    experiment = smoke(find(name))
    changed = replace(experiment.recipe, **({"epochs": 3, "batch_size": 25, "patience": None} | recipe))
    return Run(experiment=replace(experiment, recipe=changed), profile="smoke", seed=0)


def trained(run: Run, folder: Path, execution: Execution, observer: Recorder | None = None) -> dict[str, Any]:
    dataset = data.load(run.experiment.dataset)
    results, _ = train(
        run,
        splits=put_on_device(run, dataset, CUDA),
        network=build_network(run, len(dataset.classes), None, CUDA),
        checkpoint=CheckpointFolder(folder),
        observer=observer or Recorder(),
        execution=execution,
    )
    return results


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("mode", [GRAPH, FUSED])
def test_a_graph_is_the_steps_it_recorded(mode: Execution, precision: Precision, tmp_path: Path) -> None:
    """With a switch of regime, so with two graphs; epochs are longer than the steps before a capture.

    In a graph of fused blocks gradients are computed, and parameters updated, beside the backward pass.
    """
    run = small("cifar100/A_dual", precision=precision)
    eager = trained(run, tmp_path / "eager", replace(mode, cuda_graph=False))
    assert canonical_json(trained(run, tmp_path / "graph", mode)) == canonical_json(eager)


class Overflowing(Recorder):
    """Lets the logits be infinite from the second epoch on, by a factor that lies where a captured graph reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones((), device=CUDA)

    def epoch(self, entry: dict[str, Any], timing: dict[str, Any]) -> None:
        super().epoch(entry, timing)
        self.factor.fill_(float("inf"))


@pytest.mark.parametrize("mode", [GRAPH, FUSED])
def test_in_a_graph_too_nothing_after_a_bad_loss_touches_the_weights(mode: Execution, tmp_path: Path) -> None:
    run, observer = small("cifar100/baseline"), Overflowing()
    dataset = data.load(run.experiment.dataset)
    network = build_network(run, len(dataset.classes), None, CUDA)
    network.register_forward_hook(lambda module, _, logits: logits * observer.factor if module.training else logits)
    results, _ = train(
        run,
        splits=put_on_device(run, dataset, CUDA),
        network=network,
        checkpoint=CheckpointFolder(tmp_path),
        observer=observer,
        execution=mode,
    )
    assert results["status"] == "diverged" and observer.epochs == [1]
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


@pytest.mark.parametrize("name", ["cifar100/A_dual", "cifar100/C_se", "cifar100/C_eca", "cifar100/C_cbam", "cifar100/C_spatial"])
def test_every_kind_of_attention_gives_the_same_bytes_again(name: str, tmp_path: Path) -> None:
    one, two = (trained(small(name), tmp_path / folder, GRAPH) for folder in "ab")
    assert canonical_json(one) == canonical_json(two)


@pytest.mark.parametrize("name", ["cifar100/scratch_vit_tiny", "cifar100/scratch_mixer_tiny", "cifar100/stem_dual"])
def test_every_family_gives_the_same_bytes_again(name: str, tmp_path: Path) -> None:
    one, two = (trained(small(name), tmp_path / folder, GRAPH) for folder in "ab")
    assert canonical_json(one) == canonical_json(two)


@pytest.mark.parametrize("stop_at", [(1, 6), (2, 2), (3, 7)])
def test_a_stopped_run_continues_to_the_same_bytes(stop_at: tuple[int, int], tmp_path: Path) -> None:
    run = small("cifar100/A_dual")
    straight = trained(run, tmp_path / "straight", GRAPH)
    with pytest.raises(KeyboardInterrupt):
        trained(run, tmp_path / "stopped", GRAPH, Recorder(stop_at))
    assert canonical_json(trained(run, tmp_path / "stopped", GRAPH)) == canonical_json(straight)


@pytest.mark.parametrize("execution", [Execution(), GRAPH, FUSED, EVERYTHING, replace(GRAPH, depthwise={1: "pairs", 4: "matrix"})])
def test_no_step_waits_for_the_device(execution: Execution) -> None:
    images, labels = loops.random_images(100, 10)
    split = DeviceSplit(images, labels, padding=4, mean=(0.5,), std=(0.5,), device=CUDA)
    recipe = Recipe(epochs=1, batch_size=10)
    experiment = find("cifar100/A_dual")
    network = loops.build(experiment, 10, CUDA, execution).train()
    part_of = networks.FAMILIES[experiment.model.family].part_of
    step = TrainingStep(network, adamw(network, recipe, part_of), split, recipe, execution, steps=10)
    step.begin_epoch(draw_epoch(100, seed=0, epoch=1, padding=4, flip=True, blocks=step.blocks, device=CUDA), [1.0] * 10)
    for _ in range(WARM_UP + 1):
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    loss, correct = step.end_epoch()
    assert loss > 0 and 0 <= correct <= 70


@pytest.mark.parametrize("method", ["pairs", "matrix", "triton"])
@pytest.mark.parametrize("side", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_depthwise_methods_agree(method: Method, side: int, layout: torch.memory_format) -> None:
    plain, faster = reference(6).to(CUDA), reference(6).to(CUDA)
    use_methods(faster, {side: method})
    x = torch.randn(5, 6, side, side, dtype=torch.float64, device=CUDA).to(memory_format=layout)
    for mine, theirs in zip(outputs_and_gradients(faster, x), outputs_and_gradients(plain, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("patch", "side"), [(2, 2), (2, 8), (4, 32)])
def test_patch_methods_agree(patch: int, side: int) -> None:
    convolution = nn.Conv2d(6, 10, patch, stride=patch).double().to(CUDA)
    faster = copy.deepcopy(convolution)
    compute_patches_by(faster, "matrix")
    x = torch.randn(5, 6, side, side, dtype=torch.float64, device=CUDA).to(memory_format=torch.channels_last)
    for mine, theirs in zip(outputs_and_gradients(faster, x), outputs_and_gradients(convolution, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["cifar100/A_dual", "cifar100/stem_dual", "cifar100/scratch_vit_tiny", "cifar100/scratch_mixer_tiny"]
)
def test_fused_blocks_give_the_same_bytes_again(name: str, tmp_path: Path) -> None:
    run = small(name)
    assert canonical_json(trained(run, tmp_path / "a", FUSED)) == canonical_json(trained(run, tmp_path / "b", FUSED))


def passes(network: nn.Module, images: torch.Tensor, precision: Precision, *, beside: bool = False) -> list[torch.Tensor]:
    """Logits, and the gradients of all parameters."""
    give_factors(network, torch.linspace(0, 1.5, len(rates(network)) * len(images), device=CUDA).view(-1, len(images)))
    with Execution().precision(CUDA, precision):
        logits = network(images)
    upstream = torch.linspace(-1, 1, logits.numel(), device=CUDA, dtype=logits.dtype).view_as(logits)
    with gradients_beside(CUDA, on=beside):
        logits.backward(upstream)
    torch.cuda.synchronize(CUDA)
    return [logits.detach(), *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize(
    "name", ["cifar100/A_dual", "cifar100/stem_dual", "cifar100/scratch_vit_tiny", "cifar100/scratch_mixer_tiny"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_blocks_are_as_exact_as_their_layers(name: str, precision: Precision) -> None:
    """Against float64: about as far away as the layers are."""
    layers = loops.build(find(name), 10, CUDA, Execution()).train()
    for parameter in layers.parameters():
        if parameter.ndim == 0 or parameter.shape[1:] == (1, 1):  # gates and layer scales, which are near zero at the start
            parameter.data.fill_(0.5)
    fused, exact = copy.deepcopy(layers), copy.deepcopy(layers).double()
    FUSED.use_in(fused)
    images = torch.randn(20, 3, 32, 32, device=CUDA).to(memory_format=torch.channels_last)
    true = passes(exact, images.double(), "fp32")
    one, other = passes(fused, images, precision), passes(layers, images, precision)
    assert len(one) == len(other) == len(true)
    for mine, theirs, right in zip(one, other, true, strict=True):
        off, accepted = (((found.double() - right).norm() / (right.norm() + 1e-2)).item() for found in (mine, theirs))
        # a single number of the layers' may be exact by chance, where the other's rounding is bf16's
        least = 0.05 if right.ndim == 0 and precision == "bf16" else 2e-5
        assert off < max(2 * accepted, least), tuple(right.shape)


@pytest.mark.parametrize(
    "name", ["cifar100/A_dual", "cifar100/stem_dual", "cifar100/scratch_vit_tiny", "cifar100/scratch_mixer_tiny"]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_trial_before_fused_blocks_are_used_finds_them_right(name: str, precision: Precision) -> None:
    fused, layers = (loops.build(find(name), 10, CUDA, mode) for mode in (FUSED, Execution()))
    images = torch.randn(128, 3, 32, 32, device=CUDA).to(memory_format=torch.channels_last)
    lowest = torch.bfloat16 if precision == "bf16" else torch.float32
    assert fused_blocks_agree(fused, layers, images, Execution().precision(CUDA, precision), lowest)


def test_frozen_blocks_get_no_gradient_when_fused() -> None:
    network = loops.build(find("cifar100/A_dual"), 10, CUDA, FUSED).train()
    network.features[:4].requires_grad_(False)
    passes(network, torch.randn(8, 3, 32, 32, device=CUDA).to(memory_format=torch.channels_last), "bf16", beside=True)
    for parameter in network.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


def test_gradients_beside_the_backward_pass_are_the_same() -> None:
    network = loops.build(find("cifar100/A_dual"), 10, CUDA, FUSED).train()
    images = torch.randn(20, 3, 32, 32, device=CUDA).to(memory_format=torch.channels_last)
    straight = [gradient.clone() for gradient in passes(network, images, "bf16")]
    network.zero_grad(set_to_none=True)
    for mine, theirs in zip(passes(network, images, "bf16", beside=True), straight, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_in_one_kernel_is_the_same(channels: int) -> None:
    images, labels = loops.random_images(30, 10)
    split = DeviceSplit(images[..., :channels], labels, padding=4, mean=(0.5,), std=(0.25,), device=CUDA)
    plan = split.located(draw_epoch(30, seed=0, epoch=1, padding=4, flip=True, blocks=0, device=CUDA)).view(3, 10, -1)
    for step in range(3):
        found, its_labels = split.batch(plan, torch.tensor([step], device=CUDA))
        expected, labels_there = split.augmented(plan[step])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert found.stride() == expected.stride() and torch.equal(its_labels, labels_there)


def test_the_choice_is_measured_here(tmp_path: Path) -> None:
    network = networks.build(Model(), classes=10, seed=0)
    execution = choose(network, "bf16", CUDA, Choices(kept=tmp_path / "measured.json"), steps=10)
    assert execution.cuda_graph and execution.bf16 == "units"
    assert choose(network, "bf16", CUDA, Choices(kept=tmp_path / "measured.json"), steps=10) == execution


def test_every_mode_gives_the_references_losses(tmp_path: Path) -> None:
    run = small("cifar100/baseline")
    expected = [entry["train"]["loss"] for entry in trained(run, tmp_path / "reference", Execution())["epochs"]]
    modes: dict[str, Execution] = {
        "pairs": replace(GRAPH, depthwise={1: "pairs", 2: "pairs", 4: "pairs"}),
        "matrix": replace(GRAPH, depthwise={1: "matrix", 2: "matrix", 4: "matrix", 8: "matrix"}),
        "triton": replace(GRAPH, depthwise=TRITON),
        "patches": replace(GRAPH, patches="matrix"),
        "compiled": replace(GRAPH, compiled=True),
        "all": EVERYTHING,
        "fused": FUSED,
    }
    for name, mode in modes.items():
        found = [entry["train"]["loss"] for entry in trained(run, tmp_path / name, mode)["epochs"]]
        assert found == pytest.approx(expected, rel=1e-2), name


def test_evaluation_agrees_with_the_cpu() -> None:
    run = small("cifar100/baseline", precision="fp32")
    dataset = data.load(run.experiment.dataset)
    losses = []
    for device in (CUDA, torch.device("cpu")):
        network = build_network(run, len(dataset.classes), None, device)
        losses.append(evaluate(network, put_on_device(run, dataset, device).test, run.experiment.recipe, Execution())["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_compiled_code_repeats_in_another_process(tmp_path: Path) -> None:
    """Compiled anew, without a cache of code, through a switch of regime: the same weights to the bit."""
    hashes = []
    for name in "ab":
        environ = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / name), "TRITON_CACHE_DIR": str(tmp_path / name)}
        results = tmp_path / f"results {name}"
        environ |= {"PROFILE": "smoke", "RESULTS": str(results), "COMPILE": "on", "DEPTHWISE": "auto"}
        if hashes:  # the same choice of methods, however the times of another measurement would come out
            results.mkdir()
            shutil.copy(tmp_path / "results a" / "measured.json", results)
        command = [sys.executable, "-m", "bench", "run", "cifar100/A_dual"]
        subprocess.run(command, check=True, capture_output=True, env=environ)
        (path,) = (results / "records").rglob("*.json")
        record = json.loads(path.read_bytes())
        assert record["environment"]["compiled"] and record["environment"]["cuda_graph"]
        hashes.append(record["results"]["weights_sha256"])
    assert hashes[0] == hashes[1]


def test_out_of_memory_is_a_record_and_the_grid_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, total = torch.cuda.mem_get_info(CUDA)
    original = grid.build_network

    def greedy(run: Run, *arguments: Any) -> Any:
        if run.experiment.name == "cifar100/baseline_F0":
            torch.empty(2 * total, dtype=torch.uint8, device=CUDA)
        return original(run, *arguments)

    monkeypatch.setattr(grid, "build_network", greedy)
    settings = chosen(tmp_path, DEVICE="cuda", ONLY="cifar100/baseline_F0 cifar100/baseline_F1")
    assert grid.work_through(plan(settings), settings) == 1
    statuses = [grid.Ledger(tmp_path).find(run) for run in plan(settings)]
    assert [record["results"]["status"] for record in statuses if record] == ["out_of_memory", "done"]


def test_ceilings_memory_and_energy_are_plausible() -> None:
    peak = roofline.measured_peak(CUDA)
    assert peak["bf16_flops_per_second"] > 1e13 and peak["bytes_per_second"] > 1e11
    vendor = roofline.vendor_peak(torch.cuda.get_device_name(CUDA))
    if vendor:
        assert peak["bf16_flops_per_second"] < vendor["flops_per_second"]
        assert peak["bytes_per_second"] < vendor["bytes_per_second"]
    assert (peak_memory(lambda: torch.empty(10**8, device=CUDA), CUDA) or 0) >= 4 * 10**8
    joules = EnergyCounter(CUDA).joules()
    assert joules is None or joules > 0


def test_a_profile_finds_kernels_and_launches(tmp_path: Path) -> None:
    """Of the step launched kernel by kernel, and of the graph, which is one launch of as many kernels."""
    entry = profile_network(find("cifar100/baseline"), CUDA, Choices(compile="off"), tmp_path)
    assert 0 < entry["launches"] < 20 < entry["without_graph"]["launches"]
    assert entry["kernels"] > 100 and entry["shares"]["matrix product"] > 0.05
    assert sum(entry["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert len(list(tmp_path.glob("*.pt.trace.json.gz"))) == 2


def test_speeds_are_measured(tmp_path: Path) -> None:
    bench = Bench(CUDA, Choices(compile="off"), window_seconds=0.05, windows=3, search=False, say=lambda line: None)
    report = bench.report(find("cifar100/baseline"), {name: find(name) for name in ("cifar100/baseline", "cifar100/C_se")})
    path = tmp_path / "gpu.json"
    path.write_text(canonical_json(report))
    assert read_report(path)["families"].keys() == {"cifar100/baseline", "cifar100/C_se"}
    for row in report["families"].values():
        assert row["windows"] == 3 and row["peak_memory_bytes"] > 10**8
        assert row["seconds_per_epoch"] > row["roofline_seconds_per_epoch"] > 0


def test_processes_together_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PROCESSES", (1, 2))
    speeds = sharing.shared_speeds("cifar100/baseline", CUDA, Choices(kept=tmp_path / "measured.json"), seconds=1.0)
    assert speeds.keys() == {"1", "2"} and all(speed > 1000 for speed in speeds.values())


def test_two_processes_share_the_gpu(tmp_path: Path) -> None:
    environ = os.environ | {"PROFILE": "smoke", "RESULTS": str(tmp_path), "JOBS": "2", "DEVICE": "cuda", "SEEDS": "0 1"}
    environ |= {"ONLY": "cifar100/baseline"}
    subprocess.run([sys.executable, "-m", "bench", "grid"], check=True, capture_output=True, env=environ)
    records = [json.loads(path.read_bytes()) for path in (tmp_path / "records").rglob("*.json")]
    assert [record["results"]["status"] for record in records] == ["done", "done"]
    assert all(record["environment"]["cuda"] for record in records)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_another_than_the_first_gpu_gives_the_same(tmp_path: Path) -> None:
    hashes = []
    for index in (0, 1):
        environ = os.environ | {"PROFILE": "smoke", "RESULTS": str(tmp_path / str(index)), "DEVICE": f"cuda:{index}"}
        environ |= {"DEPTHWISE": "reference"}
        subprocess.run([sys.executable, "-m", "bench", "run", "cifar100/A_dual"], check=True, capture_output=True, env=environ)
        (path,) = (tmp_path / str(index) / "records").rglob("*.json")
        hashes.append(json.loads(path.read_bytes())["results"]["weights_sha256"])
    assert hashes[0] == hashes[1]


def test_attention_over_many_heads_is_deterministic() -> None:
    """Fused attention's backward pass on CUDA; deterministic mode must choose a repeatable one."""
    model = Model(attention=Attention("mhsa", heads=8), sites=("P2", "P3"), stem="cifar")
    gradients = []
    for _ in range(2):
        network = networks.build(model, classes=10, seed=0).to(CUDA, memory_format=torch.channels_last)
        for gated in (module for module in network.modules() if isinstance(module, Gated)):
            nn.init.constant_(gated.alpha, 0.5)  # a closed gate would let no gradient through
        torch.manual_seed(0)
        images = torch.randn(64, 3, 32, 32, device=CUDA)
        with Execution().precision(CUDA, "bf16"):
            logits = network(images)
        logits.float().square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    of_attention = [gradient for name, gradient in gradients[0].items() if name.endswith("qkv.weight")]
    assert len(of_attention) == 2 and all(gradient.count_nonzero() > 0 for gradient in of_attention)
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
