"""How long a grid takes on machines that are not here, and what it costs: its tasks, simulated on a number of GPUs."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from bench.catalog import find
from bench.cluster import groups
from bench.errors import UserError
from bench.experiment import Model, Run
from bench.measure.cost import cost_of
from bench.report.measurements import Report
from bench.shards import TRAIN_IMAGES, architecture, work
from bench.verify.records import SPECS
from bench.words import duration

# Of one process on an H100, from its records: what its first run of an architecture spends on compiling, and each run on building
# network and data, beside its epochs.
COMPILING_SECONDS = 35.0
BEGINNING_SECONDS = 2.0
HELPS = 1.02  # one GPU more helps as long as the grid takes longer than this many times its longest run

CAVEAT = (
    "No run stops early, frozen epochs take as long as others, and nobody waits in a queue. A network that was not measured is as "
    "fast as the nearest one that was."
)


@dataclass(frozen=True)
class Pace:
    """How fast a GPU is: seconds of a run's epochs, and of compiling an architecture once in a process."""

    seconds: Callable[[Run], float]
    compiling: float = COMPILING_SECONDS
    of: str = "GPU"  # what it is the pace of


def pace_of_epoch(seconds: float) -> Pace:
    """From the seconds of one epoch, with its evaluation, of ConvNeXt-Tiny with its own stem on 50,000 images."""
    return Pace(lambda run: seconds * work(run) / TRAIN_IMAGES)


def pace_of(report: Report) -> Pace:
    """From a throughput measurement.

    A network that was not measured is as fast as that with the same family and stem, else as ConvNeXt-Tiny by its multiply-adds.

    Raises:
        UserError: ConvNeXt-Tiny with its own stem was not measured.
    """
    measured = {find(row["experiment"]).model: row for row in report["families"].values()}
    if Model() not in measured:
        raise UserError("--throughput: expected a measurement with cifar100/baseline, found none; run `make bench-throughput`")

    def speeds(model: Model) -> tuple[float, float]:
        """Images per second in training and in evaluation."""
        near = Model(family=model.family, stem=model.stem)
        row = measured.get(model) or measured.get(near) or measured[Model()]
        slower = 1.0
        if model not in measured and near not in measured:
            slower = cost_of(model, 100)["multiply_adds"] / cost_of(Model(), 100)["multiply_adds"]
        both = (row[kind]["median"] / slower for kind in ("training_images_per_second", "inference_images_per_second"))
        return next(both), next(both)

    known: dict[Model, tuple[float, float]] = {}

    def seconds(run: Run) -> float:
        experiment, spec = run.experiment, SPECS[run.experiment.dataset]
        training, evaluating = known.setdefault(experiment.model, known.get(experiment.model) or speeds(experiment.model))
        images = experiment.train_images or spec.train.count
        held_out = round(experiment.recipe.validation_fraction * images)
        seen = held_out + (experiment.test_images or spec.test.count)
        return experiment.recipe.epochs * ((images - held_out) / training + seen / evaluating)

    compiled = any(row["execution"]["compiled"] for row in report["families"].values())
    return Pace(seconds, COMPILING_SECONDS if compiled else 0.0, "GPU" if report["environment"]["cuda"] else "machine")


def task_seconds(task: Sequence[Run], pace: Pace) -> float:
    """How long a process works through runs, in which each architecture is compiled once."""
    compiling = pace.compiling * len({architecture(run) for run in task})
    return compiling + sum(BEGINNING_SECONDS + pace.seconds(run) for run in task)


def makespan(seconds: Sequence[float], places: int) -> float:
    """When the last task ends, if each in turn begins at the place that is free first."""
    free = [0.0] * places
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


@dataclass(frozen=True)
class Simulation:
    """A grid on a number of GPUs; ``busy`` are the GPU-seconds that tasks take."""

    gpus: int
    makespan: float
    busy: float


def simulate(runs: Sequence[Run], gpus: int, pace: Pace) -> Simulation:
    """Work through the runs in the tasks that ``LAUNCHER=slurm PARALLEL=<gpus>`` makes of them, one on each GPU at a time."""
    seconds = [task_seconds(task, pace) for task in groups(runs, gpus)]
    return Simulation(gpus, makespan(seconds, gpus), sum(seconds))


def gpus_that_help(runs: Sequence[Run], pace: Pace) -> Simulation:
    """The fewest GPUs on which the grid takes no longer than its longest run, but for two percent."""
    longest = max(task_seconds([run], pace) for run in runs)
    return next(
        found
        for gpus in range(1, len(runs) + 1)
        if (found := simulate(runs, gpus, pace)).makespan <= HELPS * longest or gpus == len(runs)
    )


def planned(runs: Sequence[Run], gpus: int, pace: Pace, price: float | None) -> str:
    """The plan as text: what the grid takes on 1, 2, 4, ... GPUs, on ``gpus``, and on as many as help."""
    enough = gpus_that_help(runs, pace)
    numbers = sorted({*_powers(enough.gpus), gpus, enough.gpus})
    lines = [_line(simulate(runs, number, pace), pace.of, price) for number in numbers]
    longest = max(runs, key=pace.seconds)
    alone = f"{longest.experiment.name} takes {duration(pace.seconds(longest))} on one"
    return "\n".join(
        [
            f"{len(runs)} runs, profile {runs[0].profile}",
            tabulate(lines, headers="keys", disable_numparse=True, colalign=["right"] * len(lines[0])),
            f"More than {enough.gpus} {pace.of}s do not help: {alone}.",
            CAVEAT,
        ]
    )


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power < most:
        yield power
        power *= 2


def _line(found: Simulation, of: str, price: float | None) -> dict[str, str]:
    held = found.gpus * found.makespan / 3600
    line = {
        f"{of}s": str(found.gpus),
        "takes": duration(found.makespan),
        f"{of}-hours": f"{found.busy / 3600:.2f}",
        "held": f"{held:.2f}",
        "idle": f"{1 - found.busy / (found.gpus * found.makespan):.0%}",
    }
    return line if price is None else line | {"cost": f"{held * price:,.2f}"}
