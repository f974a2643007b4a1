"""The commands that make the records of a table again: the same experiments, profile, seeds and initial weights."""

import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase

from bench.catalog import EXPERIMENTS
from bench.report.rows import Row, weights_name

PLACE = "FOLDER"  # stands for wherever the reader keeps a file of weights

NOTE = f"""\
The commands under a heading make the records of its table again, after `make data`; `make report` then writes this page. The
committed ledger counts as done, so add `RESULTS=my-results` to make everything anew, with a page of its own. `{PLACE}` is where
your copy of the weights lies; without `WEIGHTS` the runs start from torchvision's ImageNet-1k weights.
"""


def commands(profile: str, rows: Sequence[Row]) -> str:
    """Return an indented code block with a line for each group of rows that share seeds and weights; empty if none was run."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.found:
            seeds = " ".join(str(seed) for seed in sorted({record["run"]["seed"] for _, record in row.found}))
            groups.setdefault((seeds, _weights(row)), []).append(row.experiment.name)
    lines = [
        f"    make run PROFILE={profile} SEEDS={shlex.quote(seeds)}{weights} ONLY={shlex.quote(selection(names))}"
        for (seeds, weights), names in groups.items()
    ]
    return "\n".join(lines) + "\n\n" if lines else ""


def selection(names: Sequence[str]) -> str:
    """A value of ONLY that means these experiments and no others: a single pattern where one does, else the names."""
    dataset, _, row = names[0].partition("/")
    for pattern in (f"{dataset}/*", f"{dataset}/{row.partition('_')[0]}_*"):
        if len(names) > 1 and {each.name for each in EXPERIMENTS if fnmatchcase(each.name, pattern)} == set(names):
            return pattern
    return " ".join(names)


def _weights(row: Row) -> str:
    name = weights_name(row.found[0][1])
    return "" if name is None or row.starts_as_the_study else f" WEIGHTS={shlex.quote(f'{PLACE}/{name}')}"
