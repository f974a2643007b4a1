"""RESULTS.md, and the headline table of the README.

The default ledger ``results`` belongs to the repository: its report is ``RESULTS.md`` at the top level, and its table stands in the
README too. Any other ledger gets ``RESULTS.md`` in its own folder and touches nothing else.
"""

from pathlib import Path

from bench.environment import ROOT
from bench.errors import UserError
from bench.ledger import Ledger, write_atomically
from bench.report.results import headline_table, results_page

BEGIN, END = "<!-- results: written by `make report` -->", "<!-- end of results -->"


def write_report(results: Path) -> list[Path]:
    """Write the report of the ledger under ``results`` and return the files written.

    Raises:
        UserError: a record is unreadable, a file cannot be written, or the README has lost the marks around its table.
    """
    found = list(Ledger(results).records())
    if results.resolve() != ROOT / "results":
        page = results / "RESULTS.md"
        _write(page, results_page(found, page.parent, results))
        return [page]
    page, readme = ROOT / "RESULTS.md", ROOT / "README.md"
    _write(page, results_page(found, ROOT, results))
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{readme.name}: expected the marks {BEGIN} and {END} around the table; put them back")
    _write(readme, f"{before}{BEGIN}\n\n{headline_table(found)}\n\n{END}{after}")
    return [page, readme]


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
