"""The catalog against the study, and the profiles against the catalog."""

from dataclasses import replace

import pytest

from bench.catalog import EXPERIMENTS, find
from bench.errors import UserError
from bench.experiment import Experiment
from bench.profiles import PROFILES, at_profile

# accuracy in percent, and the final alphas at P2 and P3 where the study gives them
REPORTED = {
    "cifar100/baseline": (77.24,),
    "cifar100/E1_P2_F0": (66.52,),
    "cifar100/E2_P2_F1": (69.42,),
    "cifar100/E3_P2_F2": (75.33,),
    "cifar100/E4_P3_F0": (63.70,),
    "cifar100/E5_P3_F1": (65.18,),
    "cifar100/E6_P3_F2": (75.60,),
    "cifar100/A_dual": (75.93, -0.0510, 0.1161),
    "cifar100/B_heads1": (75.94, -0.0394, 0.1061),
    "cifar100/B_heads2": (75.79, -0.0496, 0.1100),
    "cifar100/B_heads4": (75.93, -0.0510, 0.1161),
    "cifar100/B_heads8": (75.80, -0.0532, 0.1260),
    "cifar100/C_mhsa": (75.63,),
    "cifar100/C_se": (75.44,),
    "cifar100/C_eca": (75.58,),
    "cifar100/C_cbam": (75.50,),
    "cifar100/C_spatial": (75.40,),
    "cifar100/stem_dual": (85.76,),
    "cifar100/scratch_convnext": (54.56,),
    "cifar100/scratch_dual": (49.44, -0.020, -0.016),
    "cifar100/scratch_vit_tiny": (41.0,),
    "cifar100/scratch_mixer_tiny": (41.0,),
    "cifar100/matched_convnext": (55.63,),
    "cifar100/matched_vit": (49.29,),
    "fashion_mnist/baseline": (94.56,),
    "fashion_mnist/A_dual": (94.37, -0.071, 0.034),
    "fashion_mnist/C_se": (94.42,),
    "fashion_mnist/C_eca": (94.42,),
    "fashion_mnist/C_spatial": (94.43,),
}
WITHOUT_A_NUMBER = {  # controls that are ours, and rows of which the study gives a range or words
    *(f"cifar100/baseline_{regime}" for regime in ("F0", "F1", "F2")),
    "cifar100/stem_baseline",
    "cifar100/scratch_convnext_50",
    *(f"fashion_mnist/B_heads{heads}" for heads in (1, 2, 4, 8)),
    "fashion_mnist/C_mhsa",
    "fashion_mnist/C_cbam",
    "fashion_mnist/scratch_convnext",
}


def test_reported_numbers_are_the_studys() -> None:
    found = {e.name: (e.reported, *(e.reported_gates or {}).values()) for e in EXPERIMENTS}
    assert {name: numbers for name, numbers in found.items() if numbers != (None,)} == REPORTED
    assert {name for name, numbers in found.items() if numbers == (None,)} == WITHOUT_A_NUMBER


def test_models_are_the_studys() -> None:
    def described(name: str) -> tuple[object, ...]:
        model = find(name).model
        return model.stem, model.attention and (model.attention.kind, model.attention.heads), model.sites

    for name, site in [("E1_P2_F0", "P2"), ("E2_P2_F1", "P2"), ("E3_P2_F2", "P2"), ("E4_P3_F0", "P3"), ("E6_P3_F2", "P3")]:
        assert described(f"cifar100/{name}") == ("default", ("mhsa", 4), (site,))
        assert find(f"cifar100/{name}").regime == name[-2:]
    for dataset in ("cifar100", "fashion_mnist"):
        assert described(f"{dataset}/A_dual") == described(f"{dataset}/B_heads4") == ("default", ("mhsa", 4), ("P2", "P3"))
        assert described(f"{dataset}/B_heads8") == ("default", ("mhsa", 8), ("P2", "P3"))
        for kind in ("mhsa", "se", "eca", "cbam", "spatial"):
            assert described(f"{dataset}/C_{kind}") == ("default", (kind, 1), ("P3",))
    for name in ("stem_dual", "scratch_dual"):
        assert described(f"cifar100/{name}") == ("cifar", ("mhsa", 4), ("P2", "P3"))
    assert {find(f"cifar100/{name}").model.family for name in ("scratch_vit_tiny", "scratch_mixer_tiny", "matched_vit")} == {
        "vit_tiny",
        "mixer_tiny",
        "matched_vit",
    }


def test_every_attention_row_has_something_to_be_compared_with() -> None:
    for experiment in EXPERIMENTS:
        if experiment.model.attention:
            others = [find(name) for name in (experiment.baseline, experiment.control) if name]
            assert others, experiment.name
            assert all(other.model.attention is None and other.dataset == experiment.dataset for other in others)


def test_a_control_differs_from_its_row_in_the_network_alone() -> None:
    for experiment in EXPERIMENTS:
        if experiment.control:
            control = find(experiment.control)
            assert control.model.attention is None and control.model.family == "convnext_tiny"
            assert (control.regime, control.recipe, control.weights) == (experiment.regime, experiment.recipe, experiment.weights)


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
        ("cifar100/scratch_convnext_50", "cifar", "none", "full", 50, 0, 0.1, 0.1),
        ("cifar100/stem_dual", "cifar", "imagenet1k", "F2", 20, 5, 0.1, 0.1),
        ("cifar100/E4_P3_F0", "default", "imagenet1k", "F0", 20, 5, 0.0, 0.0),
        ("cifar100/scratch_dual", "cifar", "none", "full", 50, 0, 0.1, 0.1),
        ("cifar100/scratch_vit_tiny", None, "none", "full", 50, 0, 0.1, 0.1),
        ("cifar100/scratch_mixer_tiny", None, "none", "full", 50, 0, 0.1, 0.1),
        ("cifar100/matched_vit", None, "none", "full", 30, 0, 0.1, 0.0),
        ("cifar100/matched_convnext", "cifar", "none", "full", 30, 0, 0.1, 0.0),
        ("fashion_mnist/baseline", "default", "imagenet1k", "F2", 20, 5, 0.0, 0.0),
    ],
)
def test_protocols_are_the_studys(
    name: str, stem: str | None, weights: str, regime: str, epochs: int, frozen: int, smoothing: float, validation: float
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
        study = {name: getattr(experiment, name) for name in ("dataset", "weights", "reported", "note", "reported_gates")}
        kept = replace(kept, **study)
    assert kept == experiment


def test_unknown_profile() -> None:
    with pytest.raises(UserError, match="PROFILE: expected one of paper, mini, smoke, found 'huge'"):
        at_profile(EXPERIMENTS[0], "huge")
