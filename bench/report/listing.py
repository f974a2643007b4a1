"""The tables that ``python -m bench list`` and ``python -m bench cost`` print."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from bench.engine import network as networks
from bench.engine.regime import RELEASED
from bench.experiment import Experiment, Model, Run
from bench.ledger import Ledger, read_record
from bench.measure.cost import cost_of
from bench.report.tables import attention_name, model_name, percent
from data.sources import SOURCES


def listing(runs: Sequence[Run], results: Path) -> str:
    """One line per experiment: the study's number, the budget under the chosen profile, and the state of each seed."""
    ledger = Ledger(results)
    by_experiment: dict[str, list[Run]] = {}
    for run in runs:
        by_experiment.setdefault(run.experiment.name, []).append(run)
    table = []
    for name, its_runs in by_experiment.items():
        experiment = its_runs[0].experiment
        table.append(
            {
                "experiment": name,
                "study %": experiment.note or percent(experiment.reported),
                "selection": experiment.selection,
                "data": experiment.dataset,
                "model": model_name(experiment),
                "attention": attention_name(experiment),
                "weights": experiment.weights,
                "regime": experiment.regime,
                "epochs": experiment.recipe.epochs,
                "images": experiment.train_images or "all",
                "state (seed: status)": ", ".join(f"{run.seed}: {_state(run, ledger)}" for run in its_runs),
            }
        )
    return tabulate(table, headers="keys", disable_numparse=True)


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


def _state(run: Run, ledger: Ledger) -> str:
    if record := ledger.find(run):
        return str(record["results"]["status"])
    if (ledger.results / "checkpoints" / run.key / "last.pt").exists():
        return "begun"
    others = [read_record(path) for path in ledger.path(run).parent.glob(f"seed{run.seed}-*.json")]
    if done := [record for record in others if record["results"]["status"] == "done"]:
        weights = {(record["configuration"]["weights"] or {}).get("sha256") for record in done}
        mine = run.weights.sha256 if run.weights else None
        return "not run (done as configured otherwise)" if mine in weights else "not run (done from other weights)"
    return "not run"
