"""Figures show what the ledger holds, the same bytes every time; where there is nothing to draw, a word says so."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench import cli
from bench.catalog import find
from bench.environment import ROOT
from bench.experiment import Weights
from bench.ledger import Ledger
from bench.report.figures import (
    accuracy_cost,
    architecture,
    dual,
    epoch_time,
    gates,
    labels,
    learning_curves,
    loop_ratios,
    series,
    style,
)
from bench.report.figures.events import write_events
from bench.report.figures.pictures import OF_RECORDS, pictures
from bench.report.figures.scope import NothingToDraw, scopes, timed
from bench.report.figures.write import DRAWN, Outcome, write_figures
from bench.report.measurements import read_reports
from models.convnext import WIDTHS
from tests.figure_ledger import IMAGENET, STAND_IN, add, filled, only_scope, record_of, row_of, words_of

COMMITTED = ROOT / "results"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return filled(tmp_path / "results")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A ledger's folder with its figures, for tests that change nothing in it."""
    results = tmp_path_factory.mktemp("drawn")
    filled(results)
    return results, write(results)


def write(results: Path) -> Outcome:
    return write_figures(results, datasets=results / "no data", device="cpu")


@pytest.fixture
def styled() -> Iterator[None]:
    with style.applied():
        yield


# ---- files ------------------------------------------------------------------------------------------------------------


def contents(results: Path) -> dict[str, bytes]:
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in sorted(results.glob("figures/**/*.*"))}


def test_the_same_ledger_gives_the_same_bytes(drawn: tuple[Path, Outcome], tmp_path: Path) -> None:
    """In another process, elsewhere, with another order of hashes and a user's own settings of matplotlib."""
    filled(tmp_path / "elsewhere")
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nsavefig.facecolor: red\nlines.linewidth: 9\n")
    command = [sys.executable, "-m", "bench", "figures", "--results", str(tmp_path / "elsewhere")]
    environ = os.environ | {"PYTHONHASHSEED": "1", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "SOURCE_DATE_EPOCH": "1"}
    output = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout
    assert len(contents(drawn[0])) == 12
    assert contents(drawn[0]) == contents(tmp_path / "elsewhere")
    assert output.count("wrote ") == 13 and "left out mini/stand-in/attention_maps: no attention maps" in output


def test_tensorboard_shows_every_figure(drawn: tuple[Path, Outcome]) -> None:
    results, _ = drawn
    for _ in range(2):  # another call replaces what an earlier one wrote
        events = EventAccumulator(str(write_events(results)))
    events.Reload()
    tags = {picture.svg.relative_to(results / "figures").with_suffix("").as_posix() for picture in pictures(results)}
    assert set(events.Tags()["images"]) == tags and len(tags) == 6
    (image,) = events.Images("architecture")
    with Image.open(results / "figures/architecture.png") as drawn_image:
        assert (image.width, image.height) == drawn_image.size


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
    assert all(picture.words.caption.endswith(".") and picture.words.title for picture in shown)


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
    assert outcome.left_out[0] == "loop_ratios: no whole measurement; `make bench-throughput` makes one"
    assert len(outcome.left_out) == 2 and "no finished run of a profile other than smoke" in outcome.left_out[1]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["architecture.png", "architecture.svg"]


def test_what_a_figure_lacks_is_said(tmp_path: Path) -> None:
    add(Ledger(tmp_path), record_of("cifar100/baseline_F0", (40.0,)))
    outcome = write(tmp_path)
    assert len(outcome.written) == 2
    assert outcome.left_out[1:-1] == [
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
    drawn = 0
    for scope in scopes(Ledger(COMMITTED).records()):
        with suppress(NothingToDraw):  # a profile may lack the rows of one figure
            words = words_of(figure.draw(scope))
            assert figure.TITLE in words
            assert any(word.startswith(f"profile {scope.profile}") and "seed" in word for word in words)
            drawn += 1
    assert drawn


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
@pytest.mark.parametrize("figure", [gates, learning_curves])
def test_gates_of_either_sign_are_drawn_by_their_size(figure: Any, ledger: Ledger) -> None:
    """The mean of both signs would be a line near zero, where no seed's gate was."""
    record = record_of("cifar100/E3_P2_F2", seed=1)
    for entry in record["results"]["epochs"]:
        entry["gates"]["P2"] *= -1
    add(ledger, record)
    row = only_scope(ledger).row("cifar100/E3_P2_F2")
    assert row and series.gates(row, "P2").mean == pytest.approx([0.01, 0.02, 0.03])
    assert series.gates(row, "P2").deviation == pytest.approx([0, 0, 0])
    caption = OF_RECORDS[figure.__name__.rpartition(".")[2]].caption
    names = {gates: "E3_P2_F2 |α|", learning_curves: "E3, P2 |α|"}
    words = words_of(figure.draw(only_scope(ledger)))
    assert [word for word in words if "|α|" in word] == [names[figure]] and "|α|" in caption


@pytest.mark.usefixtures("styled")
def test_gates_have_a_line_for_every_block(ledger: Ledger) -> None:
    words = words_of(gates.draw(only_scope(ledger)))
    assert words.count("A_dual") == 2 and words.count("C_se") == words.count("E3_P2_F2") == 1
    assert "kinds of attention\nCIFAR-100, P3" in words and "two attention blocks\nCIFAR-100, P2 and P3" in words


@pytest.mark.usefixtures("styled")
@pytest.mark.parametrize(("profile", "brackets"), [("mini", [" (8,000)", " (5,000)"]), ("paper", ["", ""])])
def test_networks_with_other_numbers_of_images_are_told_apart(tmp_path: Path, profile: str, brackets: list[str]) -> None:
    ledger = Ledger(tmp_path)
    for name in ("baseline", "scratch_vit_tiny"):
        add(ledger, record_of(f"cifar100/{name}", profile=profile))
    words = words_of(accuracy_cost.draw(only_scope(ledger)))
    for network, bracket in zip(("ConvNeXt-Tiny, default stem", "ViT-Tiny"), brackets, strict=True):
        assert words.count(network + bracket) == 2, "by multiply-adds, and by images per second"
    assert any("in brackets the training images" in word for word in words) == (profile == "mini")


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
    records[1]["timings"]["earlier"] = [{"environment": {}, "code": {}, "epochs": 1}]
    assert [record["run"]["seed"] for record in timed(row_of(*records[1:]), "Processor, 2 threads")] == [2]


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


@pytest.mark.usefixtures("styled")
def test_the_roofline_comes_from_a_measurement_of_the_same_device(ledger: Ledger) -> None:
    scope, folder = only_scope(ledger), ledger.results / "throughput"
    (_, measured), *_ = read_reports(COMMITTED / "throughput")
    row = next(iter(measured["families"].values())) | {"experiment": "cifar100/A_dual"}
    folder.mkdir()
    for device, seconds in (("Processor", 3.5), ("another", 99.0)):
        environment = {"device": device, "threads": 2, "cuda": None, "torch": "2.13.0"}
        families = {"x": row | {"roofline_seconds_per_epoch": seconds}}
        (folder / f"{device}.json").write_text(json.dumps(measured | {"environment": environment, "families": families}))
    assert epoch_time.roofline(scope, folder) == {"ConvNeXt-Tiny, default stem + MHSA at P2 and P3, 4 heads": 3.5}
    assert epoch_time.roofline(scope, ledger.results / "none") == {}
    (axes,) = DRAWN["epoch_time"](scope, ledger.results).axes
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"] == [3.5]  # type: ignore[index]


@pytest.mark.usefixtures("styled")
def test_our_loop_beside_others_is_drawn_for_every_device_that_was_measured_whole(tmp_path: Path) -> None:
    h100 = COMMITTED / "throughput" / "nvidia-h100-80gb-hbm3.json"
    with pytest.raises(NothingToDraw):
        loop_ratios.draw(tmp_path)
    shutil.copy(h100, tmp_path / "gpu-part.json")
    with pytest.raises(NothingToDraw):
        loop_ratios.draw(tmp_path)
    shutil.copy(h100, tmp_path / "gpu.json")
    (axes,) = loop_ratios.draw(tmp_path).axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows[0] == "NVIDIA H100 80GB HBM3, torch 2.11.0+cu130"
    ratios = json.loads(h100.read_bytes())["loops"]["ratios"]
    dots = {rows[round(line.get_ydata()[0])]: line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"}  # type: ignore[index]
    assert dots == {words: ratios[name]["median"] for name, words in loop_ratios.SHOWN.items() if name in ratios}
    assert len(dots) == 5


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
