"""Figure 6: the gates of every gated row by epoch, a panel for each table of the study."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figures.labels import Label, label_ends, settle
from bench.report.figures.pictures import OF_RECORDS
from bench.report.figures.scope import NothingToDraw, Scope, note_of, short
from bench.report.figures.series import curve, epoch_axis, gate_label, gates, mark_switches
from bench.report.figures.style import FAINT, SITE_COLOURS, head, new_figure
from bench.report.rows import Row

TITLE = OF_RECORDS["gates"].title

COLUMNS = 3
Group = tuple[str, int]  # a table of the study, and at how many sites its rows have attention


def draw(scope: Scope) -> Figure:
    """Draw the figure.

    Raises:
        NothingToDraw: no row with attention is done.
    """
    gated = [row for row in scope.rows if row.experiment.model.sites]
    groups: dict[Group, list[Row]] = {}
    for row in gated:
        groups.setdefault((row.experiment.table, len(row.experiment.model.sites or ())), []).append(row)
    if not groups:
        raise NothingToDraw("no row with attention is done")
    lines = -(-len(groups) // COLUMNS)
    figure = new_figure(0.6 + 2.4 * lines)
    panels = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
    labels = [(axes, _panel(axes, rows)) for axes, rows in zip(panels, groups.values(), strict=False)]
    for axes in panels[len(groups) :]:
        axes.remove()
    _share_scale([axes for axes, rows in zip(panels, groups.values(), strict=False) if _is_self_attention(rows)])
    for axes in panels[: len(groups) : COLUMNS]:
        axes.set_ylabel("gate α")
    head(figure, TITLE, note_of(scope, gated))
    settle(figure)
    for axes, at_ends in labels:
        label_ends(axes, at_ends)
    return figure


def _panel(axes: Axes, rows: list[Row]) -> list[Label]:
    """Draw the gates of these rows and return the labels of the lines."""
    places = " or ".join(dict.fromkeys(" and ".join(row.experiment.model.sites or ()) for row in rows))
    dataset, _, words = rows[0].experiment.table.partition(" (")[0].removesuffix(f" at {places}").partition(": ")
    axes.set_title(f"{words}\n{dataset}, {places}" if words else f"{dataset}\n{places}")
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    labels = [
        curve(axes, gates(row, site), gate_label(row, site, short(row)), SITE_COLOURS[site], width=1.2)
        for row in rows
        for site in row.experiment.model.sites or ()
    ]
    epoch_axis(axes, rows)
    mark_switches(axes, rows)
    return labels


def _is_self_attention(rows: list[Row]) -> bool:
    return all(row.experiment.model.attention and row.experiment.model.attention.kind == "mhsa" for row in rows)


def _share_scale(panels: list[Axes]) -> None:
    """Give these panels one scale. The other kinds keep their own: alpha counts in units of what a kind's branch gives out."""
    limits = [limit for axes in panels for limit in axes.get_ylim()]
    for axes in panels:
        axes.set_ylim(min(limits), max(limits))
