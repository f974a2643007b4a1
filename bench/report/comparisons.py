"""What a claim compares: which rows, which quantity for each seed, and where the claim says that its true value lies."""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from bench.environment import device_in_words
from bench.experiment import Experiment, canonical_json
from bench.report.environments import unlike_pairs
from bench.report.paired import Paired, compare
from bench.report.rows import Row, accuracy_differences
from data.sources import SOURCES
from models.description import Site

# The study calls a spread of 0.23 points marginal and differences of a few tenths negligible.
MARGIN = 0.3
# It gives ViT-Tiny and Mixer-Tiny as "about 41": to the nearest point.
CLOSE = 1.0
# Its "about 6 points" and "roughly 2x" are taken to hold within a quarter.
ABOUT = 0.25
# It calls gates of 0.016 and 0.020 near zero, and 0.039 and above away from it.
OPEN_GATE = 0.03

Unit = Literal["points", "alpha", "times"]
Values = dict[int, float]  # by seed


# ---- where a claim says that the true value lies --------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """A claim puts the true value between ``low`` and ``high``; one below ``floor`` or above ``ceiling`` speaks against it.

    The bounds are one and the same but in "not above": a gain within the margin is small enough to support the claim as long as its
    interval does not show it to be a gain.
    """

    words: str
    low: float
    high: float
    floor: float
    ceiling: float


def between(words: str, low: float, high: float) -> Region:
    """A region whose two pairs of bounds are one."""
    return Region(words, low, high, floor=low, ceiling=high)


ABOVE = between("above 0", 0.0, math.inf)
BELOW = between("below 0", -math.inf, 0.0)
NOT_ABOVE = Region(f"no gain (up to {MARGIN} tolerated)", -math.inf, MARGIN, floor=-math.inf, ceiling=0.0)
TIED = between(f"within ±{MARGIN}", -MARGIN, MARGIN)
NEAR = between(f"within ±{CLOSE:g}", -CLOSE, CLOSE)
MOVED = between(f"above {OPEN_GATE}", OPEN_GATE, math.inf)
ABOUT_6_POINTS = between(f"{6 * (1 - ABOUT):g} to {6 * (1 + ABOUT):g}", 6 * (1 - ABOUT), 6 * (1 + ABOUT))
ABOUT_TWICE = between(f"{2 * (1 - ABOUT):g}x to {2 * (1 + ABOUT):g}x", math.log(2 * (1 - ABOUT)), math.log(2 * (1 + ABOUT)))
ANYWHERE = between("", -math.inf, math.inf)


# ---- what is compared -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One quantity over the seeds that all its rows have.

    Attributes:
        label: how a table names it.
        rows: the experiments that it needs, in the order in which ``measure`` takes their rows.
        measure: from the rows to the quantity by seed: percentage points, the size of a gate, or the logarithm of a ratio.
        region: where the claim puts it.
        unit: how it is shown; "times" are kept as logarithms.
    """

    label: str
    rows: tuple[str, ...]
    measure: Callable[..., Values]
    region: Region
    unit: Unit = "points"


def accuracy(first: str, second: str, region: Region) -> Comparison:
    """Accuracy of the first row minus that of the second."""
    return Comparison(f"{short(first)} − {short(second)}", (first, second), accuracy_differences, region)


def gate(row: str, site: Site) -> Comparison:
    """The size of a gate after the last epoch. Its sign is chance: the module behind it may learn to point either way."""
    return Comparison(f"{short(row)}, gate at {site}", (row,), partial(_gate_sizes, site), MOVED, "alpha")


def slowdown(slow: str, fast: str, region: Region) -> Comparison:
    """Seconds per epoch of the first row over those of the second, on one device and in one environment."""
    return Comparison(f"{short(slow)} / {short(fast)}, s/epoch", (slow, fast), _log_ratios_of_time, region, "times")


def penalty_gap(small: tuple[str, str], large: tuple[str, str], region: Region) -> Comparison:
    """How much less accuracy attention costs in the first pair (attention, baseline) than in the second."""
    here, there = (f"({short(attention)} − {short(baseline)})" for attention, baseline in (small, large))
    return Comparison(f"{here} − {there}", (*small, *large), _penalty_gaps, region)


def short(name: str) -> str:
    """An experiment's name, without its data set where that is CIFAR-100, as most are."""
    return f"`{name.removeprefix('cifar100/')}`"


def _gate_sizes(site: Site, row: Row) -> Values:
    return {seed: abs(alpha) for seed, alpha in row.gates(site).items()}


def _log_ratios_of_time(slow: Row, fast: Row) -> Values:
    return _timed(slow, fast)[1]


def _timed(slow: Row, fast: Row) -> tuple[str, Values]:
    """The device, and the logarithms of the ratios by seed, where each row was timed in one environment.

    A ratio belongs to a device, its software and the mode of execution. Where seeds were timed in several, those of the one with
    most seeds count; the others are left out. A seed whose two runs were made on different devices counts nowhere.
    """
    groups: dict[tuple[str, str, str], Values] = {}
    theirs = {record["run"]["seed"]: record for record in fast.timed}
    for mine in slow.timed:
        other = theirs.get(mine["run"]["seed"])
        if other and device_in_words(mine["environment"]) == device_in_words(other["environment"]):
            key = (device_in_words(mine["environment"]), canonical_json(mine["environment"]), canonical_json(other["environment"]))
            ratio = _median_seconds(mine) / _median_seconds(other)
            groups.setdefault(key, {})[mine["run"]["seed"]] = math.log(ratio)
    if not groups:
        return "", {}
    chosen = max(sorted(groups), key=lambda key: len(groups[key]))
    return chosen[0], groups[chosen]


def _median_seconds(record: Mapping[str, Any]) -> float:
    return float(statistics.median(epoch["train_seconds"] for epoch in record["timings"]["epochs"]))


def _penalty_gaps(small: Row, small_baseline: Row, large: Row, large_baseline: Row) -> Values:
    mine, theirs = accuracy_differences(small, small_baseline), accuracy_differences(large, large_baseline)
    return {seed: mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())}


# ---- what came out --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Obstacle:
    """What stands in the way of judging a comparison, and the experiments that it is about, if it is about some."""

    reason: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.reason}: {', '.join(self.names)}" if self.names else self.reason


@dataclass(frozen=True)
class Outcome:
    """A comparison on given rows: its figures, what stands in the way of judging by them, and what to know beside them."""

    comparison: Comparison
    paired: Paired | None
    obstacle: Obstacle | None = None
    note: str = ""

    @property
    def inside(self) -> bool:
        """Whether the 95 % interval lies where the claim says, and not wholly where it speaks against it."""
        region, paired = self.comparison.region, self.paired
        if self.obstacle or paired is None or paired.low is None or paired.high is None:
            return False
        return region.low < paired.low < region.ceiling and region.floor < paired.high < region.high

    @property
    def p_against(self) -> float:
        """The p-value of the bound that the mean is beyond, so a small one speaks against the claim; 1 where it is beyond none."""
        region = self.comparison.region
        if self.obstacle or self.paired is None or region.floor <= self.paired.mean <= region.ceiling:
            return 1.0
        p = self.paired.p_against(region.floor if self.paired.mean < region.floor else region.ceiling)
        return 1.0 if p is None else p

    @property
    def p_for(self) -> float:
        """The largest p-value among the bounds of the region, so a small one speaks for the claim; 1 where it is not inside."""
        bounds = [bound for bound in (self.comparison.region.low, self.comparison.region.high) if math.isfinite(bound)]
        p_values = [self.paired.p_against(bound) for bound in bounds] if self.paired and self.inside else [None]
        return max((1.0 if p is None else p for p in p_values), default=0.0)


def examine(comparison: Comparison, rows: Mapping[str, Row]) -> Outcome:
    """Compare, with the rows of one profile and one set of initial weights by experiment name; absent ones were not run."""
    chosen = [rows[name] for name in comparison.rows if name in rows]
    if obstacle := _missing(comparison, rows) or _other_images(chosen):
        return Outcome(comparison, None, obstacle)
    values = comparison.measure(*chosen)
    note = _note(comparison, chosen, values)
    if not values:
        return Outcome(comparison, None, Obstacle("no seed in common" + (" on one device" if comparison.unit == "times" else "")))
    paired = compare(list(values.values()))
    if paired.n == 1:
        return Outcome(comparison, paired, Obstacle("one seed decides nothing"), note)
    return Outcome(comparison, paired, Obstacle("no spread over the seeds to test with") if paired.p is None else None, note)


def _missing(comparison: Comparison, rows: Mapping[str, Row]) -> Obstacle | None:
    if absent := tuple(short(name) for name in comparison.rows if name not in rows):
        return Obstacle("not run", absent)
    failed = tuple(f"{short(name)} ({', '.join(rows[name].failures)})" for name in comparison.rows if not rows[name].done)
    return Obstacle("without a result", failed) if failed else None


def _other_images(rows: Sequence[Row]) -> Obstacle | None:
    """A profile may give different images to rows that the study compares; their difference would show the profile."""
    sizes = sorted({(row.experiment.train_images or 0, row.experiment.test_images or 0) for row in rows})
    if len(sizes) < 2:
        return None
    return Obstacle(f"not comparable in this profile, which trains on {' and '.join(f'{train:,}' for train, _ in sizes)} images")


def _note(comparison: Comparison, rows: Sequence[Row], seeds: Collection[int]) -> str:
    """What to know beside the figure: the device of a ratio of times, what else differs between the rows and within pairs."""
    parts = [f"on {_timed(*rows)[0]}"] if comparison.unit == "times" else []
    for dataset in dict.fromkeys(row.experiment.dataset for row in rows):  # rows on other images have other budgets by nature
        parts += _other_schedules([row.experiment for row in rows if row.experiment.dataset == dataset])
    if differing := [pair for pair in unlike_pairs(rows, seeds) if pair]:
        what = ", ".join(dict.fromkeys(word for pair in differing for word in pair))
        parts.append(f"{len(differing)} of {len(seeds)} pairs differ in {what}")
    return ", ".join(parts)


# What beside the network may differ between two rows: how it is said, and where it stands.
SCHEDULE: tuple[tuple[str, Callable[[Experiment], object]], ...] = (
    ("{} epochs", lambda experiment: experiment.recipe.epochs),
    ("regime {}", lambda experiment: experiment.regime),
    ("label smoothing {}", lambda experiment: f"{experiment.recipe.label_smoothing:g}"),
    ("{} training images", lambda experiment: f"{_training_images(experiment):,}"),
)


def _other_schedules(experiments: Sequence[Experiment]) -> list[str]:
    """How the training of different networks differs; of rows of one network the schedule is what is compared."""
    if len({experiment.model for experiment in experiments}) == 1:
        return []
    found = [(words, dict.fromkeys(str(of(experiment)) for experiment in experiments)) for words, of in SCHEDULE]
    return [words.format(" and ".join(values)) for words, values in found if len(values) > 1]


def _training_images(experiment: Experiment) -> int:
    """How many images train, without those of the validation split."""
    count = experiment.train_images or SOURCES[experiment.dataset].spec.train.count
    return count - round(experiment.recipe.validation_fraction * count)
