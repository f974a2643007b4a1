"""The tables of pages and terminals: their lines, and what stands in a cell."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from bench.experiment import Experiment
from bench.ledger import Record
from bench.provenance import shown

Line = dict[str, Any]


def table(lines: Sequence[Line]) -> str:
    """Markdown; columns without any content are left out."""
    used = used_columns(lines)
    return tabulate(
        [{column: _on_one_line(line[column]) for column in used} for line in lines],
        headers="keys",
        tablefmt="github",
        disable_numparse=True,
    )


def _on_one_line(cell: object) -> str:
    """A cell that ends neither itself nor its row: a record may hold any text, as that of an error."""
    return " ".join(str(cell).splitlines()).replace("|", "\\|")


def used_columns(lines: Sequence[Line]) -> list[str]:
    """The columns in which any line has content."""
    return [column for column in (lines[0] if lines else {}) if any(line[column] != "" for line in lines)]


def model_name(experiment: Experiment) -> str:
    """The family, with its stem where it has one."""
    stem = f", {experiment.model.stem} stem" if experiment.model.stem else ""
    return f"{experiment.model.family}{stem}"


def attention_name(experiment: Experiment) -> str:
    """Kind, heads and sites; empty without attention."""
    attention = experiment.model.attention
    if attention is None:
        return ""
    heads = f", {attention.heads} head{'s' if attention.heads > 1 else ''}" if attention.kind == "mhsa" else ""
    return f"{attention.kind}{heads} at {' and '.join(experiment.model.sites or ())}"


def percent(value: float | None) -> str:
    """Two decimals, or nothing."""
    return "" if value is None else f"{value:.2f}"


def commit(record: Record) -> str:
    """The first digits of the commit, marked where the tree differed from it."""
    return shown(record["code"])
