"""Each record against itself, the catalog, the data and the engine; then the records of a row against each other."""

import functools
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.catalog import find
from bench.engine.train import plateaued, results, schedule
from bench.environment import ROOT
from bench.errors import UserError
from bench.experiment import Model, Recipe, canonical_json, sha256_of
from bench.ledger import FINISHED, SECTIONS, Ledger, Record, departures, parse
from bench.locks import LOCKS
from bench.measure.cost import cost_again
from bench.profiles import at_profile
from bench.provenance import commit_of, locked_instead
from bench.report.environments import unlike
from bench.schema import NUMBER, shown
from bench.verify.findings import Finding, Section, compare, compare_text, counted
from data import synthetic, tiny
from data.canonical import Spec
from data.sources import SOURCES

ROUNDING = 1e-9  # of a cosine, from one library of mathematics to another
SECONDS_OF_ROUNDING = 2.0  # of times in whole seconds

SPECS: dict[str, Spec] = {
    **{name: source.spec for name, source in SOURCES.items()},
    tiny.NAME: tiny.SPEC,
    synthetic.NAME: synthetic.SPEC,
}


@dataclass(frozen=True)
class Case:
    """A record under examination, whose sections have the right form.

    ``place`` is its file as a message names it, ``path`` the same below the ledger's folder.
    """

    place: str
    path: Path
    record: Record

    @property
    def experiment(self) -> dict[str, Any]:
        """The experiment that was run, as the record describes it."""
        experiment: dict[str, Any] = self.record["configuration"]["experiment"]
        return experiment

    @property
    def recipe(self) -> Recipe:
        """What decides when the run ends and which accuracies it has."""
        recipe = self.experiment["recipe"]
        fraction = recipe["validation_fraction"]
        patience = recipe.get("patience") if fraction else None
        return Recipe(epochs=recipe["epochs"], validation_fraction=fraction, patience=patience)

    @property
    def has_accuracies(self) -> bool:
        """Whether every epoch was evaluated on test images and, where the recipe has them, on validation images."""
        splits = ("test", "validation") if self.recipe.validation_fraction else ("test",)
        epochs = self.record["results"]["epochs"]
        return all(epoch[split] and epoch[split]["images"] for epoch in epochs for split in splits)


def check_records(ledger: Ledger) -> Section:
    """Every record of the ledger."""
    paths = ledger.paths()
    findings: list[Finding] = []
    complete = []
    for path in paths:
        try:
            record = parse(path)
        except UserError as error:
            findings.append(Finding(str(path), "JSON", "a record", str(error).partition(", found ")[2]))
            continue
        case = Case(str(path), path.relative_to(ledger.folder), record)
        faults = [
            Finding(case.place, fault.field or "record", fault.expected, fault.found) for fault in departures(record, complete=True)
        ]
        if not faults:
            complete.append((case.place, record))
        findings += [*faults, *_check(case, faults)]
    return Section("records", counted(len(paths), "record"), [*findings, *repeated(complete), *computed_apart(complete)])


def _check(case: Case, faults: list[Finding]) -> Iterator[Finding]:
    """Apply the checks whose sections are sound."""
    damaged = {fault.field.partition(".")[0] for fault in faults}
    for check, sections in CHECKS:
        if not damaged & {*sections, "record", "schema"}:
            yield from check(case)


def bytes_are_canonical(case: Case) -> Iterator[Finding]:
    """The same record has the same bytes; this finds repeated keys too."""
    text = Path(case.place).read_bytes().decode(errors="replace")
    yield from compare_text(case.place, canonical_json(case.record), text, "restore the file")


def identity_fits(case: Case) -> Iterator[Finding]:
    """Path, name, hash and weights say the same as the configuration."""
    run, configuration = case.record["run"], case.record["configuration"]
    yield from compare(case.place, "run.configuration_sha256", sha256_of(configuration), run["configuration_sha256"])
    yield from compare(case.place, "run.experiment", case.experiment["name"], run["experiment"])
    key = f"{run['profile']}/{run['experiment']}/seed{run['seed']}-{run['configuration_sha256'][:8]}"
    yield from compare(case.place, "path", f"{key}.json", case.path.as_posix())
    pretrained = case.experiment["weights"] != "none"
    if pretrained != (configuration["weights"] is not None):
        expected = "name and SHA-256 of pretrained weights" if pretrained else "null"
        yield Finding(case.place, "configuration.weights", expected, shown(configuration["weights"]))


def catalog_has_it(case: Case) -> Iterator[Finding]:
    """The catalog describes the experiment as the record does. One made before a change of recipe stays true: a note."""
    run = case.record["run"]
    try:
        experiment = at_profile(find(run["experiment"]), run["profile"])
    except UserError:
        found = shown(f"{run['profile']}/{run['experiment']}")
        yield Finding(case.place, "run", "a profile and a row of the catalog", found, note=True)
        return
    present = json.loads(canonical_json(experiment.meaning()))
    for difference in compare(case.place, "configuration.experiment", present, case.experiment):
        yield difference._replace(expected=f"{difference.expected} (the catalog's)", note=True)


def data_are_canonical(case: Case) -> Iterator[Finding]:
    """Name, hashes and sizes of the data are those of the suite's data set and of the configuration."""
    found, recipe = case.record["data"], case.experiment["recipe"]
    if found is None:
        return
    yield from compare(case.place, "data.name", case.experiment["dataset"], found["name"])
    if (spec := SPECS.get(found["name"])) is None:
        yield Finding(case.place, "data.name", f"one of {', '.join(SPECS)}", shown(found["name"]))
        return
    training = case.experiment.get("train_images", spec.train.count)
    held_out = round(recipe["validation_fraction"] * training)
    expected = {
        "train_sha256": spec.train.sha256,
        "test_sha256": spec.test.sha256,
        "images": {
            "train": training - held_out,
            "validation": held_out,
            "test": case.experiment.get("test_images", spec.test.count),
        },
    }
    yield from compare(case.place, "data", expected | {"name": found["name"]}, found)


def counts_are_possible(case: Case) -> Iterator[Finding]:
    """Every split was seen whole, but for training images that fill no batch, and no more answers are right than were given."""
    if case.record["data"] is None:
        return
    sizes, batch = case.record["data"]["images"], case.experiment["recipe"]["batch_size"]
    seen = {**sizes, "train": sizes["train"] - sizes["train"] % max(1, batch)}
    for number, epoch in enumerate(case.record["results"]["epochs"], 1):
        for split in ("train", "validation", "test"):
            field, counts = f"results.epochs.{number}.{split}", epoch[split]
            if counts is None:
                yield from compare(case.place, field, seen[split] or None, None)
                continue
            yield from compare(case.place, f"{field}.images", seen[split], counts["images"])
            if counts["correct"] > counts["images"]:
                yield Finding(case.place, f"{field}.correct", f"at most {counts['images']}", str(counts["correct"]))


def epochs_are_complete(case: Case) -> Iterator[Finding]:
    """Epochs count from 1 without a gap, each has its times, and a run that is done has all of them or stopped on a plateau."""
    found, planned = case.record["results"], case.recipe.epochs
    epochs, times = found["epochs"], case.record["timings"]["epochs"]
    for number, epoch in enumerate(epochs, 1):
        yield from compare(case.place, f"results.epochs.{number}.epoch", number, epoch["epoch"])
    if len(times) != len(epochs):
        yield Finding(case.place, "timings.epochs", f"{len(epochs)} epochs", str(len(times)))
    stopped = found["status"] != "done" or (case.has_accuracies and plateaued(epochs, case.recipe))
    if len(epochs) > planned or (len(epochs) < planned and not stopped):
        yield Finding(case.place, "results.epochs", f"{planned} epochs", str(len(epochs)))


def learning_rates_follow_from_the_recipe(case: Case) -> Iterator[Finding]:
    """Each epoch ends with the factor that the schedule has there."""
    recipe = case.experiment["recipe"]
    batch, warmup = recipe["batch_size"], recipe.get("warmup_fraction")
    if not batch or not NUMBER.fits(warmup):
        return
    for number, epoch in enumerate(case.record["results"]["epochs"], 1):
        steps = epoch["train"]["images"] // batch
        expected = schedule(Recipe(epochs=recipe["epochs"], warmup_fraction=warmup), number * steps - 1, steps)
        found = epoch.get("learning_rate_factor")
        if not NUMBER.fits(found) or abs(found - expected) > ROUNDING:
            yield Finding(case.place, f"results.epochs.{number}.learning_rate_factor", f"{expected:.6g}", shown(found))


def times_are_possible(case: Case) -> Iterator[Finding]:
    """A run ends after it has begun, and its epochs took no longer, where one session did them all.

    If not, the computer's clock may have been set back meanwhile: a note.
    """
    timings = case.record["timings"]
    try:
        started, finished = (datetime.fromisoformat(timings[name]) for name in ("started", "finished"))
        seconds = (finished - started).total_seconds()
    except (TypeError, ValueError):
        found = shown([timings["started"], timings["finished"]])
        yield Finding(case.place, "timings", "started and finished as two times of one kind", found)
        return
    if seconds < 0:
        yield Finding(case.place, "timings.finished", f"a time from {timings['started']}", timings["finished"], note=True)
    elif not timings["restarts"]:
        epochs = sum(epoch["train_seconds"] + epoch["evaluation_seconds"] for epoch in timings["epochs"])
        if epochs > seconds + SECONDS_OF_ROUNDING:
            yield Finding(case.place, "timings.epochs", f"at most {seconds:.0f} s together", f"{epochs:.6g}", note=True)


def machine_is_one(case: Case) -> Iterator[Finding]:
    """A CPU has no CUDA, whose libraries and driver are a GPU's, and a GPU not the instructions of a CPU."""
    environment = case.record["environment"]
    names = ("cudnn", "driver") if environment["cuda"] is None else ("instructions",)
    device = "a CPU" if environment["cuda"] is None else "a GPU"
    for name in names:
        if (found := environment.get(name)) is not None:
            yield Finding(case.place, f"environment.{name}", f"null for {device}, by environment.cuda", shown(found))


def final_follows_from_the_epochs(case: Case) -> Iterator[Finding]:
    """Accuracies and best epochs are those that the engine computes from the counts."""
    found = case.record["results"]
    if found["status"] not in FINISHED:
        yield from compare(case.place, "results.final", None, found["final"])
    elif case.has_accuracies:
        diverged = found["status"] == "diverged"
        expected = results(found["epochs"], case.recipe, diverged=diverged, weights_sha256=found["weights_sha256"])
        for name in ("final", "stopped_early", "weights_sha256"):
            yield from compare(case.place, f"results.{name}", expected[name], found[name])


def lock_is_known(case: Case) -> Iterator[Finding]:
    """The packages of the run can be had again: its lock is the present one, or one that was committed. If not: a note."""
    digest = case.record["code"]["requirements_lock_sha256"]
    if digest not in known_locks():
        expected = "that of requirements.lock, now or in git's history"
        yield Finding(case.place, "code.requirements_lock_sha256", expected, digest, note=True)


def torch_is_the_locks(case: Case) -> Iterator[Finding]:
    """The run had the torch that its lock pins. A machine may have brought its own, which changes the last digits: a note."""
    if locked := locked_instead(case.record):
        found = shown(case.record["environment"].get("torch"))
        yield Finding(case.place, "environment.torch", f"{locked}, which its lock pins", found, note=True)


def cost_is_the_networks(case: Case) -> Iterator[Finding]:
    """Parameters, multiply-adds and maps are those of the network, where the catalog still has the record's."""
    spec, model = SPECS.get(case.experiment["dataset"]), _present_model(case)
    if spec and model and case.record["cost"] is not None:
        yield from compare(case.place, "cost", cost_again(model, len(spec.classes)), case.record["cost"])


def _present_model(case: Case) -> Model | None:
    """The catalog's model of the record's experiment, if it is the record's too."""
    try:
        experiment = find(case.record["run"]["experiment"])
    except UserError:
        return None
    same = json.loads(canonical_json(experiment.meaning()))["model"] == case.experiment.get("model")
    return experiment.model if same else None


def made_by_committed_code(case: Case) -> Iterator[Finding]:
    """What weakens a record without making it wrong: notes."""
    code = case.record["code"]
    if code["commit"] is None:
        yield Finding(case.place, "code.commit", "a commit", "null", note=True)
    if code["dirty"] and commit_of(code) is None:
        yield Finding(case.place, "code.dirty", "false", "true", note=True)
    if not case.record["environment"]["deterministic"]:
        yield Finding(case.place, "environment.deterministic", "true", "false", note=True)
    if earlier := case.record["timings"].get("earlier"):
        found = f"others up to epoch {earlier[-1]['epochs']}"
        yield Finding(case.place, "timings.earlier", "one machine and code for all epochs", found, note=True)


Check = Callable[[Case], Iterator[Finding]]
CHECKS: tuple[tuple[Check, tuple[str, ...]], ...] = (  # each with the sections that it reads
    (bytes_are_canonical, SECTIONS),
    (identity_fits, ("run", "configuration")),
    (catalog_has_it, ("run", "configuration")),
    (data_are_canonical, ("configuration", "data")),
    (counts_are_possible, ("configuration", "data", "results")),
    (epochs_are_complete, ("configuration", "results", "timings")),
    (learning_rates_follow_from_the_recipe, ("configuration", "results")),
    (times_are_possible, ("timings",)),
    (machine_is_one, ("environment",)),
    (final_follows_from_the_epochs, ("configuration", "results")),
    (cost_is_the_networks, ("run", "configuration", "cost")),
    (lock_is_known, ("code",)),
    (torch_is_the_locks, ("code", "environment")),
    (made_by_committed_code, ("code", "environment", "timings")),
)


def repeated(records: Iterable[tuple[str, Record]]) -> Iterator[Finding]:
    """The runs of a row have different seeds, and ended with different weights: the same twice is one run counted as two."""
    seeds: dict[tuple[str, ...], str] = {}
    ends: dict[tuple[str, ...], str] = {}
    for place, record in records:
        run, end = record["run"], record["results"]["weights_sha256"]
        row = (run["profile"], run["configuration_sha256"])
        if (first := seeds.setdefault((*row, str(run["seed"])), place)) != place:
            yield Finding(place, "run.seed", f"another than in {first}", str(run["seed"]))
        elif end and (first := ends.setdefault((*row, end), place)) != place:
            yield Finding(place, "results.weights_sha256", f"another than in {first}", end)


def computed_apart(records: Iterable[tuple[str, Record]]) -> Iterator[Finding]:
    """The runs of a row have one device, torch version and mode of computing, or its mean is one over these too: a note."""
    rows: dict[tuple[str, ...], list[tuple[str, Record]]] = {}
    for place, record in records:
        rows.setdefault((record["run"]["profile"], record["run"]["configuration_sha256"]), []).append((place, record))
    for row in rows.values():
        for what in unlike([record for _, record in row]):
            yield Finding(row[0][0], "environment", f"one {what} in all {len(row)} runs of the row", "several", note=True)


@functools.cache
def known_locks() -> frozenset[str]:
    """SHA-256 of requirements.lock, and of every version of it that git has; without git of the present one alone."""
    contents = [(ROOT / LOCKS[0]).read_bytes()]
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    try:
        log = subprocess.run([*git, "rev-list", "HEAD", "--", LOCKS[0]], check=True, capture_output=True, text=True)
        for commit in log.stdout.split():
            show = subprocess.run([*git, "show", f"{commit}:{LOCKS[0]}"], check=True, capture_output=True)
            contents.append(show.stdout)
    except (OSError, subprocess.CalledProcessError):
        pass
    return frozenset(hashlib.sha256(content).hexdigest() for content in contents)
