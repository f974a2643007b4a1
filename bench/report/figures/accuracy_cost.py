"""Figure 5: accuracy against what it costs: multiply-adds, and images per second as measured."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.engine.regime import EVERYTHING, RELEASED
from bench.report.figures.labels import Label, label_points, settle
from bench.report.figures.pictures import OF_RECORDS
from bench.report.figures.scope import NothingToDraw, Scope, deviation, network_name, note_of, timed, usual_device
from bench.report.figures.style import BLUE, GREEN, INK, PANEL, QUIET, SMALL, VERMILION, head, log_axis, new_figure
from bench.report.rows import Row

TITLE = OF_RECORDS["accuracy_cost"].title

DATASETS = {"cifar100": "CIFAR-100", "fashion_mnist": "Fashion-MNIST"}
COLOURS = {"no attention": INK, "gated self-attention": BLUE, "SE, ECA, CBAM, spatial": GREEN, "ViT, Mixer": VERMILION}


def draw(scope: Scope) -> Figure:
    """Draw the figure: a line of panels for each data set.

    Raises:
        NothingToDraw: no row that trains the whole network is done.
    """
    whole = [row for row in scope.rows if RELEASED[row.experiment.regime] == EVERYTHING]
    by_dataset = {title: [row for row in whole if row.experiment.dataset == name] for name, title in DATASETS.items()}
    by_dataset = {title: rows for title, rows in by_dataset.items() if rows}
    if not by_dataset:
        raise NothingToDraw("no row that trains the whole network is done")
    machine = usual_device(whole)
    figure = new_figure(0.9 + 2.9 * len(by_dataset))
    panels = figure.subplots(len(by_dataset), 2, sharey="row", sharex="col", squeeze=False)
    named = []
    for (left, right), (title, rows) in zip(panels, by_dataset.items(), strict=True):
        left.set_title(title)
        left.set_ylabel("accuracy (%)")
        named.append((left, _points(left, [(row, _multiply_adds(row)) for row in rows])))
        named.append((right, _points(right, [(row, speeds) for row in rows if (speeds := images_per_second(row, machine))])))
    panels[-1, 0].set_xlabel("multiply-adds of one image (millions)")
    panels[-1, 1].set_xlabel(f"images per second, evaluation during the runs\n({machine})")
    _key(figure, {_kind(row) for row in whole})
    brackets = ", in brackets the training images" if _trained_apart(whole) else ""
    head(figure, TITLE, note_of(scope, whole) + brackets)
    settle(figure)
    for axes, groups in named:
        points = [point for group in groups.values() for point in group]
        label_points(axes, [_label(name, group) for (name, _), group in groups.items()], points)
    return figure


def images_per_second(row: Row, machine: str) -> list[float]:
    """For each run of a row on one device: images evaluated per second, validation and test, the median over its epochs."""
    return [
        statistics.median(
            (entry["test"]["images"] + (entry["validation"] or {"images": 0})["images"]) / timing["evaluation_seconds"]
            for entry, timing in zip(record["results"]["epochs"], record["timings"]["epochs"], strict=False)
        )
        for record in timed(row, machine)
    ]


def _multiply_adds(row: Row) -> list[float]:
    """Of one image, in millions; the same for every seed."""
    return [row.done[0]["cost"]["multiply_adds"] / 1e6]


def _trained_apart(rows: Sequence[Row]) -> bool:
    """Whether the profile gave the rows different numbers of images."""
    return len({row.experiment.train_images for row in rows}) > 1


Groups = dict[tuple[str, bool], list[tuple[float, float]]]  # by name, and whether from random weights


def _points(axes: Axes, rows: Sequence[tuple[Row, list[float]]]) -> Groups:
    """Draw rows with what they cost, one value or several; return what each network covers: points along the bars of its rows."""
    groups: Groups = {}
    apart = _trained_apart([row for row, _ in rows])
    for row, costs in rows:
        values = row.accuracies(row.experiment.selection)
        x, y, dx, dy = statistics.fmean(costs), statistics.fmean(values), deviation(costs), deviation(values)
        colour, scratch = COLOURS[_kind(row)], row.weights is None
        axes.errorbar(
            x,
            y,
            xerr=dx or None,
            yerr=dy or None,
            fmt="o",
            color=colour,
            markersize=5,
            markerfacecolor=PANEL if scratch else colour,
            markeredgecolor=colour if scratch else PANEL,
            markeredgewidth=1.2 if scratch else 0.6,
            elinewidth=0.9,
        )
        images = f" ({row.experiment.train_images or 0:,})" if apart else ""
        covered = groups.setdefault((f"{network_name(row.experiment)}{images}", scratch), [])
        covered += [(x + part * dx / 10, y) for part in range(-10, 11)] + [(x, y + part * dy / 10) for part in range(-10, 11)]
    axes.margins(x=0.2, y=0.15)
    log_axis(axes)
    return groups


def _label(text: str, group: Sequence[tuple[float, float]]) -> Label:
    """A network's name, at that of its points that is nearest to the middle of them."""
    middle = [statistics.fmean(values) for values in zip(*group, strict=True)]
    x, y = min(group, key=lambda point: sum(abs(at / centre - 1) for at, centre in zip(point, middle, strict=True)))
    return Label(x, y, text, INK)


def _kind(row: Row) -> str:
    if row.experiment.model.family != "convnext_tiny":
        return "ViT, Mixer"
    attention = row.experiment.model.attention
    return "no attention" if attention is None else "gated self-attention" if attention.kind == "mhsa" else "SE, ECA, CBAM, spatial"


def _key(figure: Figure, kinds: set[str]) -> None:
    """The meaning of the colours, in their colours, at the upper right."""
    entries = [(kind, colour, colour) for kind, colour in COLOURS.items() if kind in kinds]
    entries.append(("open: from random weights", QUIET, PANEL))
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=colour, markerfacecolor=inside, label=text)
        for text, colour, inside in entries
    ]
    figure.legend(
        handles=handles,
        loc="upper right",
        ncols=len(handles),
        frameon=False,
        fontsize=SMALL,
        labelcolor=[colour for _, colour, _ in entries],
        handletextpad=0,
        columnspacing=1.2,
    )
