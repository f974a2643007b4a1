"""The study's figures, and those that it lacks: each module draws one from the rows of a ledger; ``write`` makes the files."""
