"""``report.html``: what RESULTS.md says, with tables to sort and filter, curves to read values from, and every record inside.

Everything but the curves and the records' contents is there without JavaScript. The page fetches nothing; its policy forbids it.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from bench.ledger import Record
from bench.profiles import PROFILES
from bench.report.cells import Line, percent
from bench.report.claims import Judgement, judge_all
from bench.report.environments import MARK, MARKED
from bench.report.export import FINAL
from bench.report.figures.pictures import pictures
from bench.report.html import markdown
from bench.report.html.svg import inlined
from bench.report.opening import opening
from bench.report.results import RECIPE_NOTE, RECORDS_NOTE, decisions, how_to_read, machines, profile_note, record_lines
from bench.report.rows import Found, Row, rows_of
from bench.report.tables import accuracy_lines, recipe_line
from bench.report.throughput import throughput_section
from bench.report.times import TIME_NOTE, time_line
from bench.report.verdicts import COMPARISON_NOTE, comparison_lines, grouped, heading, verdict_lines
from bench.report.where_time_goes import where_time_goes

HERE = Path(__file__).parent
TITLE = "Does attention help a ConvNet on small images?"
COLUMNS = (  # of the table of all rows: what is asked first stands first
    "experiment",
    "ours",
    "seeds",
    "to control",
    "to baseline",
    "study",
    "difference",
    "best test",
    "last test",
    "test at best validation",
    "parameters",
    "multiply-adds (M)",
    "training images/s",
    "training s/epoch",
    "regime",
    "alpha P2",  # a printed page ends before this one
    "alpha P3",
    "evaluation s/epoch",
    "attention",
    "model",
    "maps",
    "device",
    "runs timed",
    "mode",
    "weights",
    "accuracy",
    "part",
)
UNDRAWN = "<p>The page's script draws them from its records.</p>"
NO_NUMBERS = {"seeds", "study", "device", "runs timed", "mode", "model", "attention", "regime", "weights", "accuracy", "part"}


def html_page(found: Sequence[Found], results: Path) -> str:
    """Return the page, whose links are relative to the results folder.

    Raises:
        UserError: a measurement in the folder is unreadable.
    """
    style, script = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    by_profile = {profile: rows_of(profile, found)[0] for profile in PROFILES if any(_is_of(profile, item) for item in found)}
    sections = [
        markdown.blocks(opening(found)),
        *(_profile(profile, rows, found) for profile, rows in by_profile.items()),
        _figures(results),
        markdown.blocks(throughput_section(results / "throughput")),
        markdown.blocks(where_time_goes(results / "profile", results)),
        markdown.blocks(how_to_read()),
        markdown.blocks(decisions()),
        markdown.blocks(machines(found)),
        _records(found, results, by_profile),
    ]
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f'<title>{TITLE}</title>\n<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(f"<section>\n{section}\n</section>" for section in sections if section)
        + f'\n</main>\n<script type="application/json" id="data">{_data(found, results, by_profile)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _is_of(profile: str, item: Found) -> bool:
    return bool(item[1]["run"]["profile"] == profile)


# ---- a profile -------------------------------------------------------------------------------------------------------------


def _profile(profile: str, rows: Sequence[Row], found: Sequence[Found]) -> str:
    """Its rows in one table, their curves, the claims, times and recipes."""
    ran = [row for row in rows if row.found]
    lacking = ", ".join(f"`{row.experiment.name}`" for row in rows if not row.found)
    lines = _row_lines(ran, rows)
    marked = any(MARK in str(cell) for line in lines for cell in line.values())
    return "\n".join(
        [
            markdown.blocks("\n".join(profile_note(profile, found))),
            markdown.table(lines, f"Rows of the profile {profile}"),
            markdown.blocks(MARKED if marked else ""),
            markdown.blocks(f"{TIME_NOTE}\n\n" + (f"Not run: {lacking}." if lacking else "")),
            f'<h3>Curves</h3>\n<div class="chart" data-profile="{profile}">{UNDRAWN}</div>',
            _claims(profile, rows),
            _folded(
                "Recipes", markdown.blocks(RECIPE_NOTE) + markdown.table([recipe_line(row.experiment) for row in ran], "Recipes")
            ),
        ]
    )


def _row_lines(ran: Sequence[Row], rows: Sequence[Row]) -> list[Line]:
    by_name = {(row.experiment.name, row.weights): row for row in rows}
    return [_row_line(row, line) for row, line in zip(ran, accuracy_lines(ran, by_name), strict=True)]


def _row_line(row: Row, accuracies: Line) -> Line:
    line = dict.fromkeys(COLUMNS, "") | accuracies | (time_line(row) if row.timed else {})
    line |= {"experiment": f"`{row.experiment.name}`", "part": row.experiment.table}
    line["seeds"] = ", ".join(_link(record["run"]["seed"], _record_name(path, record)) for path, record in row.found)
    return _linked({column: line[column] for column in COLUMNS}, row)


def _linked(line: Line, row: Row) -> Line:
    """A row's line, each number of which leads to the runs that it comes from."""
    address = _row_name(row)
    return {column: cell if column in NO_NUMBERS or cell == "" else _link(cell, address) for column, cell in line.items()}


def _claims(profile: str, rows: Sequence[Row]) -> str:
    title = markdown.heading(heading(profile), 3)
    if profile == "smoke":
        return f"{title}<p>Not judged: this profile shows that everything works, and nothing about the models.</p>"
    judgements = judge_all(rows)
    tables = [markdown.blocks(f"{basis}:") + markdown.table(verdict_lines(judged), basis) for basis, judged in grouped(judgements)]
    lines = [line for judgement in judgements if judgement.ran for line in _comparisons(judgement, rows)]
    every = _folded("Every comparison", markdown.blocks(COMPARISON_NOTE) + markdown.table(lines, "Every comparison"))
    return "\n".join([title, *tables, every if lines else ""])


def _comparisons(judgement: Judgement, rows: Sequence[Row]) -> list[Line]:
    """The lines of a claim's comparisons, each with links to the rows that it compares."""
    names = {row.experiment.name: _row_name(row) for row in rows if row.found and row.weights in (judgement.weights, None)}
    compared = [outcome.comparison.rows for outcome in judgement.outcomes.values() if outcome.paired]
    return [
        line | {"rows": ", ".join(_link(name, names[name]) for name in experiments if name in names)}
        for line, experiments in zip(comparison_lines(judgement), compared, strict=True)
    ]


def _folded(summary: str, content: str) -> str:
    return f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>"


# ---- figures, records ------------------------------------------------------------------------------------------------------


def _figures(results: Path) -> str:
    letters: set[str] = set()
    shown = [
        f'<figure>\n<div class="scroll" tabindex="0" role="region" aria-label="{escape(picture.words.title)}">'
        f"{inlined(picture.svg.read_text(), f'f{number}-', picture.words.title, letters)}</div>\n"
        f"<figcaption><strong>{escape(picture.words.title)}{f' ({picture.profile})' if picture.profile else ''}.</strong> "
        f"{markdown.inline(picture.words.caption)}</figcaption>\n</figure>"
        for number, picture in enumerate(pictures(results), 1)
    ]
    return "\n".join(['<h2 id="figures">Figures</h2>', *shown]) if shown else ""


def _records(found: Sequence[Found], results: Path, by_profile: dict[str, list[Row]]) -> str:
    if not found:
        return markdown.blocks("## Records\n\nNone.")
    names = {path: _record_name(path, record) for path, record in found}
    lines = record_lines(found, lambda path: f"#{quote(names[path])}")
    for line, (path, _) in zip(lines, found, strict=True):
        line["best test"] = _link(line["best test"], names[path]) if line["best test"] else ""
    rows = [_row_details(row) for rows in by_profile.values() for row in rows if row.found]
    return "\n".join(
        [
            markdown.blocks(f"## Records\n\n{RECORDS_NOTE}"),
            markdown.table(lines, "Records"),
            _folded(f"The runs behind each row ({len(rows)})", "\n".join(rows)),
            _folded(f"The content of each record ({len(found)})", "\n".join(_record_details(*item, results) for item in found)),
        ]
    )


def _row_details(row: Row) -> str:
    """The runs of a row, seed by seed."""
    lines = [
        {
            "seed": _link(record["run"]["seed"], _record_name(path, record)),
            "status": record["results"]["status"],
            **{kind.replace("_", " "): _accuracy(record, kind, _record_name(path, record)) for kind in FINAL},
            "restarts": record["timings"]["restarts"],
        }
        for path, record in row.found
    ]
    name = _row_name(row)
    title = f"{row.found[0][1]['run']['profile']}, {row.experiment.name}" + (f", from {row.weights}" if row.weights else "")
    content = f'{markdown.table(lines, title)}\n<div class="chart" data-row="{escape(name)}"></div>'
    return f'<details id="{escape(name)}">\n<summary>{escape(title)}</summary>\n{content}\n</details>'


def _accuracy(record: Record, kind: str, name: str) -> str:
    value = (record["results"]["final"] or {}).get(kind)
    return _link(percent(value["accuracy"]), name) if value else ""


def _record_details(path: Path, record: Record, results: Path) -> str:
    name, run = _record_name(path, record), record["run"]
    title = f"{run['profile']}, {run['experiment']}, seed {run['seed']}"
    file = quote(path.relative_to(results).as_posix())
    return (
        f'<details id="{escape(name)}" class="record"><summary>{escape(title)}</summary>\n'
        f'<p>File: <a href="{file}">{escape(path.relative_to(results).as_posix())}</a></p></details>'
    )


def _data(found: Sequence[Found], results: Path, by_profile: dict[str, list[Row]]) -> str:
    """Records and rows for the script, with nothing in it that ends its element."""
    place = {path: number for number, (path, _) in enumerate(found)}
    content = {
        "records": [{"name": _record_name(path, record), "record": record} for path, record in found],
        "rows": [
            {
                "name": _row_name(row),
                "label": row.experiment.name,
                "profile": profile,
                "records": [place[path] for path, _ in row.found],
            }
            for profile, rows in by_profile.items()
            for row in rows
            if row.found
        ],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _record_name(path: Path, record: Record) -> str:
    """The name of a record's place in the page."""
    run = record["run"]
    return f"record-{run['profile']}/{run['experiment']}/{path.stem}"


def _row_name(row: Row) -> str:
    """The name of a row's place in the page."""
    return f"row-{row.found[0][1]['run']['profile']}/{row.experiment.name}" + (f"/{row.weights}" if row.weights else "")


def _link(text: object, name: str) -> str:
    return f"[{text}](#{quote(name)})"
