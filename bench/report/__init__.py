"""Records to RESULTS.md: pure functions of the ledger, so that the same ledger gives the same bytes."""
