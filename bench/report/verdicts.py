"""The section of RESULTS.md that judges the claims: verdicts first, then every comparison behind them."""

import math
from collections.abc import Iterable, Sequence

from bench.report.cells import Line, table
from bench.report.claims import Claim, Judgement, Part, judge_all
from bench.report.comparisons import CLOSE, MARGIN, OPEN_GATE, Comparison, Obstacle, Outcome, Unit
from bench.report.paired import LEVEL
from bench.report.rows import Row

# Standard error, in points, of the difference of two accuracies on the same 10,000 images of which 1,000 are right in one only.
SAMPLING = 100 * math.sqrt(1_000) / 10_000

METHOD = f"""\
Each claim of the study, in our words, is judged by the rows of one profile that started from the same weights, with differences
paired over the seeds. A claim is

- *supported*, when the 95 % interval (Student's t) of every difference that it is about lies where the claim puts it;
- *contradicted*, when one of them is shown to lie elsewhere: p below 5 % after Holm's correction for all comparisons of the claim,
  since among many one would turn up by chance;
- *not decidable* otherwise. One seed decides nothing.

"Does not beat" and "does not help" rule out a gain of {MARGIN} points, "does not matter" and "tied" a difference of {MARGIN}
points, a size that the study calls marginal. So an interval that ends below a gain of {MARGIN} supports "does not beat", but a gain
that is shown to be above 0 contradicts it, however small: p is then that of no gain at all, and a gain that only its own interval
shows, before Holm's correction, leaves the claim open. "Close" is within {CLOSE:g} point, to which the study rounds there; "about"
is within a quarter; a gate has moved when its size is above {OPEN_GATE}, which tells that it moved and not how much its branch
contributes, for the projection behind the gate can take up any factor. Accuracies are of the kind that the first row of a
difference has, or the best over the epochs where the second has none of that kind. "To the control" is the difference to the
ConvNeXt without attention that trains by the same schedule, in epochs and in what is frozen. The study has no such row, and it has
no say in a verdict: it tells attention's part of a difference from the schedule's, and beside claims 7 and 12 the stem's and the
data set's.

Intervals and p-values are about other seeds, on the same test images, from the same backbone and, under a smaller budget, with the
same subset. Other images would move a difference too: of two networks of which one alone is right on a tenth of 10,000 test images,
by {SAMPLING:.1f} points (one standard error), which more seeds do not make smaller.
"""

COMPARISON_NOTE = """\
Accuracies differ in percentage points; times are ratios, gates sizes. p: paired t-test (of a gate: against the size above). Flip:
sign-flip permutation test, which assumes less and cannot go below 0.5 with two seeds or 0.25 with three. Both before correction.
Could show: how far from the bound of the claim (beside a claim: from 0) a true value has to lie so that so many seeds with this
spread show it in 80 % of repetitions (two-sided, 5 %). Note: what else than the network differs between the rows, and the device of
times."""


def heading(profile: str) -> str:
    """The heading of a profile's section, for links."""
    return f"Claims under `{profile}`"


def claims_section(profile: str, rows: Sequence[Row]) -> str:
    """Return the section of one profile, given all its rows."""
    title = f"### {heading(profile)}\n"
    if profile == "smoke":
        return f"{title}\nNot judged: this profile shows that everything works, and nothing about the models.\n"
    judgements = judge_all(rows)
    verdicts = "\n".join(_verdicts(profile, weights, group) for weights, group in grouped(judgements))
    lines = [line for judgement in judgements if judgement.ran for line in comparison_lines(judgement)]
    details = f"<details><summary>Every comparison</summary>\n\n{COMPARISON_NOTE}\n\n{table(lines)}\n\n</details>\n"
    return f"{title}\n{verdicts}\n{details if lines else ''}"


def grouped(judgements: Iterable[Judgement]) -> list[tuple[str, list[Judgement]]]:
    """By what the rows started from, in words."""
    groups: dict[str, list[Judgement]] = {}
    for judgement in sorted(judgements, key=lambda judgement: not judgement.ran):
        groups.setdefault(basis(judgement), []).append(judgement)
    return list(groups.items())


def basis(judgement: Judgement) -> str:
    """What the rows behind a verdict started from, and whether with the study's budget."""
    if not judgement.ran:
        return "No comparison has both its rows"
    start = f"`{judgement.weights}`" if judgement.weights else "random weights"
    budget = "" if judgement.has_the_studys_budget else ", and **not** with its budget"
    return f"From {start}, {'as' if judgement.starts_as_the_study else '**not** as'} in the study{budget}"


def _verdicts(profile: str, basis_of_all: str, judgements: Sequence[Judgement]) -> str:
    return f"{basis_of_all} (profile `{profile}`):\n\n{table(verdict_lines(judgements))}\n"


def verdict_lines(judgements: Sequence[Judgement]) -> list[Line]:
    """One line for each claim."""
    return [
        {
            "": judgement.claim.number,
            "claim": judgement.claim.sentence,
            "verdict": judgement.verdict,
            "seeds": judgement.seeds,
            "ours": figures(judgement),
            "why": why(judgement),
        }
        for judgement in judgements
    ]


# ---- one claim ------------------------------------------------------------------------------------------------------------


def figures(judgement: Judgement) -> str:
    """The differences behind a verdict, a phrase for each part of the claim."""
    phrases = (_phrase(part, judgement) for part in (*judgement.claim.parts, *judgement.claim.beside))
    return "; ".join(phrase for phrase in phrases if phrase)


def _phrase(part: Part, judgement: Judgement) -> str:
    known = [outcome for comparison in part.comparisons if (outcome := judgement.outcomes[comparison]).paired]
    if not known:
        return ""
    if len(part.comparisons) == 1:
        return f"{part.label}: {figure(known[0])}"
    means, unit = sorted(outcome.paired.mean for outcome in known if outcome.paired), known[0].comparison.unit
    return f"{part.label}: {shown(means[0], unit)} to {shown(means[-1], unit)} ({len(known)})"


def why(judgement: Judgement) -> str:
    """What a verdict rests on, or what it lacks."""
    reasons = {"supported": _why_supported, "contradicted": _why_contradicted, "not decidable": _why_not_decidable}
    parts = reasons[judgement.verdict](judgement) + sorted({outcome.note for outcome in judgement.deciding if outcome.note})
    if judgement.left_out:
        parts.append(f"left out, failed: {', '.join(judgement.left_out)}")
    return "; ".join(parts)


def _why_supported(judgement: Judgement) -> list[str]:
    count = len(judgement.deciding)
    return ["the interval lies where claimed" if count == 1 else f"all {count} intervals lie where claimed"]


def _why_contradicted(judgement: Judgement) -> list[str]:
    p_values = judgement.p_values
    against = [outcome for outcome in judgement.deciding if p_values[outcome.comparison] < LEVEL]
    clearest = min(against, key=lambda outcome: p_values[outcome.comparison])
    comparison = clearest.comparison
    which = f"{comparison.label} is {figure(clearest)}, " if len(judgement.deciding) > 1 else ""
    more = f", and {len(against) - 1} more" if len(against) > 1 else ""
    return [f"{which}claimed was {comparison.region.words}: p {equals(p_values[comparison])}{more}"]


def _why_not_decidable(judgement: Judgement) -> list[str]:
    parts = _obstacles(judgement)
    unclear = [outcome for outcome in judgement.deciding if not (outcome.obstacle or outcome.inside)]
    if unclear:
        sizes = sorted(outcome.paired.detectable for outcome in unclear if outcome.paired and outcome.paired.detectable is not None)
        one = (
            f"the interval of {unclear[0].comparison.label} reaches"
            if len(unclear) == 1
            else f"{_share(unclear, judgement)} intervals reach"
        )
        could_show = size(sizes[0], sizes[-1], unclear[0].comparison.unit)
        parts.append(f"{one} beyond what is claimed; so many seeds could show a value that lies {could_show} from the bound")
    return parts


def _obstacles(judgement: Judgement) -> list[str]:
    """Each reason once, with all the experiments that it is about, or with its share of the comparisons."""
    by_reason: dict[str, list[Obstacle]] = {}
    for outcome in judgement.deciding:
        if outcome.obstacle:
            by_reason.setdefault(outcome.obstacle.reason, []).append(outcome.obstacle)
    parts = []
    for reason, obstacles in sorted(by_reason.items(), key=lambda item: not item[1][0].names):
        names = tuple(dict.fromkeys(name for obstacle in obstacles for name in obstacle.names))
        share = "" if names or len(obstacles) == len(judgement.deciding) else f" ({_share(obstacles, judgement)} comparisons)"
        parts.append(f"{Obstacle(reason, names)}{share}")
    return parts


def _share(some: Sequence[object], judgement: Judgement) -> str:
    return f"{len(some)} of {len(judgement.deciding)}"


# ---- every comparison -----------------------------------------------------------------------------------------------------


def comparison_lines(judgement: Judgement) -> list[Line]:
    """One line for each comparison of a claim that has a figure, those beside it included."""
    return [_comparison_line(judgement, outcome) for outcome in judgement.outcomes.values() if outcome.paired]


def _comparison_line(judgement: Judgement, outcome: Outcome) -> Line:
    comparison, paired = outcome.comparison, outcome.paired
    assert paired is not None
    gate = comparison.unit == "alpha"
    return {
        "claim": _number(judgement.claim, comparison),
        "comparison": comparison.label,
        "claimed": comparison.region.words,
        "n": paired.n,
        "difference": shown(paired.mean, comparison.unit),
        "95 % interval": interval(outcome),
        "p": p_value(paired.p_against(OPEN_GATE) if gate else paired.p),
        "flip": "" if gate else p_value(paired.sign_flip_p),
        "could show": "" if paired.detectable is None else size(paired.detectable, paired.detectable, comparison.unit),
        "": _standing(judgement, outcome),
        "note": outcome.note,
    }


def _number(claim: Claim, comparison: Comparison) -> str:
    return str(claim.number) if comparison in claim.comparisons else f"beside {claim.number}"


def _standing(judgement: Judgement, outcome: Outcome) -> str:
    if outcome.comparison not in judgement.p_values:
        return ""
    if outcome.obstacle:
        return str(outcome.obstacle)
    if judgement.p_values[outcome.comparison] < LEVEL:
        return "against"
    return "for" if outcome.inside else "open"


# ---- cells ----------------------------------------------------------------------------------------------------------------

FORMATS = {"points": "+.2f", "alpha": ".3f"}  # of a difference; times are logarithms


def shown(value: float, unit: Unit) -> str:
    """A difference: ``+0.20`` points, ``0.052`` as a gate, ``1.98x`` as a ratio of times."""
    return f"{math.exp(value):.2f}x" if unit == "times" else f"{value:{FORMATS[unit]}}"


def size(least: float, most: float, unit: Unit) -> str:
    """A range of sizes without a sign: ``0.21 to 0.44 points``; of equal ones the one."""
    plain = {"points": "{:.2f}", "alpha": "{:.3f}", "times": "{:.2f}x"}[unit]
    ends = dict.fromkeys(plain.format(math.exp(end) if unit == "times" else end) for end in (least, most))
    return " to ".join(ends) + (" points" if unit == "points" else "")


def interval(outcome: Outcome) -> str:
    """``[-0.10, +0.50]``; empty where there is none."""
    paired, unit = outcome.paired, outcome.comparison.unit
    if paired is None or paired.low is None or paired.high is None:
        return ""
    return f"[{shown(paired.low, unit)}, {shown(paired.high, unit)}]"


def figure(outcome: Outcome) -> str:
    """The mean with its interval, with one seed the difference alone."""
    mean = shown(outcome.paired.mean, outcome.comparison.unit) if outcome.paired else ""
    return f"{mean} {interval(outcome)}".strip()


def p_value(p: float | None) -> str:
    """Two significant digits; ``< 0.001`` below."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"


def equals(p: float) -> str:
    """The same after the letter: ``= 0.012`` or ``< 0.001``."""
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"
