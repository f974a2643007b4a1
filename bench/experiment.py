"""The vocabulary: model, recipe, experiment, run. Frozen values, each with the hash of what it means.

An experiment is one row of the study without its seed; a run is an experiment with a seed, under a profile.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from models.description import Attention, Site, Stem

Regime = Literal["full", "F0", "F1", "F2"]
Selection = Literal["best_test", "test_at_best_validation", "best_validation"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network without its weights and its class count. Stem and attention are ConvNeXt's; None elsewhere."""

    family: Literal["convnext_tiny", "vit_tiny", "mixer_tiny", "matched_vit"] = "convnext_tiny"
    stem: Stem | None = "default"
    attention: Attention | None = None
    sites: tuple[Site, ...] | None = None  # where the attention is inserted


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. The reasons for the figures stand in ``bench/catalog.py``.

    Learning rates are peaks: they rise linearly over ``warmup_fraction`` of all steps and fall to zero along a cosine.
    """

    epochs: int
    frozen_epochs: int = 0  # leading epochs before a regime releases more parameters
    batch_size: int = 128
    head_lr: float = 1e-3  # of the classifier and of whatever is added to the backbone
    backbone_lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_fraction: float = 0.05
    label_smoothing: float = 0.0
    crop_padding: int = 4  # pixels
    flip: bool = True
    validation_fraction: float = 0.0  # of the training images, stratified, never augmented
    patience: int | None = None  # epochs without a better validation accuracy before an early stop
    precision: Precision = "bf16"


_PRESENTATION = ("table", "reported", "note", "reported_gates", "baseline", "control")  # changes no run


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row of the study."""

    name: str  # data set and row: "cifar100/baseline"
    table: str  # the table of the study, and of the report, that it stands in
    dataset: str
    model: Model
    weights: Literal["none", "imagenet1k"]
    regime: Regime = "full"
    recipe: Recipe
    selection: Selection = "best_test"  # which accuracy is the row's number
    reported: float | None = None  # the study's value of that accuracy, in percent; None where it gives none
    note: str = ""  # what the study says in words
    reported_gates: dict[Site, float] | None = None  # the study's final alphas
    baseline: str | None = None  # the row it is compared with
    control: str | None = None  # the ConvNeXt without attention that trains by the same schedule
    train_images: int | None = None  # a class-balanced subset; None: all
    test_images: int | None = None

    def __post_init__(self) -> None:
        assert self.name.count("/") == 1, self.name
        assert self.recipe.patience is None or self.recipe.validation_fraction > 0, "early stopping needs a validation split"
        assert self.selection == "best_test" or self.recipe.validation_fraction > 0, "nothing to select on"

    def meaning(self) -> dict[str, Any]:
        """All that decides the outcome of a run beside its seed; where a row stands and what was reported are left out.

        Fields that are None are left out too: an option that a later version adds, and that an experiment does not use, leaves the
        experiment's hash and so its records as they were.
        """
        return {name: value for name, value in _without_none(asdict(self)).items() if name not in _PRESENTATION}


@dataclass(frozen=True)
class Weights:
    """Initial weights, known by content: the file's name and the SHA-256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """An experiment with a seed, under a profile, from given initial weights (None: random)."""

    experiment: Experiment
    profile: str
    seed: int
    weights: Weights | None = None

    @property
    def configuration(self) -> dict[str, Any]:
        """What the record says was run. Paths, worker counts and hosts are not in it: they may not change the result."""
        return {
            "experiment": self.experiment.meaning(),
            "weights": asdict(self.weights) if self.weights else None,
        }

    @property
    def configuration_sha256(self) -> str:
        """The same for every seed, so that it names a row."""
        return sha256_of(self.configuration)

    @property
    def key(self) -> str:
        """Profile, experiment, seed and configuration as a relative path without suffix; one run, one key."""
        return f"{self.profile}/{self.experiment.name}/seed{self.seed}-{self.configuration_sha256[:8]}"


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and full precision, the same bytes for the same value; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def sha256_of(value: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
