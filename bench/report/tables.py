"""The tables of RESULTS.md: each function turns rows into the lines of one table, each line a dict from column to cell."""

import statistics
from collections.abc import Mapping, Sequence

from bench.experiment import Experiment
from bench.report.cells import Line, attention_name, model_name, percent, table
from bench.report.environments import MARK, MARKED, unlike, unlike_pairs
from bench.report.paired import compare
from bench.report.rows import Row, accuracy_differences, mean_and_deviation

SELECTIONS = {
    "best_test": "best test",
    "test_at_best_validation": "test at best validation",
    "best_validation": "best validation",
}


def marked_table(lines: Sequence[Line]) -> str:
    """The same, with the meaning of the mark below where one of the cells has it."""
    text = table(lines)
    return f"{text}\n\n{MARKED}" if MARK in text else text


# ---- accuracy ----------------------------------------------------------------------------------------------------------


def accuracy_lines(rows: Sequence[Row], compared: Mapping[tuple[str, str | None], Row]) -> list[Line]:
    """One line for each row.

    Args:
        rows: those of one table of the study.
        compared: all rows of the profile by experiment name and initial weights, to look up baselines and controls.
    """
    return [_accuracy_line(row, compared) for row in rows]


def _accuracy_line(row: Row, compared: Mapping[tuple[str, str | None], Row]) -> Line:
    experiment = row.experiment
    cost = row.done[0]["cost"] if row.done else None
    values = row.accuracies(experiment.selection)
    difference = ""
    if values and experiment.reported is not None and row.comparable_with_the_study:
        difference = f"{statistics.fmean(values) - experiment.reported:+.2f}"
    return {
        "experiment": f"`{experiment.name.partition('/')[2]}`",
        "model": model_name(experiment),
        "attention": attention_name(experiment),
        "maps": ", ".join(f"{site} {h}x{w}" for site, (h, w) in sorted(cost.get("attention_maps", {}).items())) if cost else "",
        "regime": experiment.regime,
        "weights": row.weights or experiment.weights,
        "parameters": f"{cost['parameters']:,}" if cost else "",
        "added": f"{cost['attention_parameters']:,}" if cost and experiment.model.attention else "",
        "multiply-adds (M)": f"{cost['multiply_adds'] / 1e6:.2f}" if cost else "",
        "accuracy": SELECTIONS[experiment.selection],
        "study": experiment.note or percent(experiment.reported),
        "ours": ours(row),
        "seeds": ", ".join(str(seed) for seed in row.by_seed("best_test")),
        "difference": difference,
        "to baseline": paired(row, compared, experiment.baseline),
        "to control": paired(row, compared, experiment.control),
        "best test": mean_and_deviation(row.accuracies("best_test")),
        "last test": mean_and_deviation(row.accuracies("last_test")),
        "test at best validation": mean_and_deviation(row.accuracies("test_at_best_validation")),
        "alpha P2": _gate(row, "P2"),
        "alpha P3": _gate(row, "P3"),
    }


def _gate(row: Row, site: str) -> str:
    """Alpha after the last epoch, its size where seeds differ in the sign, and the study's in brackets."""
    alphas = list(row.gates(site).values())
    mine = mean_and_deviation(alphas, digits=4)
    if row.gates_differ_in_sign(site):
        above = sum(alpha > 0 for alpha in alphas)
        mine = f"{mean_and_deviation([abs(alpha) for alpha in alphas], digits=4)} in size, {above} of {len(alphas)} above 0"
    study = (row.experiment.reported_gates or {}).get(site)  # type: ignore[call-overload]
    return mine + (f" [{study:+.4f}]" if study is not None else "")


# ---- recipes ------------------------------------------------------------------------------------------------------------


def recipe_line(experiment: Experiment) -> Line:
    """Every figure of a recipe."""
    recipe = experiment.recipe
    return {
        "experiment": f"`{experiment.name}`",
        "train images": experiment.train_images or "all",
        "test images": experiment.test_images or "all",
        "epochs": recipe.epochs,
        "frozen": recipe.frozen_epochs if experiment.regime != "full" else 0,
        "batch": recipe.batch_size,
        "head LR": f"{recipe.head_lr:g}",
        "backbone LR": f"{recipe.backbone_lr:g}",
        "weight decay": f"{recipe.weight_decay:g}",
        "betas": ", ".join(f"{beta:g}" for beta in recipe.betas),
        "warm-up": f"{recipe.warmup_fraction:.0%}",
        "label smoothing": f"{recipe.label_smoothing:g}",
        "validation": f"{recipe.validation_fraction:.0%}",
        "patience": recipe.patience or "",
        "precision": recipe.precision,
    }


def paired(row: Row, compared: Mapping[tuple[str, str | None], Row], name: str | None) -> str:
    """Mean difference over the seeds that both rows have, from the same initial weights; empty where there are none.

    Marked where the two runs of a pair were not computed alike.
    """
    other = compared.get((name or "", row.weights))
    if other is None:
        return ""
    differences = accuracy_differences(row, other)
    if not differences:
        return ""
    mark = f" {MARK}" if any(unlike_pairs((row, other), differences)) else ""
    return f"{compare(list(differences.values())).mean:+.2f} (n = {len(differences)}){mark}"


def ours(row: Row) -> str:
    """The row's accuracy over its seeds, marked where they were not computed alike, and every failure; or "not run"."""
    if not row.found:
        return "not run"
    mark = f" {MARK}" if row.done and unlike(row.done) else ""
    parts = [f"{mean_and_deviation(row.accuracies(row.experiment.selection))}{mark}"]
    parts += [f"{row.failures.count(status)} {status}" for status in dict.fromkeys(row.failures)]
    return ", ".join(part for part in parts if part)
