"""Complete records of runs that never were, sound in every field."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.catalog import find
from bench.engine.train import results, schedule
from bench.environment import ROOT
from bench.experiment import Run, Weights, canonical_json
from bench.ledger import Ledger, Record
from bench.measure.cost import cost_of
from bench.profiles import at_profile
from bench.report.write import write_report
from bench.verify import Section
from bench.verify.records import SPECS

STAND_IN = Weights("stand-in.safetensors", "5" * 64)


def run_of(name: str, seed: int = 0, profile: str = "mini") -> Run:
    """A run of the catalog's experiment, from a stand-in where it starts from pretrained weights."""
    experiment = at_profile(find(name), profile)
    return Run(experiment=experiment, profile=profile, seed=seed, weights=STAND_IN if experiment.weights != "none" else None)


def record_of(run: Run, correct: Sequence[int] = (1170, 1359, 1449, 1439)) -> Record:
    """The record of a run that is done.

    Args:
        correct: test images that were classified correctly, after each epoch; a tenth as many validation images.
    """
    experiment, spec = run.experiment, SPECS[run.experiment.dataset]
    training = experiment.train_images or spec.train.count
    held_out = round(experiment.recipe.validation_fraction * training)
    images = {"train": training - held_out, "validation": held_out, "test": experiment.test_images or spec.test.count}
    steps = images["train"] // experiment.recipe.batch_size
    gates = dict.fromkeys(experiment.model.sites or (), -0.05)
    epochs = [
        {
            "epoch": number,
            "trainable_parameters": 28_000_000,
            "learning_rate_factor": schedule(experiment.recipe, number * steps - 1, steps),
            "train": counts(count, steps * experiment.recipe.batch_size),
            "validation": counts(count // 10, held_out) if held_out else None,
            "test": counts(count, images["test"]),
            **({"gates": gates} if gates else {}),
        }
        for number, count in enumerate(correct, 1)
    ]
    ending = hashlib.sha256(f"{run.key} {correct}".encode()).hexdigest()
    record = {
        "schema": 1,
        "run": {
            "experiment": experiment.name,
            "profile": run.profile,
            "seed": run.seed,
            "configuration_sha256": run.configuration_sha256,
        },
        "configuration": run.configuration,
        "code": {
            "commit": "c" * 40,
            "dirty": False,
            "requirements_lock_sha256": hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest(),
            "sources_sha256": "2" * 64,
        },
        "data": {
            "name": experiment.dataset,
            "train_sha256": spec.train.sha256,
            "test_sha256": spec.test.sha256,
            "images": images,
        },
        "environment": {"device": "Processor", "threads": 2, "cuda": None, "torch": "2.13.0", "deterministic": True},
        "cost": cost_of(experiment.model, len(spec.classes)),
        "results": results(epochs, experiment.recipe, diverged=False, weights_sha256=ending),
        "timings": {
            "started": "2026-11-01T00:00:00+00:00",
            "finished": "2026-11-01T00:01:00+00:00",
            "restarts": 0,
            "epochs": [{"train_seconds": 4.0, "evaluation_seconds": 0.5} for _ in epochs],
        },
    }
    return dict(json.loads(canonical_json(record)))


def counts(correct: int, images: int) -> dict[str, Any]:
    return {"correct": correct, "images": images, "loss": 2.5}


def sound_ledger(results: Path, runs: Sequence[Run]) -> Ledger:
    """A ledger of sound records, with its report."""
    ledger = Ledger(results)
    for run in runs:
        (ledger.folder / run.key).parent.mkdir(parents=True, exist_ok=True)
        (ledger.folder / f"{run.key}.json").write_text(canonical_json(record_of(run)))
    write_report(ledger.results)
    return ledger


def lines(section: Section) -> list[str]:
    """What ``bench verify`` says of it."""
    return [str(finding) for finding in section.findings]
