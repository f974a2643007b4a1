"""All figures of a ledger as SVG and PNG files.

    <results>/figures/architecture.svg, .png
    <results>/figures/loop_ratios.svg, .png
    <results>/figures/<profile>/<backbone>/<figure>.svg, .png

The same ledger gives the same bytes. Rows of different profiles, or fine-tuned from different backbones, never share a picture.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from bench.errors import UserError
from bench.ledger import Ledger, departures
from bench.profiles import PROFILES
from bench.report.figures import (
    accuracy_cost,
    architecture,
    attention_file,
    attention_maps,
    dual,
    epoch_time,
    gates,
    learning_curves,
    loop_ratios,
    style,
)
from bench.report.figures.scope import NothingToDraw, Scope, scopes
from bench.report.rows import Found

ARCHITECTURE, LOOP_RATIOS = "architecture", "loop_ratios"  # those that are of no records


class Kind(NamedTuple):
    """A figure that every scope of a ledger has."""

    title: str
    caption: str
    draw: Callable[[Scope, Path], Figure]  # from the rows and the results folder


def _attention_maps(scope: Scope, results: Path) -> Figure:
    examined = attention_file.find(scope, results)
    if examined is None:
        raise NothingToDraw(f"no attention maps of {attention_file.EXPERIMENT}; they are made where a run's best.pt is")
    return attention_maps.draw(examined)


KINDS = {
    "learning_curves": Kind(learning_curves.TITLE, learning_curves.CAPTION, lambda scope, _: learning_curves.draw(scope)),
    "dual": Kind(dual.TITLE, dual.CAPTION, lambda scope, _: dual.draw(scope)),
    "attention_maps": Kind(attention_maps.TITLE, attention_maps.CAPTION, _attention_maps),
    "accuracy_cost": Kind(accuracy_cost.TITLE, accuracy_cost.CAPTION, lambda scope, _: accuracy_cost.draw(scope)),
    "gates": Kind(gates.TITLE, gates.CAPTION, lambda scope, _: gates.draw(scope)),
    "epoch_time": Kind(
        epoch_time.TITLE,
        epoch_time.CAPTION,
        lambda scope, results: epoch_time.draw(scope, epoch_time.roofline(scope, results / "throughput")),
    ),
}


@dataclass
class Outcome:
    """What was written, and a line for each figure that was not, with the reason."""

    written: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def write_figures(results: Path, *, datasets: Path, device: str, images: bool = True) -> Outcome:
    """Draw every figure of a ledger, and remove those of an earlier call that it no longer has rows for.

    Where the weights of a ``stem_dual`` run are at hand, its attention maps are computed first; see :mod:`attention_file`.

    Args:
        results: the ledger's folder.
        datasets, device: for the attention maps.
        images: whether these are laid over their test images, which the files in the results folder then hold.

    Raises:
        UserError: a record cannot be read, a figure cannot be written, or weights are not those of their record.
        WeightsError, DataError: the weights are damaged, or the data set is not there.
    """
    found = _complete_records(results)
    outcome = Outcome()
    with style.applied():
        outcome.written += style.save(architecture.draw(), results / "figures" / ARCHITECTURE, architecture.TITLE)
        try:
            ratios = loop_ratios.draw(results / "throughput")
        except NothingToDraw as reason:
            outcome.left_out.append(f"{LOOP_RATIOS}: {reason}")
        else:
            outcome.written += style.save(ratios, results / "figures" / LOOP_RATIOS, loop_ratios.TITLE)
    of_no_records = len(outcome.written)
    for scope in scopes(found):
        outcome.written += attention_file.write_missing(scope, results=results, datasets=datasets, device=device, images=images)
        _write_scope(scope, results, outcome)
    if len(outcome.written) == of_no_records:
        outcome.left_out.append(f"all that show records: {results} has no finished run of a profile other than smoke")
    for picture in pictures(results):
        for path in {picture.svg, picture.png} - set(outcome.written):
            path.unlink(missing_ok=True)
    return outcome


def _complete_records(results: Path) -> list[Found]:
    """The records of a ledger; a figure shows fields that the report can do without."""
    found = list(Ledger(results).records())
    for path, record in found:
        for fault in departures(record, complete=True):
            raise UserError(f"{path}: {fault}; restore the file or move it out of the ledger")
    return found


def _write_scope(scope: Scope, results: Path, outcome: Outcome) -> None:
    for name, kind in KINDS.items():
        stem = results / "figures" / scope.folder / name
        with style.applied():
            try:
                figure = kind.draw(scope, results)
            except NothingToDraw as reason:
                outcome.left_out.append(f"{scope.folder}/{name}: {reason}")
            else:
                outcome.written += style.save(figure, stem, kind.title)


# ---- what there is ---------------------------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A figure on disk, for a page that shows it."""

    name: str
    title: str
    caption: str
    profile: str | None  # None: of no records
    backbone: str | None  # the folder that is named after the pretrained weights
    svg: Path
    png: Path


def pictures(results: Path) -> list[Picture]:
    """The figures that were written for a ledger: those of no records, then by profile, backbone and figure."""
    folder = results / "figures"
    return [
        Picture(name, title, caption, profile, backbone, path, path.with_suffix(".png"))
        for name, title, caption, profile, backbone, path in _possible(folder)
        if path.exists() and path.with_suffix(".png").exists()
    ]


def _possible(folder: Path) -> Iterator[tuple[str, str, str, str | None, str | None, Path]]:
    yield ARCHITECTURE, architecture.TITLE, architecture.CAPTION, None, None, folder / f"{ARCHITECTURE}.svg"
    yield LOOP_RATIOS, loop_ratios.TITLE, loop_ratios.CAPTION, None, None, folder / f"{LOOP_RATIOS}.svg"
    for profile in PROFILES:
        for backbone in sorted(path.name for path in (folder / profile).glob("*") if path.is_dir()):
            for name, kind in KINDS.items():
                yield name, kind.title, kind.caption, profile, backbone, folder / profile / backbone / f"{name}.svg"
