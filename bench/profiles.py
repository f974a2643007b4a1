"""Budgets. A profile maps an experiment to a smaller experiment of the same kind; ``paper`` leaves it as it is."""

from collections.abc import Callable
from dataclasses import replace

from bench.errors import UserError
from bench.experiment import Experiment


def paper(experiment: Experiment) -> Experiment:
    """The study's own budget."""
    return experiment


def mini(experiment: Experiment) -> Experiment:
    """Real data, for two CPU cores: 4 epochs, a class-balanced subset, about two minutes a run.

    The CIFAR stem and the token models cost four times the default stem's work per image and more, so they get fewer images. A
    regime switch keeps its place in proportion: 5 of 20 epochs become 1 of 4. Early stopping is left out: four epochs show no
    plateau.
    """
    slow = experiment.model.stem != "default"
    return replace(
        experiment,
        recipe=replace(experiment.recipe, epochs=4, frozen_epochs=min(1, experiment.recipe.frozen_epochs), patience=None),
        train_images=5_000 if slow else 8_000,
        test_images=4_000,
    )


_SMOKE_DATA = {"cifar100": "synthetic_cifar100", "fashion_mnist": "tiny_fashion_mnist"}


def smoke(experiment: Experiment) -> Experiment:
    """Seconds a run, offline: embedded or synthetic data, random weights, two epochs of four steps.

    It shows that everything works; its accuracies say nothing about the models, and are not compared with the study's.
    """
    recipe = experiment.recipe
    return replace(
        experiment,
        reported=None,
        note="",
        reported_gates=None,
        dataset=_SMOKE_DATA[experiment.dataset],
        weights="none",
        recipe=replace(
            recipe,
            epochs=2,
            frozen_epochs=min(1, recipe.frozen_epochs),
            batch_size=50,
            patience=1 if recipe.patience else None,
        ),
        train_images=200,
        test_images=100,
    )


PROFILES: dict[str, Callable[[Experiment], Experiment]] = {"paper": paper, "mini": mini, "smoke": smoke}


def at_profile(experiment: Experiment, profile: str) -> Experiment:
    """Return the experiment as the named profile runs it.

    Raises:
        UserError: no profile has this name.
    """
    if profile not in PROFILES:
        raise UserError(f"PROFILE: expected one of {', '.join(PROFILES)}, found {profile!r}")
    return PROFILES[profile](experiment)
