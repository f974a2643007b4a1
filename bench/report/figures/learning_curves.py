"""Figure 2: test accuracy and gates of E1 to E6 by epoch, a column for each regime, the rows without attention behind."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.ledger import accuracy
from bench.report.figures.labels import Label, label_ends, settle
from bench.report.figures.pictures import OF_RECORDS
from bench.report.figures.scope import NothingToDraw, Scope, note_of, short
from bench.report.figures.series import by_epoch, curve, epoch_axis, gate_label, gates, mark_switches
from bench.report.figures.style import FAINT, QUIET, SITE_COLOURS, head, new_figure
from bench.report.rows import Row

TITLE = OF_RECORDS["learning_curves"].title

REGIMES = {
    "F0: backbone frozen": ("baseline_F0", "E1_P2_F0", "E4_P3_F0"),
    "F1: then stage 4 trains": ("baseline_F1", "E2_P2_F1", "E5_P3_F1"),
    "F2: then everything trains": ("baseline_F2", "E3_P2_F2", "E6_P3_F2"),
}


def draw(scope: Scope) -> Figure:
    """Draw the figure.

    Raises:
        NothingToDraw: no run of E1 to E6 is done.
    """
    columns = [scope.named([f"cifar100/{name}" for name in names]) for names in REGIMES.values()]
    shown = [row for rows in columns for row in rows]
    if not any(row.experiment.model.sites for row in shown):
        raise NothingToDraw("no run of E1 to E6 is done")
    figure = new_figure(4.8)
    panels = figure.subplots(2, len(columns), sharex=True, sharey="row", height_ratios=(3, 2))
    labels = []
    for upper, lower, title, rows in zip(*panels, REGIMES, columns, strict=True):
        upper.set_title(title)
        labels += _column(upper, lower, rows)
        lower.set_xlabel("epoch")
    epoch_axis(panels[0, 0], shown)
    panels[0, 0].set_xlabel("")
    panels[0, 0].set_ylabel("test accuracy (%)")
    panels[1, 0].set_ylabel("gate α")
    figure.align_ylabels()
    head(figure, TITLE, note_of(scope, shown))
    settle(figure)
    for axes, at_ends in labels:
        label_ends(axes, at_ends)
    return figure


def _column(upper: Axes, lower: Axes, rows: list[Row]) -> list[tuple[Axes, list[Label]]]:
    """Draw the accuracies and the gates of the rows of one regime, and return the labels of either panel's lines."""
    lower.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    accuracies, alphas = [], []
    for row in rows:
        site = next(iter(row.experiment.model.sites or ()), None)
        text = f"{short(row).partition('_')[0]}, {site}" if site else "no attention"
        colour, width = (SITE_COLOURS[site], 1.6) if site else (QUIET, 0.8)
        accuracies.append(curve(upper, by_epoch(row, lambda entry: accuracy(entry["test"])), text, colour, width=width))
        if site:
            alphas.append(curve(lower, gates(row, site), gate_label(row, site, text), colour))
    mark_switches(upper, rows, " switch")
    mark_switches(lower, rows)
    return [(upper, accuracies), (lower, alphas)]
