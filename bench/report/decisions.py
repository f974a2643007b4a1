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
        "Each attention row states its maps: P2 and P3 see 4x4 and 2x2 with the default stem, 8x8 and 4x4 with the CIFAR stem.",
        "The sides follow from the strides. The 8x8 and 4x4 of the study's attention figure exist with the CIFAR stem only, its "
        "tables use the default one; 16 or 4 tokens explain more than any argument.",
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
        "D4",
        "What exactly is a gated module?",
        "x + alpha * module(x) for every kind, alpha one scalar that starts at 0; self-attention sees LN(tokens(x)), no positions.",
        "It is the study's formula, and its parameter counts leave room for one scalar and for no positions.",
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
        "100 epochs are planned; 15 epochs without a better validation accuracy end it. `scratch_convnext_50` is added, with the "
        "50 epochs of the rows that are held against it.",
        "The study stopped by eye at epoch 54, on a plateau of about 15 epochs with the best one near its end; a rule has to wait "
        "longer. Without the added row those comparisons would mix the networks' difference with the epochs'.",
    ),
    Decision(
        "D8",
        "Which augmentation?",
        "Random crop after padding by 4 black pixels, and horizontal flip; none in validation and test. Fashion-MNIST's 28x28 "
        "are resized to 32x32 once, by bilinear interpolation.",
        "It is the usual pair for CIFAR, and the study names no other.",
    ),
    Decision(
        "D9",
        "Which normalisation?",
        "ImageNet's mean and deviation with ImageNet weights, the data set's own from scratch.",
        "Pretrained filters expect the statistics that they were trained with.",
    ),
    Decision(
        "D10",
        "Which ViT matches ConvNeXt's parameters?",
        "Patch 4, depth 12, MLP ratio 4; the width, a multiple of 8, whose count is closest: 440 with 5 heads, 0.5 % above.",
        "The study fixes these three and searched width and heads for the count alone. `models/vit.py` repeats the search.",
    ),
    Decision(
        "D11",
        "How wide are Mixer-Tiny's MLPs?",
        "288 over tokens and 576 over channels, with learned positions.",
        "Natural multiples of the width 192 that give the study's 3.16 M parameters.",
    ),
    Decision(
        "D12",
        "How many seeds?",
        "As many as SEEDS names, the same for every row: seed k gives the same validation split and order of images in each.",
        "The study has one seed a row; only the spread over seeds tells a difference from chance.",
    ),
    Decision(
        "D13",
        "How many heads has self-attention outside of the experiments B and C?",
        "Four, in every row, as experiment A; ViT-Tiny has three.",
        "The study names a head count for those two only, and finds that it does not matter. A's accuracy is that of B's row with "
        "four; three heads of 64 are those of DeiT-Tiny, whose width ViT-Tiny has.",
    ),
    Decision(
        "D14",
        "Is the row of four heads (B) another run than the two blocks (A)? Accuracy and gates are the same.",
        "Both rows are in the catalog, with one configuration: on one machine they give the same numbers. A claim counts it once.",
        "Each table of the study is complete that way.",
    ),
    Decision(
        "D15",
        "Which regularisation is there beside weight decay and label smoothing?",
        "ConvNeXt keeps torchvision's stochastic depth, from 0 in the first of its 18 blocks to 0.1 in the last, also while it is "
        "frozen; ViT and Mixer have neither that nor dropout.",
        "The study takes torchvision's model as it is, and names neither for the token models. So claims 9 to 11 compare this too.",
    ),
    Decision(
        "D16",
        "How are the rows with the CIFAR stem fine-tuned (section 2.6), and which rows have a validation split?",
        "As the two blocks of experiment A: 20 epochs, F2. A tenth of the training images is for validation there and from scratch "
        "(sections 3 and 3.1), none elsewhere.",
        "Section 2.6 changes the stem, the smoothing and the selection alone, and its best epoch is the 18th. Sections 3 and 3.1 "
        "report validation accuracies or share that recipe; the others report the best test accuracy only.",
    ),
    Decision(
        "D17",
        "What happens to the optimizer when a regime releases parameters?",
        "They start with empty moments at the schedule's present factor, without a warm-up of their own. All of the backbone has "
        "the backbone's learning rate, under F1 as well.",
        "The study names one warm-up and one smaller learning rate.",
    ),
)
