"""The grid on Slurm: one job array over the runs that are due, submitted through submitit.

A task is ``python -m bench grid --runs FILE``, the grid as it is anywhere else, with ``bench/task.py`` standing by. The state is
in ``RESULTS/cluster/<number>``, a folder for each array: the number of the job, the runs of each task, the logs.
"""

import getpass
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.environment import ROOT
from bench.errors import EXIT_FAILED, UserError, found_in
from bench.experiment import Run
from bench.leases import alive
from bench.ledger import Ledger, write_bytes_atomically
from bench.settings import COUNT_DIGITS, Settings, is_count
from bench.shards import shards, work
from bench.task import Task

# name: default, meaning. As the settings, each is a flag, else a variable, else its default.
VARIABLES = {
    "LAUNCHER": ("local", "where runs are worked through: local, slurm"),
    "PARTITION": ("", "slurm: partition; none: the cluster's default"),
    "GPUS": ("1", "slurm: GPUs of a task; 0 on a cluster of processors"),
    "PARALLEL": ("8", "slurm: tasks that run at the same time"),
    "TIME_LIMIT": ("240", "slurm: minutes until a task is requeued"),
    "SBATCH": ("", "slurm: further options of sbatch, as in 'account=me mem=32G cpus-per-task=8'"),
    "TASK_PYTHON": (
        "",
        "slurm: the command that starts Python in a task, as in 'apptainer exec --nv bench.sif /opt/venv/bin/python'",
    ),
}

TASKS_PER_PLACE = 4  # tasks for each that runs at the same time, so that unequal ones still fill all places to the end
MOST_TASKS = 1000  # Slurm's MaxArraySize is 1001 unless a site says otherwise
LEAST_MINUTES = 5  # Slurm may signal a minute early: with the two below, that leaves two for the start and some steps
SECONDS_TO_STOP = 120  # from the signal to the time limit: the rest of a step, a checkpoint, and a slow file system
ARRAYS = 3  # how often runs whose tasks were killed are tried, in an array of their own
LOOK_SECONDS = 3  # between two looks at the queue


@dataclass(frozen=True)
class Slurm:
    """What a task asks Slurm for."""

    partition: str
    gpus: int
    parallel: int
    minutes: int
    sbatch: dict[str, str]
    python: tuple[str, ...]

    def __str__(self) -> str:
        where = f"partition {self.partition}" if self.partition else "the default partition"
        return f"{self.parallel} at a time in {where}, {self.gpus} GPUs each, requeued after {self.minutes} minutes"


def launcher(values: dict[str, str]) -> Slurm | None:
    """Check the choices as a user writes them, by the names of ``VARIABLES``; None: runs are worked through here.

    Raises:
        UserError: one of them is no choice.
    """
    if values["LAUNCHER"] not in ("local", "slurm"):
        raise UserError(f"LAUNCHER: expected local or slurm, found {values['LAUNCHER']!r}")
    if values["LAUNCHER"] == "local":
        return None
    numbers = {}
    for name, least in (("GPUS", 0), ("PARALLEL", 1), ("TIME_LIMIT", LEAST_MINUTES)):
        if not is_count(values[name], least):
            expected = f"a whole number from {least} of at most {COUNT_DIGITS} digits with LAUNCHER=slurm"
            raise UserError(f"{name}: expected {expected}, found {values[name][:80]!r}")
        numbers[name] = int(values[name])
    options = dict(word.lstrip("-").split("=", 1) for word in values["SBATCH"].split() if "=" in word)
    if len(options) != len(values["SBATCH"].split()):
        raise UserError(f"SBATCH: expected words of the form option=value, found {values['SBATCH']!r}")
    try:
        python = tuple(shlex.split(values["TASK_PYTHON"])) or (sys.executable,)
    except ValueError as error:
        found = f"{values['TASK_PYTHON'][:80]!r} ({error})"
        raise UserError(f"TASK_PYTHON: expected a command as a shell reads it, found {found}") from error
    return Slurm(values["PARTITION"], numbers["GPUS"], numbers["PARALLEL"], numbers["TIME_LIMIT"], options, python)


@dataclass(frozen=True)
class Array:
    """A job array that was submitted: Slurm's number of it, and the runs of each task by name and seed."""

    job: str
    tasks: tuple[tuple[str, ...], ...]


def arrays(results: Path) -> list[Array]:
    """The arrays that were submitted for a ledger, in order.

    Raises:
        UserError: one of their files is none that was written here.
    """
    found = {}
    for path in (results / "cluster").glob("*/array.json"):
        try:
            content = json.loads(path.read_bytes())
            found[int(path.parent.name)] = Array(str(content["job"]), tuple(tuple(map(str, task)) for task in content["tasks"]))
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            expected = "a job array in a folder with its number, found another file"
            raise UserError(f"{path}: expected {expected}; restore it, or delete its folder if the job has ended") from error
    return [found[number] for number in sorted(found)]


def work_through(runs: Sequence[Run], settings: Settings, its_slurm: Slurm) -> int:
    """Have all runs that are due executed by Slurm, and wait; return 0 if every run is done, else 1.

    Whoever leaves may come back: arrays that are still in the queue are waited for first. Runs whose task was killed are tried
    again in an array where each is a task; those that end without a record there too get one that says so.

    Raises:
        UserError: submitit or Slurm is not there, or Slurm refuses the job.
    """
    from bench.grid import check_inputs, status_of_the_dead

    tried: set[str] = set()
    for attempt in range(ARRAYS):
        _wait(runs, settings)
        due = [run for run in _due(runs, settings) if _status(run, settings) in ("", "interrupted") or name(run) not in tried]
        if not due:
            break
        check_inputs(due, settings)
        tried |= {name(run) for run in due}
        array = submit(groups(due, its_slurm.parallel, alone=attempt > 0), settings, its_slurm)
        print(f"{len(due)} runs are due: Slurm job {array.job}, {len(array.tasks)} tasks, {its_slurm}", flush=True)
        print("leave at any time: the same command comes back, `python -m bench grid --status` looks", flush=True)
    else:
        _wait(runs, settings)
        for run in _due(runs, settings):
            if _status(run, settings) in ("", "interrupted"):
                how = f"its task ended without a record {ARRAYS} times, so this is written where it was submitted"
                status_of_the_dead(run, replace(settings, device="cpu"), how)  # there need be no GPU
    states = [_status(run, settings) for run in runs]
    print(_counts(states), flush=True)
    return 0 if set(states) <= {"done"} else EXIT_FAILED


def groups(due: Sequence[Run], parallel: int, *, alone: bool = False) -> list[list[Run]]:
    """The runs of each task, none empty, the longest task first, so that no place waits for it in the end.

    Args:
        alone: a run each, so that one that kills its process takes no other with it.
    """
    count = len(due) if alone else min(len(due), TASKS_PER_PLACE * parallel)
    found = [group for group in shards(due, min(count, MOST_TASKS)) if group]
    return sorted(found, key=lambda group: -sum(map(work, group)))


def dry_run(runs: Sequence[Run], settings: Settings, its_slurm: Slurm) -> str:
    """What would be submitted, without submitit or Slurm."""
    due = _due(runs, settings)
    its_groups = groups(due, its_slurm.parallel) if due else []
    lines = [f"task {i}: {', '.join(map(name, group))}" for i, group in enumerate(its_groups)]
    return "\n".join([f"{len(runs)} runs, {len(due)} due: {len(its_groups)} tasks, {its_slurm}", *lines])


def submit(tasks: Sequence[Sequence[Run]], settings: Settings, its_slurm: Slurm) -> Array:
    """Submit one job array.

    Raises:
        UserError: submitit or Slurm is not there, or Slurm refuses the job.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(
            "LAUNCHER=slurm: expected the package submitit, found none; run `make venv-cluster`, or in an environment of your own "
            "`pip install --require-hashes -r requirements-cluster.lock`"
        ) from None
    if missing := [program for program in ("sbatch", "srun", "squeue") if not shutil.which(program)]:
        raise UserError(f"LAUNCHER=slurm: expected Slurm's {', '.join(missing)}, found none; start this on a login node")
    folder = _new_folder(settings.results.absolute() / "cluster")
    files = []
    for i, group in enumerate(tasks):
        files.append(folder / f"{i}.txt")
        write_bytes_atomically(files[-1], "".join(f"{name(run)}\n" for run in group).encode())
    executor = submitit.SlurmExecutor(folder / "log", max_num_timeout=10_000)  # a run of days meets many time limits
    executor.update_parameters(
        job_name="bench",
        time=its_slurm.minutes,
        array_parallelism=its_slurm.parallel,
        signal_delay_s=SECONDS_TO_STOP,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, "chdir": str(ROOT)}
        | ({"partition": its_slurm.partition} if its_slurm.partition else {})
        | ({"gpus-per-node": its_slurm.gpus} if its_slurm.gpus else {})
        | its_slurm.sbatch,
    )
    choices = settings.variables() | {"LAUNCHER": "local"}
    flags = tuple(f"--{name.lower().replace('_', '-')}={value}" for name, value in choices.items())
    task = Task(its_slurm.python, flags)
    try:
        jobs = executor.map_array(task, map(str, files))
    except submitit.core.utils.FailedJobError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"LAUNCHER=slurm: expected Slurm to take the job, found {reason[:300]}") from error
    array = Array(jobs[0].job_id.partition("_")[0], tuple(tuple(map(name, group)) for group in tasks))
    write_bytes_atomically(folder / "array.json", json.dumps({"job": array.job, "tasks": array.tasks}, indent=1).encode())
    return array


def status(runs: Sequence[Run], settings: Settings) -> str:
    """What runs, waits, is done, has failed: the counts, and a line for each run that is none of done and due.

    Raises:
        UserError: the leases or the arrays cannot be read, or Slurm does not answer.
    """
    unfinished, checkpoints = _due(runs, settings), settings.results / "checkpoints"
    try:
        beating = alive([checkpoints / run.key for run in unfinished])
    except OSError as unread:
        raise UserError(
            f"{checkpoints}: expected folders to look at, found {found_in(unread)}; choose others with RESULTS="
        ) from unread
    running = {run.key for run, beats in zip(unfinished, beating, strict=True) if beats}
    queued = _queued(arrays(settings.results)).items()
    # a Slurm that was installed anew counts its jobs from 1 again: a number may be another job's
    waiting = {run_name for array, tasks in queued for i in tasks if i < len(array.tasks) for run_name in array.tasks[i]}
    states: list[str] = []
    for run in runs:
        its_status = _status(run, settings)
        if run.key in running:
            states.append("running")
        elif its_status in ("", "interrupted") and name(run) in waiting:
            states.append("waiting")
        else:
            states.append(its_status or "due")
    lines = [
        f"{name(run)}: {state}" + (f": {error}" if (error := _error(run, settings)) and state not in ("running", "waiting") else "")
        for run, state in zip(runs, states, strict=True)
        if state not in ("done", "due")
    ]
    return "\n".join([_counts(states), *lines])


def name(run: Run) -> str:
    """A run in a file of runs, and in messages."""
    return f"{run.experiment.name} {run.seed}"


def _due(runs: Sequence[Run], settings: Settings) -> list[Run]:
    return [run for run in runs if not Ledger(settings.results).finished(run)]


def _status(run: Run, settings: Settings) -> str:
    """The status in the run's record; empty without one."""
    record = Ledger(settings.results).find(run)
    return str(record["results"]["status"]) if record else ""


def _error(run: Run, settings: Settings) -> str:
    record = Ledger(settings.results).find(run)
    return str(record["results"]["error"] or "") if record else ""


def _counts(states: Sequence[str]) -> str:
    return ", ".join(f"{states.count(state)} {state or 'without a record'}" for state in dict.fromkeys(states)) or "nothing to do"


def _wait(runs: Sequence[Run], settings: Settings) -> None:
    """Wait until no array of this ledger is in the queue; say so whenever something has changed."""
    said = ""
    gone = 0  # looks that found nothing: a task that is being requeued may be out of the queue for a moment
    while gone < 2:
        queued = _queued(arrays(settings.results))
        gone = 0 if queued else gone + 1
        if queued:
            done = len(runs) - len(_due(runs, settings))
            states = [state for tasks in queued.values() for state in tasks.values()]
            line = f"{done} of {len(runs)} runs done; tasks: {_counts([state.lower() for state in sorted(states)])}"
            if line != said:
                print(line, flush=True)
            said = line
        if said:
            time.sleep(LOOK_SECONDS)


def _queued(found: Sequence[Array]) -> dict[Array, dict[int, str]]:
    """The state of each task that is in Slurm's queue, by array.

    Raises:
        UserError: Slurm does not answer.
    """
    if not found:
        return {}
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%F %K %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise UserError(
            f"Slurm: expected an answer of squeue, found {reason[:200]}; the tasks go on without this command"
        ) from error
    states: dict[str, dict[int, str]] = {}
    for line in answer.splitlines():
        job, index, state = line.split()
        states.setdefault(job, {})[int(index) if index.isdecimal() else 0] = state  # a single task is no array
    return {array: states[array.job] for array in found if array.job in states}


def _new_folder(parent: Path) -> Path:
    """The folder with the next number; of two who ask at once, each gets one.

    Raises:
        UserError: it cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in parent.iterdir() if path.name.isdecimal()), default=0)
        while True:
            try:
                (parent / str(number)).mkdir()
            except FileExistsError:
                number += 1
            else:
                return parent / str(number)
    except OSError as error:
        raise UserError(f"{parent}: cannot be written ({error.strerror}); choose another folder with RESULTS=") from error
