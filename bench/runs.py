"""Which runs a user has chosen: every experiment at its profile with every seed, and the weights that it starts from."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from bench.errors import UserError, found_in
from bench.experiment import Experiment, Run, Weights
from bench.profiles import at_profile
from bench.settings import Settings
from data.sources import IMAGENET_WEIGHTS

IMAGENET_SHA256 = str(IMAGENET_WEIGHTS.known_hash).removeprefix("sha256:")


def plan(settings: Settings) -> list[Run]:
    """Return every run of the chosen experiments and seeds at the chosen profile, done or not.

    Raises:
        UserError: no experiment matches, or WEIGHTS names no file.
    """
    at_budget = [at_profile(experiment, settings.profile) for experiment in settings.experiments()]
    return [
        Run(
            experiment=experiment,
            profile=settings.profile,
            seed=seed,
            weights=initial_weights(experiment, settings.weights),
        )
        for experiment in at_budget
        for seed in settings.seeds
    ]


def listed(runs: Sequence[Run], path: Path) -> list[Run]:
    """The runs that a file lists, an experiment and a seed on each line.

    Raises:
        UserError: the file cannot be read, or lists a run that was not chosen.
    """
    by_name = {f"{run.experiment.name} {run.seed}": run for run in runs}
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"--runs {path}: expected a file of lines NAME SEED, found {found_in(error)}; name another") from error
    if unknown := next((line for line in lines if line not in by_name), None):
        raise UserError(f"{path}: expected an experiment and a seed that were chosen, found {unknown[:80]!r}; see ONLY and SEEDS")
    return [by_name[line] for line in lines]


def initial_weights(experiment: Experiment, given: Path | None) -> Weights | None:
    """Return the identity of the pretrained weights that the experiment starts from: WEIGHTS, else torchvision's.

    Raises:
        UserError: WEIGHTS names no file.
    """
    if experiment.weights == "none":
        return None
    if given is None:
        return Weights(IMAGENET_WEIGHTS.filename, IMAGENET_SHA256)
    try:
        present = given.is_file()
        str(given).encode()  # a record holds the name
    except (OSError, ValueError):
        present = False
    if not present:
        shown = str(given).encode(errors="replace").decode()[:200]
        raise UserError(f"WEIGHTS={shown}: expected a file, found none; give the path of a .pth or .safetensors file")
    return Weights(given.name, sha256_of_file(given))


@functools.cache
def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, which are read once in a process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
