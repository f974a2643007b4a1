"""What the tests of reliability did, for the summary that ``make test-reliability`` ends with (as a plugin: ``-p tests.tally``)."""

from collections import Counter
from typing import Any

COUNTS: Counter[str] = Counter()
FIGURES: dict[str, list[str]] = {}


def count(what: str, number: int = 1) -> None:
    """Add to one of the summary's sums."""
    COUNTS[what] += number


def tell(what: str, figure: str) -> None:
    """Put a measured figure into the summary."""
    FIGURES.setdefault(what, []).append(figure)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a line for each sum and each kind of figure."""
    terminalreporter.section("reliability")
    for what, number in COUNTS.items():
        terminalreporter.line(f"{what}: {number:,}")
    for what, figures in FIGURES.items():
        terminalreporter.line(f"{what}: {', '.join(figures)}")
