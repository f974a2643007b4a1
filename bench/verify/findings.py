"""What a verification finds, and how it says so."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

from bench.schema import ABSENT, name_of, shown

END_OF_FILE = "(end of file)"


class Finding(NamedTuple):
    """A departure from what should be there. A note is no damage, but a reader should know of it."""

    place: str  # a file, or a data set
    field: str
    expected: str
    found: str
    note: bool = False

    def __str__(self) -> str:
        line = f"{'note: ' if self.note else ''}{self.place}: {self.field}: expected {self.expected}, found {self.found}"
        return line if line.isprintable() else repr(line)[1:-1]  # files may have any name


@dataclass(frozen=True)
class Section:
    """One part of the verification: how much it looked at, and what it found."""

    name: str
    checked: str
    findings: list[Finding]

    @property
    def problems(self) -> int:
        """Findings that are damage."""
        return sum(not finding.note for finding in self.findings)


def render(sections: list[Section]) -> str:
    """One line for each finding, then one for each section."""
    lines = [str(finding) for section in sections for finding in section.findings]
    for section in sections:
        notes = len(section.findings) - section.problems
        lines.append(f"{section.name:<8}{section.checked}: {counted(section.problems, 'problem')}, {counted(notes, 'note')}")
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """``1 note``, ``2 notes``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def compare(place: str, field: str, expected: Any, found: Any) -> Iterator[Finding]:
    """Yield every field in which two values differ; of objects, every field in them."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            yield from compare(place, f"{field}.{name_of(key)}", expected.get(key, ABSENT), found.get(key, ABSENT))
    elif expected != found:
        yield Finding(place, field, shown(expected), shown(found))


def compare_text(place: str, expected: str, found: str, advice: str) -> Iterator[Finding]:
    """Yield the first line in which two texts differ, from a little before the difference on."""
    if expected == found:
        return
    wanted, given = expected.split("\n"), found.split("\n")
    line = _shared(wanted, given)
    want, have = (lines[line] if line < len(lines) else END_OF_FILE for lines in (wanted, given))
    start = max(0, _shared(want, have) - 20)
    yield Finding(place, f"line {line + 1}", shown(want[start:]), f"{shown(have[start:])}; {advice}")


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many items or characters are the same before the first that differs."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
