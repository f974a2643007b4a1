"""Every experiment of the study, table by table, with the number that the study reports.

The source is "ConvNeXt Project" (Qais and Shiff, 2026). What it leaves open is decided in the recipes here and in
``bench/report/decisions.py``; RESULTS.md prints both.
"""

from dataclasses import replace
from typing import Any

from bench.errors import UserError
from bench.experiment import Experiment, Model, Recipe, Regime
from models.description import Attention, Kind, Site, Stem

# ---- recipes ---------------------------------------------------------------------------------------------------------
# The study names AdamW, cosine, warm-up, label smoothing 0.1 (CIFAR stem and scratch) and the epochs; no other figure.
# Batch 128: the usual size at 32x32, and small enough that 20 epochs are 7,800 steps.
# Weight decay 0.05 and betas (0.9, 0.999): those of the ConvNeXt paper for training from scratch (its Table 5). Its fine-tuning has
# hardly any decay (1e-8, over 30 epochs at 5e-5); here one figure serves all rows.
# Learning rates: ConvNeXt's 4e-3 at batch 4096 is 1.25e-4 at 128 by the linear rule and 7e-4 by the square-root rule, which
# suits Adam better; 1e-3 is the round figure next to it. The pretrained backbone gets a tenth of it.
# Warm-up: 5 % of the steps, one epoch of twenty.

FINE_TUNE = Recipe(epochs=20, head_lr=1e-3, backbone_lr=1e-4)
TWO_PHASE = replace(FINE_TUNE, frozen_epochs=5)
CIFAR_STEM = replace(TWO_PHASE, label_smoothing=0.1, validation_fraction=0.1)
SCRATCH = Recipe(epochs=50, label_smoothing=0.1, validation_fraction=0.1)

# Heads: four where the study does not say, as in its experiment A.

PLAIN = Model()
PLAIN_CIFAR_STEM = Model(stem="cifar")
BOTH: tuple[Site, ...] = ("P2", "P3")


def gated(kind: Kind, *sites: Site, heads: int = 1, stem: Stem = "default") -> Model:
    """ConvNeXt-Tiny with one kind of gated attention at the given sites."""
    return Model(stem=stem, attention=Attention(kind, heads=heads), sites=sites)


# ---- CIFAR-100, ImageNet-1k weights, 20 epochs ---------------------------------------------------------------------------


def fine_tuned(row: str, model: Model, regime: Regime, reported: float | None = None, *, table: str, **study: Any) -> Experiment:
    """A fine-tuning row on CIFAR-100: everything from epoch 1 (full), or five epochs on a frozen backbone first."""
    if model.attention:
        study |= {"baseline": "cifar100/baseline", "control": f"cifar100/baseline_{regime}"}
    return Experiment(
        name=f"cifar100/{row}",
        table=table,
        dataset="cifar100",
        model=model,
        weights="imagenet1k",
        regime=regime,
        recipe=FINE_TUNE if regime == "full" else TWO_PHASE,
        reported=reported,
        **study,
    )


TABLE_1 = "CIFAR-100: one attention block (the study's Table 1)"
SINGLE = [
    fine_tuned("baseline", PLAIN, "full", 77.24, table=TABLE_1),
    fine_tuned("baseline_F0", PLAIN, "F0", table=TABLE_1),  # the controls that the study lacks
    fine_tuned("baseline_F1", PLAIN, "F1", table=TABLE_1),
    fine_tuned("baseline_F2", PLAIN, "F2", table=TABLE_1),
    fine_tuned("E1_P2_F0", gated("mhsa", "P2", heads=4), "F0", 66.52, table=TABLE_1),
    fine_tuned("E2_P2_F1", gated("mhsa", "P2", heads=4), "F1", 69.42, table=TABLE_1),
    fine_tuned("E3_P2_F2", gated("mhsa", "P2", heads=4), "F2", 75.33, table=TABLE_1),
    fine_tuned("E4_P3_F0", gated("mhsa", "P3", heads=4), "F0", 63.70, table=TABLE_1),
    fine_tuned("E5_P3_F1", gated("mhsa", "P3", heads=4), "F1", 65.18, table=TABLE_1),
    fine_tuned("E6_P3_F2", gated("mhsa", "P3", heads=4), "F2", 75.60, table=TABLE_1),
]

TABLE_A = "CIFAR-100: two attention blocks (experiment A)"
DUAL = [
    fine_tuned("A_dual", gated("mhsa", *BOTH, heads=4), "F2", 75.93, table=TABLE_A, reported_gates={"P2": -0.0510, "P3": 0.1161}),
]

TABLE_2 = "CIFAR-100: heads of the two blocks (the study's Table 2)"
HEADS = [
    fine_tuned(
        f"B_heads{heads}",
        gated("mhsa", *BOTH, heads=heads),
        "F2",
        reported,
        table=TABLE_2,
        reported_gates={"P2": p2, "P3": p3},
    )
    for heads, reported, p2, p3 in [
        (1, 75.94, -0.0394, 0.1061),
        (2, 75.79, -0.0496, 0.1100),
        (4, 75.93, -0.0510, 0.1161),
        (8, 75.80, -0.0532, 0.1260),
    ]
]

TABLE_3 = "CIFAR-100: kinds of attention at P3 (the study's Table 3)"
KINDS = [
    fine_tuned("C_mhsa", gated("mhsa", "P3"), "F2", 75.63, table=TABLE_3),
    fine_tuned("C_se", gated("se", "P3"), "F2", 75.44, table=TABLE_3),
    fine_tuned("C_eca", gated("eca", "P3"), "F2", 75.58, table=TABLE_3),
    fine_tuned("C_cbam", gated("cbam", "P3"), "F2", 75.50, table=TABLE_3),
    fine_tuned("C_spatial", gated("spatial", "P3"), "F2", 75.40, table=TABLE_3),
]

# ---- CIFAR-100, CIFAR stem, ImageNet-1k weights: section 2.6 ---------------------------------------------------------------

TABLE_STEM = "CIFAR-100: CIFAR stem (section 2.6)"
STEM = [
    Experiment(
        name=f"cifar100/{row}",
        table=TABLE_STEM,
        dataset="cifar100",
        model=model,
        weights="imagenet1k",
        regime="F2",
        recipe=CIFAR_STEM,
        selection="test_at_best_validation",
        reported=reported,
        note=note,
        control=control,
    )
    for row, model, reported, note, control in [
        ("stem_baseline", PLAIN_CIFAR_STEM, None, "essentially the same", None),
        ("stem_dual", gated("mhsa", *BOTH, heads=4, stem="cifar"), 85.76, "", "cifar100/stem_baseline"),
    ]
]

# ---- CIFAR-100, from scratch: section 3 ----------------------------------------------------------------------------------


def scratch(row: str, model: Model, recipe: Recipe, reported: float | None = None, *, table: str, **study: Any) -> Experiment:
    """A row trained from random weights on CIFAR-100."""
    return Experiment(
        name=f"cifar100/{row}",
        table=table,
        dataset="cifar100",
        model=model,
        weights="none",
        recipe=recipe,
        reported=reported,
        **study,
    )


TABLE_SCRATCH = "CIFAR-100: from scratch (sections 3 and 3.1)"
SCRATCH_PAIR = {"baseline": "cifar100/scratch_convnext", "control": "cifar100/scratch_convnext_50"}
FROM_SCRATCH = [
    scratch(
        "scratch_convnext",
        PLAIN_CIFAR_STEM,
        replace(SCRATCH, epochs=100, patience=15),
        54.56,
        table=TABLE_SCRATCH,
        selection="best_validation",
    ),
    scratch("scratch_convnext_50", PLAIN_CIFAR_STEM, SCRATCH, table=TABLE_SCRATCH),  # the control that the study lacks
    scratch(
        "scratch_dual",
        gated("mhsa", *BOTH, heads=4, stem="cifar"),
        SCRATCH,
        49.44,
        table=TABLE_SCRATCH,
        selection="test_at_best_validation",
        reported_gates={"P2": -0.020, "P3": -0.016},
        **SCRATCH_PAIR,
    ),
    *(
        scratch(
            f"scratch_{family}",
            Model(family=family, stem=None),
            SCRATCH,
            41.0,
            table=TABLE_SCRATCH,
            note="about 41",
            **SCRATCH_PAIR,
        )
        for family in ("vit_tiny", "mixer_tiny")
    ),
]

TABLE_MATCHED = "CIFAR-100: matched parameters, from scratch (section 3.2)"
MATCHED_RECIPE = replace(SCRATCH, epochs=30, validation_fraction=0.0)
MATCHED = [
    scratch("matched_convnext", PLAIN_CIFAR_STEM, MATCHED_RECIPE, 55.63, table=TABLE_MATCHED),
    scratch(
        "matched_vit",
        Model(family="matched_vit", stem=None),
        MATCHED_RECIPE,
        49.29,
        table=TABLE_MATCHED,
        baseline="cifar100/matched_convnext",
    ),
]

# ---- Fashion-MNIST, ImageNet-1k weights: the study's Table 4 ---------------------------------------------------------------

TABLE_4 = "Fashion-MNIST (the study's Table 4)"


def fashion(row: str, model: Model, reported: float | None = None, **study: Any) -> Experiment:
    """A fine-tuning row on Fashion-MNIST, in two phases as F2; its baseline has that schedule too."""
    return Experiment(
        name=f"fashion_mnist/{row}",
        table=TABLE_4,
        dataset="fashion_mnist",
        model=model,
        weights="imagenet1k",
        regime="F2",
        recipe=TWO_PHASE,
        reported=reported,
        baseline="fashion_mnist/baseline" if model.attention else None,
        **study,
    )


FASHION = [
    fashion("baseline", PLAIN, 94.56),
    fashion("A_dual", gated("mhsa", *BOTH, heads=4), 94.37, reported_gates={"P2": -0.071, "P3": 0.034}),
    *(fashion(f"B_heads{heads}", gated("mhsa", *BOTH, heads=heads), note="94.31 to 94.37") for heads in (1, 2, 4, 8)),
    fashion("C_mhsa", gated("mhsa", "P3"), note="94.29 to 94.43"),
    fashion("C_se", gated("se", "P3"), 94.42),
    fashion("C_eca", gated("eca", "P3"), 94.42),
    fashion("C_cbam", gated("cbam", "P3"), note="94.29 to 94.43"),
    fashion("C_spatial", gated("spatial", "P3"), 94.43),
    Experiment(  # the scratch control that the study lacks
        name="fashion_mnist/scratch_convnext",
        table=TABLE_4,
        dataset="fashion_mnist",
        model=PLAIN_CIFAR_STEM,
        weights="none",
        recipe=MATCHED_RECIPE,
    ),
]

EXPERIMENTS = (*SINGLE, *DUAL, *HEADS, *KINDS, *STEM, *FROM_SCRATCH, *MATCHED, *FASHION)


def find(name: str) -> Experiment:
    """Return the experiment of that name.

    Raises:
        UserError: there is none.
    """
    for experiment in EXPERIMENTS:
        if experiment.name == name:
            return experiment
    raise UserError(f"experiment {name!r} is not in the catalog; `python -m bench list` names them all")
