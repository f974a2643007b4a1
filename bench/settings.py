"""What a user chooses: by flag, else by environment variable, else by default. All of it is about selection and places."""

import os
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, cast, get_args

from bench.catalog import EXPERIMENTS
from bench.errors import UserError
from bench.experiment import Experiment
from bench.profiles import PROFILES
from data.roots import expanded

DEFAULTS = {
    "PROFILE": "paper",
    "SEEDS": "0",
    "DEVICE": "auto",
    "JOBS": "1",
    "ONLY": "*",
    "DATASETS": "datasets",
    "RESULTS": "results",
    "WEIGHTS": "",
    "DEPTHWISE": "auto",
    "COMPILE": "auto",
    "CUDA_GRAPH": "auto",
}

MOST_SEEDS = 10_000  # a typing error in a range must not fill the memory
SEED_DIGITS = 18  # more than anybody needs; a seed is part of a file's name
COUNT_DIGITS = 6  # of processes, GPUs, tasks, minutes; Python itself reads no more than 4,300

Depthwise = Literal["auto", "reference"]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Settings:
    """The choices, checked."""

    profile: str
    seeds: tuple[int, ...]
    device: str
    jobs: int | None  # None: auto
    only: str
    datasets: Path
    results: Path
    weights: Path | None
    depthwise: Depthwise = "auto"
    compile: Switch = "auto"
    cuda_graph: Switch = "auto"

    def variables(self) -> dict[str, str]:
        """The choices as environment variables, for a process that may start in another folder."""
        values = {name: getattr(self, name.lower()) for name in DEFAULTS}
        paths = {name: str(value.absolute()) for name, value in values.items() if isinstance(value, Path)}
        return {name: "" if value is None else str(value) for name, value in values.items()} | paths | {
            "SEEDS": " ".join(map(str, self.seeds)),
            "JOBS": str(self.jobs or "auto"),
        }  # fmt: skip

    def experiments(self) -> list[Experiment]:
        """The catalog's experiments whose name matches ``only``, in the catalog's order.

        Raises:
            UserError: none matches.
        """
        patterns = self.only.split()
        chosen = [e for e in EXPERIMENTS if any(fnmatchcase(e.name, pattern) for pattern in patterns)]
        if not chosen:
            raise UserError(f"ONLY={self.only!r} matches no experiment; `python -m bench list` names them all")
        return chosen


def variable(name: str) -> str:
    """Return the environment variable, or its default; an empty variable counts as unset."""
    return os.environ.get(name) or DEFAULTS[name]


def is_count(text: str, least: int) -> bool:
    """Whether a user wrote a whole number from ``least`` that is not too long to be meant."""
    return text.isdecimal() and len(text) <= COUNT_DIGITS and int(text) >= least


def settings(
    *,
    profile: str,
    seeds: str,
    device: str,
    jobs: str,
    only: str,
    datasets: str,
    results: str,
    weights: str,
    depthwise: str,
    compile: str,
    cuda_graph: str,
) -> Settings:
    """Check the choices as a user writes them.

    Raises:
        UserError: one of them is no choice.
        DataError: a path begins with ~ and there is no such home folder.
    """
    if profile not in PROFILES:
        raise UserError(f"PROFILE: expected one of {', '.join(PROFILES)}, found {profile!r}")
    ranges = [word.partition("-") for word in seeds.replace(",", " ").split()]
    ends = [(first, last if dash else first) for first, dash, last in ranges]
    if not ends or not all(word.isdecimal() and len(word) <= SEED_DIGITS for pair in ends for word in pair):
        raise UserError(
            f"SEEDS: expected whole numbers from 0 of at most {SEED_DIGITS} digits, as in SEEDS='0 1 2' or SEEDS=0-2, "
            f"found {seeds[:80]!r}"
        )
    if any(int(last) < int(first) for first, last in ends):
        raise UserError(f"SEEDS: expected ranges from a lower to a higher number, as in SEEDS=0-2, found {seeds[:80]!r}")
    if (count := sum(int(last) - int(first) + 1 for first, last in ends)) > MOST_SEEDS:
        raise UserError(f"SEEDS: expected at most {MOST_SEEDS} seeds, found {count} in {seeds[:80]!r}")
    if jobs != "auto" and not is_count(jobs, 1):
        raise UserError(f"JOBS: expected auto or a whole number from 1 of at most {COUNT_DIGITS} digits, found {jobs[:80]!r}")
    for name, folder in (("DATASETS", datasets), ("RESULTS", results)):
        if not folder:
            raise UserError(f"{name}: expected a folder, found an empty name; leave it out for {DEFAULTS[name]!r}")
        with suppress(OSError):  # of a name too long, of which the command will tell
            if expanded(folder).is_file():
                raise UserError(f"{name}={folder}: expected a folder, found a file; choose another with {name}=")
    for name, value, kind in (
        ("DEPTHWISE", depthwise, Depthwise),
        ("COMPILE", compile, Switch),
        ("CUDA_GRAPH", cuda_graph, Switch),
    ):
        if value not in get_args(kind):
            raise UserError(f"{name}: expected one of {', '.join(get_args(kind))}, found {value!r}")
    return Settings(
        profile=profile,
        seeds=tuple(dict.fromkeys(seed for first, last in ends for seed in range(int(first), int(last) + 1))),
        device=device,
        jobs=None if jobs == "auto" else int(jobs),
        only=only,
        datasets=expanded(datasets),
        results=expanded(results),
        weights=expanded(weights) if weights else None,
        depthwise=cast(Depthwise, depthwise),
        compile=cast(Switch, compile),
        cuda_graph=cast(Switch, cuda_graph),
    )
