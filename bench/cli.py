"""The command line: sub-commands and their flags; no logic. ``bench/errors.py`` lists the exit statuses."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bench import cluster, memory, stopping
from bench.catalog import find
from bench.errors import EXIT_BUSY, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER, UserError
from bench.report.measurements import read_report
from bench.runs import listed, plan
from bench.settings import COUNT_DIGITS, DEFAULTS, Settings, is_count, settings, variable
from bench.shards import shard_of
from data import DataError
from models.errors import WeightsError

FLAGS = {
    "PROFILE": "budget: paper (the study's), mini (two CPU cores), smoke (seconds)",
    "SEEDS": "seeds, as in '0 1 2' or 0-9",
    "DEVICE": "auto, cpu, cuda or cuda:N",
    "JOBS": "processes that share the work on this machine; auto: one for each GPU, or as many as the CPU has room for",
    "ONLY": "patterns of experiment names, as in 'cifar100/scratch_*'",
    "DATASETS": "folder of the data sets",
    "RESULTS": "folder of records, checkpoints and curves",
    "WEIGHTS": "file of pretrained weights to use instead of ImageNet-1k's",
    "DEPTHWISE": "method of depthwise and patch convolutions and attention: auto (the fastest measured), reference",
    "COMPILE": "torch.compile: auto (where it pays for its warm-up), on, off",
    "CUDA_GRAPH": "one launch for a whole step on CUDA: auto (yes), on, off",
}


CONTINUES = ("run", "grid")  # these leave a checkpoint
OF_ONE_SEED = ("run", "show", "compare")
LARGEST = 1e9  # seconds of an epoch, price of an hour: more than anybody means

# flags of single commands, which are no settings
EXTRA = (
    "gpus",
    "price",
    "throughput",
    "gpu_seconds_per_epoch",
    "quick",
    "without_images",
    "name",
    "before",
    "after",
    "shard",
    "runs",
    "dry_run",
    "status",
    *map(str.lower, cluster.VARIABLES),
)


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, as all of the suite does."""

    def error(self, message: str) -> NoReturn:
        """Leave with the line."""
        self.exit(EXIT_USER, f"error: {message}; `{self.prog} --help` says what there is\n")


def parser() -> argparse.ArgumentParser:
    """Build the parser; every flag's default is the environment variable of the same name."""
    top = Parser(prog="python -m bench", description="Train, evaluate and report the experiments of the study.", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {
        "list": "all experiments, with the study's number, budget and state",
        "run": "one run: an experiment with a seed",
        "grid": "every run that is due",
        "plan": "how long a grid takes on other machines, and what it costs",
        "report": "records to RESULTS.md",
        "figures": "records to figures, SVG and PNG",
        "cost": "parameters, multiply-adds and attention maps of every network",
        "doctor": "what this machine lacks",
        "throughput": "images per second of every network, and of our loop beside the conventional one",
        "show": "one run: its numbers, curves, configuration, cost and environment",
        "compare": "two runs side by side, or what changed beyond noise between two throughput measurements",
        "profile": "where the time of a training step goes, network by network, with traces",
        "verify": "whether records, report, locks and data are undamaged",
    }.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for setting, its_text in FLAGS.items():
            if not (name in OF_ONE_SEED and setting in ("SEEDS", "ONLY")):
                flag, default = f"--{setting.lower().replace('_', '-')}", f"; else ${setting}, else {DEFAULTS[setting] or 'none'}"
                command.add_argument(flag, default=variable(setting), metavar=setting, help=its_text + default)
        if name == "figures":
            command.add_argument(
                "--without-images", action="store_true", help="leave test images out of the attention maps, for a ledger to publish"
            )
        if name == "throughput":
            command.add_argument("--quick", action="store_true", help="the loops and two networks only")
        if name == "grid":
            command.add_argument("--shard", default="", metavar="I/N", help="only the I-th of N shards of the runs, counted from 0")
            command.add_argument("--runs", default="", metavar="FILE", help="only the runs in a file of lines NAME SEED")
            command.add_argument("--dry-run", action="store_true", help="with --launcher slurm: show the tasks, submit nothing")
            command.add_argument("--status", action="store_true", help="show what runs, waits, is done, has failed; start nothing")
            for variable_name, (default, text) in cluster.VARIABLES.items():
                flag, given = f"--{variable_name.lower().replace('_', '-')}", os.environ.get(variable_name) or default
                command.add_argument(flag, default=given, metavar=variable_name, help=f"{text} (${variable_name})")
        if name == "compare":
            command.add_argument("before", metavar="A", help="a run as `show` takes it, or the file of a measurement")
            command.add_argument("after", metavar="B", help="another of the same kind")
        if name == "show":
            command.add_argument("name", metavar="RUN", help="an experiment, the key of a record, or its file")
        if name == "plan":
            command.add_argument("--gpus", default="8", metavar="N", help="how many there are; else 8")
            command.add_argument("--price", default="", metavar="P", help="of a GPU for an hour, in any currency")
            pace = command.add_mutually_exclusive_group(required=True)
            pace.add_argument(
                "--throughput", default="", metavar="FILE", help="a measurement by `make bench-throughput` on such a GPU"
            )
            pace.add_argument(
                "--gpu-seconds-per-epoch", default="", metavar="X", help="of cifar100/baseline on such a GPU, with its evaluation"
            )
        if name == "run":
            command.add_argument("experiment", metavar="NAME", help="as `list` shows it")
        if name in OF_ONE_SEED:
            command.add_argument("--seed", default=variable("SEEDS"), metavar="K", help="a whole number; else $SEEDS, else 0")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return the exit status."""
    options = vars(parser().parse_args(arguments))
    command = options.pop("command")
    stopping.install()
    memory.keep_freed()
    try:
        if command in OF_ONE_SEED:
            options |= {"seeds": options.pop("seed"), "only": options.pop("experiment", DEFAULTS["ONLY"])}
        extra = {name: options.pop(name) for name in EXTRA if name in options}
        return _COMMANDS[command](settings(**options), **extra)
    except (UserError, DataError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print(
            "interrupted" + ("; the same command continues from the last checkpoint" if command in CONTINUES else ""),
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED


# torch and matplotlib take seconds to import, so each command imports what it needs, after what can be refused without


def _list(chosen: Settings) -> int:
    from bench.report.listing import listing

    print(listing(plan(chosen), chosen.results))
    return 0


def _run(chosen: Settings) -> int:
    find(chosen.only)
    _one_seed(chosen)
    (run,) = plan(chosen)

    from bench.engine import ranks
    from bench.engine.checkpoint import Busy
    from bench.grid import assist, check_inputs, execute

    check_inputs([run], chosen)
    with ranks.joined(chosen.device):
        if ranks.rank() > 0:
            assist(run, chosen)
            return 0
        try:
            record = execute(run, chosen)
        except Busy as busy:
            print(f"{run.experiment.name} seed {run.seed}: {busy}", file=sys.stderr)
            return EXIT_BUSY
    results = record["results"]
    print(f"{run.experiment.name} seed {run.seed}: {results['status']}" + (f": {results['error']}" if results["error"] else ""))
    return 0 if results["status"] == "done" else EXIT_FAILED


def _one_seed(chosen: Settings) -> int:
    if len(chosen.seeds) != 1:
        raise UserError(
            f"--seed, else SEEDS: expected one whole number, found {len(chosen.seeds)}; `python -m bench grid` takes several"
        )
    return chosen.seeds[0]


def _grid(chosen: Settings, *, shard: str, runs: str, dry_run: bool, status: bool, **launching: str) -> int:
    launcher = cluster.launcher({name.upper(): value for name, value in launching.items()})
    planned = plan(chosen)
    planned = shard_of(planned, shard) if shard else planned
    planned = listed(planned, Path(runs)) if runs else planned
    if status:
        print(cluster.status(planned, chosen))
        return 0
    if dry_run and not launcher:
        raise UserError("--dry-run: expected --launcher slurm, whose tasks it shows; `python -m bench list` shows what is due here")
    if not launcher:
        from bench.grid import work_through

        return work_through(planned, chosen)
    if dry_run:
        print(cluster.dry_run(planned, chosen, launcher))
        return 0
    return cluster.work_through(planned, chosen, launcher)


def _plan(chosen: Settings, *, gpus: str, price: str, throughput: str, gpu_seconds_per_epoch: str) -> int:
    if not is_count(gpus, 1):
        raise UserError(f"--gpus: expected a whole number from 1 of at most {COUNT_DIGITS} digits, found {gpus[:80]!r}")
    each = _positive("--price", price) if price else None
    report = read_report(Path(throughput)) if throughput else None
    seconds = 0.0 if report else _positive("--gpu-seconds-per-epoch", gpu_seconds_per_epoch)
    its_runs = plan(chosen)

    from bench.planning import pace_of, pace_of_epoch, planned

    print(planned(its_runs, int(gpus), pace_of(report) if report else pace_of_epoch(seconds), each))
    return 0


def _positive(flag: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < LARGEST:
        raise UserError(f"{flag}: expected a number above 0 and below {LARGEST:,.0f}, found {text[:80]!r}")
    return number


def _there_are_results(chosen: Settings) -> None:
    if not chosen.results.is_dir():
        raise UserError(f"RESULTS={chosen.results}: expected a folder, found none; choose another, or run an experiment")


def _report(chosen: Settings) -> int:
    from bench.report.write import write_report

    _there_are_results(chosen)
    for path in write_report(chosen.results):
        print(f"wrote {path}")
    return 0


def _figures(chosen: Settings, without_images: bool) -> int:
    from bench.report.figures.events import write_events
    from bench.report.figures.write import write_figures

    _there_are_results(chosen)
    outcome = write_figures(chosen.results, datasets=chosen.datasets, device=chosen.device, images=not without_images)
    for path in [*outcome.written, write_events(chosen.results)]:
        print(f"wrote {path}")
    for line in outcome.left_out:
        print(f"left out {line}")
    return 0


def _cost(chosen: Settings) -> int:
    from bench.report.costs import cost_listing

    print(cost_listing(chosen.experiments()))
    return 0


def _doctor(chosen: Settings) -> int:
    from bench.doctor import examine, render

    checks = examine(chosen.device, chosen.datasets, chosen.results, chosen.weights)
    print(render(checks))
    return 0 if all(check.ok for check in checks) else EXIT_FAILED


def _throughput(chosen: Settings, quick: bool) -> int:
    from bench.throughput import measure

    print(f"wrote {measure(chosen, quick=quick)}")
    return 0


def _show(chosen: Settings, name: str) -> int:
    from bench.report.show import find_run, shown

    print(shown(find_run(chosen.results, name, seed=_one_seed(chosen), profile=chosen.profile)))
    return 0


def _compare(chosen: Settings, before: str, after: str) -> int:
    from bench.report.show import differences, find_run, is_run
    from bench.report.throughput import compared

    if is_run(before) != is_run(after):
        raise UserError("compare: expected two runs or two files of throughput measurements, found one of each")
    if is_run(before):
        seed = _one_seed(chosen)
        one, other = (find_run(chosen.results, name, seed=seed, profile=chosen.profile) for name in (before, after))
        print(differences(one, other))
    else:
        print(compared(read_report(Path(before)), read_report(Path(after))))
    return 0


def _profile(chosen: Settings) -> int:
    from bench.grid import choices
    from bench.measure.profiling import profile_networks

    for text in profile_networks(chosen, choices(chosen)):
        print(text, flush=True)
    return 0


def _verify(chosen: Settings) -> int:
    from bench.verify import examine, render

    sections = examine(chosen.results, chosen.datasets)
    print(render(sections))
    return EXIT_FAILED if any(section.problems for section in sections) else 0


_COMMANDS: dict[str, Callable[..., int]] = {
    "list": _list,
    "run": _run,
    "grid": _grid,
    "plan": _plan,
    "report": _report,
    "figures": _figures,
    "cost": _cost,
    "doctor": _doctor,
    "throughput": _throughput,
    "show": _show,
    "compare": _compare,
    "profile": _profile,
    "verify": _verify,
}
