"""Figures show what the ledger holds, the same bytes every time; where there is nothing to draw, a word says so."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

import data
from bench import cli
from bench.catalog import find
from bench.engine import network as networks
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.device_data import DeviceSplit
from bench.engine.evaluate import evaluate
from bench.engine.execution import Execution
from bench.engine.train import put_on_device
from bench.environment import ROOT
from bench.errors import UserError
from bench.experiment import Model, Run, Weights
from bench.grid import execute
from bench.ledger import Ledger, Record, departures
from bench.measure.cost import cost_of
from bench.profiles import at_profile
from bench.report.figures import (
    accuracy_cost,
    architecture,
    attention_file,
    attention_maps,
    dual,
    epoch_time,
    examples,
    gates,
    labels,
    learning_curves,
    pictures,
    series,
    style,
    write_figures,
)
from bench.report.figures.scope import Scope, scopes, timed
from bench.report.figures.write import Outcome
from bench.report.rows import Row
from bench.settings import DEFAULTS, settings
from data.sources import IMAGENET_WEIGHTS
from models import Attention, convnext
from models.convnext import WIDTHS, insert_attention
from tests.conftest import CPU, small_network, small_run

STAND_IN = Weights("stand-in.safetensors", "5" * 64)
IMAGENET = Weights(IMAGENET_WEIGHTS.filename, str(IMAGENET_WEIGHTS.known_hash).removeprefix("sha256:"))
COMMITTED = ROOT / "results"


# ---- a ledger whose numbers are given ---------------------------------------------------------------------------------


def record_of(
    name: str,
    accuracies: Sequence[float] = (50.0, 60.0, 70.0),
    *,
    seed: int = 0,
    profile: str = "mini",
    weights: Weights = STAND_IN,
    seconds: float = 10.0,
    device: str = "Processor",
) -> Record:
    """A complete record with these test accuracies by epoch, gates of 0.01 times the epoch, and epochs of equal length."""
    experiment = at_profile(find(name), profile)
    start = weights if experiment.weights != "none" else None
    run = Run(experiment=experiment, profile=profile, seed=seed, weights=start)
    held_out = {"images": 100, "correct": 50, "loss": 1.0} if experiment.recipe.validation_fraction else None
    epochs = []
    for epoch, accuracy in enumerate(accuracies, 1):
        entry: dict[str, Any] = {
            "epoch": epoch,
            "trainable_parameters": 7 if epoch == 1 else 28_000_000,
            "train": {"images": 1000, "correct": 500, "loss": 1.0},
            "validation": held_out,
            "test": {"images": 1000, "correct": round(10 * accuracy), "loss": 1.0},
        }
        if experiment.model.sites:
            entry["gates"] = {site: 0.01 * epoch * (-1 if site == "P2" else 1) for site in experiment.model.sites}
        epochs.append(entry)
    at = {"epoch": len(accuracies), "accuracy": max(accuracies)}
    return {
        "schema": 1,
        "run": {"experiment": name, "profile": profile, "seed": seed, "configuration_sha256": run.configuration_sha256},
        "configuration": run.configuration,
        "code": {"commit": "c" * 40, "dirty": False, "requirements_lock_sha256": "1" * 64, "sources_sha256": "2" * 64},
        "data": {
            "name": experiment.dataset,
            "train_sha256": "3" * 64,
            "test_sha256": "4" * 64,
            "images": {"train": 1000, "validation": 100, "test": 1000},
        },
        "environment": {"device": device, "threads": 2, "cuda": None, "torch": "2.13.0", "deterministic": True},
        "cost": {
            "parameters": 28_000_000,
            "attention_parameters": 148_609,
            "attention_maps": {"P2": [4, 4]},
            "multiply_adds": 91_000_000,
        },
        "results": {
            "status": "done",
            "error": None,
            "final": {
                "best_test": at,
                "last_test": at,
                "best_validation": at if held_out else None,
                "test_at_best_validation": at if held_out else None,
            },
            "stopped_early": False,
            "weights_sha256": "6" * 64,
            "epochs": epochs,
        },
        "timings": {
            "started": "",
            "finished": "",
            "restarts": 0,
            "epochs": [{"train_seconds": seconds, "evaluation_seconds": 0.5}] * len(epochs),
        },
    }


def add(ledger: Ledger, record: Record) -> Path:
    """Put a record into the ledger, after a look at whether it is one."""
    assert not list(departures(record, complete=True))
    described = record["run"]
    weights = record["configuration"]["weights"]
    run = Run(
        experiment=at_profile(find(described["experiment"]), described["profile"]),
        profile=described["profile"],
        seed=described["seed"],
        weights=Weights(**weights) if weights else None,
    )
    return ledger.write(run, record)


def filled(results: Path) -> Ledger:
    """Something for every figure but the attention maps; two seeds of some rows."""
    ledger = Ledger(results)
    for name in ("baseline", "baseline_F2", "E3_P2_F2", "E6_P3_F2", "A_dual", "C_se", "scratch_vit_tiny"):
        for seed in (0, 1) if name in ("baseline", "A_dual") else (0,):
            add(ledger, record_of(f"cifar100/{name}", (50.0, 60.0, 70.0 + seed), seed=seed))
    return ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return filled(tmp_path / "results")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A ledger's folder with its figures, for tests that change nothing in it."""
    results = tmp_path_factory.mktemp("drawn")
    filled(results)
    return results, write(results)


def only_scope(ledger: Ledger) -> Scope:
    (scope,) = scopes(ledger.records())
    return scope


def write(results: Path) -> Outcome:
    return write_figures(results, datasets=results / "no data", device="cpu")


def words_of(figure: Figure) -> list[str]:
    """Every text in a figure that is not empty."""
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


@pytest.fixture
def styled() -> Iterator[None]:
    with style.applied():
        yield


# ---- files ------------------------------------------------------------------------------------------------------------


def contents(results: Path) -> dict[str, bytes]:
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in sorted(results.rglob("figures/**/*.*"))}


def test_the_same_ledger_gives_the_same_bytes(drawn: tuple[Path, Outcome], tmp_path: Path) -> None:
    """In another process, elsewhere, with another order of hashes and a user's own settings of matplotlib."""
    filled(tmp_path / "elsewhere")
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nsavefig.facecolor: red\nlines.linewidth: 9\n")
    command = [sys.executable, "-m", "bench", "figures", "--results", str(tmp_path / "elsewhere")]
    environ = os.environ | {"PYTHONHASHSEED": "1", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "SOURCE_DATE_EPOCH": "1"}
    output = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout
    assert len(contents(drawn[0])) == 12
    assert contents(drawn[0]) == contents(tmp_path / "elsewhere")
    assert output.count("wrote ") == 12 and "left out mini/stand-in/attention_maps: no attention maps" in output


def test_files_hold_no_date_no_version_and_no_path(drawn: tuple[Path, Outcome]) -> None:
    for name, content in contents(drawn[0]).items():
        for absent in (matplotlib.__version__.encode(), b"dc:date", b"Software", str(drawn[0]).encode(), str(ROOT).encode()):
            assert absent not in content, name


def test_a_page_learns_what_was_written(drawn: tuple[Path, Outcome], tmp_path: Path) -> None:
    assert pictures(tmp_path) == []
    results, outcome = drawn
    shown = pictures(results)
    assert [path for picture in shown for path in (picture.svg, picture.png)] == outcome.written
    names = ["architecture", "learning_curves", "dual", "accuracy_cost", "gates", "epoch_time"]
    assert [picture.name for picture in shown] == names
    assert {(picture.profile, picture.backbone) for picture in shown[1:]} == {("mini", "stand-in")}
    assert all(picture.caption.endswith(".") and picture.title for picture in shown)


def test_figures_without_rows_any_more_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "figures" / "mini" / "stand-in"
    folder.mkdir(parents=True)
    for name in ("gates.svg", "gates.png", "mine.png"):
        (folder / name).write_text("")
    write(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["mine.png"], "the user's own stays"


def test_profiles_and_backbones_never_share_a_picture(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for profile in ("smoke", "mini", "paper"):
        add(ledger, record_of("cifar100/scratch_convnext", profile=profile))
    for weights in (STAND_IN, IMAGENET, Weights("a b(1).pth", "7" * 64)):
        add(ledger, record_of("cifar100/baseline", weights=weights))
    found = scopes(ledger.records())
    assert [scope.folder for scope in found] == [
        "paper/from-scratch",
        "mini/a-b-1",
        "mini/convnext_tiny-983f1562",
        "mini/stand-in",
    ]
    for scope in found:
        assert {record["run"]["profile"] for row in scope.rows for record in row.done} == {scope.profile}
        assert {row.weights for row in scope.rows} == {None, scope.backbone}


@pytest.mark.parametrize("profile", [None, "smoke"])
def test_a_ledger_without_results_has_the_architecture_alone(tmp_path: Path, profile: str | None) -> None:
    if profile:
        add(Ledger(tmp_path), record_of("cifar100/A_dual", profile=profile))
    outcome = write(tmp_path)
    assert [path.name for path in outcome.written] == ["architecture.svg", "architecture.png"]
    assert len(outcome.left_out) == 1 and "no finished run of a profile other than smoke" in outcome.left_out[0]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["architecture.png", "architecture.svg"]


def test_what_a_figure_lacks_is_said(tmp_path: Path) -> None:
    add(Ledger(tmp_path), record_of("cifar100/baseline_F0", (40.0,)))
    outcome = write(tmp_path)
    assert len(outcome.written) == 2
    assert outcome.left_out[:-1] == [
        "mini/stand-in/learning_curves: no run of E1 to E6 is done",
        "mini/stand-in/dual: no run of A_dual is done",
        "mini/stand-in/attention_maps: no attention maps of cifar100/stem_dual; they are made where a run's best.pt is",
        "mini/stand-in/accuracy_cost: no row that trains the whole network is done",
        "mini/stand-in/gates: no row with attention is done",
        "mini/stand-in/epoch_time: no run on CIFAR-100 has an epoch in which the whole network trains",
    ]
    assert not (tmp_path / "figures" / "mini").exists()


def test_a_damaged_record_is_one_line(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    record = record_of("cifar100/baseline", seed=8)
    path = add(ledger, record)
    del record["results"]["epochs"][1]["test"]
    path.write_text(json.dumps(record))
    assert cli.main(["figures", "--results", str(ledger.results)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and f"{path}: results.epochs.2.test: expected an object, found nothing" in message
    assert pictures(ledger.results) == []


@pytest.mark.usefixtures("styled")
@pytest.mark.parametrize("figure", [learning_curves, dual, accuracy_cost, gates, epoch_time])
def test_every_figure_can_be_drawn_from_the_committed_ledger(figure: Any) -> None:
    for scope in scopes(Ledger(COMMITTED).records()):
        words = words_of(figure.draw(scope))
        assert figure.TITLE in words
        assert any(word.startswith(f"profile {scope.profile}") and "seed" in word for word in words)


# ---- architecture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sides"),
    [("cifar100/A_dual", [8, 8, 4, 4, 2, 2, 1, 1]), ("cifar100/stem_dual", [16, 16, 8, 8, 4, 4, 2, 1])],
)
def test_layers_are_those_of_the_network(name: str, sides: list[int]) -> None:
    layers = architecture.layers(architecture.on_meta(find(name).model, 100))
    assert [layer.name for layer in layers] == [
        "stem",
        "stage 1",
        "stage 2",
        "P2",
        "stage 3",
        "P3",
        "stage 4",
        "classifier",
    ]
    assert [layer.side for layer in layers] == sides
    assert sum(layer.parameters for layer in layers) == 27_897_028 + 740_738
    by_name = {layer.name: layer for layer in layers}
    assert [by_name[f"stage {stage}"].blocks for stage in (1, 2, 3, 4)] == [3, 3, 9, 3]
    assert tuple(by_name[f"stage {stage}"].channels for stage in (1, 2, 3, 4)) == WIDTHS
    assert (by_name["P2"].parameters, by_name["P3"].parameters) == (148_609, 592_129)
    assert np.prod([layer.downsampling for layer in layers]) == 32


@pytest.mark.usefixtures("styled")
def test_architecture_shows_these_numbers() -> None:
    words = words_of(architecture.draw())
    assert "default stem: 4×4 convolution, stride 4, padding 0" in words
    assert "CIFAR stem: 4×4 convolution, stride 2, padding 1" in words
    for shown in ("4×4, 16 tokens", "2×2, 4 tokens", "8×8, 64 tokens", "32×32", "9 blocks\n384 channels\n11.11 M"):
        assert shown in words
    assert words.count("4×4, 16 tokens") == 2, "P2 with the default stem, P3 with the CIFAR stem"


# ---- curves and points ------------------------------------------------------------------------------------------------


def row_of(*records: Record) -> Row:
    run = records[0]["run"]
    experiment = at_profile(find(run["experiment"]), run["profile"])
    weights = records[0]["configuration"]["weights"]
    return Row(experiment, weights["name"] if weights else None, tuple((Path("record.json"), record) for record in records))


def test_a_series_is_mean_and_deviation_over_the_seeds_that_got_there() -> None:
    row = row_of(record_of("cifar100/A_dual", (50.0, 60.0)), record_of("cifar100/A_dual", (54.0, 63.0, 70.0), seed=1))
    got = series.by_epoch(row, lambda entry: entry["test"]["correct"] / 10)
    assert (got.epochs, got.mean) == ([1, 2, 3], [52.0, 61.5, 70.0])
    assert got.deviation == pytest.approx([8**0.5, 4.5**0.5, 0])
    assert series.gates(row, "P2").mean == pytest.approx([-0.01, -0.02, -0.03])


@pytest.mark.usefixtures("styled")
def test_learning_curves_have_the_switch_and_every_row(ledger: Ledger) -> None:
    add(ledger, record_of("cifar100/E1_P2_F0"))
    figure = learning_curves.draw(only_scope(ledger))
    words = words_of(figure)
    assert words.count("E1, P2") == words.count("E3, P2") == words.count("E6, P3") == 2, "accuracy, and the gate"
    assert words.count("no attention") == 1, "baseline_F2; F0 and F1 were not run"
    dashed = [line for axes in figure.axes for line in axes.lines if line.is_dashed()]
    assert [list(line.get_xdata()) for line in dashed] == [[1.5, 1.5]] * 2, "F2 alone: of F1 nothing was run, F0 releases nothing"


@pytest.mark.usefixtures("styled")
def test_learning_curves_have_a_band_with_several_seeds_only(ledger: Ledger) -> None:
    assert not [c for axes in learning_curves.draw(only_scope(ledger)).axes for c in axes.collections]
    add(ledger, record_of("cifar100/E3_P2_F2", (51.0, 61.0, 71.0), seed=1))
    bands = [c for axes in learning_curves.draw(only_scope(ledger)).axes for c in axes.collections]
    assert len(bands) == 1, "the gates of the two seeds are alike"
    assert bands[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(70.5 + 0.5**0.5)


@pytest.mark.usefixtures("styled")
def test_the_studys_number_stands_only_where_it_can_be_compared(tmp_path: Path) -> None:
    for place, (profile, weights) in enumerate([("mini", STAND_IN), ("mini", IMAGENET), ("paper", STAND_IN), ("paper", IMAGENET)]):
        ledger = Ledger(tmp_path / str(place))
        for name in ("baseline", "baseline_F2", "A_dual"):
            add(ledger, record_of(f"cifar100/{name}", (75.0,), profile=profile, weights=weights))
        shown = [word for word in words_of(dual.draw(only_scope(ledger))) if word.startswith("study")]
        assert shown == (["study 75.93", "study 77.24"] if place == 3 else [])


@pytest.mark.usefixtures("styled")
def test_dual_shows_every_seed_and_the_mean(ledger: Ledger) -> None:
    figure = dual.draw(only_scope(ledger))
    dots = [list(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == [[70.0, 71.0], [70.0], [70.0], [70.0], [70.0, 71.0]], "from the lowest: A, E6, E3, control, baseline"
    assert words_of(figure).count("70.50") == 2


@pytest.mark.usefixtures("styled")
def test_gates_have_a_line_for_every_block(ledger: Ledger) -> None:
    words = words_of(gates.draw(only_scope(ledger)))
    assert words.count("A_dual") == 2 and words.count("C_se") == words.count("E3_P2_F2") == 1
    assert "kinds of attention\nCIFAR-100, P3" in words and "two attention blocks\nCIFAR-100, P2 and P3" in words


# ---- time -------------------------------------------------------------------------------------------------------------


def test_speeds_are_images_over_seconds() -> None:
    plain, split = record_of("cifar100/baseline"), record_of("cifar100/scratch_convnext")
    assert accuracy_cost.images_per_second(row_of(plain), "Processor, 2 threads") == [2000.0], "1000 test images in 0.5 s"
    assert accuracy_cost.images_per_second(row_of(split), "Processor, 2 threads") == [2200.0], "and 100 of the validation split"
    assert epoch_time.epoch_seconds(plain) == [500.0, 500.0], "10 s for 1000 images, not of the frozen epoch"


def test_times_of_different_devices_and_modes_are_not_mixed() -> None:
    records = [record_of("cifar100/baseline", seed=seed, device="GPU" if seed == 3 else "Processor") for seed in range(4)]
    records[0]["environment"]["compiled"] = True
    kept = timed(row_of(*records), "Processor, 2 threads")
    assert [record["run"]["seed"] for record in kept] == [1, 2]
    assert timed(row_of(*records), "another") == []


@pytest.mark.usefixtures("styled")
def test_epoch_time_takes_a_roofline(ledger: Ledger) -> None:
    name = "ConvNeXt-Tiny, default stem + MHSA at P2 and P3, 4 heads"
    for roofline, ticks in ((None, []), ({name: 3.5, "not run": 1.0}, [3.5])):
        figure = epoch_time.draw(only_scope(ledger), roofline)
        (axes,) = figure.axes
        assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"] == ticks  # type: ignore[index]
        assert ("roofline" in axes.get_xlabel()) == bool(ticks)
        assert name in [label.get_text() for label in axes.get_yticklabels()]
        assert "Processor, 2 threads" in axes.get_xlabel()


# ---- labels -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), max_size=12), st.floats(0.5, 5))
def test_labels_are_apart_in_order_and_within_bounds(wanted: list[float], gap: float) -> None:
    placed = labels.spread(wanted, gap, 0, 100)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    heights = [placed[i] for i in order]
    assert all(upper - lower >= gap - 1e-9 for lower, upper in pairwise(heights))
    assert all(-1e-9 <= height <= 100 + 1e-9 for height in heights)


def test_labels_move_no_further_than_they_must() -> None:
    assert labels.spread([10, 30, 20], 5) == [10, 30, 20]
    assert labels.spread([10, 11], 5) == [8.0, 13.0]
    assert labels.spread([10, 10, 10, 40], 2) == [8.0, 10.0, 12.0, 40.0]


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


def small_with_attention(model: Model, classes: int) -> nn.Module:
    """The small network with a stem of stride 2, as the CIFAR stem, and the model's attention."""
    assert model.attention and model.sites
    network = small_network(classes)
    network.features[0][0].stride, network.features[0][0].padding = (2, 2), (1, 1)
    insert_attention(network, dict.fromkeys(model.sites, model.attention))
    return network


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Scope, Path]:
    """A run of stem_dual under the smoke profile, trained for real but on the small network, with its best.pt."""
    monkeypatch.setitem(networks.FAMILIES, "convnext_tiny", networks.Family(small_with_attention, convnext.part_of))
    results = tmp_path / "trained"
    run = Run(experiment=at_profile(find(attention_file.EXPERIMENT), "smoke"), profile="smoke", seed=0)
    chosen = {"profile": "smoke", "device": "cpu", "results": str(results), "depthwise": "reference"}
    cost_of.cache_clear()
    record = execute(run, settings(**{name.lower(): value for name, value in DEFAULTS.items()} | chosen))
    cost_of.cache_clear()  # it knows networks by their description
    assert record["results"]["status"] == "done", record["results"]
    return Scope("smoke", None, (row_of(record),)), results


def write_maps(scope: Scope, results: Path) -> list[Path]:
    return attention_file.write_missing(scope, results=results, datasets=results, device="cpu")


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


def test_without_weights_and_without_maps_there_is_nothing_to_draw(ledger: Ledger) -> None:
    add(ledger, record_of(attention_file.EXPERIMENT))
    scope = only_scope(ledger)
    assert write_maps(scope, ledger.results) == []
    assert attention_file.find(scope, ledger.results) is None
