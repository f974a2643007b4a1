"""A quantity of a row by epoch, over its seeds, and how it is drawn."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from bench.report.figures.labels import Label
from bench.report.figures.scope import deviation
from bench.report.figures.style import QUIET, SMALL
from bench.report.rows import Row


@dataclass(frozen=True)
class Series:
    """Mean and sample standard deviation (0 for one seed) by epoch, over the seeds that reached the epoch."""

    epochs: list[int]
    mean: list[float]
    deviation: list[float]


def by_epoch(row: Row, value: Callable[[dict[str, Any]], float]) -> Series:
    """Read a quantity from every epoch's entry of every seed that is done."""
    values: dict[int, list[float]] = {}
    for record in row.done:
        for entry in record["results"]["epochs"]:
            values.setdefault(entry["epoch"], []).append(value(entry))
    epochs = sorted(values)
    return Series(epochs, [statistics.fmean(values[epoch]) for epoch in epochs], [deviation(values[epoch]) for epoch in epochs])


def gates(row: Row, site: str) -> Series:
    """The gate of one site; its size where it ends on either side of zero, for the mean of both would lie between them."""
    measure = abs if row.gates_differ_in_sign(site) else float
    return by_epoch(row, lambda entry: float(measure(entry["gates"][site])))


def gate_label(row: Row, site: str, text: str) -> str:
    """What the line of a gate is called: with |α| where it shows the size."""
    return f"{text} |α|" if row.gates_differ_in_sign(site) else text


def curve(axes: Axes, series: Series, text: str, colour: str, *, width: float = 1.6) -> Label:
    """Draw the mean as a line, the deviation as a band, and return the label for the line's end."""
    axes.plot(series.epochs, series.mean, color=colour, linewidth=width, zorder=2 + width)
    axes.plot(
        series.epochs[-1:], series.mean[-1:], color=colour, marker="o", markersize=1 + 1.5 * width, zorder=2 + width, clip_on=False
    )
    if any(series.deviation):
        low, high = ([m + sign * d for m, d in zip(series.mean, series.deviation, strict=True)] for sign in (-1, 1))
        axes.fill_between(series.epochs, low, high, color=colour, alpha=0.18, linewidth=0)
    return Label(series.epochs[-1], series.mean[-1], text, colour)


def epoch_axis(axes: Axes, rows: Sequence[Row]) -> None:
    """Whole epochs, from the first to the longest row's last."""
    last = max(entry["epoch"] for row in rows for record in row.done for entry in record["results"]["epochs"])
    step = next((step for step in (1, 5, 10, 20) if last <= 6 * step), 50)
    axes.set_xlim(1 - 0.04 * last, last)
    axes.set_xticks([1, *range(step, last + 1, step)] if step > 1 else range(1, last + 1))
    axes.set_xlabel("epoch")


def mark_switches(axes: Axes, rows: Sequence[Row], text: str = "") -> None:
    """A dashed line where the regimes of these rows release parameters: between the last frozen epoch and the next."""
    for frozen in {row.experiment.recipe.frozen_epochs for row in rows if row.experiment.regime in ("F1", "F2")}:
        axes.axvline(frozen + 0.5, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.text(frozen + 0.5, 0.02, text, transform=axes.get_xaxis_transform(), fontsize=SMALL, color=QUIET)
