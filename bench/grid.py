"""Working through runs: here, one after the other, or by several processes on this machine."""

import functools
import gc
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data
from bench import environment, machine, memory, stopping
from bench.engine import ranks
from bench.engine.checkpoint import Busy, CheckpointFolder, Unusable, Unwritten
from bench.engine.execution import Choices, choose
from bench.engine.train import build_network, put_on_device, train
from bench.errors import EXIT_FAILED, EXIT_USER, UserError
from bench.experiment import Run
from bench.ledger import FINISHED, SCHEMA, Ledger, Record
from bench.measure.cost import cost_of
from bench.measure.estimate import Estimator, TimeLeft
from bench.progress import Unseen, Watcher
from bench.runs import IMAGENET_SHA256, sha256_of_file
from bench.settings import Settings
from bench.shards import work
from bench.words import duration
from bench.workers import devices, share, workers
from data.fetch import weights_path
from data.sources import IMAGENET_WEIGHTS
from models.errors import WeightsError
from models.weights import read_state_dict

WAITING_SECONDS = 1  # between two looks at whether other processes still work on a run
CHECKPOINT_SECONDS = 20  # between two checkpoints, at the ends of epochs: what a kill may cost beside the epoch itself

# Runs that stay due:
NOT_BEGUN = "not begun"  # their device no longer answers this process
UNUSABLE = "unusable"  # their checkpoint is, which concerns no other run


def check_inputs(runs: Sequence[Run], settings: Settings) -> None:
    """Make sure that data and weights of all runs are at hand before the first one starts.

    Raises:
        DataError: a data set is missing or damaged.
        UserError: the pretrained weights are missing.
    """
    for name in sorted({run.experiment.dataset for run in runs}):
        _dataset(name, settings.datasets)
    if any(run.weights for run in runs):
        _weights_file(settings)


def execute(run: Run, settings: Settings, position: str = "") -> Record:
    """Bring a run to its record: return the finished one, or train (from the checkpoint where there is one) and write it.

    A failure becomes a record with its status; Ctrl-C and SIGTERM leave an ``interrupted`` record and go on upwards.

    Raises:
        Busy: another process works on this run.
        UserError, DataError, WeightsError: an input that the user can mend; no record is written.
    """
    ledger = Ledger(settings.results)
    checkpoint = _checkpoint(run, settings)
    if record := ledger.finished(run):
        return record
    with checkpoint.hold():
        if record := ledger.finished(run):  # finished by the process that held it
            return record
        device = machine.prepared(settings.device)
        record = _empty_record(run, device)
        ranks.begin()
        try:
            session = {"environment": record["environment"], "code": record["code"]}
            record |= _attempt(run, settings, device, checkpoint, position, session)
        except (KeyboardInterrupt, SystemExit):
            record["results"] = _failure("interrupted", None)
            raise
        except (UserError, data.DataError, WeightsError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this run's and must not stop the others
            status = "out_of_memory" if memory.ran_out(error) else "failed"
            if status == "failed":
                traceback.print_exc()
            record["results"] = _failure(status, error)
        finally:
            if record["results"]:
                record["timings"]["finished"] = _now()
                ledger.write(run, record)
        if record["results"]["status"] in FINISHED:
            checkpoint.finish()
    if stopping.wanted():  # since the run's last step
        stopping.leave()
    return record


def assist(run: Run, settings: Settings) -> None:
    """Do what each of torchrun's processes but the first does: its share of the training, if there is any, and write nothing."""
    if ranks.begin():
        device = machine.prepared(settings.device)
        _attempt(run, settings, device, Unwritten(settings.results / "checkpoints" / run.key), "", {"environment": {}, "code": {}})


def work_through(runs: Sequence[Run], settings: Settings) -> int:
    """Execute all runs that are due and print a summary; return the exit status: 0 if every run is done.

    Runs that other processes work on come last: they are waited for, and taken over where their process died or gave up.

    Raises:
        UserError, DataError, WeightsError: an input that the user can mend.
    """
    ledger = Ledger(settings.results)
    due = []
    for run in runs:
        if not ledger.finished(run):
            due.append(run)
        else:  # its process may have been killed between the record and this
            _checkpoint(run, settings).finish()
    device = machine.prepared(settings.device)  # before the estimate's steps: cuBLAS reads its setting once, when it starts
    chosen = f" (DEVICE={settings.device})" if settings.device == "auto" else ""
    print(
        f"profile {settings.profile}: {len(runs)} runs, {len(due)} due, on {machine.device_name(device)}{chosen}",
        flush=True,
    )
    check_inputs(due, settings)
    processes = min(len(workers(settings)), max(1, len(due)))
    settings = replace(settings, jobs=processes)
    if processes > 1:
        due.sort(key=work, reverse=True)  # the longest first, so that no process waits for it in the end
    estimates = _estimates(due, settings, device)
    if estimates:
        seconds = max(*estimates, sum(estimates) / devices(settings))
        print(f"about {duration(seconds)} on this device, from a few timed steps", flush=True)
    started = time.perf_counter()
    with memory.collecting_only_later():
        statuses = _statuses(due, settings, TimeLeft(due, estimates, processes), device)
        while (busy := [i for i, status in enumerate(statuses) if status == "busy"]) and NOT_BEGUN not in statuses:
            free = _freed([due[i] for i in busy], settings)
            again = [i for i in busy if due[i] in free]
            others = _statuses([due[i] for i in again], settings, TimeLeft([], [], processes), device)
            for i, status in zip(again, others, strict=True):
                statuses[i] = status
    counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing to do"
    print(f"{summary} in {time.perf_counter() - started:.0f} s", flush=True)
    return 0 if set(statuses) <= {"done"} else EXIT_USER if UNUSABLE in statuses else EXIT_FAILED


def _statuses(due: Sequence[Run], settings: Settings, time_left: TimeLeft, device: torch.device) -> list[str]:
    """Execute runs and return their statuses."""
    if len(workers(settings)) > 1:
        torch.cuda.empty_cache()  # the memory is the processes' now
        memory.give_back()
        return share(due, settings, lambda run, how: status_of_the_dead(run, settings, how), time_left)
    statuses: list[str] = []
    for i, run in enumerate(due, 1):
        time_left.began(run)
        statuses.append(status_of(run, settings, f"{i}/{len(due)}"))
        gc.collect()  # a compiled network is a cycle, and holds its memory until then
        if statuses[-1] in ("failed", "out_of_memory") and not machine.answers(device):
            print(f"{device} does not answer this process any more; the same command goes on with the others", flush=True)
            return statuses + (len(due) - i) * [NOT_BEGUN]
        time_left.ended(run, statuses[-1])
    return statuses


def _freed(runs: Sequence[Run], settings: Settings) -> list[Run]:
    """Wait until another process is through with some of the runs that it holds, and return those."""
    print(f"waiting for other processes with {len(runs)} of the runs", flush=True)
    while not (free := [run for run in runs if not _is_held(run, settings)]):
        time.sleep(WAITING_SECONDS)
    return free


def _is_held(run: Run, settings: Settings) -> bool:
    try:
        with _checkpoint(run, settings).hold():
            return False
    except Busy:
        return True


def _checkpoint(run: Run, settings: Settings) -> CheckpointFolder:
    return CheckpointFolder(settings.results / "checkpoints" / run.key)


def _estimates(due: Sequence[Run], settings: Settings, device: torch.device) -> list[float]:
    """Seconds of each run; none for the smoke profile, which takes hardly longer than to estimate it."""
    if settings.profile == "smoke":
        return []
    estimator = Estimator(device, choices(settings))
    estimates = []
    for run in due:
        dataset, experiment = _dataset(run.experiment.dataset, settings.datasets), run.experiment
        training = experiment.train_images or len(dataset.train.labels)
        held_out = round(experiment.recipe.validation_fraction * training)
        images = {
            "train": training - held_out,
            "validation": held_out,
            "test": experiment.test_images or len(dataset.test.labels),
        }
        estimates.append(estimator.seconds(run, images=images, classes=len(dataset.classes)))
    return estimates


def choices(settings: Settings) -> Choices:
    """How the user wants steps to be computed; measurements are kept beside the ledger."""
    return Choices(settings.depthwise, settings.compile, settings.cuda_graph, kept=settings.results / "measured.json")


def status_of(run: Run, settings: Settings, position: str = "") -> str:
    """Execute a run, unless somebody else works on it, and return its status; or ``busy``, or ``unusable`` as its checkpoint is.

    Raises:
        UserError, DataError, WeightsError: an input that the user can mend.
    """
    try:
        record = execute(run, settings, position)
    except Busy as busy:
        print(f"{run.experiment.name} seed {run.seed}: {busy}; it comes last", flush=True)
        return "busy"
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return UNUSABLE
    if (status := record["results"]["status"]) != "done":
        print(f"{run.experiment.name} seed {run.seed}: {status}: {record['results']['error']}", flush=True)
    return str(status)


def status_of_the_dead(run: Run, settings: Settings, how: str) -> str:
    """Write the record of a run whose process has ended without one, unless somebody else works on the run.

    Its device is the one that ``settings`` name on this machine. A process may also die after its record, while CUDA shuts down:
    then the record counts.
    """
    ledger, error = Ledger(settings.results), ChildProcessError(how)
    try:
        with _checkpoint(run, settings).hold():
            if record := ledger.finished(run):
                return str(record["results"]["status"])
            record = _empty_record(run, machine.choose_device(settings.device))
            record["results"] = _failure("failed", error)
            record["timings"]["finished"] = _now()
            ledger.write(run, record)
    except Busy:
        return "busy"
    print(f"{run.experiment.name} seed {run.seed}: failed: {record['results']['error']}", flush=True)
    return "failed"


def _attempt(
    run: Run, settings: Settings, device: torch.device, checkpoint: CheckpointFolder, position: str, session: dict[str, Any]
) -> dict[str, Any]:
    dataset = _dataset(run.experiment.dataset, settings.datasets)
    classes = len(dataset.classes)
    initial = _state_dict(_weights_file(settings)) if run.weights else None
    splits = put_on_device(run, dataset, device)
    network = build_network(run, classes, initial, device)
    recipe = run.experiment.recipe
    if recipe.batch_size % ranks.size():
        raise UserError(
            f"torchrun: expected a number of processes that divides the batch of {recipe.batch_size}, found {ranks.size()}"
        )
    steps = recipe.epochs * (len(splits.train) // recipe.batch_size)
    execution = ranks.from_first(lambda: choose(network, recipe.precision, device, choices(settings), steps=steps))
    if execution.compiled and ranks.rank() == 0:
        line = f"{run.experiment.name} seed {run.seed}: compiled (COMPILE={settings.compile}, {steps:,} steps)"
        print(f"{line}; the first epoch may take half a minute longer", flush=True)
    begun = _now()
    curves = settings.results / "tensorboard" / run.key
    looking_on = Watcher(run, curves, position) if ranks.rank() == 0 else nullcontext(Unseen())
    with looking_on as watcher, stopping.heeding():
        results, progress = train(
            run,
            splits=splits,
            network=network,
            checkpoint=checkpoint,
            observer=watcher,
            execution=execution,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            begun=begun,
            session=session,
        )
    return {
        "environment": session["environment"] | progress.execution.described() | _processes(progress.processes),
        "data": {
            "name": dataset.name,
            "train_sha256": dataset.train.sha256,
            "test_sha256": dataset.test.sha256,
            "images": splits.sizes,
        },
        "cost": cost_of(run.experiment.model, classes),
        "results": results,
        "timings": {
            "started": progress.begun,
            "finished": None,
            "restarts": progress.restarts,
            "epochs": progress.timings,
            **({"earlier": progress.earlier} if progress.earlier else {}),
        },
    }


def _processes(numbers: Sequence[int]) -> dict[str, str]:
    """How many processes trained a run, where it was ever more than one."""
    return {"processes": ", then ".join(map(str, numbers))} if max(numbers) > 1 else {}


def _empty_record(run: Run, device: torch.device) -> Record:
    return {
        "schema": SCHEMA,
        "run": {
            "experiment": run.experiment.name,
            "profile": run.profile,
            "seed": run.seed,
            "configuration_sha256": run.configuration_sha256,
        },
        "configuration": run.configuration,
        "code": environment.code_state(),
        "data": None,
        "environment": machine.describe(device),
        "cost": None,
        "results": None,
        "timings": {"started": _now(), "finished": None, "restarts": 0, "epochs": []},
    }


def _failure(status: str, error: BaseException | None) -> dict[str, Any]:
    """The results part of a record without results. The error is its first line, without this machine's paths."""
    text = f"{type(error).__name__}: {error}".splitlines()[0].replace(f"{environment.ROOT}/", "") if error else None
    return {
        "status": status,
        "error": text,
        "final": None,
        "stopped_early": False,
        "weights_sha256": None,
        "epochs": [],
    }


@functools.cache
def _dataset(name: str, root: Path) -> data.Dataset:
    return data.load(name, root)


@functools.cache
def _state_dict(path: Path) -> dict[str, Tensor]:
    return read_state_dict(path)  # of which every run takes copies


def _weights_file(settings: Settings) -> Path:
    if settings.weights:
        return settings.weights
    name, path = IMAGENET_WEIGHTS.filename, weights_path(settings.datasets)
    if path is None:
        raise UserError(
            f"{name}: expected under {settings.datasets}, found none; run `make data` with a network, set WEIGHTS=FILE, "
            "or choose experiments without pretraining, as ONLY='*/scratch_*'"
        )
    if sha256_of_file(path) != IMAGENET_SHA256:
        raise UserError(f"{path}: expected SHA-256 {IMAGENET_SHA256}, found another; delete the file and run `make data`")
    return path


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
