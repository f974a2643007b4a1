"""The examples of a run with attention as a small JSON file: ``results/attention/<run>.json``, the run named as its record is.

A run's weights (``best.pt``) are large and stay where it was made; the file is small, and the figure needs nothing else. It holds
the test images that are shown, unless it was asked to leave them out: CIFAR-100 states no licence to publish them under.
"""

import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models import ConvNeXt

import data
from bench.engine.checkpoint import CheckpointFolder
from bench.engine.execution import Execution
from bench.engine.train import best_epoch, build_network, put_on_device, selecting_split, sha256_of_weights
from bench.errors import UserError
from bench.experiment import Run, Weights, canonical_json
from bench.ledger import Record, accuracy, write_bytes_atomically
from bench.machine import choose_device
from bench.report.figures.examples import RULE, Example, examine
from bench.report.figures.scope import Scope
from models.weights import read_state_dict

SCHEMA = 1
EXPERIMENT = "cifar100/stem_dual"  # with the default stem the maps are 4x4 and 2x2, too coarse to show anything
TOLERANCE = 1.0  # points of accuracy between record and weights: another device rounds a few images to another class


@dataclass(frozen=True)
class Examined:
    """What a file holds beside hashes."""

    run: dict[str, Any]
    weights_sha256: str
    epoch: int  # that the weights are from
    test: dict[str, int]  # counts ``correct`` and ``images`` of these weights
    rule: str
    examples: list[Example]

    @property
    def with_images(self) -> bool:
        """Whether the file holds the images too."""
        return all(example.image is not None for example in self.examples)


def find(scope: Scope, results: Path) -> Examined | None:
    """The file of the lowest seed of ``stem_dual``, or None.

    Raises:
        UserError: the file is not one of these.
    """
    row = scope.row(EXPERIMENT)
    paths = [path_of(run_of(scope, record), results) for record in row.done] if row else []
    return next((read(path) for path in paths if path.exists()), None)


def write_missing(scope: Scope, *, results: Path, datasets: Path, device: str, images: bool = True) -> list[Path]:
    """Write the file of every run of ``stem_dual`` whose weights are at hand, unless it is there and of these weights.

    Args:
        images: whether the file is to hold the images.
        device: where the network runs, as :func:`bench.machine.choose_device` takes it.

    Raises:
        UserError: the weights are not those of the record, or a file cannot be read or written.
        WeightsError: ``best.pt`` is damaged.
        DataError: the data set is not there.
    """
    row = scope.row(EXPERIMENT)
    written = []
    for record in row.done if row else []:
        run = run_of(scope, record)
        best, path = CheckpointFolder(results / "checkpoints" / run.key).best, path_of(run, results)
        if not best.exists():
            continue
        dataset = data.load(run.experiment.dataset, datasets)
        network = load(run, best, classes=len(dataset.classes), device=choose_device(device))
        if path.exists():
            present = read(path)
            if present.weights_sha256 == sha256_of_weights(network) and present.with_images == images:
                continue
        write_bytes_atomically(path, canonical_json(describe(run, record, network, dataset, images=images)).encode())
        written.append(path)
    return written


def run_of(scope: Scope, record: Record) -> Run:
    """The run that a record of a scope is of."""
    row = scope.row(record["run"]["experiment"])
    assert row is not None
    weights = record["configuration"]["weights"]
    return Run(
        experiment=row.experiment,
        profile=scope.profile,
        seed=record["run"]["seed"],
        weights=Weights(**weights) if weights else None,
    )


def path_of(run: Run, results: Path) -> Path:
    """Where the file of a run lies, present or not."""
    return results / "attention" / f"{run.key}.json"


def load(run: Run, best: Path, *, classes: int, device: torch.device) -> ConvNeXt:
    """Build the run's network with the weights of its selected epoch.

    Raises:
        UserError: the file holds the weights of another network.
        WeightsError: the file is damaged.
    """
    network = build_network(run, classes, None, device)
    assert isinstance(network, ConvNeXt)
    try:
        network.load_state_dict(read_state_dict(best))
    except RuntimeError as error:
        raise UserError(
            f"{best}: expected the weights of {run.experiment.name}, found those of another network; delete it"
        ) from error
    return network


def describe(run: Run, record: Record, network: ConvNeXt, dataset: data.Dataset, *, images: bool) -> dict[str, Any]:
    """The content of a file: examples of the run's test split, with or without the images themselves.

    Raises:
        UserError: the accuracy of the weights is not that of the record.
    """
    recipe = run.experiment.recipe
    device = next(network.parameters()).device
    examples, counts = examine(
        network,
        put_on_device(run, dataset, device).test,
        dataset.classes,
        precision=recipe.precision,
        execution=Execution(bf16=record["environment"].get("bf16", "units")),
    )
    selected = best_epoch(record["results"]["epochs"], selecting_split(recipe))
    found, expected = accuracy(counts), accuracy(selected["test"])
    if abs(found - expected) > TOLERANCE:
        raise UserError(
            f"{run.key}: expected the record's test accuracy of {expected:.2f} % from best.pt, found {found:.2f} %; delete the "
            "checkpoint, or the record to run the experiment again"
        )
    return {
        "schema": SCHEMA,
        "run": {**record["run"], "key": run.key},
        "weights_sha256": sha256_of_weights(network),
        "epoch": selected["epoch"],
        "data": {"name": dataset.name, "test_sha256": dataset.test.sha256},
        "test": counts,
        "rule": RULE,
        "examples": [_encoded(example if images else replace(example, image=None)) for example in examples],
    }


def read(path: Path) -> Examined:
    """Read a file.

    Raises:
        UserError: it is not one of these.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
        return Examined(
            run=content["run"],
            weights_sha256=content["weights_sha256"],
            epoch=content["epoch"],
            test=content["test"],
            rule=content["rule"],
            examples=[_decoded(example) for example in content["examples"]],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected attention maps of schema {SCHEMA}, found something else ({error}); delete it and run `make figures`"
        ) from error


def _encoded(example: Example) -> dict[str, Any]:
    pixels = example.image
    return {
        "index": example.index,
        "image": None if pixels is None else {"shape": list(pixels.shape), "base64": base64.b64encode(pixels.tobytes()).decode()},
        "label": example.label,
        "predicted": example.predicted,
        "confidence": example.confidence,
        "maps": {site: values.tolist() for site, values in example.maps.items()},
    }


def _decoded(content: dict[str, Any]) -> Example:
    image = content["image"]
    return Example(
        index=content["index"],
        image=None
        if image is None
        else np.frombuffer(base64.b64decode(image["base64"], validate=True), dtype=np.uint8).reshape(image["shape"]),
        label=content["label"],
        predicted=content["predicted"],
        confidence=content["confidence"],
        maps={site: np.array(values, dtype=np.float64) for site, values in content["maps"].items()},
    )
