"""The table that ``python -m bench cost`` prints."""

from collections.abc import Sequence

from tabulate import tabulate

from bench.engine import network as networks
from bench.engine.regime import RELEASED
from bench.experiment import Experiment, Model
from bench.measure.cost import cost_of
from bench.report.cells import attention_name, model_name
from data.sources import SOURCES


def cost_listing(experiments: Sequence[Experiment]) -> str:
    """One line per distinct network: parameters, those that train in each phase, multiply-adds, attention maps and tokens.

    Raises:
        CostError: the two counters disagree, or met an operator that none of them can count; nothing is printed then.
    """
    lines, seen = [], set()
    for experiment in experiments:
        classes = len(SOURCES[experiment.dataset].spec.classes)
        if (experiment.model, classes) in seen:
            continue
        seen.add((experiment.model, classes))
        cost = cost_of(experiment.model, classes)
        lines.append(
            {
                "network of": experiment.name,
                "model": model_name(experiment),
                "attention": attention_name(experiment),
                "classes": classes,
                "parameters": f"{cost['parameters']:,}",
                "added": f"{cost['attention_parameters']:,}",
                **{f"trains under {phase}": f"{count:,}" for phase, count in _trainable(experiment.model, classes).items()},
                "multiply-adds (M)": f"{cost['multiply_adds'] / 1e6:.2f}",
                "maps": ", ".join(f"{site} {h}x{w} = {h * w} tokens" for site, (h, w) in cost["attention_maps"].items()),
            }
        )
    return tabulate(lines, headers="keys", disable_numparse=True)


def _trainable(model: Model, classes: int) -> dict[str, int]:
    parts = networks.by_part(networks.build(model, classes=classes, seed=0), networks.FAMILIES[model.family].part_of)
    counts = {part: sum(parameter.numel() for parameter in parameters) for part, parameters in parts.items()}
    return {regime: sum(counts.get(part, 0) for part in RELEASED[regime]) for regime in ("F0", "F1", "F2")}
