"""The ledger as one flat table for people's own tools: ``results.csv`` and ``results.json``, a row for each record."""

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.experiment import canonical_json
from bench.ledger import Record
from bench.report.cells import Line
from bench.report.rows import Found, weights_name

FINAL = ("best_test", "last_test", "best_validation", "test_at_best_validation")
SITES = ("P2", "P3")


def export_lines(found: Sequence[Found], results: Path) -> list[Line]:
    """One line for each record, in the ledger's order: numbers at full precision, None where a record has none.

    Accuracies are percent, times seconds; ``record`` is the file, relative to the results folder.
    """
    return [{"record": path.relative_to(results).as_posix(), **_cells(record)} for path, record in found]


def as_csv(lines: Sequence[Line]) -> str:
    """Comma-separated values with a header; what is None is empty, several sites are separated by spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([lines[0].keys()] if lines else [])
    writer.writerows([_plain(value) for value in line.values()] for line in lines)
    return text.getvalue()


def as_json(lines: Sequence[Line]) -> str:
    """A list of objects, the same bytes for the same ledger."""
    return canonical_json(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _cells(record: Record) -> Line:
    run, code, cost, environment = record["run"], record["code"], record["cost"] or {}, record["environment"]
    return {
        "profile": run["profile"],
        "experiment": run["experiment"],
        "seed": run["seed"],
        "status": record["results"]["status"],
        "error": record["results"]["error"],
        "initial_weights": weights_name(record),
        **_configured(record),
        **_accuracies(record),
        "parameters": cost.get("parameters"),
        "attention_parameters": cost.get("attention_parameters"),
        "multiply_adds": cost.get("multiply_adds"),
        **_times(record),
        "device": environment["device"],
        "threads": environment["threads"],
        "cuda": environment["cuda"],
        "torch": environment.get("torch"),
        "commit": code["commit"],
        "dirty": code["dirty"],
        "requirements_lock_sha256": code["requirements_lock_sha256"],
        "configuration_sha256": run["configuration_sha256"],
        "data_train_sha256": (record["data"] or {}).get("train_sha256"),
        "final_weights_sha256": record["results"].get("weights_sha256"),
    }


def _configured(record: Record) -> Line:
    """What of the configuration people group by; the whole of it stands in the record."""
    experiment = record["configuration"]["experiment"]
    model, recipe = _object(experiment, "model"), _object(experiment, "recipe")
    attention, images = _object(model, "attention"), _object(record["data"] or {}, "images")
    return {
        "dataset": experiment.get("dataset"),
        "model": model.get("family"),
        "stem": model.get("stem"),
        "attention": attention.get("kind"),
        "heads": attention.get("heads"),
        "sites": model.get("sites"),
        "regime": experiment.get("regime"),
        "selection": experiment.get("selection"),
        "epochs_planned": recipe.get("epochs"),
        "batch_size": recipe.get("batch_size"),
        "precision": recipe.get("precision"),
        "train_images": images.get("train"),
        "test_images": images.get("test"),
    }


def _object(value: Line, name: str) -> Line:
    """A part of a configuration, which a report does not ask to be whole; empty where there is none."""
    part = value.get(name)
    return part if isinstance(part, dict) else {}


def _accuracies(record: Record) -> Line:
    final, epochs = record["results"]["final"] or {}, record["results"]["epochs"]
    gates = epochs[-1].get("gates", {}) if epochs else {}
    return {
        **{kind: (final.get(kind) or {}).get("accuracy") for kind in FINAL},
        "best_test_epoch": (final.get("best_test") or {}).get("epoch"),
        "epochs": len(epochs),
        **{f"alpha_{site}": gates.get(site) for site in SITES},
    }


def _times(record: Record) -> Line:
    timings, epochs = record["timings"], record["timings"]["epochs"]
    measured: dict[str, Callable[[list[float]], float]] = {"_total": sum, "_per_epoch_median": statistics.median}
    return {
        "started": timings.get("started"),
        "finished": timings.get("finished"),
        "restarts": timings["restarts"],
        **{
            f"{kind}_seconds{suffix}": measure([epoch[f"{kind}_seconds"] for epoch in epochs]) if epochs else None
            for kind in ("train", "evaluation")
            for suffix, measure in measured.items()
        },
    }
