"""The table that ``python -m bench list`` prints."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from bench.experiment import Run
from bench.ledger import Ledger


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
                "study %": "" if experiment.reported is None else f"{experiment.reported:.2f}",
                "selection": experiment.selection,
                "data": experiment.dataset,
                "stem": experiment.model.stem,
                "weights": experiment.weights,
                "regime": experiment.regime,
                "epochs": experiment.recipe.epochs,
                "images": experiment.train_images or "all",
                "state (seed: status)": ", ".join(f"{run.seed}: {_state(run, ledger)}" for run in its_runs),
            }
        )
    return tabulate(table, headers="keys", disable_numparse=True)


def _state(run: Run, ledger: Ledger) -> str:
    if record := ledger.find(run):
        return str(record["results"]["status"])
    if (ledger.results / "checkpoints" / run.key / "last.pt").exists():
        return "begun"
    return "not run"
