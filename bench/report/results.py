"""The text of RESULTS.md, section by section. Every number in it comes from a record, the catalog or a recipe."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.catalog import EXPERIMENTS
from bench.ledger import Record
from bench.profiles import PROFILES
from bench.report.decisions import DECISIONS
from bench.report.rows import Found, Row, mean_and_deviation, rows_of, weights_name

INTRODUCTION = """\
# Results

Written by `make report` from the records under `records/` in the results folder, and from nothing else; do not edit it.
Accuracies are in percent. "Study" is the number that the study reports; "ours" is the same kind of accuracy (column "accuracy"), as
mean ± standard deviation over the seeds; "difference" is ours minus the study's. Only the profile `paper` has the study's budget:
under a smaller one the difference shows the budget. "Best test" is the highest test accuracy over the epochs, "last test" that of
the last epoch, "test at best validation" that of the epoch with the highest validation accuracy.
"""

SELECTIONS = {
    "best_test": "best test",
    "test_at_best_validation": "test at best validation",
    "best_validation": "best validation",
}


def results_page(found: Sequence[Found], folder: Path) -> str:
    """Return the whole page.

    Args:
        found: the ledger's records with their paths.
        folder: where the page will lie; links are relative to it.
    """
    sections = [INTRODUCTION, _summary(found)]
    for profile in PROFILES:
        if any(record["run"]["profile"] == profile for _, record in found):
            sections += _profile_sections(profile, found, folder)
        elif profile != "smoke":
            sections.append(f"## Profile `{profile}`\n\nNot run: the ledger has no record of this profile.\n")
    sections += [_decisions(), _machines(found), _records(found, folder)]
    return "\n".join(sections)


def headline_table(found: Sequence[Found]) -> str:
    """Return the README's table: every row that was run, of every profile but smoke."""
    table = []
    for profile in PROFILES:
        if profile == "smoke":
            continue
        for row in rows_of(profile, found)[0]:
            if not row.found:
                continue
            ours = _ours(row)
            first = row.found[0][1]
            table.append(
                {
                    "experiment": f"`{row.experiment.name}`",
                    "profile": profile,
                    "study": _percent(row.experiment.reported),
                    "ours": ours,
                    "seeds": len(row.done),
                    "accuracy": SELECTIONS[row.experiment.selection],
                    "device": first["environment"]["device"],
                    "commit": ", ".join(f"`{commit}`" for commit in sorted({_commit(record) for _, record in row.found})),
                }
            )
    return _table(table) if table else "Nothing was run yet."


# ---- sections ----------------------------------------------------------------------------------------------------------


def _summary(found: Sequence[Found]) -> str:
    statuses: dict[tuple[str, str], int] = {}
    for _, record in found:
        key = (record["run"]["profile"], record["results"]["status"])
        statuses[key] = statuses.get(key, 0) + 1
    lines = [f"- profile `{profile}`: {count} {status}" for (profile, status), count in sorted(statuses.items())]
    return "Records:\n\n" + ("\n".join(lines) or "- none") + "\n"


def _profile_sections(profile: str, found: Sequence[Found], folder: Path) -> list[str]:
    rows, unfitting = rows_of(profile, found)
    doc = (PROFILES[profile].__doc__ or "").split("\n\n")[0].strip()
    sections = [f"## Profile `{profile}`\n\n{doc}\n"]
    sections += _weights_note(rows)
    for title in dict.fromkeys(experiment.table for experiment in EXPERIMENTS):
        sections.append(f"### {title}\n\n{_table([_accuracy_line(row) for row in rows if row.experiment.table == title])}\n")
    sections.append(f"### Time\n\n{TIME_NOTE}\n\n{_table([_time_line(row) for row in rows if row.done])}\n")
    sections.append(f"### Recipes\n\n{RECIPE_NOTE}\n\n{_table([_recipe_line(row) for row in _one_per_experiment(rows)])}\n")
    if unfitting:
        names = ", ".join(f"`{_relative(path, folder)}`" for path, _ in unfitting)
        sections.append(f"Not shown, because the catalog's configuration has changed since they were made: {names}\n")
    return sections


def _weights_note(rows: Sequence[Row]) -> list[str]:
    names = sorted({row.weights for row in rows if row.weights})
    if not names:
        return []
    listed = ", ".join(f"`{name}`" for name in names)
    return [f"Rows with pretrained weights started from {listed}; the column `weights` says which.\n"]


def _accuracy_line(row: Row) -> dict[str, Any]:
    experiment = row.experiment
    cost = row.done[0]["cost"] if row.done else None
    values = row.accuracies(experiment.selection)
    difference = statistics.fmean(values) - experiment.reported if values and experiment.reported is not None else None
    return {
        "experiment": f"`{experiment.name.partition('/')[2]}`",
        "stem": experiment.model.stem,
        "weights": row.weights or experiment.weights,
        "regime": experiment.regime,
        "parameters": f"{cost['parameters']:,}" if cost else "",
        "multiply-adds (M)": f"{cost['multiply_adds'] / 1e6:.2f}" if cost else "",
        "accuracy": SELECTIONS[experiment.selection],
        "study": _percent(experiment.reported) or experiment.note,
        "ours": _ours(row),
        "difference": "" if difference is None else f"{difference:+.2f}",
        "best test": mean_and_deviation(row.accuracies("best_test")),
        "last test": mean_and_deviation(row.accuracies("last_test")),
        "test at best validation": mean_and_deviation(row.accuracies("test_at_best_validation")),
        "seeds": ", ".join(str(record["run"]["seed"]) for record in row.done),
    }


TIME_NOTE = (
    "Seconds and images per second are medians over the epochs of all seeds, as they came while training; other work may have "
    "shared the machine."
)


def _time_line(row: Row) -> dict[str, Any]:
    epochs = [epoch for record in row.done for epoch in record["timings"]["epochs"]]
    images = row.done[0]["results"]["epochs"][0]["train"]["images"]
    seconds = statistics.median(epoch["train_seconds"] for epoch in epochs)
    return {
        "experiment": f"`{row.experiment.name}`",
        "device": ", ".join(sorted({_device(record) for record in row.done})),
        "training s/epoch": f"{seconds:.1f}",
        "training images/s": f"{images / seconds:,.0f}",
        "evaluation s/epoch": f"{statistics.median(epoch['evaluation_seconds'] for epoch in epochs):.1f}",
        "precision": row.experiment.recipe.precision,
    }


RECIPE_NOTE = (
    "AdamW; a linear warm-up over the first steps, then a cosine to zero. Frozen: leading epochs in which only the head trains. "
    "The reasons for the figures stand in `bench/catalog.py`."
)


def _recipe_line(row: Row) -> dict[str, Any]:
    experiment, recipe = row.experiment, row.experiment.recipe
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


def _decisions() -> str:
    table = [
        {
            "": decision.key,
            "open in the study": decision.question,
            "here": decision.decision,
            "because": decision.reason,
        }
        for decision in DECISIONS
    ]
    return f"## Decisions\n\n{_table(table)}\n"


def _machines(found: Sequence[Found]) -> str:
    if not found:
        return "## Machines\n\nNone.\n"
    lines = sorted({tuple((key, str(value)) for key, value in sorted(record["environment"].items())) for _, record in found})
    table = [{"": _device_key(dict(line)), **{key: value for key, value in line if value != "None"}} for line in lines]
    return f"## Machines\n\n{_table(table)}\n"


def _records(found: Sequence[Found], folder: Path) -> str:
    if not found:
        return "## Records\n\nNone.\n"
    table = []
    for path, record in found:
        final = record["results"]["final"]
        table.append(
            {
                "record": f"[{record['run']['profile']}/{record['run']['experiment']}, seed {record['run']['seed']}]"
                f"({_relative(path, folder)})",
                "status": record["results"]["status"] + (f": {record['results']['error']}" if record["results"]["error"] else ""),
                "best test": _percent(final["best_test"]["accuracy"]) if final else "",
                "initial weights": weights_name(record) or "random",
                "commit": f"`{_commit(record)}`",
                "lock": f"`{record['code']['requirements_lock_sha256'][:12]}`",
                "data (train)": f"`{record['data']['train_sha256'][:12]}`" if record["data"] else "",
                "configuration": f"`{record['run']['configuration_sha256'][:12]}`",
                "restarts": record["timings"]["restarts"],
            }
        )
    return f"## Records\n\nCommits, and the first 12 digits of SHA-256 hashes.\n\n{_table(table)}\n"


# ---- cells ---------------------------------------------------------------------------------------------------------------


def _ours(row: Row) -> str:
    if not row.found:
        return "not run"
    parts = [mean_and_deviation(row.accuracies(row.experiment.selection))]
    parts += [f"{row.failures.count(status)} {status}" for status in dict.fromkeys(row.failures)]
    return ", ".join(part for part in parts if part)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _commit(record: Record) -> str:
    code = record["code"]
    return (code["commit"] or "unknown")[:12] + ("-dirty" if code["dirty"] else "")


def _device(record: Record) -> str:
    return _device_key(record["environment"])


def _device_key(environment: dict[str, Any]) -> str:
    threads = "" if str(environment["cuda"]) != "None" else f", {environment['threads']} threads"
    return f"{environment['device']}{threads}"


def _one_per_experiment(rows: Sequence[Row]) -> list[Row]:
    return list({row.experiment.name: row for row in rows}.values())


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _table(lines: Sequence[dict[str, Any]]) -> str:
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
