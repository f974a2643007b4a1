"""Every experiment of the study, table by table, with the number that the study reports.

The source is "ConvNeXt Project" (Qais and Shiff, 2026). What it leaves open is decided in the recipes here and in
``bench/report/decisions.py``; RESULTS.md prints both.
"""

from dataclasses import replace

from bench.errors import UserError
from bench.experiment import Experiment, Model, Recipe

# ---- recipes ---------------------------------------------------------------------------------------------------------
# The study names AdamW, cosine, warm-up, label smoothing 0.1 (CIFAR stem and scratch) and the epochs; no other figure.
# Batch 128: the usual size at 32x32, and small enough that 20 epochs are 7,800 steps.
# Weight decay 0.05 and betas (0.9, 0.999): those of the ConvNeXt paper (its Table 5), pretraining and fine-tuning alike.
# Learning rates: ConvNeXt's 4e-3 at batch 4096 is 1.25e-4 at 128 by the linear rule and 7e-4 by the square-root rule, which
# suits Adam better; 1e-3 is the round figure next to it. The pretrained backbone gets a tenth of it.
# Warm-up: 5 % of the steps, one epoch of twenty.

FINE_TUNE = Recipe(epochs=20, head_lr=1e-3, backbone_lr=1e-4)
TWO_PHASE = replace(FINE_TUNE, frozen_epochs=5)
CIFAR_STEM = replace(TWO_PHASE, label_smoothing=0.1, validation_fraction=0.1)
SCRATCH = Recipe(epochs=50, label_smoothing=0.1, validation_fraction=0.1)

PLAIN = Model()
PLAIN_CIFAR_STEM = Model(stem="cifar")

# ---- CIFAR-100, ImageNet-1k weights: the study's Tables 1 to 3 ---------------------------------------------------------

FINE_TUNING = [
    Experiment(
        name="cifar100/baseline",
        table="CIFAR-100, fine-tuning",
        dataset="cifar100",
        model=PLAIN,
        weights="imagenet1k",
        regime="full",
        recipe=FINE_TUNE,
        reported=77.24,
    ),
    *(
        Experiment(
            name=f"cifar100/baseline_{regime}",
            table="CIFAR-100, fine-tuning",
            dataset="cifar100",
            model=PLAIN,
            weights="imagenet1k",
            regime=regime,
            recipe=TWO_PHASE,
        )
        for regime in ("F0", "F1", "F2")
    ),
]

# ---- CIFAR-100, CIFAR stem: section 2.6 --------------------------------------------------------------------------------

STEM = [
    Experiment(
        name="cifar100/stem_baseline",
        table="CIFAR-100, CIFAR stem",
        dataset="cifar100",
        model=PLAIN_CIFAR_STEM,
        weights="imagenet1k",
        regime="F2",
        recipe=CIFAR_STEM,
        selection="test_at_best_validation",
        note="as with attention (85.76)",
    ),
]

# ---- CIFAR-100, from scratch: section 3 --------------------------------------------------------------------------------

FROM_SCRATCH = [
    Experiment(
        name="cifar100/scratch_convnext",
        table="CIFAR-100, from scratch",
        dataset="cifar100",
        model=PLAIN_CIFAR_STEM,
        weights="none",
        recipe=replace(SCRATCH, epochs=100, patience=15),
        selection="best_validation",
        reported=54.56,
    ),
    Experiment(
        name="cifar100/matched_convnext",
        table="CIFAR-100, from scratch",
        dataset="cifar100",
        model=PLAIN_CIFAR_STEM,
        weights="none",
        recipe=replace(SCRATCH, epochs=30, validation_fraction=0.0),
        reported=55.63,
    ),
]

# ---- Fashion-MNIST: the study's Table 4, and the scratch control that it lacks -----------------------------------------

FASHION = [
    Experiment(
        name="fashion_mnist/baseline",
        table="Fashion-MNIST",
        dataset="fashion_mnist",
        model=PLAIN,
        weights="imagenet1k",
        regime="F2",
        recipe=TWO_PHASE,
        reported=94.56,
    ),
    Experiment(
        name="fashion_mnist/scratch_convnext",
        table="Fashion-MNIST",
        dataset="fashion_mnist",
        model=PLAIN_CIFAR_STEM,
        weights="none",
        recipe=replace(SCRATCH, epochs=30, validation_fraction=0.0),
    ),
]

EXPERIMENTS = (*FINE_TUNING, *STEM, *FROM_SCRATCH, *FASHION)


def find(name: str) -> Experiment:
    """Return the experiment of that name.

    Raises:
        UserError: there is none.
    """
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    raise UserError(f"experiment {name!r} is not in the catalog; `python -m bench list` names them all")
