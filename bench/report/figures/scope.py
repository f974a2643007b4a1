"""Which rows may share a picture: those of one profile whose fine-tuned ones started from one pretrained backbone."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.environment import device_in_words
from bench.experiment import Experiment
from bench.ledger import Record
from bench.profiles import PROFILES
from bench.report.environments import made_alike
from bench.report.rows import Found, Row, rows_of
from bench.report.tables import SELECTIONS


class NothingToDraw(Exception):
    """The ledger lacks what a figure shows; the message says what."""


@dataclass(frozen=True)
class Scope:
    """A profile, the pretrained backbone as the rows name it (None: nothing was fine-tuned), and the rows that are done."""

    profile: str
    backbone: str | None
    rows: tuple[Row, ...]

    @property
    def folder(self) -> str:
        """Where its figures lie, relative to those of the ledger."""
        name = re.sub(r"\.(pth|pt|safetensors)\b", "", self.backbone) if self.backbone else "from-scratch"
        return f"{self.profile}/{re.sub('[^A-Za-z0-9._-]+', '-', name).strip('.-')}"

    def row(self, name: str) -> Row | None:
        """The row of an experiment, or None where none is done."""
        return next((row for row in self.rows if row.experiment.name == name), None)

    def named(self, names: Sequence[str]) -> list[Row]:
        """The rows of these experiments that are done, in the order of the names."""
        return [row for name in names if (row := self.row(name))]


def scopes(found: Iterable[Found]) -> list[Scope]:
    """Every scope of a ledger, by profile and backbone; the profile ``smoke`` shows nothing about the models and has none."""
    found = list(found)
    result: list[Scope] = []
    for profile in PROFILES:
        rows = [row for row in rows_of(profile, found)[0] if row.done]
        if profile != "smoke" and rows:
            backbones: list[str | None] = [*sorted({row.weights for row in rows if row.weights})]
            result += [
                Scope(profile, backbone, tuple(row for row in rows if row.weights in (None, backbone)))
                for backbone in backbones or [None]
            ]
    return result


def note_of(scope: Scope, rows: Sequence[Row]) -> str:
    """What a reader must know to read a figure away from its page: profile, backbone, seeds."""
    seeds = sorted({len(row.done) for row in rows})
    many = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' if seeds[0] > 1 else ''}"
    used = sorted({row.weights for row in rows if row.weights})
    return ", ".join([f"profile {scope.profile}", *(f"fine-tuned from {name}" for name in used), f"{many} per row"])


def short(row: Row) -> str:
    """The name of a row without its data set."""
    return row.experiment.name.partition("/")[2]


NETWORKS = {"convnext_tiny": "ConvNeXt-Tiny", "vit_tiny": "ViT-Tiny", "mixer_tiny": "Mixer-Tiny", "matched_vit": "ViT, matched"}


def network_name(experiment: Experiment) -> str:
    """The network without its attention, as a figure names it."""
    stem = {"default": ", default stem", "cifar": ", CIFAR stem", None: ""}[experiment.model.stem]
    return NETWORKS[experiment.model.family] + stem


def accuracy_label(rows: Sequence[Row]) -> str:
    """The axis label for the accuracies of these rows, each by its own selection rule."""
    rules = {SELECTIONS[row.experiment.selection] for row in rows}
    return f"accuracy, {rules.pop()} (%)" if len(rules) == 1 else "accuracy (%)"


def timed(row: Row, machine: str) -> list[Record]:
    """The records of a row whose times can be compared: of one device, and of its environments the one with most records."""
    return made_alike(record for record in row.timed if device_in_words(record["environment"]) == machine)


def usual_device(rows: Sequence[Row]) -> str:
    """The device that most of these rows have records of, the first by name where several have."""
    used = [name for row in rows for name in {device_in_words(record["environment"]) for record in row.timed}]
    return max(sorted(set(used)), key=used.count)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation, 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
