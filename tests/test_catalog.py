"""The catalog against the study, and the profiles against the catalog."""

from dataclasses import replace

import pytest

from bench.catalog import EXPERIMENTS, find
from bench.errors import UserError
from bench.experiment import Experiment
from bench.profiles import PROFILES, at_profile

REPORTED = {
    "cifar100/baseline": 77.24,
    "cifar100/scratch_convnext": 54.56,
    "cifar100/matched_convnext": 55.63,
    "fashion_mnist/baseline": 94.56,
}


def test_reported_numbers_are_the_studys() -> None:
    assert {e.name: e.reported for e in EXPERIMENTS if e.reported is not None} == REPORTED


def test_names_are_unique_and_found() -> None:
    assert len({e.name for e in EXPERIMENTS}) == len(EXPERIMENTS)
    assert all(find(e.name) is e for e in EXPERIMENTS)
    with pytest.raises(UserError, match="'cifar100/none' is not in the catalog"):
        find("cifar100/none")


@pytest.mark.parametrize(
    ("name", "stem", "weights", "regime", "epochs", "frozen", "smoothing", "validation"),
    [
        ("cifar100/baseline", "default", "imagenet1k", "full", 20, 0, 0.0, 0.0),
        ("cifar100/baseline_F0", "default", "imagenet1k", "F0", 20, 5, 0.0, 0.0),
        ("cifar100/baseline_F1", "default", "imagenet1k", "F1", 20, 5, 0.0, 0.0),
        ("cifar100/baseline_F2", "default", "imagenet1k", "F2", 20, 5, 0.0, 0.0),
        ("cifar100/stem_baseline", "cifar", "imagenet1k", "F2", 20, 5, 0.1, 0.1),
        ("cifar100/scratch_convnext", "cifar", "none", "full", 100, 0, 0.1, 0.1),
        ("cifar100/matched_convnext", "cifar", "none", "full", 30, 0, 0.1, 0.0),
        ("fashion_mnist/baseline", "default", "imagenet1k", "F2", 20, 5, 0.0, 0.0),
    ],
)
def test_protocols_are_the_studys(
    name: str, stem: str, weights: str, regime: str, epochs: int, frozen: int, smoothing: float, validation: float
) -> None:
    experiment = find(name)
    recipe = experiment.recipe
    assert (experiment.model.stem, experiment.weights, experiment.regime) == (stem, weights, regime)
    assert (recipe.epochs, recipe.frozen_epochs, recipe.label_smoothing) == (epochs, frozen, smoothing)
    assert recipe.validation_fraction == validation
    if weights == "imagenet1k":
        assert recipe.backbone_lr < recipe.head_lr, "a smaller learning rate on the backbone"


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_changes_the_budget_only(experiment: Experiment, profile: str) -> None:
    small = at_profile(experiment, profile)
    assert small.recipe.epochs <= experiment.recipe.epochs
    assert (small.recipe.frozen_epochs > 0) == (experiment.recipe.frozen_epochs > 0)
    assert small.recipe.frozen_epochs < small.recipe.epochs
    budget = ("epochs", "frozen_epochs", "patience", "batch_size")
    recipe = replace(small.recipe, **{name: getattr(experiment.recipe, name) for name in budget})
    kept = replace(small, recipe=recipe, train_images=None, test_images=None)
    if profile == "smoke":
        assert small.weights == "none" and small.dataset in ("synthetic_cifar100", "tiny_fashion_mnist")
        kept = replace(
            kept, dataset=experiment.dataset, weights=experiment.weights, reported=experiment.reported, note=experiment.note
        )
    assert kept == experiment


def test_unknown_profile() -> None:
    with pytest.raises(UserError, match="PROFILE: expected one of paper, mini, smoke, found 'huge'"):
        at_profile(EXPERIMENTS[0], "huge")
