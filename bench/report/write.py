"""RESULTS.md, the headline table of the README, and the same results as tables for other programs.

The default ledger ``results`` belongs to the repository: its report is ``RESULTS.md`` at the top level, and its table stands in the
README too. Any other ledger gets ``RESULTS.md`` in its own folder and touches nothing outside it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.environment import ROOT
from bench.errors import UserError
from bench.ledger import Ledger, write_bytes_atomically
from bench.profiles import PROFILES
from bench.report.export import as_csv, as_json, export_lines
from bench.report.html import html_page
from bench.report.results import headline_table, results_page
from bench.report.rows import Found
from bench.schema import shown

BEGIN, END = "<!-- results: written by `make report` -->", "<!-- end of results -->"


def write_report(results: Path) -> list[Path]:
    """Write the report of the ledger under ``results`` and return the files written.

    Raises:
        UserError: a record is unreadable or of an unknown profile, a file cannot be written, or the README has lost the marks
            around its table.
    """
    pages = dict(report_pages(results, list(Ledger(results).records())))
    for path, text in pages.items():
        write_bytes_atomically(path, text.encode())
    return list(pages)


def report_pages(results: Path, found: Sequence[Found]) -> Iterator[tuple[Path, str]]:
    """Every file of the report with its text.

    Raises:
        UserError: a measurement is unreadable, a record's profile is unknown, or the README has lost the marks around its table.
    """
    _check_profiles(found)
    folder = ROOT if is_committed(results) else results
    yield folder / "RESULTS.md", results_page(found, folder, results)
    if folder == ROOT:
        yield ROOT / "README.md", _with_table(ROOT / "README.md", headline_table(found))
    lines = export_lines(found, results)
    yield results / "results.csv", as_csv(lines)
    yield results / "results.json", as_json(lines)
    yield results / "report.html", html_page(found, results)


def _check_profiles(found: Sequence[Found]) -> None:
    """A record of a profile that the suite does not have would stand in no table."""
    for path, record in found:
        if (profile := record["run"]["profile"]) not in PROFILES:
            expected = f"expected one of {', '.join(PROFILES)}, found {shown(profile)}"
            raise UserError(f"{path}: run.profile: {expected}; restore the file or move it out of the ledger")


def is_committed(results: Path) -> bool:
    """Whether a results folder is the repository's own, whose report is committed with it."""
    return results.resolve() == ROOT / "results"


def _with_table(readme: Path, table: str) -> str:
    """The README with this table between its marks."""
    before, begin, rest = (readme.read_text() if readme.is_file() else "").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{readme.name}: expected the marks {BEGIN} and {END} around the table; put them back")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"
