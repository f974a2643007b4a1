"""Records grouped into the rows of a table: one row for each experiment and its initial weights, over all seeds."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.catalog import EXPERIMENTS, find
from bench.experiment import Experiment, Selection, Weights, canonical_json
from bench.ledger import Record
from bench.profiles import at_profile
from data.sources import IMAGENET_WEIGHTS

Found = tuple[Path, Record]


@dataclass(frozen=True)
class Row:
    """One experiment under a profile, from one set of initial weights (None: random, or not run)."""

    experiment: Experiment
    weights: str | None
    found: tuple[Found, ...]

    @property
    def done(self) -> list[Record]:
        """The records that have a result, by seed."""
        return [record for _, record in self.found if record["results"]["status"] == "done"]

    @property
    def timed(self) -> list[Record]:
        """Those of them whose times all belong to the machine and code that they name."""
        return [record for record in self.done if "earlier" not in record["timings"]]

    @property
    def failures(self) -> list[str]:
        """The statuses of the other records."""
        return [str(record["results"]["status"]) for _, record in self.found if record["results"]["status"] != "done"]

    @property
    def starts_as_the_study(self) -> bool:
        """Whether all runs started from random weights where the study did, and from ImageNet-1k's where it did."""
        used = [record["configuration"]["weights"] for _, record in self.found]
        expected = IMAGENET_WEIGHTS.known_hash if self.experiment.weights == "imagenet1k" else None
        return all((f"sha256:{weights['sha256']}" if weights else None) == expected for weights in used)

    @property
    def has_the_studys_budget(self) -> bool:
        """Whether the profile leaves the experiment as the catalog has it."""
        return self.experiment == find(self.experiment.name)

    @property
    def comparable_with_the_study(self) -> bool:
        """Whether the row's accuracy may stand beside the study's: the same initial weights, images and epochs."""
        return self.starts_as_the_study and self.has_the_studys_budget

    def by_seed(self, selection: str) -> dict[int, float]:
        """Percent by seed, of the seeds that are done; empty where the recipe has no such accuracy."""
        values = {record["run"]["seed"]: record["results"]["final"][selection] for record in self.done}
        return {seed: float(value["accuracy"]) for seed, value in values.items() if value}

    def accuracies(self, selection: str) -> list[float]:
        """Percent, one per seed that is done."""
        return list(self.by_seed(selection).values())

    def gates(self, site: str) -> dict[int, float]:
        """Alpha after the last epoch by seed, of the seeds that are done; empty where there is no attention at the site."""
        values = {record["run"]["seed"]: record["results"]["epochs"][-1].get("gates", {}).get(site) for record in self.done}
        return {seed: float(alpha) for seed, alpha in values.items() if alpha is not None}

    def gates_differ_in_sign(self, site: str) -> bool:
        """Whether the seeds' gates end on either side of zero. The sign is chance, so their mean would say nothing."""
        gates = self.gates(site).values()
        return min(gates, default=0) < 0 < max(gates, default=0)


def rows_of(profile: str, found: Iterable[Found]) -> tuple[list[Row], list[Found]]:
    """Return a profile's rows in the catalog's order, an empty row for what was not run, and the records that fit none.

    A record fits the row whose present configuration it was made with.
    """
    left = [item for item in found if item[1]["run"]["profile"] == profile]
    names = _distinct_names({_weights_of(record) for _, record in left})
    rows = []
    for experiment in EXPERIMENTS:
        meaning = json.loads(canonical_json(at_profile(experiment, profile).meaning()))
        fitting = [item for item in left if item[1]["configuration"]["experiment"] == meaning]
        left = [item for item in left if item not in fitting]
        by_weights: dict[str | None, list[Found]] = {}
        for item in fitting:
            by_weights.setdefault(names[_weights_of(item[1])], []).append(item)
        for weights, items in sorted(by_weights.items(), key=lambda pair: pair[0] or "") or [(None, [])]:
            items.sort(key=lambda item: item[1]["run"]["seed"])
            rows.append(Row(at_profile(experiment, profile), weights, tuple(items)))
    return rows, left


def weights_name(record: Record) -> str | None:
    """The name of the file that a record's run started from, or None for random weights."""
    weights = _weights_of(record)
    return weights.name if weights else None


def shared_selection(first: Row, second: Row) -> Selection:
    """The kind of accuracy to compare two rows in: the first one's own where both have it, else the best test accuracy."""
    own = first.experiment.selection
    return own if second.experiment.recipe.validation_fraction > 0 else "best_test"


def accuracy_differences(first: Row, second: Row) -> dict[int, float]:
    """Percentage points, first minus second, for each seed that both rows have."""
    selection = shared_selection(first, second)
    mine, theirs = first.by_seed(selection), second.by_seed(selection)
    return {seed: mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())}


def _weights_of(record: Record) -> Weights | None:
    weights = record["configuration"]["weights"]
    return Weights(**weights) if weights else None


def _distinct_names(files: set[Weights | None]) -> dict[Weights | None, str | None]:
    """The name of each file of weights, with digits of its hash where two files have the same name."""
    names = [file.name for file in files if file]
    distinct: dict[Weights | None, str | None] = {None: None}
    for file in files:
        if file:
            distinct[file] = file.name if names.count(file.name) == 1 else f"{file.name} ({file.sha256[:8]})"
    return distinct


def mean_and_deviation(values: list[float], digits: int = 2) -> str:
    """``76.54 ± 0.32`` (sample standard deviation), ``76.54`` for a single value, empty for none."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"
