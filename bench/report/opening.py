"""The first lines of RESULTS.md, for a person in a hurry: what was run on what, what came out, how long it took."""

from collections import Counter
from collections.abc import Sequence

from bench.catalog import EXPERIMENTS
from bench.environment import device_in_words
from bench.ledger import Record
from bench.profiles import PROFILES
from bench.report.claims import CLAIMS, Judgement, judge_all
from bench.report.comparisons import ANYWHERE, accuracy, examine
from bench.report.rows import Found, Row, mean_and_deviation, rows_of
from bench.report.verdicts import figure, figures, heading
from bench.words import duration

QUESTION = """\
# Results

Does attention help a ConvNet on small images, and what does it cost? The rows of the study, trained again, beside its numbers.
"""
NOTHING = "Nothing was run yet: the ledger has no record.\n"
CLEAREST = 3  # verdicts that are told in full

# Attention and the same network, schedule and budget without it.
EFFECTS = {
    "CIFAR-100": ("cifar100/A_dual", "cifar100/baseline_F2"),
    "CIFAR-100 with the CIFAR stem": ("cifar100/stem_dual", "cifar100/stem_baseline"),
    "Fashion-MNIST": ("fashion_mnist/A_dual", "fashion_mnist/baseline"),
}


def opening(found: Sequence[Found]) -> str:
    """Return the title and about ten lines, most of them on the largest profile that was run."""
    if not found:
        return f"{QUESTION}\n{NOTHING}"
    ran = [profile for profile in PROFILES if any(record["run"]["profile"] == profile for _, record in found)]
    rows = [row for row in rows_of(ran[0], found)[0] if row.found]
    lines = [_run(profile, [record for _, record in found if record["run"]["profile"] == profile]) for profile in ran]
    lines += _started_from(ran[0], rows)
    if ran[0] != "smoke":
        lines += [*_verdicts(ran[0], rows), *_effects(rows), *_best(ran[0], rows)]
    lines += [_time([record for _, record in found]), _contents(ran)]
    return f"{QUESTION}\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def _run(profile: str, records: Sequence[Record]) -> str:
    statuses = [record["results"]["status"] for record in records]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses), key=lambda s: (s != "done", s)))
    experiments = {record["run"]["experiment"] for record in records}
    seeds = Counter(record["run"]["experiment"] for record in records).values()
    each = " to ".join(dict.fromkeys((str(min(seeds)), str(max(seeds)))))
    return (
        f"**Run**, profile [`{profile}`](#profile-{profile}): {len(experiments)} of the catalog's {len(EXPERIMENTS)} experiments, "
        f"each with {each} seed{'' if each == '1' else 's'} ({counts}), on {_devices(records)}. {_first_sentence(profile)}"
    )


def _first_sentence(profile: str) -> str:
    text = (PROFILES[profile].__doc__ or "").split("\n\n")[0]
    return " ".join(text.split())


def _started_from(profile: str, rows: Sequence[Row]) -> list[str]:
    """A warning where accuracies cannot be held against the study's."""
    others = sorted({f"`{row.weights}`" for row in rows if row.weights and not row.starts_as_the_study})
    parts = [f"pretrained rows start from {' and '.join(others)}, not from ImageNet-1k's weights"] if others else []
    parts += ["the budget is not the study's"] if profile != "paper" else []
    if not parts:
        return []
    return [f"**Not the study's setting:** {'; '.join(parts)}. Compare these rows with each other, not with its numbers."]


def _verdicts(profile: str, rows: Sequence[Row]) -> list[str]:
    """How many claims have which verdict, for each set of pretrained weights, and the clearest ones."""
    judgements = judge_all(rows)
    backbones: list[str | None] = [*sorted({row.weights for row in rows if row.weights})]
    lines = [_counts(profile, backbone, judgements) for backbone in backbones or [None]]
    decided = sorted((each for each in judgements if each.verdict != "not decidable"), key=lambda judgement: judgement.p)
    return lines + [_told(judgement, several=len(backbones) > 1) for judgement in decided[:CLEAREST]]


def _counts(profile: str, backbone: str | None, judgements: Sequence[Judgement]) -> str:
    """Each claim once: as judged on the rows that started from this backbone, or from random weights as the claim has it."""
    of_these = {judgement.claim.number: judgement for judgement in judgements if judgement.weights in (backbone, None)}
    verdicts = [judgement.verdict for judgement in of_these.values()]
    decided = {verdict: verdicts.count(verdict) for verdict in ("supported", "contradicted")}
    counts = decided | {"not decidable": len(CLAIMS) - sum(decided.values())}
    start = f", pretrained rows from `{backbone}`" if backbone else ""
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return (
        f"**Verdicts** on the study's {len(CLAIMS)} claims, profile `{profile}`{start}: "
        f"{words}{_for_want_of_seeds([*of_these.values()])}."
    )


def _told(judgement: Judgement, *, several: bool) -> str:
    """A verdict in full, with the weights where rows started from several."""
    start = f", from `{judgement.weights}`" if several and judgement.weights else ""
    return f"Claim {judgement.claim.number} {judgement.verdict}{start}: {judgement.claim.sentence} {figures(judgement)}."


def _for_want_of_seeds(judgements: Sequence[Judgement]) -> str:
    """How many claims stay open because a comparison of theirs has one seed, and not because a row was not run."""
    undecided = [judgement for judgement in judgements if judgement.verdict == "not decidable"]
    ns = [[outcome.paired.n if outcome.paired else 0 for outcome in judgement.deciding] for judgement in undecided]
    count = sum(1 in its and 0 not in its for its in ns)
    return f" ({count} for want of a second seed)" if count else ""


def _effects(rows: Sequence[Row]) -> list[str]:
    """What two attention blocks change, against the rows that differ in nothing else; a line for each set of initial weights."""
    lines = []
    backbones = sorted({row.weights for row in rows if row.weights})
    for weights in backbones:
        of_these = {row.experiment.name: row for row in rows if row.weights == weights}
        outcomes = {where: examine(accuracy(*pair, ANYWHERE), of_these) for where, pair in EFFECTS.items()}
        known = [(where, outcome, outcome.paired.n) for where, outcome in outcomes.items() if outcome.paired]
        if known:
            start = f", from `{weights}`" if len(backbones) > 1 else ""
            phrases = ", ".join(
                f"{figure(outcome)} points on {where} (n = {n}{outcome.note and '; '}{outcome.note})" for where, outcome, n in known
            )
            cost = _cost(*(of_these[name] for name in EFFECTS[known[0][0]]))
            lines.append(f"**Two attention blocks**, against the same network and schedule without{start}: {phrases}; {cost}.")
    return lines


def _cost(attention: Row, without: Row) -> str:
    more, less = attention.done[0]["cost"], without.done[0]["cost"]
    parameters, multiply_adds = (100 * (more[key] / less[key] - 1) for key in ("parameters", "multiply_adds"))
    added = more["parameters"] - less["parameters"]
    return f"{added:,} parameters more ({parameters:+.1f} %), {multiply_adds:+.1f} % multiply-adds"


def _best(profile: str, rows: Sequence[Row]) -> list[str]:
    """The row with the highest mean of each data set, by the one kind of accuracy that all rows have."""
    phrases = []
    for dataset in dict.fromkeys(row.experiment.dataset for row in rows if row.done):
        best = max(
            (row for row in rows if row.done and row.experiment.dataset == dataset),
            key=lambda row: sum(row.accuracies("best_test")) / len(row.done),
        )
        phrases.append(f"`{best.experiment.name}` {mean_and_deviation(best.accuracies('best_test'))} % (n = {len(best.done)})")
    return [f"**Highest best test accuracy**, profile `{profile}`: {', '.join(phrases)}. One run ranks nothing."] if phrases else []


def _time(records: Sequence[Record]) -> str:
    epochs = [epoch for record in records for epoch in record["timings"]["epochs"]]
    training, evaluation = (sum(epoch[key] for epoch in epochs) for key in ("train_seconds", "evaluation_seconds"))
    return f"**Time:** {duration(training)} of training and {duration(evaluation)} of evaluation, on {_devices(records)}."


def _devices(records: Sequence[Record]) -> str:
    return " and ".join(sorted({device_in_words(record["environment"]) for record in records}))


def _contents(profiles: Sequence[str]) -> str:
    links = [f"[tables](#profile-{name}) and [claims]({_anchor(heading(name))}) of `{name}`" for name in profiles]
    return f"**Below:** {', '.join([*links, '[decisions](#decisions)', '[machines](#machines)', '[records](#records)'])}."


def _anchor(title: str) -> str:
    """The address that Markdown viewers give to a heading."""
    return "#" + title.lower().replace(" ", "-").replace("`", "")
