"""Whether runs were computed alike: on one device, with one torch version, in one mode of computing.

A seed gives two rows the same draws, which is why they are compared seed by seed. Another torch version may draw other initial
weights from the same seed, and another device or mode rounds differently. A pair of such runs can be compared as any two runs can,
but what a seed does to both no longer cancels, so whoever shows the difference says what they differ in.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.environment import device_in_words
from bench.experiment import canonical_json
from bench.ledger import Record
from bench.provenance import torch_version
from bench.report.rows import Row

MARK = "†"
MARKED = (
    f"{MARK} The runs behind this number differ in device, torch version or mode of computing; RESULTS.md lists them under "
    "*Machines*."
)

REFERENCE = {  # the mode of records from before a choice was there
    "blocks": "layers",
    "depthwise": "convolution",
    "patches": "convolution",
    "attention": "fused",
    "bf16": "units",
    "compiled": False,
    "cuda_graph": False,
}
SWITCHES = ("bf16", "compiled", "cuda_graph")
# Methods are chosen for the layers of a network: they can be compared where these parts of the models are the same.
METHODS = {
    "blocks": ("family", "stem"),
    "depthwise": ("family", "stem"),
    "patches": ("family", "stem"),
    "attention": ("family", "stem", "attention", "sites"),
}


def unlike(records: Sequence[Record]) -> list[str]:
    """What of device, torch version and mode of computing is not the same in all of these records."""
    environments = [REFERENCE | record["environment"] for record in records]
    modes = _comparable_choices([record["configuration"]["experiment"] for record in records])
    values: dict[str, list[Any]] = {
        "device": [device_in_words(environment) for environment in environments],
        "torch version": [torch_version(environment) for environment in environments],
        "mode of computing": [[environment[name] for name in modes] for environment in environments],
    }
    return [what for what, each in values.items() if any(value != each[0] for value in each)]


def unlike_pairs(rows: Sequence[Row], seeds: Iterable[int]) -> list[list[str]]:
    """For each seed, what is not the same in the records that these rows have of it."""
    by_seed = [{record["run"]["seed"]: record for record in row.done} for row in rows]
    return [unlike([records[seed] for records in by_seed]) for seed in seeds]


def made_alike(records: Iterable[Record]) -> list[Record]:
    """Of these records those of one environment, the one that most of them have: their times can be compared.

    The environment has the versions and the mode of computing too, and each of them changes how long an epoch takes.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(canonical_json(record["environment"]), []).append(record)
    return groups[max(sorted(groups), key=lambda key: len(groups[key]))] if groups else []


def _comparable_choices(experiments: Sequence[Mapping[str, Any]]) -> list[str]:
    models = [experiment.get("model") or {} for experiment in experiments]
    same = [
        name for name, parts in METHODS.items() if all(model.get(part) == models[0].get(part) for model in models for part in parts)
    ]
    return [*SWITCHES, *same]
