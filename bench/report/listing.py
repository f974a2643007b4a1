"""The table that ``python -m bench list`` prints."""

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from bench.experiment import Run
from bench.ledger import Ledger, read_record
from bench.report.cells import attention_name, model_name, percent


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
