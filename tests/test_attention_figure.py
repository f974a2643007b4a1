"""The attention maps: what attention each token receives, which examples are shown, and that they are a run's own."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import data
from bench.catalog import find
from bench.engine import network as networks
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.device_data import DeviceSplit
from bench.engine.evaluate import evaluate
from bench.engine.execution import Execution
from bench.engine.train import put_on_device
from bench.errors import UserError
from bench.experiment import Model, Run
from bench.grid import execute
from bench.measure.cost import cost_of
from bench.profiles import at_profile
from bench.report.figures import (
    attention_file,
    attention_maps,
    examples,
    style,
)
from bench.report.figures.scope import Scope
from bench.settings import DEFAULTS, settings
from models import convnext
from models.convnext import insert_attention
from models.description import Attention
from tests.conftest import CPU, small_network, small_run
from tests.figure_ledger import add, filled, only_scope, record_of, row_of, words_of

# ---- attention: arithmetic and choice ---------------------------------------------------------------------------------


def test_attention_received_by_hand() -> None:
    two_heads = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[0.2, 0.8], [0.0, 1.0]]]])  # [1, 2, 2, 2]
    received = examples.received(two_heads)
    assert received.tolist() == [pytest.approx([0.425, 0.575])], "heads: (.6 .4), (.25 .75); queries: .425 .575"
    assert attention_maps.relative(received[0].numpy()) == pytest.approx([0.85, 1.15])


def test_maps_are_upsampled_and_overlaid_by_hand() -> None:
    grid = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert attention_maps.upsampled(grid, 4)[2].tolist() == [0.0, 0.25, 0.75, 1.0]
    white = np.full((4, 4, 3), 255, dtype=np.uint8)
    mixed = attention_maps.overlay(white, grid, lambda values: values)  # type: ignore[arg-type]
    dark = np.array([0.267004, 0.004874, 0.329415])  # the lowest colour of viridis
    assert mixed[0, 0] == pytest.approx(0.45 + 0.55 * dark, abs=1e-5)


def test_examples_follow_the_rule() -> None:
    labels_ = [index % 10 for index in range(200)]
    predictions = [label if index % 3 else 11 for index, label in enumerate(labels_)]
    chosen = examples.choose(labels_, predictions, per_outcome=4, seed=0)
    assert chosen == examples.choose(labels_, predictions, per_outcome=4, seed=0)
    assert chosen != examples.choose(labels_, predictions, per_outcome=4, seed=1)
    assert [labels_[index] == predictions[index] for index in chosen] == [True] * 4 + [False] * 4
    assert len({labels_[index] for index in chosen}) == 8, "no class twice"
    assert examples.choose([0, 1, 2], [0, 0, 0], per_outcome=4, seed=0)[0] == 0, "fewer where there are too few"
    assert len(examples.choose([0, 1, 2], [0, 0, 0], per_outcome=4, seed=0)) == 3


@pytest.fixture
def small_split() -> DeviceSplit:
    return put_on_device(
        replace(small_run(), experiment=replace(small_run().experiment, test_images=200)), data.load("tiny_fashion_mnist"), CPU
    ).test


def test_examples_are_the_networks_own(small_split: DeviceSplit) -> None:
    network = small_network()
    insert_attention(network, {"P2": Attention("mhsa", heads=2), "P3": Attention("mhsa", heads=4)})
    for site in (3, 5):
        network.features[site].attention.branch.attention.qkv.weight.data *= 20  # far from uniform attention
    classes = data.load("tiny_fashion_mnist").classes
    found, counts = examples.examine(network, small_split, classes, precision="fp32", execution=Execution())
    reference = evaluate(network, small_split, small_run().experiment.recipe, Execution())
    assert counts == {"correct": reference["correct"], "images": 200}
    assert {example.correct for example in found} == {True, False}
    (images, truth) = next(iter(small_split.batches(200)))
    with torch.no_grad():
        probabilities = network(images).softmax(1)
        stage_2 = network.features[:4](images)
    for example in found:
        confidence, guess = probabilities[example.index].max(0)
        assert (example.predicted, example.label) == (classes[guess], classes[truth[example.index]])
        assert example.confidence == pytest.approx(confidence.item(), rel=1e-5)
        assert (example.image == small_split.images[example.index].numpy()).all()
        assert {site: received.shape for site, received in example.maps.items()} == {"P2": (4, 4), "P3": (2, 2)}
        assert [received.sum() for received in example.maps.values()] == pytest.approx([1, 1], abs=1e-6)
    # the map of P2 once more, from the definition
    block, index = network.features[3].attention.branch, found[0].index
    with torch.no_grad():
        before = network.features[3][0](network.features[:3](images[index : index + 1]))
        q, k, _ = block.attention.qkv(block.norm(before.flatten(2).transpose(1, 2)))[0].reshape(16, 3, 2, 8).permute(1, 2, 0, 3)
        matrices = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)  # [2, 16, 16]
    expected = np.array([sum(matrices[h, i, j].item() for h in range(2) for i in range(16)) / 32 for j in range(16)])
    assert found[0].maps["P2"].ravel() == pytest.approx(expected, abs=1e-6)
    assert expected.max() > 1.2 / 16, "or else the comparison says nothing"
    assert stage_2.shape == (200, 16, 4, 4)


# ---- attention: from a run to the picture -----------------------------------------------------------------------------


def small_with_cifar_stem(model: Model, classes: int) -> nn.Module:
    """The small network with a stem of stride 2, as the CIFAR stem."""
    network = small_network(classes)
    network.features[0][0].stride, network.features[0][0].padding = (2, 2), (1, 1)
    return network


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Scope, Path]:
    """A run of stem_dual under the smoke profile, trained for real but on the small network, with its best.pt."""
    monkeypatch.setitem(networks.FAMILIES, "convnext_tiny", networks.Family(small_with_cifar_stem, convnext.part_of))
    results = tmp_path / "trained"
    run = Run(experiment=at_profile(find(attention_file.EXPERIMENT), "smoke"), profile="smoke", seed=0)
    chosen = {"profile": "smoke", "device": "cpu", "results": str(results), "depthwise": "reference"}
    cost_of.cache_clear()
    record = execute(run, settings(**{name.lower(): value for name, value in DEFAULTS.items()} | chosen))
    cost_of.cache_clear()  # it knows networks by their description
    assert record["results"]["status"] == "done", record["results"]
    return Scope("smoke", None, (row_of(record),)), results


def write_maps(scope: Scope, results: Path, images: bool = True) -> list[Path]:
    return attention_file.write_missing(scope, results=results, datasets=results, device="cpu", images=images)


def test_attention_of_a_trained_run(smoke: tuple[Scope, Path], capsys: pytest.CaptureFixture[str]) -> None:
    scope, results = smoke
    (path,) = write_maps(scope, results)
    content = path.read_bytes()
    run = attention_file.run_of(scope, scope.rows[0].done[0])
    assert path == results / "attention" / f"{run.key}.json" and len(content) < 200_000
    examined = attention_file.read(path)
    record = scope.rows[0].done[0]
    assert examined.run == {**record["run"], "key": run.key}
    assert examined.epoch == record["results"]["final"]["best_validation"]["epoch"]
    assert examined.test == {key: record["results"]["epochs"][examined.epoch - 1]["test"][key] for key in ("correct", "images")}
    assert {site: received.shape for site, received in examined.examples[0].maps.items()} == {"P2": (8, 8), "P3": (4, 4)}
    assert write_maps(scope, results) == [], "it is there"
    path.unlink()
    assert write_maps(scope, results) == [path] and path.read_bytes() == content, "the same bytes again"
    with style.applied():
        words = words_of(attention_maps.draw(examined))
    for example in examined.examples:
        shown = f"{example.label.replace('_', ' ')}, "
        assert any(word.startswith(shown) and word.endswith(f" with {100 * example.confidence:.0f} %") for word in words)
    assert {"P2, 8×8", "P3, 4×4", "classified incorrectly"} <= set(words)
    assert any(examined.rule in word and "seed 0" in word for word in words)


def test_maps_without_images_hold_none_and_name_them(smoke: tuple[Scope, Path]) -> None:
    scope, results = smoke
    (path,) = write_maps(scope, results)
    with_images, size = attention_file.read(path), path.stat().st_size
    assert with_images.with_images
    assert write_maps(scope, results, images=False) == [path], "what is there holds images"
    assert write_maps(scope, results, images=False) == [], "and now it holds none"
    examined = attention_file.read(path)
    pixels = 32 * 32 * 3 * len(examined.examples)
    assert not examined.with_images and size - path.stat().st_size > pixels, "in base64"
    for one, other in zip(examined.examples, with_images.examples, strict=True):
        assert (one.index, one.label, one.confidence) == (other.index, other.label, other.confidence)
        assert {site: grid.tolist() for site, grid in one.maps.items()} == {s: g.tolist() for s, g in other.maps.items()}
    with style.applied():
        words = words_of(attention_maps.draw(examined))
    assert {f"test image\n{example.index}" for example in examined.examples} <= set(words)
    assert "P3, upsampled" in words and "P3, overlaid" not in words
    assert write_maps(scope, results) == [path] and attention_file.read(path).with_images, "back again, where the data are"


def test_weights_that_are_not_the_records_are_refused(smoke: tuple[Scope, Path], tmp_path: Path) -> None:
    scope, results = smoke
    run = attention_file.run_of(scope, scope.rows[0].done[0])
    best = CheckpointFolder(tmp_path / "checkpoints" / run.key).best
    best.parent.mkdir(parents=True)
    torch.save(small_network(7).state_dict(), best)
    with pytest.raises(UserError, match="expected the weights of cifar100/stem_dual"):
        write_maps(scope, tmp_path)
    state = torch.load(CheckpointFolder(results / "checkpoints" / run.key).best, weights_only=True)
    state["classifier.2.weight"].zero_()
    state["classifier.2.bias"] = torch.nn.functional.one_hot(torch.tensor(0), 100).float()
    torch.save(state, best)
    record = json.loads(json.dumps(scope.rows[0].done[0]))
    for entry in record["results"]["epochs"]:
        entry["test"]["correct"] = 50
    with pytest.raises(UserError, match=r"expected the record's test accuracy of 50.00 % from best.pt, found 1.00 %"):
        write_maps(Scope("smoke", None, (row_of(record),)), tmp_path)
    assert not (tmp_path / "attention").exists()


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "run": {}, "examples": [3]}'])
def test_a_damaged_file_of_maps_is_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "seed0.json"
    path.write_text(damage)
    with pytest.raises(UserError, match=re.escape(f"{path}: expected attention maps of schema 1, found something else")) as error:
        attention_file.read(path)
    assert "\n" not in str(error.value)


def test_without_weights_and_without_maps_there_is_nothing_to_draw(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "results")
    add(ledger, record_of(attention_file.EXPERIMENT))
    scope = only_scope(ledger)
    assert write_maps(scope, ledger.results) == []
    assert attention_file.find(scope, ledger.results) is None
