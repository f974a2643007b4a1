"""What trains when, and that nothing else moves."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch

import data
from bench.engine import network as networks
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.optimizer import adamw, cosine_with_warmup, decays
from bench.engine.regime import release, trained_parts
from bench.engine.train import put_on_device, train
from bench.experiment import Recipe, Regime
from models import convnext
from tests.conftest import CPU, Recorder, small_network, small_run

HEAD, LAST, EARLY = {"head", "attention"}, {"last_stage"}, {"early_stages"}


@pytest.mark.parametrize(
    ("regime", "before", "after"),
    [
        ("full", HEAD | LAST | EARLY, HEAD | LAST | EARLY),
        ("F0", HEAD, HEAD),
        ("F1", HEAD, HEAD | LAST),
        ("F2", HEAD, HEAD | LAST | EARLY),
    ],
)
def test_switch_at_the_start_of_epoch_six(regime: Regime, before: set[str], after: set[str]) -> None:
    for epoch in range(1, 21):
        assert trained_parts(regime, epoch=epoch, frozen_epochs=5) == (before if epoch <= 5 else after)


@pytest.mark.parametrize("regime", ["F0", "F1", "F2"])
def test_frozen_parameters_do_not_move_and_have_no_optimizer_state(regime: Regime, tmp_path: Path) -> None:
    run = small_run(regime=regime, frozen_epochs=2, head_lr=0.1, backbone_lr=0.1, weight_decay=0.5)
    part_of = convnext.part_of
    network = small_network()
    initial = {name: parameter.clone() for name, parameter in network.named_parameters()}
    dataset = data.load(run.experiment.dataset)

    def moved_after(epochs: int, folder: str) -> set[str]:
        trained = small_network()
        stop = Recorder(stop_at=(epochs + 1, 1))
        checkpoint = CheckpointFolder(tmp_path / folder)
        with suppress(KeyboardInterrupt):  # after the last epoch there is no step to stop at
            train(run, splits=put_on_device(run, dataset, CPU), network=trained, checkpoint=checkpoint, observer=stop)
        state = torch.load(checkpoint.last, weights_only=True)
        with_state = sum(len(entry) > 0 for entry in state["optimizer"]["state"].values())
        moved = {name for name, value in initial.items() if not torch.equal(state["network"][name], value)}
        assert with_state == len(moved)
        return {part_of(name) for name in moved}

    assert moved_after(2, "frozen") == {"head"}
    released = trained_parts(regime, epoch=3, frozen_epochs=2) - {"attention"}
    assert moved_after(3, "released") == released


def test_record_says_how_many_parameters_train_in_each_epoch(tmp_path: Path) -> None:
    run = small_run(regime="F2", frozen_epochs=2)
    network = small_network()
    total = sum(p.numel() for p in network.parameters())
    head = 64 * 2 + 64 * 10 + 10
    splits = put_on_device(run, data.load(run.experiment.dataset), CPU)
    results, _ = train(run, splits=splits, network=network, checkpoint=CheckpointFolder(tmp_path), observer=Recorder())
    assert [entry["trainable_parameters"] for entry in results["epochs"]] == [head, head, total]


def test_a_frozen_prefix_builds_no_graph() -> None:
    network = small_network()
    parts = networks.by_part(network, convnext.part_of)
    release(parts, trained_parts("F0", epoch=1, frozen_epochs=1))
    features = network.features(torch.zeros(1, 3, 32, 32))  # type: ignore[operator]
    assert not features.requires_grad
    release(parts, trained_parts("full", epoch=1, frozen_epochs=1))
    assert network.features(torch.zeros(1, 3, 32, 32)).requires_grad  # type: ignore[operator]


# ---- optimizer and schedule ------------------------------------------------------------------------------------------------


def test_groups_and_their_learning_rates() -> None:
    network = small_network()
    recipe = Recipe(epochs=1, head_lr=1e-3, backbone_lr=1e-4, weight_decay=0.05)
    optimizer = adamw(network, recipe, convnext.part_of)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = (group["peak_lr"], group["weight_decay"])
    assert seen.keys() == set(names.values())
    assert seen["classifier.2.weight"] == (1e-3, 0.05)
    assert seen["classifier.2.bias"] == seen["classifier.0.weight"] == (1e-3, 0.0)
    assert seen["features.0.0.weight"] == seen["features.1.0.block.3.weight"] == (1e-4, 0.05)
    for name in ("features.0.0.bias", "features.0.1.weight", "features.1.0.layer_scale", "features.1.0.block.2.weight"):
        assert seen[name] == (1e-4, 0.0), name


def test_decay_needs_a_matrix() -> None:
    assert decays("linear.weight", torch.nn.Parameter(torch.zeros(2, 2)))
    assert not decays("norm.weight", torch.nn.Parameter(torch.zeros(2)))
    assert not decays("position", torch.nn.Parameter(torch.zeros(1, 4, 2)))


def test_cosine_with_warmup() -> None:
    factors = [cosine_with_warmup(step, steps=12, warmup_steps=4) for step in range(12)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[8] == pytest.approx(0.5)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert cosine_with_warmup(0, steps=1, warmup_steps=0) == 1.0
