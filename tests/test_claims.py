"""The twelve claims on synthetic ledgers whose truth is known: supported, contradicted, and not decidable for every reason."""

import functools
import json
import random
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.catalog import EXPERIMENTS, find
from bench.experiment import Run, Weights, canonical_json
from bench.profiles import at_profile
from bench.report.claims import CLAIMS, SINGLES, Judgement, judge, judge_all
from bench.report.comparisons import MARGIN, OPEN_GATE, Outcome, short
from bench.report.paired import LEVEL
from bench.report.rows import Found, Row, rows_of
from bench.report.verdicts import METHOD, claims_section, comparison_lines, figures, why

IMAGENET = Weights("convnext_tiny-983f1562.pth", "983f1562536e84ff750a1576fb08e54de751dbf2e17c0d8a4a13704341fdcd3d")
STAND_IN = Weights("stand-in.safetensors", "5" * 64)

# What the study reports, and a value in its spirit where it reports none.
STUDY = {experiment.name: experiment.reported or 77.0 for experiment in EXPERIMENTS} | {
    "cifar100/stem_baseline": 85.78,
    **{f"fashion_mnist/B_heads{heads}": 94.34 for heads in (1, 2, 4, 8)},
    **{f"fashion_mnist/C_{kind}": 94.36 for kind in ("mhsa", "cbam")},
}
CONTROLS = {*(f"cifar100/baseline_F{i}" for i in range(3)), "cifar100/scratch_convnext_50"}
GATES = {"P2": -0.045, "P3": 0.11}
SECONDS = {"cifar100/matched_vit": 8.1}  # of an epoch; 4 elsewhere


@functools.cache
def configuration(name: str, profile: str) -> dict[str, Any]:
    run = Run(experiment=at_profile(find(name), profile), profile=profile, seed=0)
    loaded: dict[str, Any] = json.loads(canonical_json(run.configuration))
    return loaded


def record(
    name: str,
    seed: int,
    accuracy: float | None,
    *,
    profile: str = "paper",
    weights: Weights = IMAGENET,
    gates: Mapping[str, float] = GATES,
    seconds: float | None = None,
    device: str = "GPU",
    status: str = "done",
) -> Found:
    """What the claims read of a record; all its accuracies are the same."""
    experiment = at_profile(find(name), profile)
    pretrained = experiment.weights != "none"
    at = {"epoch": 3, "accuracy": accuracy}
    validated = at if experiment.recipe.validation_fraction else None
    sites = experiment.model.sites or ()
    content = {
        "run": {"experiment": name, "profile": profile, "seed": seed},
        "configuration": {
            "experiment": configuration(name, profile)["experiment"],
            "weights": {"name": weights.name, "sha256": weights.sha256} if pretrained else None,
        },
        "environment": {"device": device, "cuda": "13.0", "threads": 1},
        "results": {
            "status": status,
            "final": {"best_test": at, "last_test": at, "best_validation": validated, "test_at_best_validation": validated}
            if accuracy is not None
            else None,
            "epochs": [{"gates": {site: gates[site] for site in sites}}],
        },
        "timings": {"epochs": [{"train_seconds": factor * (seconds or SECONDS.get(name, 4.0))} for factor in (3.0, 1.0, 0.99)]},
    }
    return Path(f"{profile}/{name}/{weights.name}/{seed}"), content


def ledger(
    truth: Mapping[str, float], *, seeds: int = 5, spread: float = 0.02, gates: Mapping[str, float] = GATES, **record_of: Any
) -> list[Found]:
    """Records of all experiments that the truth names: its value, what the seed does to every row, and chance, each row's own."""
    found = []
    for seed in range(seeds):
        of_the_seed = random.Random(seed).gauss(0, 1.0)
        for name, value in truth.items():
            chance = random.Random(f"{name} {seed}")
            accuracy = value + of_the_seed + chance.gauss(0, spread)
            moved = {site: alpha + chance.gauss(0, spread / 10) for site, alpha in gates.items()}
            seconds = SECONDS.get(name, 4.0) * (1 + chance.gauss(0, spread))
            found.append(record(name, seed, accuracy, **({"gates": moved, "seconds": abs(seconds)} | record_of)))
    return found


def judgements(found: Iterable[Found], number: int, profile: str = "paper") -> list[Judgement]:
    rows, left = rows_of(profile, found)
    assert not left, "every record fits a row"
    return [judgement for judgement in judge_all(rows) if judgement.claim.number == number]


def judged(found: Iterable[Found], number: int, profile: str = "paper") -> Judgement:
    (judgement,) = judgements(found, number, profile)
    return judgement


def test_the_studys_own_numbers_would_support_every_claim() -> None:
    rows, _ = rows_of("paper", ledger(STUDY))
    assert {judgement.claim.number: judgement.verdict for judgement in judge_all(rows)} == dict.fromkeys(range(1, 13), "supported")


CONTRARY: dict[int, list[dict[str, float]]] = {
    1: [{"cifar100/E3_P2_F2": 77.5}, {"cifar100/E4_P3_F0": 78.0}],
    2: [{"cifar100/E3_P2_F2": 69.0}, {"cifar100/E6_P3_F2": 65.0}, {"cifar100/E4_P3_F0": 76.0}],
    3: [{"cifar100/A_dual": 75.5}, {"cifar100/A_dual": 77.5}],
    4: [{"cifar100/B_heads8": 75.2}],
    5: [{"cifar100/C_se": 75.2}, {"cifar100/baseline": 75.3}],
    7: [{"cifar100/stem_baseline": 77.0, "cifar100/stem_dual": 77.0}, {"cifar100/stem_dual": 86.2}],
    8: [{"cifar100/scratch_dual": 55.0}],
    9: [
        {"cifar100/scratch_mixer_tiny": 43.0},
        {"cifar100/scratch_mixer_tiny": 55.0, "cifar100/scratch_vit_tiny": 54.3},
        {"cifar100/scratch_mixer_tiny": 54.3, "cifar100/scratch_vit_tiny": 55.0},
    ],
    10: [{"cifar100/matched_vit": 53.0}, {"cifar100/matched_vit": 45.0}, {"cifar100/matched_vit": 57.0}],
    12: [{"fashion_mnist/C_cbam": 94.8}, {"fashion_mnist/A_dual": 93.0}],
}


@pytest.mark.parametrize(("number", "changed"), [(number, changed) for number, cases in CONTRARY.items() for changed in cases])
def test_contrary_accuracies_contradict(number: int, changed: dict[str, float]) -> None:
    judgement = judged(ledger(STUDY | changed), number)
    assert judgement.verdict == "contradicted"
    assert judgement.p < LEVEL
    assert "claimed was" in why(judgement)


@pytest.mark.parametrize("site", ["P2", "P3"])
def test_a_gate_that_stays_contradicts(site: str) -> None:
    judgement = judged(ledger(STUDY, gates=GATES | {site: -0.01}), 6)
    assert judgement.verdict == "contradicted"
    assert f"above {OPEN_GATE}" in why(judgement)


def test_gates_of_either_sign_have_moved() -> None:
    """The module behind a gate may learn to point either way, so its sign differs between seeds."""
    found = [item for item in ledger(STUDY, seeds=4) if item[1]["run"]["seed"] < 2]
    found += [item for item in ledger(STUDY, seeds=4, gates={"P2": 0.045, "P3": -0.11}) if item[1]["run"]["seed"] >= 2]
    assert judged(found, 6).verdict == "supported"


@pytest.mark.parametrize("seconds", [4.0, 12.0])
def test_other_times_contradict(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setitem(SECONDS, "cifar100/matched_vit", seconds)
    judgement = judged(ledger(STUDY), 11)
    assert judgement.verdict == "contradicted"
    assert f"{seconds / 4:.1f}" in figures(judgement)


@pytest.mark.parametrize("number", range(1, 13))
def test_too_much_spread_leaves_every_claim_open(number: int) -> None:
    level = dict.fromkeys(STUDY, 76.0) | {"cifar100/matched_convnext": 82.0}  # claim 10 is false where nothing differs
    judgement = judged(ledger(level, seeds=3, spread=0.9), number)
    assert judgement.verdict == "not decidable"
    assert "so many seeds could show a value that lies " in why(judgement)


@pytest.mark.parametrize("number", range(1, 13))
def test_one_seed_decides_nothing_and_says_so(number: int) -> None:
    judgement = judged(ledger(STUDY, seeds=1), number)
    assert (judgement.verdict, judgement.seeds, judgement.p) == ("not decidable", "1", 1.0)
    assert "one seed decides nothing" in why(judgement)
    assert figures(judgement), "the differences are shown all the same"


@pytest.mark.parametrize("number", range(1, 13))
def test_a_missing_row_is_named(number: int) -> None:
    name = CLAIMS[number - 1].rows[-1]
    judgement = judged(ledger({key: value for key, value in STUDY.items() if key != name}), number)
    assert judgement.verdict == "not decidable"
    assert f"not run: {short(name)}" in why(judgement)
    assert judgement.seeds.startswith("0")


def test_nothing_run_at_all() -> None:
    rows, _ = rows_of("paper", [])
    assert [judgement.verdict for judgement in judge_all(rows)] == ["not decidable"] * 12
    assert not any(judgement.ran for judgement in judge_all(rows))


def test_a_row_without_a_result_is_named() -> None:
    found = ledger({name: value for name, value in STUDY.items() if name != "cifar100/matched_vit"})
    found += [record("cifar100/matched_vit", seed, None, status="diverged") for seed in range(2)]
    assert why(judged(found, 10)) == "without a result: `matched_vit` (diverged, diverged)"


def test_failed_seeds_are_left_out_and_named() -> None:
    found = [
        item for item in ledger(STUDY) if item[1]["run"] != {"experiment": "cifar100/matched_vit", "profile": "paper", "seed": 4}
    ]
    judgement = judged([*found, record("cifar100/matched_vit", 4, None, status="diverged")], 10)
    assert (judgement.verdict, judgement.seeds) == ("supported", "4")
    assert "left out, failed: `matched_vit` (diverged)" in why(judgement)


def test_a_counterexample_is_enough_even_where_rows_are_missing() -> None:
    truth = {name: value for name, value in STUDY.items() if name != "cifar100/E1_P2_F0"} | {"cifar100/E3_P2_F2": 78.0}
    assert judged(ledger(truth), 1).verdict == "contradicted"


def test_rows_without_a_seed_in_common() -> None:
    found = [record("cifar100/matched_convnext", 0, 55.0), record("cifar100/matched_vit", 1, 49.0)]
    assert why(judged(found, 10)) == "no seed in common"
    assert why(judged(found, 11)) == "no seed in common on one device"


def test_times_are_compared_on_one_device() -> None:
    found = [
        record(f"cifar100/matched_{model}", seed, 50.0, device=device, seconds=seconds * (1 + seed / 100))
        for model, device, seconds, seeds in (
            ("convnext", "fast", 1.0, (0, 1, 2)),
            ("vit", "fast", 2.0, (0, 1, 2)),
            ("convnext", "slow", 10.0, (3, 4)),
            ("vit", "slow", 90.0, (3, 4)),
        )
        for seed in seeds
    ]
    found += [
        record(f"cifar100/matched_{model}", 6, 50.0, device="fast", seconds=s) for model, s in (("convnext", 1.0), ("vit", 2.1))
    ]
    split = [record("cifar100/matched_convnext", 5, 50.0, device="fast"), record("cifar100/matched_vit", 5, 50.0, device="slow")]
    judgement = judged([*found, *split], 11)
    assert (judgement.verdict, judgement.seeds) == ("supported", "4")
    assert "on fast" in why(judgement)
    assert "2.02x" in figures(judgement), "the geometric mean of 2, 2, 2 and 2.1"


def test_times_in_another_mode_of_execution_are_not_mixed_in() -> None:
    truth = dict.fromkeys(CLAIMS[10].rows, 50.0)
    found, compiled = ledger(truth, seeds=3), [item for item in ledger(truth, seeds=5) if item[1]["run"]["seed"] > 2]
    for _, content in compiled:
        content["environment"]["compiled"] = True
        content["timings"]["epochs"] = [{"train_seconds": 1.0}]
    assert judged(found + compiled, 11).seeds == "3"
    assert figures(judged(found + compiled, 11)) == figures(judged(found, 11))


def test_times_of_a_run_that_changed_machines_are_not_compared() -> None:
    truth = dict.fromkeys(CLAIMS[10].rows, 50.0)
    found, moved = ledger(truth, seeds=3), [item for item in ledger(truth, seeds=5) if item[1]["run"]["seed"] > 2]
    for _, content in moved:
        content["timings"] |= {"epochs": [{"train_seconds": 1.0}], "earlier": [{"environment": {}, "code": {}, "epochs": 1}]}
    assert judged(found + moved, 11).seeds == "3"
    assert figures(judged(found + moved, 11)) == figures(judged(found, 11))


def test_rows_on_different_images_are_not_compared() -> None:
    """The profile mini gives rows with the CIFAR stem fewer images than those with the default one."""
    judgement = judged(ledger(STUDY, profile="mini"), 7, "mini")
    assert judgement.verdict == "not decidable"
    assert "not comparable in this profile, which trains on 5,000 and 8,000 images" in why(judgement)
    assert judged(ledger(STUDY, profile="mini"), 10, "mini").verdict == "supported"


def test_different_epochs_are_told() -> None:
    assert "50 and 100 epochs" in why(judged(ledger(STUDY), 8))


def test_rows_from_other_weights_are_judged_among_themselves() -> None:
    better = STUDY | {name: 79.0 for name in STUDY if "/E" in name}
    found = ledger(STUDY) + ledger(better, weights=STAND_IN)
    unique = {item[0]: item for item in found if item[1]["configuration"]["weights"]}
    first, second = judgements(unique.values(), 1)
    assert (first.weights, first.starts_as_the_study, first.verdict) == (IMAGENET.name, True, "supported")
    assert (second.weights, second.starts_as_the_study, second.verdict) == (STAND_IN.name, False, "contradicted")
    section = claims_section("paper", rows_of("paper", list(unique.values()))[0])
    assert "From `stand-in.safetensors`, **not** as in the study (profile `paper`):" in section
    assert f"From `{IMAGENET.name}`, as in the study (profile `paper`):" in section


def test_a_smaller_budget_is_said_over_the_verdicts() -> None:
    """In four epochs on a subset a claim may well be contradicted; it is not the study that is."""
    contrary = STUDY | {"cifar100/matched_vit": 57.0}
    section = claims_section("mini", rows_of("mini", ledger(contrary, profile="mini"))[0])
    assert "From random weights, as in the study, and **not** with its budget (profile `mini`):" in section
    assert "contradicted" in section
    assert "budget" not in claims_section("paper", rows_of("paper", ledger(STUDY))[0])


def test_two_files_of_the_same_name_are_two_sets_of_weights() -> None:
    other = Weights(STAND_IN.name, "6" * 64)
    found = ledger(STUDY, weights=STAND_IN) + ledger(STUDY, weights=other)
    pretrained = [item for item in found if item[1]["configuration"]["weights"]]
    names = [judgement.weights for judgement in judgements(pretrained, 4)]
    assert names == ["stand-in.safetensors (55555555)", "stand-in.safetensors (66666666)"]


def test_equal_differences_test_nothing() -> None:
    ties = [record(name, seed, 75.0 + seed) for name in CLAIMS[3].rows for seed in range(2)]
    assert (judged(ties, 4).verdict, why(judged(ties, 4))) == ("not decidable", "no spread over the seeds to test with")
    found = [
        record(f"cifar100/matched_{m}", seed, value + seed) for m, value in (("convnext", 56.0), ("vit", 50.0)) for seed in range(3)
    ]
    assert "no spread over the seeds to test with" in why(judged(found, 10))


def test_a_small_gain_that_is_sure_contradicts_and_one_that_is_not_does_not() -> None:
    """ "Does not help" is about gains that matter, until even a small one is shown."""
    for gain, spread, verdict in ((0.2, 0.01, "contradicted"), (0.0, 0.05, "supported"), (MARGIN, 0.5, "not decidable")):
        truth = {"cifar100/scratch_convnext": 50.0, "cifar100/scratch_dual": 50.0 + gain}
        assert judged(ledger(truth, spread=spread), 8).verdict == verdict


def test_a_small_gain_is_contradicted_by_the_test_against_none() -> None:
    """The margin is tolerated while a gain is unsure; the p-value is that of no gain, and the page says both."""
    judgement = judged(ledger({"cifar100/scratch_convnext": 50.0, "cifar100/scratch_dual": 50.2}, spread=0.01), 8)
    (outcome,) = judgement.deciding
    assert outcome.paired and outcome.paired.high and outcome.paired.high < MARGIN
    assert judgement.p == outcome.paired.p_against(0.0) != outcome.paired.p_against(MARGIN)
    assert why(judgement).startswith("claimed was no gain (up to 0.3 tolerated): p < 0.001")
    assert "a gain\nthat is shown to be above 0 contradicts it, however small" in METHOD


def test_a_gain_that_one_of_many_intervals_shows_supports_nothing() -> None:
    """Holm's correction for six comparisons keeps it from contradicting; it does not turn it into "no gain"."""
    found = [record("cifar100/baseline", seed, 75.0) for seed in range(3)]
    for row, gain in zip(SINGLES, (0.1, -1.0, -1.0, -1.0, -1.0, -1.0), strict=True):
        found += [record(row, seed, 75.0 + gain + chance) for seed, chance in enumerate((-0.04, 0.0, 0.04))]
    judgement = judged(found, 1)
    gain = judgement.deciding[0].paired
    assert gain and gain.low and gain.high and 0 < gain.low < gain.high < MARGIN
    assert (judgement.verdict, [outcome.inside for outcome in judgement.deciding]) == ("not decidable", [False] + [True] * 5)


def row(name: str, accuracies: Iterable[float]) -> Row:
    return Row(find(name), None, tuple(record(name, seed, accuracy) for seed, accuracy in enumerate(accuracies)))


def test_under_the_null_claims_are_rarely_contradicted() -> None:
    """Six blocks that are as good as the baseline: a gain is claimed against in 2.5 % of ledgers, and Holm keeps six to that."""
    chance = np.random.default_rng(0)
    verdicts = []
    for _ in range(400):
        rows = {name: row(name, chance.normal(76.0, 0.5, 3)) for name in CLAIMS[0].rows}
        verdicts.append(judge(CLAIMS[0], rows).verdict)
    share = statistics.fmean(verdict == "contradicted" for verdict in verdicts)
    assert 0 < share < 0.05, "2.5 %, and three standard errors of 400 ledgers above"


def test_every_comparison_is_listed_with_its_figures() -> None:
    judgement = judged(ledger(STUDY), 3)
    lines = comparison_lines(judgement)
    assert [line["claim"] for line in lines] == ["3"] * 7 + ["beside 3"]
    last = lines[6]
    assert (last["comparison"], last["claimed"], last["n"]) == ("`A_dual` − `baseline`", "below 0", 5)
    paired = judgement.deciding[6].paired
    assert paired and paired.low and paired.high and paired.p and paired.detectable
    assert last["difference"] == f"{paired.mean:+.2f}"
    assert last["95 % interval"] == f"[{paired.low:+.2f}, {paired.high:+.2f}]"
    assert (last["p"], last["flip"]) == ("< 0.001", "0.062")
    assert last["could show"] == f"{paired.detectable:.2f} points"
    assert last[""] == "for"


def test_what_stands_beside_a_claim_decides_nothing() -> None:
    without = {name: value for name, value in STUDY.items() if name not in CONTROLS}
    for number in (1, 3, 5, 8, 9):
        assert judged(ledger(without), number).verdict == "supported"
        assert "to the control" not in figures(judged(ledger(without), number))
        assert "to the control" in figures(judged(ledger(STUDY), number))


def test_the_stems_gain_stands_beside_the_one_of_its_schedule() -> None:
    """Claim 7 is about two rows that differ in more than the stem; the page says in what, and shows a fairer pair."""
    judgement = judged(ledger(STUDY | {"cifar100/baseline_F2": 76.0}, spread=0.0), 7)
    assert judgement.verdict == "not decidable", "no spread to test with"
    assert figures(judgement).startswith("`stem_baseline` − `baseline`: +8.54")
    assert figures(judgement).endswith("`stem_baseline` − `baseline_F2`: +9.78")
    assert "regime F2 and full, label smoothing 0.1 and 0, 45,000 and 50,000 training images" in why(judgement)
    notes = {line["comparison"]: line["note"] for line in comparison_lines(judgement)}
    assert notes["`stem_baseline` − `baseline_F2`"] == "label smoothing 0.1 and 0, 45,000 and 50,000 training images"
    assert notes["`stem_dual` − `stem_baseline`"] == ""


def test_the_cost_of_attention_on_two_data_sets_is_told_with_one_schedule_too() -> None:
    truth = STUDY | {"cifar100/baseline_F2": 76.2}
    judgement = judged(ledger(truth), 12)
    assert "cost on CIFAR-100 − here: +1.1" in figures(judgement) and "control of either: +0.1" in figures(judgement)
    assert why(judgement).endswith("; regime F2 and full")
    beside = comparison_lines(judgement)[-1]
    assert beside["comparison"] == "(`fashion_mnist/A_dual` − `fashion_mnist/baseline`) − (`A_dual` − `baseline_F2`)"
    assert (beside["claim"], beside["note"]) == ("beside 12", "")


def test_rows_of_one_network_have_no_note_on_the_schedule_that_is_compared() -> None:
    """Claim 2 is about regimes."""
    assert {outcome.note for outcome in judged(ledger(STUDY), 2).deciding} == {""}
    assert [outcome.note for outcome in judged(ledger(STUDY), 1).deciding[:2]] == ["regime F0 and full", "regime F1 and full"]


def test_claims_name_rows_of_the_catalog_and_each_row_of_the_study_has_one() -> None:
    named = {name for claim in CLAIMS for name in claim.rows}
    added_here = CONTROLS | {"fashion_mnist/scratch_convnext"}
    dual, four_heads = (find(f"fashion_mnist/{row}") for row in ("A_dual", "B_heads4"))
    assert (dual.model, dual.recipe, dual.regime) == (four_heads.model, four_heads.recipe, four_heads.regime), "once is enough"
    assert named == {experiment.name for experiment in EXPERIMENTS} - added_here - {four_heads.name}
    assert [claim.number for claim in CLAIMS] == list(range(1, 13))


def test_smoke_judges_nothing() -> None:
    rows, _ = rows_of("smoke", ledger({"cifar100/baseline": 1.0}, profile="smoke"))
    assert "Not judged" in claims_section("smoke", rows)


def test_an_outcome_without_figures_speaks_neither_for_nor_against() -> None:
    outcome = Outcome(CLAIMS[0].comparisons[0], None)
    assert (outcome.inside, outcome.p_for, outcome.p_against) == (False, 1.0, 1.0)
