"""Figure 3: experiment A beside the baseline, the control and the single blocks; every seed is a point."""

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.cells import percent
from bench.report.figures.pictures import OF_RECORDS
from bench.report.figures.scope import NothingToDraw, Scope, accuracy_label, deviation, note_of, short
from bench.report.figures.style import FAINT, INK, PURPLE, QUIET, SITE_COLOURS, SMALL, head, new_figure
from bench.report.rows import Row

TITLE = OF_RECORDS["dual"].title

ROWS = {
    "baseline": "no attention, all from epoch 1",
    "baseline_F2": "no attention, schedule F2",
    "E3_P2_F2": "one block at P2",
    "E6_P3_F2": "one block at P3",
    "A_dual": "blocks at P2 and P3",
}


def draw(scope: Scope) -> Figure:
    """Draw the figure.

    Raises:
        NothingToDraw: experiment A is not done.
    """
    rows = scope.named([f"cifar100/{name}" for name in ROWS])
    if scope.row("cifar100/A_dual") is None:
        raise NothingToDraw("no run of A_dual is done")
    figure = new_figure(1.1 + 0.54 * len(rows))
    axes = figure.subplots()
    for height, row in enumerate(reversed(rows)):
        axes.axhline(height, color=FAINT, linewidth=0.7, zorder=0)
        _row(axes, height, row)
    axes.set_yticks(range(len(rows)), [f"{short(row)}: {ROWS[short(row)]}" for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xlabel(accuracy_label(rows))
    head(figure, TITLE, note_of(scope, rows))
    return figure


def _row(axes: Axes, height: int, row: Row) -> None:
    """Seeds, mean, deviation, the study's number, and the mean in digits over it."""
    colour = _colour(row)
    values = row.accuracies(row.experiment.selection)
    mean, spread = statistics.fmean(values), deviation(values)
    if len(values) > 1:
        axes.plot([mean - spread, mean + spread], [height, height], color=colour, linewidth=1.6)
        axes.plot([mean, mean], [height - 0.2, height + 0.2], color=colour, linewidth=2.2)
    axes.plot(
        values, [height] * len(values), "o", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.7, zorder=3
    )
    axes.annotate(percent(mean), (mean, height), (0, 9), textcoords="offset points", ha="center", fontsize=SMALL, color=INK)
    if row.experiment.reported is not None and row.comparable_with_the_study:
        axes.plot(row.experiment.reported, height, "D", color=INK, markersize=6, fillstyle="none")
        axes.annotate(
            f"study {percent(row.experiment.reported)}",
            (row.experiment.reported, height),
            (0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            color=QUIET,
        )


def _colour(row: Row) -> str:
    sites = row.experiment.model.sites or ()
    return QUIET if not sites else SITE_COLOURS[sites[0]] if len(sites) == 1 else PURPLE
