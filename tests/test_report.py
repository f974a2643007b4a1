"""RESULTS.md is what the ledger gives: every number from a record, no failure hidden, the same bytes every time."""

import csv
import io
import json
import random
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.catalog import EXPERIMENTS, find
from bench.environment import ROOT
from bench.experiment import Run, Weights, canonical_json
from bench.ledger import Ledger
from bench.profiles import at_profile
from bench.provenance import LOCKED_TORCH, commit_of
from bench.report import write
from bench.report.export import as_csv, as_json, export_lines
from bench.report.opening import _for_want_of_seeds
from bench.report.results import HEADLINE, headline_table, results_page
from bench.report.rows import mean_and_deviation
from bench.report.write import write_report
from bench.settings import DEFAULTS, settings

DEFAULT_CHOICES = {name.lower(): value for name, value in DEFAULTS.items()}
STAND_IN = Weights("stand-in.safetensors", "5" * 64)


def add(
    ledger: Ledger,
    name: str,
    accuracy: float | None,
    *,
    seed: int = 0,
    profile: str = "mini",
    status: str = "done",
    seconds: float = 4.0,
) -> Path:
    """Put a record into the ledger whose numbers are given; None for a run without results."""
    experiment = at_profile(find(name), profile)
    weights = STAND_IN if experiment.weights != "none" else None
    run = Run(experiment=experiment, profile=profile, seed=seed, weights=weights)
    at = {"epoch": 3, "accuracy": accuracy}
    with_validation = experiment.recipe.validation_fraction > 0
    final = {
        "best_test": at,
        "last_test": at,
        "best_validation": at if with_validation else None,
        "test_at_best_validation": at if with_validation else None,
    }
    record: dict[str, Any] = {
        "schema": 1,
        "run": {"experiment": name, "profile": profile, "seed": seed, "configuration_sha256": run.configuration_sha256},
        "configuration": run.configuration,
        "code": {"commit": "c" * 40, "dirty": False, "requirements_lock_sha256": "1" * 64, "sources_sha256": "2" * 64},
        "data": {"name": experiment.dataset, "train_sha256": "3" * 64, "test_sha256": "4" * 64, "images": {}},
        "environment": {"device": "Processor", "threads": 2, "cuda": None, "torch": "2.13.0"},
        "cost": {
            "parameters": 28_045_637,
            "attention_parameters": 148_609,
            "attention_maps": {"P2": [4, 4]} if experiment.model.attention else {},
            "multiply_adds": 90_990_336,
        },
        "results": {
            "status": status,
            "error": None if status == "done" else "RuntimeError: it broke",
            "final": final if accuracy is not None else None,
            "epochs": [{"train": {"images": 1000}, **({"gates": {"P2": -0.05}} if experiment.model.attention else {})}],
        },
        "timings": {"restarts": 0, "epochs": [{"train_seconds": seconds, "evaluation_seconds": 0.5}]},
    }
    return ledger.write(run, record)


def cells_of(page: str, name: str) -> dict[str, str]:
    """The cells of the first table row that begins with the name, by column."""
    lines = page.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| `{name}` "))
    head = max(i for i in range(at) if lines[i].startswith("|-")) - 1
    columns, cells = ([cell.strip() for cell in lines[i].strip("|").split("|")] for i in (head, at))
    return dict(zip(columns, cells, strict=True))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path)
    for seed, accuracy in enumerate([70.0, 71.0, 75.0]):
        add(ledger, "cifar100/baseline", accuracy, seed=seed)
    add(ledger, "cifar100/scratch_convnext", 20.25)
    add(ledger, "cifar100/matched_convnext", None, status="out_of_memory")
    add(ledger, "cifar100/baseline_F0", 41.5, seed=0)
    add(ledger, "cifar100/baseline_F0", None, seed=1, status="diverged")
    return ledger


def page_of(ledger: Ledger) -> str:
    return results_page(list(ledger.records()), ledger.results)


def test_rows_from_imagenets_weights_are_compared_with_the_study(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet = Weights("convnext_tiny-983f1562.pth", "983f1562536e84ff750a1576fb08e54de751dbf2e17c0d8a4a13704341fdcd3d")
    monkeypatch.setattr("tests.test_report.STAND_IN", imagenet)
    add(ledger, "cifar100/A_dual", 75.0, profile="paper")
    cells = cells_of(page_of(ledger), "A_dual")
    assert (cells["difference"], cells["weights"]) == ("-0.93", "convnext_tiny-983f1562.pth")


def test_a_smaller_budget_is_not_held_against_the_study(ledger: Ledger) -> None:
    cells = cells_of(page_of(ledger), "scratch_convnext")
    assert (cells["accuracy"], cells["study"], cells["ours"]) == ("best validation", "54.56", "20.25")
    assert "difference" not in cells, "no row of the table has one"
    add(ledger, "cifar100/scratch_convnext", 55.25, profile="paper")
    assert cells_of(page_of(ledger), "scratch_convnext")["difference"] == "+0.69"


def test_rows_hold_the_records_numbers(ledger: Ledger) -> None:
    page = page_of(ledger)
    cells = cells_of(page, "baseline")
    assert (cells["study"], cells["ours"]) == ("77.24", "72.00 ± 2.65")
    assert (cells["weights"], cells["seeds"], cells["accuracy"]) == ("stand-in.safetensors", "0, 1, 2", "best test")
    add(ledger, "cifar100/baseline", 77.0, profile="paper")
    assert not cells_of(page_of(ledger), "baseline").get("difference"), "other pretrained weights than the study's"


def test_attention_rows_are_compared_over_the_seeds_that_both_have(ledger: Ledger) -> None:
    for seed, accuracy in [(1, 73.0), (2, 76.0), (9, 0.0)]:
        add(ledger, "cifar100/E1_P2_F0", accuracy, seed=seed)
    add(ledger, "cifar100/baseline_F0", 70.0, seed=2)
    cells = cells_of(page_of(ledger), "E1_P2_F0")
    assert cells["to baseline"] == "+1.50 (n = 2)", "73 - 71 and 76 - 75"
    assert cells["to control"] == "+6.00 (n = 1)", "76 - 70"
    assert (cells["attention"], cells["maps"], cells["added"]) == ("mhsa, 4 heads at P2", "P2 4x4", "148,609")
    assert cells["alpha P2"] == "-0.0500 ± 0.0000"
    add(ledger, "cifar100/B_heads1", 73.0)
    assert cells_of(page_of(ledger), "B_heads1")["alpha P2"] == "-0.0500 [-0.0394]"


def test_gates_of_either_sign_are_averaged_by_their_size(ledger: Ledger) -> None:
    for seed, alpha in enumerate((0.06, -0.08, 0.04)):
        path = add(ledger, "cifar100/B_heads1", 73.0, seed=seed)
        record = json.loads(path.read_bytes())
        record["results"]["epochs"][-1]["gates"] = {"P2": alpha, "P3": abs(alpha)}
        path.write_text(json.dumps(record))
    cells = cells_of(page_of(ledger), "B_heads1")
    assert cells["alpha P2"] == "0.0600 ± 0.0200 in size, 2 of 3 above 0 [-0.0394]"
    assert cells["alpha P3"] == "0.0600 ± 0.0200 [+0.1061]"


def test_weights_that_are_not_imagenets_are_named_above_the_tables(ledger: Ledger) -> None:
    before_tables = page_of(ledger).partition("## Profile `mini`")[2].partition("###")[0]
    assert "- `stand-in.safetensors` (SHA-256 `555555555555`): a file of the user's, **not ImageNet-1k weights**" in before_tables


def test_no_row_hides_a_failure(ledger: Ledger) -> None:
    page = page_of(ledger)
    assert cells_of(page, "matched_convnext")["ours"] == "1 out_of_memory"
    assert cells_of(page, "baseline_F0")["ours"] == "41.50, 1 diverged"
    assert "out_of_memory: RuntimeError: it broke" in page


def opening_of(page: str) -> dict[str, str]:
    """The opening's lines by the words that they begin with."""
    lines = [line.removeprefix("- ") for line in page.partition("## How to read")[0].splitlines() if line.startswith("- ")]
    return {line.split("**")[1].rstrip(":") if line.startswith("**") else " ".join(line.split()[:2]): line for line in lines}


def test_page_opens_with_what_ran_on_what_and_how_long_it_took(ledger: Ledger) -> None:
    add(ledger, "cifar100/A_dual", 74.0)
    add(ledger, "cifar100/baseline_F2", 73.5)
    add(ledger, "fashion_mnist/baseline", 90.0)
    lines = opening_of(page_of(ledger))
    assert len(lines) <= 12
    assert (
        f"7 of the catalog's {len(EXPERIMENTS)} experiments, each with 1 to 3 seeds (8 done, 1 diverged, 1 out_of_memory), "
        "on Processor, 2 threads." in lines["Run"]
    )
    assert "pretrained rows start from `stand-in.safetensors`, not from ImageNet-1k's" in lines["Not the study's setting"]
    assert "+0.50 points on CIFAR-100 (n = 1); " in lines["Two attention blocks"]
    assert (
        "profile `mini`: `cifar100/A_dual` 74.00 % (n = 1), `fashion_mnist/baseline` 90.00 % (n = 1)"
        in lines["Highest best test accuracy"]
    )
    assert "40 s of training and 5 s of evaluation" in lines["Time"], "ten records, failed ones included"


def test_a_claim_of_which_a_row_was_not_run_waits_for_more_than_a_seed() -> None:
    def open_(*ns: int | None) -> Any:
        outcomes = [SimpleNamespace(paired=n and SimpleNamespace(n=n)) for n in ns]
        return SimpleNamespace(verdict="not decidable", deciding=outcomes)

    assert _for_want_of_seeds([open_(1), open_(3, 1), open_(1, None), open_(3), open_(None)]) == " (2 for want of a second seed)"
    assert _for_want_of_seeds([open_(1, None)]) == ""


def test_opening_tells_the_clearest_verdicts(ledger: Ledger) -> None:
    for seed, (convnext, vit) in enumerate([(55.0, 49.0), (55.5, 49.4), (54.5, 48.6)]):
        add(ledger, "cifar100/matched_convnext", convnext, seed=seed)
        add(ledger, "cifar100/matched_vit", vit, seed=seed, seconds=4.0 + seed / 100)
    lines = opening_of(page_of(ledger))
    assert "1 supported, 1 contradicted, 10 not decidable" in lines["Verdicts"]
    assert "`matched_convnext` − `matched_vit`: +6.00 [+5.75, +6.25]" in lines["Claim 10"]
    assert "supported" in lines["Claim 10"]
    assert "contradicted" in lines["Claim 11"], "epochs took about the same time"


def test_verdicts_are_counted_for_each_set_of_weights(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every claim once for each: those about rows from random weights count beside either."""
    for seed, (convnext, vit) in enumerate([(55.0, 49.0), (55.5, 49.4), (54.5, 48.6)]):
        add(ledger, "cifar100/matched_convnext", convnext, seed=seed)
        add(ledger, "cifar100/matched_vit", vit, seed=seed, seconds=4.0 + seed / 100)
    for name, digit, of_eight_heads in (("tied.pth", "1", 73.0), ("untied.pth", "2", 70.0)):
        monkeypatch.setattr("tests.test_report.STAND_IN", Weights(name, digit * 64))
        for heads, accuracy in ((1, 73.0), (2, 73.0), (4, 73.0), (8, of_eight_heads)):
            for seed in range(3):
                add(ledger, f"cifar100/B_heads{heads}", accuracy + heads * seed / 1000, seed=seed)
    lines = [line.removeprefix("- ") for line in page_of(ledger).splitlines() if "Verdicts**" in line or line.startswith("- Claim")]
    start = "**Verdicts** on the study's 12 claims, profile `mini`, pretrained rows from"
    assert [line.partition(" (")[0].rstrip(".") for line in lines[:3]] == [
        f"{start} `stand-in.safetensors`: 1 supported, 1 contradicted, 10 not decidable",
        f"{start} `tied.pth`: 2 supported, 1 contradicted, 9 not decidable",
        f"{start} `untied.pth`: 1 supported, 2 contradicted, 9 not decidable",
    ]
    assert [line.partition(":")[0] for line in lines[3:]] == [
        "Claim 4 contradicted, from `untied.pth`",
        "Claim 11 contradicted",
        "Claim 4 supported, from `tied.pth`",
    ], "claim 11 is about rows from random weights"


def test_opening_of_the_studys_own_setting_has_no_warning(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet = Weights("convnext_tiny-983f1562.pth", "983f1562536e84ff750a1576fb08e54de751dbf2e17c0d8a4a13704341fdcd3d")
    monkeypatch.setattr("tests.test_report.STAND_IN", imagenet)
    add(ledger, "cifar100/A_dual", 75.0, profile="paper")
    page = page_of(ledger)
    assert "Not the study's setting" not in opening_of(page)
    profiles = [line.split("`")[1] for line in page.splitlines() if line.startswith("- **Run**")]
    assert profiles == ["paper", "mini"]


def test_links_of_the_opening_lead_to_headings(ledger: Ledger) -> None:
    page = page_of(ledger)
    headings = [line.lstrip("# ").replace("`", "").lower().replace(" ", "-") for line in page.splitlines() if line.startswith("#")]
    anchors = [part.partition(")")[0] for part in page.partition("## How to read")[0].split("](#")[1:]]
    assert len(anchors) >= 5
    assert set(anchors) <= set(headings)


def test_every_profile_with_records_has_its_claims(ledger: Ledger) -> None:
    page = page_of(ledger)
    assert "### Claims under `mini`" in page and "### Claims under `paper`" not in page
    verdicts = [line for line in page.partition("### Claims under")[2].splitlines() if "| not decidable " in line]
    assert len(verdicts) == 12


def test_commands_under_a_table_name_the_runs_that_it_shows(ledger: Ledger) -> None:
    for heads in (1, 2, 4, 8):
        add(ledger, f"cifar100/B_heads{heads}", 73.0)
    page, made = page_of(ledger), set()
    for line in page.splitlines():
        if line.startswith("    make run "):
            words = dict(word.split("=", 1) for word in shlex.split(line)[2:])
            only, seeds = words["ONLY"], words["SEEDS"]
            chosen = settings(**DEFAULT_CHOICES | {"only": only, "seeds": seeds, "profile": words["PROFILE"]})
            pretrained = {experiment.weights for experiment in chosen.experiments()} == {"imagenet1k"}
            assert words.get("WEIGHTS") == ("FOLDER/stand-in.safetensors" if pretrained else None)
            made |= {(chosen.profile, experiment.name, seed) for experiment in chosen.experiments() for seed in chosen.seeds}
    runs = [record["run"] for _, record in ledger.records()]
    assert made == {(run["profile"], run["experiment"], run["seed"]) for run in runs}
    assert "ONLY='cifar100/B_*'" in page, "the shortest selection that means these rows"


def test_no_run_stands_in_bold(ledger: Ledger) -> None:
    assert not re.search(r"\*\*[-+]?\d", page_of(ledger))


def test_what_was_not_run_says_so(ledger: Ledger) -> None:
    page = page_of(ledger)
    assert cells_of(page, "stem_baseline")["ours"] == "not run"
    assert "Not run: the ledger has no record of this profile." in page.partition("## Profile `paper`")[2].partition("##")[0]
    empty = page_of(Ledger(ledger.results / "empty"))
    assert "Not run: the ledger has no record" in empty
    assert "Nothing was run yet" in empty.partition("## How to read")[0]


def test_speed_comes_from_the_timings(ledger: Ledger) -> None:
    cells = cells_of(page_of(ledger).partition("### Time")[2], "cifar100/baseline")
    mode = "bf16; depthwise convolution"
    assert list(cells.values()) == ["`cifar100/baseline`", "Processor, 2 threads", "4.00", "250", "0.50", mode]


def test_speed_leaves_out_runs_that_changed_machines(ledger: Ledger) -> None:
    found = [item for item in ledger.records() if item[1]["run"]["experiment"] == "cifar100/baseline"]
    pages = []
    for path, record in found:
        record["timings"]["epochs"][0]["train_seconds"] = 1.0
        record["timings"]["earlier"] = [{"environment": {}, "code": {}, "epochs": 1}]
        record["environment"]["device"] = "Another"
        path.write_text(canonical_json(record))
        pages.append(page_of(ledger).partition("### Time")[2].partition("###")[0])
    assert len(pages) == 3
    for page in pages[:2]:
        assert list(cells_of(page, "cifar100/baseline").values())[1:3] == ["Processor, 2 threads", "4.00"]
    assert "`cifar100/baseline`" not in pages[2], "none is left"


def test_every_record_is_linked_and_every_link_leads_to_a_record(ledger: Ledger) -> None:
    page = page_of(ledger).partition("## Records")[2]
    links = [part.partition(")")[0] for part in page.split("](")[1:]]
    assert sorted(ledger.results / link for link in links) == [path for path, _ in ledger.records()]


def test_a_record_says_where_it_had_another_torch_than_its_lock_pins(ledger: Ledger) -> None:
    path = add(ledger, "cifar100/A_dual", 74.0)
    record = json.loads(path.read_bytes())
    record["code"]["requirements_lock_sha256"] = digest = next(iter(LOCKED_TORCH))
    for torch, cell in (("2.13.0+cu130", f"`{digest[:12]}`"), ("2.11.0+cu130", f"`{digest[:12]}` but torch 2.11.0")):
        record["environment"]["torch"] = torch
        path.write_text(json.dumps(record))
        (line,) = [line for line in page_of(ledger).splitlines() if line.startswith("| [mini/cifar100/A_dual, seed 0]")]
        assert cell in [cell.strip() for cell in line.split("|")]


def test_profiles_share_no_table(ledger: Ledger) -> None:
    add(ledger, "cifar100/baseline", 99.0, profile="paper")
    page = page_of(ledger)
    paper, _, mini = page.partition("## Profile `mini`")
    assert cells_of(paper, "baseline")["ours"] == "99.00"
    assert cells_of(mini, "baseline")["ours"] == "72.00 ± 2.65"


def test_a_record_of_another_configuration_is_named_and_not_averaged(ledger: Ledger) -> None:
    path = add(ledger, "cifar100/baseline", 10.0, seed=7)
    record = json.loads(path.read_bytes())
    record["configuration"]["experiment"]["recipe"]["head_lr"] = 5.0
    path.write_text(json.dumps(record))
    page = page_of(ledger)
    assert cells_of(page, "baseline")["ours"] == "72.00 ± 2.65"
    assert path.name in page.partition("configuration has changed since they were made")[2].partition("\n")[0]


def test_headline_is_of_the_largest_profile_and_only_what_was_run(ledger: Ledger) -> None:
    def names(found: list[Any]) -> list[str]:
        return [line.split("`")[1] for line in headline_table(found).splitlines() if line.startswith("| `")]

    expected = ["cifar100/baseline", "cifar100/baseline_F0", "cifar100/scratch_convnext", "cifar100/matched_convnext"]
    assert names(list(ledger.records())) == expected
    assert set(expected) < set(HEADLINE) <= {experiment.name for experiment in EXPERIMENTS}
    add(ledger, "cifar100/A_dual", 76.0, profile="paper")
    assert names(list(ledger.records())) == ["cifar100/A_dual"]


def test_different_initial_weights_have_rows_of_their_own(ledger: Ledger) -> None:
    path = add(ledger, "cifar100/baseline", 10.0, seed=7)
    record = json.loads(path.read_bytes())
    record["configuration"]["weights"]["name"] = "another.pth"
    path.write_text(json.dumps(record))
    table = page_of(ledger).partition("### CIFAR-100: one attention block")[2].partition("###")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `baseline` ")]
    assert [("another.pth" in row, "stand-in" in row) for row in rows] == [(True, False), (False, True)]


def test_page_does_not_depend_on_the_order_in_which_records_were_written(ledger: Ledger, tmp_path: Path) -> None:
    files = [(path, path.read_bytes()) for path, _ in ledger.records()]
    page = page_of(ledger)
    for path, _ in files:
        path.unlink()
    random.Random(0).shuffle(files)
    for path, content in files:
        path.write_bytes(content)
    assert page_of(ledger) == page


def test_other_ledgers_get_their_own_page_and_the_repositorys_is_not_touched(ledger: Ledger) -> None:
    before = {name: (ROOT / name).read_bytes() for name in ("RESULTS.md", "README.md")}
    written = [ledger.results / name for name in ("RESULTS.md", "results.csv", "results.json", "report.html")]
    assert write_report(ledger.results) == written
    assert (ledger.results / "RESULTS.md").read_text() == page_of(ledger)
    assert before == {name: (ROOT / name).read_bytes() for name in before}


def test_committed_pages_are_what_the_committed_ledger_gives() -> None:
    found = list(Ledger(ROOT / "results").records())
    assert found, "the repository holds records"
    assert (ROOT / "RESULTS.md").read_text() == results_page(found, ROOT, ROOT / "results"), "run `make report`"
    table = (ROOT / "README.md").read_text().partition(write.BEGIN)[2].partition(write.END)[0]
    assert table == f"\n\n{headline_table(found)}\n\n", "run `make report`"


def test_committed_tables_are_what_the_committed_ledger_gives() -> None:
    lines = export_lines(list(Ledger(ROOT / "results").records()), ROOT / "results")
    assert (ROOT / "results/results.csv").read_text() == as_csv(lines), "run `make report`"
    assert (ROOT / "results/results.json").read_text() == as_json(lines), "run `make report`"


def test_tables_for_other_programs_have_every_record_at_full_precision(ledger: Ledger) -> None:
    found = list(ledger.records())
    lines = export_lines(found, ledger.results)
    assert [ledger.results / line["record"] for line in lines] == [path for path, _ in found]
    rows = list(csv.DictReader(io.StringIO(as_csv(lines))))
    assert json.loads(as_json(lines)) == lines
    assert [list(row) for row in rows] == [list(line) for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert row["best_test"] == ("" if line["best_test"] is None else repr(line["best_test"]))
        assert row["experiment"] == line["experiment"] and int(row["seed"]) == line["seed"]
    first = next(line for line in lines if line["experiment"] == "cifar100/baseline")
    assert (first["parameters"], first["train_seconds_total"], first["commit"]) == (28_045_637, 4.0, "c" * 40)
    assert {line["status"] for line in lines} == {"done", "diverged", "out_of_memory"}


def test_tables_of_an_empty_ledger_are_empty() -> None:
    assert as_csv([]) == "" and json.loads(as_json([])) == []


def test_committed_records_are_reproducible_in_principle() -> None:
    for path, record in Ledger(ROOT / "results").records():
        assert commit_of(record["code"]), path
        assert record["environment"]["deterministic"] is True, path


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([]) == ""
    assert mean_and_deviation([76.5]) == "76.50"
    assert mean_and_deviation([70.0, 71.0, 75.0]) == "72.00 ± 2.65"


def test_smoke_makes_no_comparison_with_the_study(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    add(ledger, "cifar100/baseline", 1.0, profile="smoke")
    cells = cells_of(page_of(ledger), "baseline")
    assert cells["ours"] == "1.00" and not {"study", "difference"} & cells.keys()
    assert headline_table(list(ledger.records())) == "Nothing was run yet."
