"""When two results folders are equal: in every file and every byte, but for what the clock decides."""

import re
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench.experiment import canonical_json
from bench.ledger import Ledger
from bench.report.results import results_page
from tests import tally

Curves = dict[str, list[tuple[int, float]]]


def assert_equal(results: Path, reference: Path) -> None:
    """Compare the folder of interrupted runs with that of uninterrupted ones.

    The same files; the records but for ``timings``; the best weights, byte for byte; the curves but for the speed; and RESULTS.md,
    byte for byte, when the records have the reference's ``timings``.
    """
    assert names(results) == names(reference)
    found, expected = dict(Ledger(results).records()), dict(Ledger(reference).records())
    for (path, record), (other, its) in zip(found.items(), expected.items(), strict=True):
        assert path.relative_to(results) == other.relative_to(reference)
        same(without_timings(record), without_timings(its))
    for path in reference.rglob("best.pt"):
        same((results / path.relative_to(reference)).read_bytes(), path.read_bytes())
    for path in (reference / "tensorboard").rglob("events.*"):
        assert curves((results / path.relative_to(reference)).parent) == curves(path.parent)
    timed = [
        (path, record | {"timings": its["timings"]}) for (path, record), its in zip(found.items(), expected.values(), strict=True)
    ]
    same(results_page(timed, results, results), results_page(list(expected.items()), reference, reference))


def same(one: str | bytes, other: str | bytes) -> None:
    """Equal bytes; they are counted."""
    assert one == other
    tally.count("bytes equal", len(one))


def names(results: Path) -> set[str]:
    """All files below the folder; the time in the name of an event file is left out, and how often a run was leased."""
    paths = [str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()]
    return {re.sub(r"(tfevents|lease)\.\d+$", r"\1", path) for path in paths}


def without_timings(record: dict[str, Any]) -> str:
    """The record's bytes without the section that the clock decides."""
    return canonical_json({key: value for key, value in record.items() if key != "timings"})


def curves(folder: Path) -> Curves:
    """The points of every curve of a run, which must not stand twice; without the speed, which the clock decides."""
    events = EventAccumulator(str(folder))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all([step for step, _ in points] == list(range(1, len(points) + 1)) for points in found.values())
    return {tag: points for tag, points in found.items() if tag != "images_per_second"}
