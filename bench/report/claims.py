"""The claims of the study, and whether the records support or contradict them.

A claim says of one or more true differences where they lie. It is

- **supported** when the 95 % interval of every one lies there. All must hold at once, so no correction for their number is needed;
- **contradicted** when one lies elsewhere: the p-value of the bound that it is beyond, corrected by Holm's method for all the
  comparisons of the claim, is below 5 %. One is enough, and among many one would turn up by chance;
- **not decidable** otherwise. One seed decides nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from bench.catalog import find
from bench.report.comparisons import (
    ABOUT_6_POINTS,
    ABOUT_TWICE,
    ABOVE,
    ANYWHERE,
    BELOW,
    NEAR,
    NOT_ABOVE,
    TIED,
    Comparison,
    Outcome,
    Region,
    accuracy,
    examine,
    gate,
    penalty_gap,
    short,
    slowdown,
)
from bench.report.paired import LEVEL, holm
from bench.report.rows import Row

Verdict = Literal["supported", "contradicted", "not decidable"]


@dataclass(frozen=True)
class Part:
    """Comparisons that a table sums up in one phrase."""

    label: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Claim:
    """A claim of the study in our words.

    Attributes:
        number: its place in the list of twelve.
        sentence: what is claimed.
        parts: what it says of the rows; all of it must hold.
        beside: comparisons that explain the outcome and have no say in it.
    """

    number: int
    sentence: str
    parts: tuple[Part, ...]
    beside: tuple[Part, ...] = ()

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Those that decide."""
        return tuple(comparison for part in self.parts for comparison in part.comparisons)

    @property
    def rows(self) -> tuple[str, ...]:
        """The experiments that decide, each once."""
        return tuple(dict.fromkeys(name for comparison in self.comparisons for name in comparison.rows))


# ---- the rows that claims name --------------------------------------------------------------------------------------------

BASELINE, DUAL = "cifar100/baseline", "cifar100/A_dual"
CONTROL = "cifar100/baseline_F2"  # the baseline with the schedule of attention and of the CIFAR stem; Fashion-MNIST's has it anyway
P2 = {regime: f"cifar100/E{i}_P2_{regime}" for i, regime in enumerate(("F0", "F1", "F2"), 1)}
P3 = {regime: f"cifar100/E{i}_P3_{regime}" for i, regime in enumerate(("F0", "F1", "F2"), 4)}
SINGLES = (*P2.values(), *P3.values())
HEADS = tuple(f"cifar100/B_heads{heads}" for heads in (1, 2, 4, 8))
KINDS = tuple(f"cifar100/C_{kind}" for kind in ("mhsa", "se", "eca", "cbam", "spatial"))
FASHION_BASELINE, FASHION_DUAL = "fashion_mnist/baseline", "fashion_mnist/A_dual"
# the row of four heads is the one of two blocks once more
FASHION = (FASHION_DUAL, *(row.replace("cifar100", "fashion_mnist") for row in (*HEADS, *KINDS) if row != "cifar100/B_heads4"))


def against(rows: Iterable[str], other: str, region: Region, label: str = "") -> Part:
    """Each of the rows minus another one."""
    rows = tuple(rows)
    return Part(label or f"{short(rows[0])} − {short(other)}", tuple(accuracy(row, other, region) for row in rows))


def pairwise(rows: Iterable[str], region: Region, label: str) -> Part:
    """Every pair of the rows."""
    return Part(label, tuple(accuracy(first, second, region) for first, second in combinations(rows, 2)))


def to_controls(rows: Iterable[str]) -> Part:
    """Each of the rows minus the ConvNeXt without attention that trains by the same schedule, which the study does not have."""
    controls = ((row, find(row).control) for row in rows)
    return Part("to the control", tuple(accuracy(row, control, ANYWHERE) for row, control in controls if control))


# ---- the claims -----------------------------------------------------------------------------------------------------------

CLAIMS = (
    Claim(
        1,
        "None of the six single attention blocks beats the baseline.",
        (against(SINGLES, BASELINE, NOT_ABOVE, "single blocks − `baseline`"),),
        beside=(to_controls(SINGLES),),
    ),
    Claim(
        2,
        "Unfreezing everything (F2) beats unfreezing a part (F1) or nothing (F0), at either site.",
        tuple(
            Part(f"F2 − F0, F1 at {site}", tuple(accuracy(rows["F2"], rows[regime], ABOVE) for regime in ("F0", "F1")))
            for site, rows in (("P2", P2), ("P3", P3))
        ),
    ),
    Claim(
        3,
        "Two blocks under F2 beat every single block and stay below the baseline.",
        (
            Part(f"{short(DUAL)} − single blocks", tuple(accuracy(DUAL, single, ABOVE) for single in SINGLES)),
            against([DUAL], BASELINE, BELOW),
        ),
        beside=(to_controls([DUAL]),),
    ),
    Claim(4, "The number of heads (1, 2, 4 or 8) does not matter.", (pairwise(HEADS, TIED, "pairs of head counts"),)),
    Claim(
        5,
        "The five kinds of attention are tied, and all stay below the baseline.",
        (pairwise(KINDS, TIED, "pairs of kinds"), against(KINDS, BASELINE, BELOW, "kinds − `baseline`")),
        beside=(to_controls(KINDS),),
    ),
    Claim(
        6,
        "The gates move away from zero.",
        (
            Part(
                "gates of the single blocks", (*(gate(row, "P2") for row in P2.values()), *(gate(row, "P3") for row in P3.values()))
            ),
            Part("of the two blocks", (gate(DUAL, "P2"), gate(DUAL, "P3"))),
        ),
    ),
    Claim(
        7,
        "The CIFAR stem brings the gain, and attention adds nothing to it.",
        (
            against(["cifar100/stem_baseline"], BASELINE, ABOVE),
            against(["cifar100/stem_dual"], "cifar100/stem_baseline", NOT_ABOVE),
        ),
        beside=(against(["cifar100/stem_baseline"], CONTROL, ANYWHERE),),  # still with other smoothing and validation images
    ),
    Claim(
        8,
        "From scratch, attention does not help.",
        (against(["cifar100/scratch_dual"], "cifar100/scratch_convnext", NOT_ABOVE),),
        beside=(to_controls(["cifar100/scratch_dual"]),),
    ),
    Claim(
        9,
        "From scratch, Mixer-Tiny comes close to ViT-Tiny, and both stay below ConvNeXt-Tiny.",
        (
            against(["cifar100/scratch_mixer_tiny"], "cifar100/scratch_vit_tiny", NEAR),
            against(["cifar100/scratch_mixer_tiny"], "cifar100/scratch_convnext", BELOW),
            against(["cifar100/scratch_vit_tiny"], "cifar100/scratch_convnext", BELOW),
        ),
        beside=(to_controls(["cifar100/scratch_mixer_tiny", "cifar100/scratch_vit_tiny"]),),
    ),
    Claim(
        10,
        "With as many parameters, ConvNeXt beats ViT by about 6 points.",
        (against(["cifar100/matched_convnext"], "cifar100/matched_vit", ABOUT_6_POINTS),),
    ),
    Claim(
        11,
        "That ViT takes about twice as long for an epoch.",
        (Part("seconds per epoch, ViT / ConvNeXt", (slowdown("cifar100/matched_vit", "cifar100/matched_convnext", ABOUT_TWICE),)),),
    ),
    Claim(
        12,
        "On Fashion-MNIST no variant beats the baseline, and attention costs less accuracy than on CIFAR-100.",
        (
            against(FASHION, FASHION_BASELINE, NOT_ABOVE, "variants − `baseline`"),
            Part("two blocks: cost on CIFAR-100 − here", (penalty_gap((FASHION_DUAL, FASHION_BASELINE), (DUAL, BASELINE), ABOVE),)),
        ),
        beside=(
            Part(
                "the same to the control of either",
                (penalty_gap((FASHION_DUAL, FASHION_BASELINE), (DUAL, CONTROL), ANYWHERE),),
            ),
        ),
    ),
)


# ---- judging --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """A claim judged on the rows of one profile that started from one set of initial weights.

    Attributes:
        claim: what is judged.
        weights: the file that the rows started from; None: random weights, or nothing was run.
        starts_as_the_study: whether the study's rows started from the same.
        has_the_studys_budget: whether they had as many images and epochs.
        verdict: what the records say.
        outcomes: by comparison of the claim, and of what stands beside it.
        p_values: Holm's, against the claim, by comparison that decides.
        left_out: the failed runs among the rows.
    """

    claim: Claim
    weights: str | None
    starts_as_the_study: bool
    has_the_studys_budget: bool
    verdict: Verdict
    outcomes: Mapping[Comparison, Outcome]
    p_values: Mapping[Comparison, float]
    left_out: tuple[str, ...]

    @property
    def deciding(self) -> list[Outcome]:
        """The outcomes that the verdict rests on, in the claim's order."""
        return [self.outcomes[comparison] for comparison in self.claim.comparisons]

    @property
    def ran(self) -> bool:
        """Whether any of the claim's rows has a figure."""
        return any(outcome.paired for outcome in self.deciding)

    @property
    def seeds(self) -> str:
        """How many seeds the comparisons have: "3", or "1 to 3"."""
        counts = sorted({outcome.paired.n if outcome.paired else 0 for outcome in self.deciding})
        return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))

    @property
    def p(self) -> float:
        """The p-value behind the verdict: the smaller, the clearer; 1 where nothing is decided."""
        if self.verdict == "contradicted":
            return min(self.p_values.values())
        return max(outcome.p_for for outcome in self.deciding) if self.verdict == "supported" else 1.0


def judge(claim: Claim, rows: Mapping[str, Row], weights: str | None = None) -> Judgement:
    """Judge one claim.

    Args:
        claim: one of ``CLAIMS``.
        rows: of one profile and one set of initial weights, by experiment name; only those with records.
        weights: the name of those weights.
    """
    beside = (comparison for part in claim.beside for comparison in part.comparisons)
    outcomes = {comparison: examine(comparison, rows) for comparison in (*claim.comparisons, *beside)}
    deciding = [outcomes[comparison] for comparison in claim.comparisons]
    p_values = holm([outcome.p_against for outcome in deciding])
    used = [rows[name] for name in claim.rows if name in rows]
    return Judgement(
        claim=claim,
        weights=weights,
        starts_as_the_study=all(row.starts_as_the_study for row in used),
        has_the_studys_budget=all(row.has_the_studys_budget for row in used),
        verdict=_verdict(deciding, p_values),
        outcomes=outcomes,
        p_values=dict(zip(claim.comparisons, p_values, strict=True)),
        left_out=tuple(f"{short(row.experiment.name)} ({', '.join(row.failures)})" for row in used if row.done and row.failures),
    )


def judge_all(rows: Sequence[Row]) -> list[Judgement]:
    """Judge every claim on the rows of one profile, once for each set of initial weights that its rows started from."""
    judgements = []
    for claim in CLAIMS:
        used = [row for row in rows if row.found and row.experiment.name in claim.rows]
        for weights in sorted({row.weights for row in used}, key=str) or [None]:
            of_these = {row.experiment.name: row for row in rows if row.found and row.weights == weights}
            judgements.append(judge(claim, of_these, weights))
    return judgements


def _verdict(deciding: Sequence[Outcome], p_values: Sequence[float]) -> Verdict:
    if min(p_values) < LEVEL:
        return "contradicted"
    return "supported" if all(outcome.inside for outcome in deciding) else "not decidable"
