"""Which runs were computed alike, and that a page says so where some were not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.ledger import Ledger, Record
from bench.report.environments import MARK, MARKED, unlike
from bench.report.html import html_page
from bench.report.results import headline_table, results_page
from tests.figure_ledger import add, record_of

BF16 = {"bf16": "units", "depthwise": "4x4 pairs", "patches": "matrix", "attention": "products", "compiled": False}


def run(name: str = "cifar100/baseline", seed: int = 0, **environment: Any) -> Record:
    record = record_of(name, seed=seed)
    record["environment"] |= environment
    return record


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({}, []),
        ({"driver": "580", "python": "3.12"}, []),
        ({"torch": "2.13.0+cpu"}, []),
        ({"torch": "2.11.0+cu130"}, ["torch version"]),
        ({"device": "GPU"}, ["device"]),
        ({"threads": 4}, ["device"]),
        ({"bf16": "fp32"}, ["mode of computing"]),
        ({"compiled": True}, ["mode of computing"]),
        ({"depthwise": "convolution"}, ["mode of computing"]),
        ({"patches": "convolution"}, ["mode of computing"]),
        ({"attention": "fused"}, ["mode of computing"]),
        ({"device": "GPU", "torch": "2.11.0", "cuda_graph": True}, ["device", "torch version", "mode of computing"]),
    ],
)
def test_what_differs_is_named(other: dict[str, Any], what: list[str]) -> None:
    assert unlike([run(**BF16), run(**(BF16 | other))]) == what


def test_a_network_has_methods_for_its_own_layers() -> None:
    """Of other networks only what does not depend on the layers is compared."""
    plain, dual, vit = (run(f"cifar100/{name}", **BF16) for name in ("baseline", "A_dual", "scratch_vit_tiny"))
    dual["environment"]["attention"] = "fused"
    assert unlike([plain, dual]) == []
    dual["environment"]["patches"] = "convolution"
    assert unlike([plain, dual]) == ["mode of computing"]
    vit["environment"] |= {"depthwise": "convolution", "patches": "convolution"}
    assert unlike([plain, vit]) == []
    vit["environment"]["bf16"] = "fp32"
    assert unlike([plain, vit]) == ["mode of computing"]


def test_records_from_before_a_choice_was_there_computed_as_written() -> None:
    assert unlike([run(), run(bf16="units", depthwise="convolution", patches="convolution", attention="fused")]) == []
    assert unlike([run(), run(patches="matrix")]) == ["mode of computing"]


def marked(page: str) -> dict[str, list[str]]:
    """The columns of a page's rows whose cells have the mark."""
    columns: list[str] = []
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        columns = cells if "ours" in cells else columns
        if line.startswith("| `") and MARK in line:
            found[cells[0]] = [column for column, cell in zip(columns, cells, strict=True) if MARK in cell]
    return found


def ledger_of(folder: Path, edit: Callable[[Record], object]) -> Ledger:
    """Two seeds of attention, its baseline and its control; the edit changes the second seed of the control."""
    ledger = Ledger(folder)
    for name in ("baseline", "baseline_F2", "A_dual"):
        for seed in (0, 1):
            record = run(f"cifar100/{name}", seed, **BF16)
            if (name, seed) == ("baseline_F2", 1):
                edit(record)
            add(ledger, record)
    return ledger


def pages_of(ledger: Ledger) -> list[str]:
    found = list(ledger.records())
    return [results_page(found, ledger.results), headline_table(found), html_page(found, ledger.results)]


def test_a_number_of_runs_that_were_not_computed_alike_is_marked(tmp_path: Path) -> None:
    """The control's seeds differ, and so does one pair of the attention with it; the baseline is as it was."""
    page, headline, html = pages_of(ledger_of(tmp_path, lambda record: record["environment"].update(torch="2.11.0")))
    assert marked(page) == {"`baseline_F2`": ["ours"], "`A_dual`": ["to control"]}
    assert marked(headline) == {"`cifar100/baseline_F2`": ["ours"], "`cifar100/A_dual`": ["to control"]}
    assert page.count(MARKED) == 2 and headline.count(MARKED) == 1, "below each table with a mark"
    assert f"<p>{MARK} The runs behind this number" in html and html.count(MARK) == 3
    assert "points on CIFAR-100 (n = 2; 1 of 2 pairs differ in torch version)" in page.partition("## How to read")[0]
    assert (
        "1 of 2 pairs differ in torch version" in page.partition("Every comparison")[2]
        and "1 of 2 pairs differ in torch version" in html
    )


def test_numbers_of_one_machine_have_no_mark(tmp_path: Path) -> None:
    for page in pages_of(ledger_of(tmp_path, lambda record: None)):
        assert MARK not in page and "pairs differ" not in page


def test_a_time_is_of_one_environment(tmp_path: Path) -> None:
    """Three seeds, one on a device that is a thousand times as fast: no median lies between them."""
    ledger = Ledger(tmp_path)
    for seed, (device, seconds) in enumerate([("Processor", 8.0), ("GPU", 0.01), ("Processor", 8.0)]):
        record = run(seed=seed, device=device, bf16="fp32", depthwise="4x4 pairs")
        record["timings"]["epochs"] = [{"train_seconds": seconds, "evaluation_seconds": 0.5}] * (1 if device == "Processor" else 9)
        add(ledger, record)
    page, _, html = pages_of(ledger)
    lines = page.partition("### Time")[2].splitlines()
    (cells,) = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `cifar100/baseline`")
    ][:1]
    mode = "bf16 computed in fp32; depthwise 4x4 pairs"
    assert cells == ["`cifar100/baseline`", "Processor, 2 threads", "8.00", "125", "0.50", "2 of 3", mode]
    assert "2 of 3" in html and mode in html
