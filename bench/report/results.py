"""The text of RESULTS.md, section by section. Every number in it comes from a record, the catalog or a recipe."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.catalog import EXPERIMENTS
from bench.environment import device_in_words
from bench.ledger import Record
from bench.profiles import PROFILES
from bench.provenance import locked_instead, torch_version
from bench.report.cells import Line, commit, percent, table
from bench.report.decisions import DECISIONS
from bench.report.figures.pictures import pictures
from bench.report.opening import opening
from bench.report.reproduce import NOTE as REPRODUCE
from bench.report.reproduce import commands
from bench.report.rows import Found, Row, rows_of, weights_name
from bench.report.tables import SELECTIONS, accuracy_lines, marked_table, ours, paired, recipe_line
from bench.report.throughput import throughput_section
from bench.report.times import TIME_NOTE, time_line
from bench.report.verdicts import METHOD, claims_section
from bench.report.where_time_goes import where_time_goes

READING = """\
"Study" is the number that the study reports; "ours" is the same kind of accuracy in percent (column "accuracy"), as mean ± standard
deviation over the seeds; "difference" is ours minus the study's, left out where our row started from other pretrained weights or
had a smaller budget, as under every profile but `paper`. "Seeds" are their numbers. "To baseline" and "to control" are our own
differences in percentage points, paired over the seeds that both rows have: to the row that the study holds it against, and to the
ConvNeXt without attention that trains by the same schedule. "Best test" is the highest test accuracy over the epochs, "last test"
that of the last epoch, "test at best validation" that of the epoch with the highest validation accuracy. Maps are the sides of the
feature maps that the attention sees: 8x8 are 64 tokens. Alpha is the gate after the last epoch, with the study's in brackets. Its
sign is chance, so where seeds differ in it the mean is that of the sizes, "in size". `make report` writes this page from what lies
in the results folder, records, figures and measurements of speed, and from nothing else; do not edit it.
"""

RECIPE_NOTE = (
    "AdamW; a linear warm-up over the first steps, then a cosine to zero. Frozen: leading epochs in which only the head and the "
    "attention train. The reasons for the figures stand in `bench/catalog.py`."
)
RECORDS_NOTE = (
    "Commits, and the first 12 digits of SHA-256 hashes. Where a record names another commit, for a copy of the sources lay beside "
    "an older repository, the hash of the sources tells whose they are. The lock is the one that lay beside the code; a run that "
    "had another torch than it pins, its machine's own, says which."
)

# Pretrained backbones that a reader should know more of than a file name, by the SHA-256 of the file.
BACKBONES = {
    "983f1562536e84ff750a1576fb08e54de751dbf2e17c0d8a4a13704341fdcd3d": "torchvision's ImageNet-1k weights, as in the study.",
    "a6b9e19c045f1940bd43c3209708d8f8d0ccdf7b85561947468b855c49b8ea23": (
        "a stand-in, **not ImageNet-1k weights**: ConvNeXt-Tiny trained for 16 epochs on Tiny-ImageNet-200 at 32x32 (30.3 % top-1 "
        "on its validation images). Rows that start from it can be compared with each other, not with the study's."
    ),
}
UNKNOWN_BACKBONE = "a file of the user's, **not ImageNet-1k weights**; not comparable with the study's accuracies."

HEADLINE = (
    "cifar100/baseline",
    "cifar100/baseline_F0",
    "cifar100/baseline_F1",
    "cifar100/baseline_F2",
    "cifar100/E1_P2_F0",
    "cifar100/E2_P2_F1",
    "cifar100/E3_P2_F2",
    "cifar100/E4_P3_F0",
    "cifar100/E5_P3_F1",
    "cifar100/E6_P3_F2",
    "cifar100/A_dual",
    "cifar100/stem_baseline",
    "cifar100/stem_dual",
    "cifar100/scratch_convnext",
    "cifar100/scratch_dual",
    "cifar100/scratch_vit_tiny",
    "cifar100/scratch_mixer_tiny",
    "cifar100/matched_convnext",
    "cifar100/matched_vit",
    "fashion_mnist/baseline",
    "fashion_mnist/A_dual",
    "fashion_mnist/scratch_convnext",
)


def results_page(found: Sequence[Found], folder: Path, results: Path | None = None) -> str:
    """Return the whole page.

    Args:
        found: the ledger's records with their paths.
        folder: where the page will lie; links are relative to it.
        results: the results folder, for what lies there beside the records; None: ``folder``.
    """
    sections = [
        opening(found),
        _elsewhere(results or folder, folder),
        how_to_read(),
        *(_profile(profile, found, folder) for profile in PROFILES),
        _figures(results or folder, folder),
        throughput_section((results or folder) / "throughput"),
        where_time_goes((results or folder) / "profile", folder),
        decisions(),
        machines(found),
        _records(found, folder),
    ]
    return "\n".join(section for section in sections if section)


def headline_table(found: Sequence[Found]) -> str:
    """Return the README's table: the headline rows that were run, of the largest profile that was run at all but smoke."""
    profiles = [profile for profile in PROFILES if profile != "smoke" and any(r["run"]["profile"] == profile for _, r in found)]
    rows = rows_of(profiles[0], found)[0] if profiles else []
    by_name = {(row.experiment.name, row.weights): row for row in rows}
    lines = [
        {
            "experiment": f"`{row.experiment.name}`",
            "profile": profiles[0],
            "study": row.experiment.note or percent(row.experiment.reported),
            "ours": ours(row),
            "to control": paired(row, by_name, row.experiment.control),
            "to baseline": paired(row, by_name, row.experiment.baseline),
            "accuracy": SELECTIONS[row.experiment.selection],
            "n": len(row.done),
            "device": ", ".join(sorted({device_in_words(record["environment"]) for _, record in row.found})),
            "commit": ", ".join(f"`{name[:7]}`" for name in sorted({commit(record) for _, record in row.found})),
        }
        for row in rows
        if row.found and row.experiment.name in HEADLINE
    ]
    return marked_table(lines) if lines else "Nothing was run yet."


def _elsewhere(results: Path, folder: Path) -> str:
    page, csv, json = (_relative(results / name, folder) for name in ("report.html", "results.csv", "results.json"))
    return f"The same with tables to sort and curves to read: [report.html]({page}); for programs: [CSV]({csv}), [JSON]({json}).\n"


def how_to_read() -> str:
    """The section that explains the tables, the commands and the claims."""
    return f"## How to read this page\n\n**Tables.** {READING}\n**Commands.** {REPRODUCE}\n**Claims.** {METHOD}"


def _profile(profile: str, found: Sequence[Found], folder: Path) -> str:
    """Everything that was run under one profile; nothing for a smoke profile that was not."""
    if not any(record["run"]["profile"] == profile for _, record in found):
        return "" if profile == "smoke" else f"## Profile `{profile}`\n\nNot run: the ledger has no record of this profile.\n"
    rows, unfitting = rows_of(profile, found)
    return "\n".join(
        [
            *profile_note(profile, found),
            *_tables(profile, rows),
            claims_section(profile, rows),
            _time(rows),
            _recipes(rows),
            *_unfitting(unfitting, folder),
        ]
    )


def _tables(profile: str, rows: Sequence[Row]) -> list[str]:
    """The tables of the study, each under the commands that make its records."""
    by_name = {(row.experiment.name, row.weights): row for row in rows}
    sections = []
    for title in dict.fromkeys(experiment.table for experiment in EXPERIMENTS):
        its = [row for row in rows if row.experiment.table == title]
        sections.append(f"### {title}\n\n{commands(profile, its)}{marked_table(accuracy_lines(its, by_name))}\n")
    return sections


def _time(rows: Sequence[Row]) -> str:
    return f"### Time\n\n{TIME_NOTE}\n\n{table([time_line(row) for row in rows if row.timed])}\n"


def _recipes(rows: Sequence[Row]) -> str:
    experiments = {row.experiment.name: row.experiment for row in rows}
    return f"### Recipes\n\n{RECIPE_NOTE}\n\n{table([recipe_line(experiment) for experiment in experiments.values()])}\n"


def _unfitting(records: Sequence[Found], folder: Path) -> list[str]:
    names = ", ".join(f"`{_relative(path, folder)}`" for path, _ in records)
    return [f"Not shown, because the catalog's configuration has changed since they were made: {names}\n"] if names else []


def profile_note(profile: str, found: Sequence[Found]) -> list[str]:
    """The heading of a profile, what it is, and what its fine-tuning rows started from."""
    doc = (PROFILES[profile].__doc__ or "").split("\n\n")[0].strip()
    return [f"## Profile `{profile}`\n\n{doc}\n", *_backbones(profile, found)]


def _backbones(profile: str, found: Sequence[Found]) -> list[str]:
    used = {
        (weights["name"], weights["sha256"])
        for _, record in found
        if record["run"]["profile"] == profile and (weights := record["configuration"]["weights"])
    }
    lines = [f"- `{name}` (SHA-256 `{digest[:12]}`): {BACKBONES.get(digest, UNKNOWN_BACKBONE)}" for name, digest in sorted(used)]
    return ["Pretrained backbones:\n\n" + "\n".join(lines) + "\n"] if lines else []


def _figures(results: Path, folder: Path) -> str:
    """The figures that `make figures` has drawn for this ledger."""
    shown = [
        f"### {picture.words.title}{f' (profile `{picture.profile}`)' if picture.profile else ''}\n\n"
        f"![{picture.words.title}]({_relative(picture.svg, folder)})\n\n{picture.words.caption}\n"
        for picture in pictures(results)
    ]
    return "\n".join(["## Figures\n\nDrawn by `make figures` from the records.\n", *shown]) if shown else ""


def decisions() -> str:
    """The section on what the study leaves open."""
    lines = [
        {"": decision.key, "open in the study": decision.question, "here": decision.decision, "because": decision.reason}
        for decision in DECISIONS
    ]
    return f"## Decisions\n\n{table(lines)}\n"


def machines(found: Sequence[Found]) -> str:
    """The section with every environment of the ledger."""
    environments = {repr(sorted(record["environment"].items())): record["environment"] for _, record in found}
    columns = sorted({key for environment in environments.values() for key in environment})
    lines = [
        {"machine": device_in_words(environment), **{key: _shown(environment.get(key)) for key in columns if key != "device"}}
        for _, environment in sorted(environments.items())
    ]
    return f"## Machines\n\n{table(lines) if lines else 'None.'}\n"


def _records(found: Sequence[Found], folder: Path) -> str:
    lines = record_lines(found, lambda path: _relative(path, folder))
    return f"## Records\n\n{RECORDS_NOTE}\n\n{table(lines)}\n" if lines else "## Records\n\nNone.\n"


def record_lines(found: Sequence[Found], address: Callable[[Path], str]) -> list[Line]:
    """One line for each record, with a link to its address."""
    lines = []
    for path, record in found:
        run, results = record["run"], record["results"]
        lines.append(
            {
                "record": f"[{run['profile']}/{run['experiment']}, seed {run['seed']}]({address(path)})",
                "status": results["status"] + (f": {results['error']}" if results["error"] else ""),
                "best test": percent(results["final"]["best_test"]["accuracy"]) if results["final"] else "",
                "initial weights": weights_name(record) or "random",
                "commit": f"`{commit(record)}`",
                "lock": f"`{record['code']['requirements_lock_sha256'][:12]}`{_another_torch(record)}",
                "data (train)": f"`{record['data']['train_sha256'][:12]}`" if record["data"] else "",
                "configuration": f"`{run['configuration_sha256'][:12]}`",
                "restarts": record["timings"]["restarts"],
            }
        )
    return lines


def _another_torch(record: Record) -> str:
    """What a lock's cell adds where the run did not have the lock's torch."""
    return f" but torch {torch_version(record['environment'])}" if locked_instead(record) else ""


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
