"""Ledgers whose numbers are given, for the tests of the figures, and what is looked for in a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.catalog import find
from bench.experiment import Run, Weights
from bench.ledger import Ledger, Record, departures
from bench.profiles import at_profile
from bench.report.figures.scope import Scope, scopes
from bench.report.rows import Row
from data.sources import IMAGENET_WEIGHTS

STAND_IN = Weights("stand-in.safetensors", "5" * 64)
IMAGENET = Weights(IMAGENET_WEIGHTS.filename, str(IMAGENET_WEIGHTS.known_hash).removeprefix("sha256:"))


def record_of(
    name: str,
    accuracies: Sequence[float] = (50.0, 60.0, 70.0),
    *,
    seed: int = 0,
    profile: str = "mini",
    weights: Weights = STAND_IN,
    seconds: float = 10.0,
    device: str = "Processor",
) -> Record:
    """A complete record with these test accuracies by epoch, gates of 0.01 times the epoch, and epochs of equal length."""
    experiment = at_profile(find(name), profile)
    start = weights if experiment.weights != "none" else None
    run = Run(experiment=experiment, profile=profile, seed=seed, weights=start)
    held_out = {"images": 100, "correct": 50, "loss": 1.0} if experiment.recipe.validation_fraction else None
    epochs = []
    for epoch, accuracy in enumerate(accuracies, 1):
        entry: dict[str, Any] = {
            "epoch": epoch,
            "trainable_parameters": 7 if epoch == 1 else 28_000_000,
            "train": {"images": 1000, "correct": 500, "loss": 1.0},
            "validation": held_out,
            "test": {"images": 1000, "correct": round(10 * accuracy), "loss": 1.0},
        }
        if experiment.model.sites:
            entry["gates"] = {site: 0.01 * epoch * (-1 if site == "P2" else 1) for site in experiment.model.sites}
        epochs.append(entry)
    at = {"epoch": len(accuracies), "accuracy": max(accuracies)}
    return {
        "schema": 1,
        "run": {"experiment": name, "profile": profile, "seed": seed, "configuration_sha256": run.configuration_sha256},
        "configuration": run.configuration,
        "code": {"commit": "c" * 40, "dirty": False, "requirements_lock_sha256": "1" * 64, "sources_sha256": "2" * 64},
        "data": {
            "name": experiment.dataset,
            "train_sha256": "3" * 64,
            "test_sha256": "4" * 64,
            "images": {"train": 1000, "validation": 100, "test": 1000},
        },
        "environment": {"device": device, "threads": 2, "cuda": None, "torch": "2.13.0", "deterministic": True},
        "cost": {
            "parameters": 28_000_000,
            "attention_parameters": 148_609,
            "attention_maps": {"P2": [4, 4]},
            "multiply_adds": 91_000_000,
        },
        "results": {
            "status": "done",
            "error": None,
            "final": {
                "best_test": at,
                "last_test": at,
                "best_validation": at if held_out else None,
                "test_at_best_validation": at if held_out else None,
            },
            "stopped_early": False,
            "weights_sha256": "6" * 64,
            "epochs": epochs,
        },
        "timings": {
            "started": "",
            "finished": "",
            "restarts": 0,
            "epochs": [{"train_seconds": seconds, "evaluation_seconds": 0.5}] * len(epochs),
        },
    }


def add(ledger: Ledger, record: Record) -> Path:
    """Put a record into the ledger, after a look at whether it is one."""
    assert not list(departures(record, complete=True))
    described = record["run"]
    weights = record["configuration"]["weights"]
    run = Run(
        experiment=at_profile(find(described["experiment"]), described["profile"]),
        profile=described["profile"],
        seed=described["seed"],
        weights=Weights(**weights) if weights else None,
    )
    return ledger.write(run, record)


def filled(results: Path) -> Ledger:
    """Something for every figure but the attention maps; two seeds of some rows."""
    ledger = Ledger(results)
    for name in ("baseline", "baseline_F2", "E3_P2_F2", "E6_P3_F2", "A_dual", "C_se", "scratch_vit_tiny"):
        for seed in (0, 1) if name in ("baseline", "A_dual") else (0,):
            add(ledger, record_of(f"cifar100/{name}", (50.0, 60.0, 70.0 + seed), seed=seed))
    return ledger


def only_scope(ledger: Ledger) -> Scope:
    (scope,) = scopes(ledger.records())
    return scope


def row_of(*records: Record) -> Row:
    run = records[0]["run"]
    experiment = at_profile(find(run["experiment"]), run["profile"])
    weights = records[0]["configuration"]["weights"]
    return Row(experiment, weights["name"] if weights else None, tuple((Path("record.json"), record) for record in records))


def words_of(figure: Figure) -> list[str]:
    """Every text in a figure that is not empty."""
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
