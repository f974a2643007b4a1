"""The study's figures, and those that it lacks: each module draws one from the rows of a ledger; ``write`` makes the files."""

from bench.report.figures.write import Picture, pictures, write_figures

__all__ = ["Picture", "pictures", "write_figures"]
