"""All figures of a ledger as SVG and PNG files.

    <results>/figures/architecture.svg, .png
    <results>/figures/loop_ratios.svg, .png
    <results>/figures/<profile>/<backbone>/<figure>.svg, .png

The same ledger gives the same bytes. Rows of different profiles, or fine-tuned from different backbones, never share a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from bench.errors import UserError
from bench.ledger import Ledger, departures
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
from bench.report.figures.pictures import OF_RECORDS, pictures
from bench.report.figures.scope import NothingToDraw, Scope, scopes
from bench.report.rows import Found


def _attention_maps(scope: Scope, results: Path) -> Figure:
    examined = attention_file.find(scope, results)
    if examined is None:
        raise NothingToDraw(f"no attention maps of {attention_file.EXPERIMENT}; they are made where a run's best.pt is")
    return attention_maps.draw(examined)


DRAWN: dict[str, Callable[[Scope, Path], Figure]] = {  # of every scope of a ledger, from its rows and the results folder
    "learning_curves": lambda scope, _: learning_curves.draw(scope),
    "dual": lambda scope, _: dual.draw(scope),
    "attention_maps": _attention_maps,
    "accuracy_cost": lambda scope, _: accuracy_cost.draw(scope),
    "gates": lambda scope, _: gates.draw(scope),
    "epoch_time": lambda scope, results: epoch_time.draw(scope, epoch_time.roofline(scope, results / "throughput")),
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
        outcome.written += style.save(architecture.draw(), results / "figures" / "architecture", architecture.TITLE)
        try:
            ratios = loop_ratios.draw(results / "throughput")
        except NothingToDraw as reason:
            outcome.left_out.append(f"loop_ratios: {reason}")
        else:
            outcome.written += style.save(ratios, results / "figures" / "loop_ratios", loop_ratios.TITLE)
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
    for name, draw in DRAWN.items():
        stem = results / "figures" / scope.folder / name
        with style.applied():
            try:
                figure = draw(scope, results)
            except NothingToDraw as reason:
                outcome.left_out.append(f"{scope.folder}/{name}: {reason}")
            else:
                outcome.written += style.save(figure, stem, OF_RECORDS[name].title)
