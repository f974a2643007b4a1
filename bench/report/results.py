"""The text of RESULTS.md, section by section. Every number in it comes from a record, the catalog or a recipe."""

import os
from collections.abc import Sequence
from pathlib import Path

from bench.catalog import EXPERIMENTS
from bench.profiles import PROFILES
from bench.report.decisions import DECISIONS
from bench.report.rows import Found, Row, rows_of, weights_name
from bench.report.tables import (
    SELECTIONS,
    accuracy_lines,
    commit,
    device,
    ours,
    percent,
    recipe_line,
    table,
    time_line,
)

INTRODUCTION = """\
# Results

Written by `make report` from the records under `records/` in the results folder, and from nothing else; do not edit it.
Accuracies are in percent. "Study" is the number that the study reports; "ours" is the same kind of accuracy (column "accuracy"), as
mean ± standard deviation over the seeds; "difference" is ours minus the study's. Only the profile `paper` has the study's budget:
under a smaller one the difference shows the budget. "To baseline" and "to control" are our own differences, paired over the seeds
that both rows have: to the row without attention, and to the one that in addition was trained under the same regime. "Best test" is
the highest test accuracy over the epochs, "last test" that of the last epoch, "test at best validation" that of the epoch with the
highest validation accuracy. Maps are the sides of the feature maps that the attention sees: 8x8 are 64 tokens. Alpha is the gate
after the last epoch, with the study's in brackets.
"""

TIME_NOTE = (
    "Seconds and images per second are medians over the epochs of all seeds, as they came while training; other work may have "
    "shared the machine."
)
RECIPE_NOTE = (
    "AdamW; a linear warm-up over the first steps, then a cosine to zero. Frozen: leading epochs in which only the head and the "
    "attention train. The reasons for the figures stand in `bench/catalog.py`."
)
IMAGENET_FILE = "convnext_tiny-983f1562.pth"


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
    lines = [
        {
            "experiment": f"`{row.experiment.name}`",
            "profile": profile,
            "weights": row.weights or "none",
            "study": row.experiment.note or percent(row.experiment.reported),
            "ours": ours(row),
            "accuracy": SELECTIONS[row.experiment.selection],
            "seeds": len(row.done),
            "device": ", ".join(sorted({device(record["environment"]) for _, record in row.found})),
            "commit": ", ".join(f"`{name}`" for name in sorted({commit(record) for _, record in row.found})),
        }
        for profile in PROFILES
        if profile != "smoke"
        for row in rows_of(profile, found)[0]
        if row.found
    ]
    return table(lines) if lines else "Nothing was run yet."


def _summary(found: Sequence[Found]) -> str:
    keys = [(record["run"]["profile"], record["results"]["status"]) for _, record in found]
    lines = [f"- profile `{profile}`: {keys.count((profile, status))} {status}" for profile, status in sorted(set(keys))]
    return "Records:\n\n" + ("\n".join(lines) or "- none") + "\n"


def _profile_sections(profile: str, found: Sequence[Found], folder: Path) -> list[str]:
    rows, unfitting = rows_of(profile, found)
    by_name = {(row.experiment.name, row.weights): row for row in rows}
    doc = (PROFILES[profile].__doc__ or "").split("\n\n")[0].strip()
    sections = [f"## Profile `{profile}`\n\n{doc}\n", *_weights_note(rows)]
    for title in dict.fromkeys(experiment.table for experiment in EXPERIMENTS):
        lines = accuracy_lines([row for row in rows if row.experiment.table == title], by_name)
        sections.append(f"### {title}\n\n{table(lines)}\n")
    sections.append(f"### Time\n\n{TIME_NOTE}\n\n{table([time_line(row) for row in rows if row.done])}\n")
    experiments = {row.experiment.name: row.experiment for row in rows}
    sections.append(f"### Recipes\n\n{RECIPE_NOTE}\n\n{table([recipe_line(experiment) for experiment in experiments.values()])}\n")
    if unfitting:
        names = ", ".join(f"`{_relative(path, folder)}`" for path, _ in unfitting)
        sections.append(f"Not shown, because the catalog's configuration has changed since they were made: {names}\n")
    return sections


def _weights_note(rows: Sequence[Row]) -> list[str]:
    names = sorted({row.weights for row in rows if row.weights})
    others = [name for name in names if name != IMAGENET_FILE]
    notes = []
    if names:
        notes.append(f"Rows with pretrained weights started from {', '.join(f'`{name}`' for name in names)}.\n")
    if others:
        listed = ", ".join(f"`{name}`" for name in others)
        notes.append(f"**{listed}: not ImageNet-1k weights. Rows that started from them are not comparable with the study's.**\n")
    return notes


def _decisions() -> str:
    lines = [
        {"": decision.key, "open in the study": decision.question, "here": decision.decision, "because": decision.reason}
        for decision in DECISIONS
    ]
    return f"## Decisions\n\n{table(lines)}\n"


def _machines(found: Sequence[Found]) -> str:
    environments = {repr(sorted(record["environment"].items())): record["environment"] for _, record in found}
    columns = sorted({key for environment in environments.values() for key in environment})
    lines = [
        {"machine": device(environment), **{key: _shown(environment.get(key)) for key in columns if key != "device"}}
        for _, environment in sorted(environments.items())
    ]
    return f"## Machines\n\n{table(lines) if lines else 'None.'}\n"


def _records(found: Sequence[Found], folder: Path) -> str:
    lines = []
    for path, record in found:
        run, results = record["run"], record["results"]
        lines.append(
            {
                "record": f"[{run['profile']}/{run['experiment']}, seed {run['seed']}]({_relative(path, folder)})",
                "status": results["status"] + (f": {results['error']}" if results["error"] else ""),
                "best test": percent(results["final"]["best_test"]["accuracy"]) if results["final"] else "",
                "initial weights": weights_name(record) or "random",
                "commit": f"`{commit(record)}`",
                "lock": f"`{record['code']['requirements_lock_sha256'][:12]}`",
                "data (train)": f"`{record['data']['train_sha256'][:12]}`" if record["data"] else "",
                "configuration": f"`{run['configuration_sha256'][:12]}`",
                "restarts": record["timings"]["restarts"],
            }
        )
    note = "Commits, and the first 12 digits of SHA-256 hashes."
    return f"## Records\n\n{note}\n\n{table(lines)}\n" if lines else "## Records\n\nNone.\n"


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
