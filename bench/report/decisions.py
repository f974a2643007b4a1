"""What the study leaves open and what this suite does about it: one place, printed in RESULTS.md.

The figures of the recipes are not here: they stand in ``bench/catalog.py`` with their reasons.
"""

from typing import NamedTuple


class Decision(NamedTuple):
    """A question that the study's text does not answer."""

    key: str
    question: str
    decision: str
    reason: str


DECISIONS = (
    Decision(
        "D1",
        "How large are the feature maps?",
        "Each table states the stem; at 32x32 the maps after stages 1 to 4 have side 8, 4, 2, 1 with the default stem and "
        "16, 8, 4, 2 with the CIFAR stem.",
        "The sides follow from the strides, and the study's text fits the default stem in its tables but not in its figures.",
    ),
    Decision(
        "D2",
        "Which learning rates, weight decay, warm-up and batch size?",
        "AdamW and a cosine with the figures of the recipe table; no weight decay on norms, biases, layer scales and gates.",
        "The study names the optimizer and the schedule only. The figures were chosen once and tuned for no row.",
    ),
    Decision(
        "D3",
        "With which schedule was the CIFAR-100 baseline trained?",
        "`baseline` trains everything from the first epoch; `baseline_F0`, `_F1` and `_F2` are added, without attention and with "
        "the schedules of the attention rows.",
        "Without them a comparison with the baseline would mix the effect of attention with that of freezing.",
    ),
    Decision(
        "D5",
        "What trains while the backbone is frozen?",
        "torchvision's whole classifier: its LayerNorm and its linear layer.",
        "The layer is new for 100 classes, and the norm before it adapts the frozen features at almost no cost.",
    ),
    Decision(
        "D6",
        "Which accuracy is reported?",
        "The study's: the best test accuracy over the epochs. Beside it the last epoch's, and with a validation split the "
        "test accuracy of the epoch with the best validation accuracy.",
        "A maximum over epochs, taken on the test set, is optimistic; the other two are not.",
    ),
    Decision(
        "D7",
        "When does the long run from scratch stop?",
        "100 epochs are planned; 15 epochs without a better validation accuracy end it.",
        "The study stopped by eye, on a plateau that had lasted about 15 epochs.",
    ),
    Decision(
        "D8",
        "Which augmentation?",
        "Random crop after padding by 4 black pixels, and horizontal flip; none in validation and test.",
        "It is the usual pair for CIFAR, and the study names no other.",
    ),
    Decision(
        "D9",
        "Which normalisation?",
        "ImageNet's mean and deviation with ImageNet weights, the data set's own from scratch.",
        "Pretrained filters expect the statistics that they were trained with.",
    ),
    Decision(
        "D12",
        "How many seeds?",
        "As many as SEEDS names, the same for every row: seed k gives the same validation split and order of images in each.",
        "The study has one seed a row; only the spread over seeds tells a difference from chance.",
    ),
)
