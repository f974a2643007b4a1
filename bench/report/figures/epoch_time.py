"""Figure 7: seconds that an epoch takes, network by network, beside the least that the hardware allows where that is known."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.catalog import find
from bench.environment import device_in_words
from bench.experiment import Experiment
from bench.ledger import Record
from bench.report.figures.pictures import OF_RECORDS
from bench.report.figures.scope import NothingToDraw, Scope, network_name, note_of, timed, usual_device
from bench.report.figures.style import BLUE, FAINT, INK, SMALL, head, log_axis, new_figure
from bench.report.measurements import read_reports
from bench.report.rows import Row
from data.sources import SOURCES

TITLE = OF_RECORDS["epoch_time"].title

IMAGES = SOURCES["cifar100"].spec.train.count


def draw(scope: Scope, roofline: Mapping[str, float] | None = None) -> Figure:
    """Draw the figure for the device that most rows were run on.

    Args:
        roofline: the least seconds of an epoch on that device by network, named as :func:`family` names it; where one is given, a
            tick stands beside the measured dot.

    Raises:
        NothingToDraw: no run on CIFAR-100 has an epoch in which the whole network trains.
    """
    rows, machine = _timed_rows(scope)
    seconds_of = _by_family(rows, machine)
    if not seconds_of:
        raise NothingToDraw("no run on CIFAR-100 has an epoch in which the whole network trains")
    families = sorted(seconds_of.items(), key=lambda item: -statistics.median(item[1]))
    figure = new_figure(1.0 + 0.27 * len(families))
    axes = figure.subplots()
    for height, (_, seconds) in enumerate(families):
        _measured(axes, height, seconds)
    known = {height: roofline[name] for height, (name, _) in enumerate(families) if roofline and name in roofline}
    _rooflines(axes, known)
    axes.set_yticks(range(len(families)), [name for name, _ in families])
    axes.set_ylim(-0.7, len(families) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    log_axis(axes)
    words = "measured, and roofline" if known else "measured"
    axes.set_xlabel(f"seconds per epoch of {IMAGES:,} images, training, {words}\n({machine})")
    head(figure, TITLE, note_of(scope, [row for row in rows if any(map(epoch_seconds, timed(row, machine)))]))
    return figure


def roofline(scope: Scope, throughput: Path) -> dict[str, float]:
    """The least seconds of an epoch by network, from a measurement of the device that the figure is about; empty without one.

    Args:
        throughput: the folder of the measurements of speed.

    Raises:
        UserError: a file in the folder is no measurement.
    """
    _, machine = _timed_rows(scope)
    return {
        family(find(row["experiment"])): row["roofline_seconds_per_epoch"]
        for _, report in read_reports(throughput)
        if device_in_words(report["environment"]) == machine
        for row in report["families"].values()
    }


def _timed_rows(scope: Scope) -> tuple[list[Row], str]:
    """The rows that the figure may show, and the device that most of them were run on."""
    rows = [row for row in scope.rows if row.experiment.dataset == "cifar100"]
    return rows, usual_device(rows) if rows else ""


def _measured(axes: Axes, height: int, seconds: Sequence[float]) -> None:
    """The median as a dot with its digits, on a line from the first decile to the ninth."""
    median = statistics.median(seconds)
    fast, *_, slow = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else (median, median)
    axes.axhline(height, color=FAINT, linewidth=0.6, zorder=0)
    axes.plot([fast, slow], [height, height], color=BLUE, linewidth=1.4)
    axes.plot(median, height, "o", color=BLUE, markersize=6)
    digits = f"{median:,.0f}" if median >= 100 else f"{median:#.3g}"
    axes.annotate(digits, (slow, height), (6, 0), textcoords="offset points", va="center", fontsize=SMALL)


def _rooflines(axes: Axes, seconds: Mapping[int, float]) -> None:
    """A tick at each of these heights; the uppermost is named."""
    for height, least in seconds.items():
        axes.plot(least, height, "|", color=INK, markersize=11, markeredgewidth=1.8)
    if seconds:
        top = max(seconds)
        axes.annotate("roofline", (seconds[top], top), (0, 8), textcoords="offset points", ha="center", fontsize=SMALL)


def family(experiment: Experiment) -> str:
    """The network of a row, with its attention; rows of one family differ in weights, regime and recipe alone."""
    name, attention = network_name(experiment), experiment.model.attention
    if attention is None:
        return name
    heads = f", {attention.heads} head{'s' if attention.heads > 1 else ''}" if attention.kind == "mhsa" else ""
    kind = attention.kind if attention.kind == "spatial" else attention.kind.upper()
    return f"{name} + {kind} at {' and '.join(experiment.model.sites or ())}{heads}"


def _by_family(rows: Sequence[Row], machine: str) -> dict[str, list[float]]:
    """Seconds of every epoch of these rows' runs on one device, by family; a family without any is left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if seconds := [value for record in timed(row, machine) for value in epoch_seconds(record)]:
            found.setdefault(family(row.experiment), []).extend(seconds)
    return found


def epoch_seconds(record: Record) -> list[float]:
    """Seconds to train on all of CIFAR-100 once, for each epoch of a run in which the whole network trained."""
    return [
        timing["train_seconds"] * IMAGES / entry["train"]["images"]
        for entry, timing in zip(record["results"]["epochs"], record["timings"]["epochs"], strict=False)
        if entry.get("trainable_parameters") == record["cost"]["parameters"]
    ]
