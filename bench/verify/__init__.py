"""Whether what was published still holds: every record, the report made of them, the locks, the prepared data.

Each section is made of checks: small functions that yield what they find. None stops at the first problem, and none repairs.
"""

from pathlib import Path

from bench.environment import ROOT
from bench.errors import UserError
from bench.ledger import Ledger
from bench.verify.findings import Finding, Section, render
from bench.verify.records import check_records
from bench.verify.surroundings import check_data, check_folder, check_locks, check_report

__all__ = ["Finding", "Section", "examine", "render"]


def examine(results: Path, datasets: Path) -> list[Section]:
    """Verify the ledger in a results folder and all that it rests on.

    Raises:
        UserError: the folder holds no records, or cannot be searched.
    """
    ledger = Ledger(results)
    if not ledger.paths():
        raise UserError(f"RESULTS={results}: expected a folder with records, found none; choose another, or run an experiment")
    return [check_records(ledger), check_folder(ledger), check_report(ledger), check_locks(ROOT), check_data(datasets)]
