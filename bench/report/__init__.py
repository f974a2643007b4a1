"""Records to RESULTS.md: pure functions of the ledger, so that the same ledger gives the same bytes."""

from bench.report.write import write_report

__all__ = ["write_report"]
