"""Runs cut into shards that can be worked through at different places, none of which needs to know of the others."""

import re
from collections.abc import Sequence
from itertools import accumulate

from bench.errors import UserError
from bench.experiment import Run

TRAIN_IMAGES = 50_000  # where an experiment takes all of them
PER_IMAGE = {"matched_vit": 20}  # multiply-adds of an image, in those of ConvNeXt-Tiny with its own stem
LARGER_MAPS = 4  # the same of all others with the CIFAR stem or with 64 tokens


def work(run: Run) -> float:
    """How much a run has to compute, in images on ConvNeXt-Tiny with its own stem: enough to balance shards, no estimate."""
    experiment = run.experiment
    per_image = 1 if experiment.model.stem == "default" else PER_IMAGE.get(experiment.model.family, LARGER_MAPS)
    return experiment.recipe.epochs * (experiment.train_images or TRAIN_IMAGES) * per_image


def shards(runs: Sequence[Run], count: int) -> list[list[Run]]:
    """Cut runs into ``count`` shards of nearly equal work; some are empty where runs are few or of very different length.

    The runs are laid on a line, those of one architecture (family, stem, attention and its sites) side by side, there by data set
    and seed, and the line is cut into equal lengths; a run belongs where its middle lies. So an architecture's data and compiled
    code are shared, a shard has at most one run's work more than its share, and where an architecture is cut, the seeds of a row
    lie in different shards: one that is lost costs no row all of its seeds.
    """
    line = sorted(runs, key=_place)  # stable: the catalog's order within a seed
    ends = list(accumulate((work(run) for run in line), initial=0.0))
    cut: list[list[Run]] = [[] for _ in range(count)]
    for run, start, end in zip(line, ends, ends[1:], strict=False):
        cut[int(count * (start + end) / 2 / ends[-1])].append(run)
    return cut


def shard_of(runs: Sequence[Run], choice: str) -> list[Run]:
    """The shard ``I/N`` of the runs, numbered from 0. Give it all runs, done or not: then N places agree, whenever each begins.

    Raises:
        UserError: ``choice`` names no shard.
    """
    found = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", choice)
    if not found or int(found[1]) >= int(found[2]):
        raise UserError(f"--shard: expected I/N with I from 0 to N - 1, as in 0/8, found {choice[:80]!r}")
    return shards(runs, int(found[2]))[int(found[1])]


def architecture(run: Run) -> str:
    """What runs have in common that share compiled code."""
    model = run.experiment.model
    return repr((model.family, model.stem, model.attention, model.sites))


def _place(run: Run) -> tuple[str, str, int]:
    return architecture(run), run.experiment.dataset, run.seed
