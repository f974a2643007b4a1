"""Figure 8: how many times as fast our loop is as others, device by device, as `make bench-throughput` measured it."""

from pathlib import Path

from matplotlib.figure import Figure

from bench.environment import device_in_words
from bench.measure.contents import (
    BARE,
    CONVENTIONAL,
    CONVENTIONAL_BEST,
    EAGER,
    NOT_COMPILED,
    NOT_FUSED_BLOCKS,
    OURS,
    REFERENCE_DEPTHWISE,
)
from bench.report.figures.pictures import OF_NO_RECORDS
from bench.report.figures.scope import NothingToDraw
from bench.report.figures.style import BLUE, FAINT, INK, QUIET, SMALL, head, log_axis, new_figure
from bench.report.measurements import PARTIAL, read_reports

TITLE = OF_NO_RECORDS["loop_ratios"].title

SHOWN = {
    f"{OURS} / {BARE}": "the bare step",
    f"{OURS} / {EAGER}": "eager on device-resident tensors",
    f"{OURS} / {CONVENTIONAL_BEST}": "conventional, best flags",
    f"{OURS} / {CONVENTIONAL}": "conventional, fp32",
    f"{OURS} / {REFERENCE_DEPTHWISE}": "ours with the reference depthwise convolution",
    f"{NOT_COMPILED} / {REFERENCE_DEPTHWISE}": "ours with the reference depthwise convolution, neither compiled",
    f"{NOT_FUSED_BLOCKS} / {REFERENCE_DEPTHWISE}": "ours with the reference depthwise convolution, blocks fused in neither",
}


def draw(throughput: Path) -> Figure:
    """Draw the figure from the measurements in a folder.

    Raises:
        NothingToDraw: there is no whole measurement.
        UserError: a file in the folder is no measurement.
    """
    reports = [report for path, report in read_reports(throughput) if not path.stem.endswith(PARTIAL)]
    if not reports:
        raise NothingToDraw("no whole measurement; `make bench-throughput` makes one")
    lines: list[tuple[str, dict[str, float] | None]] = []  # a device, and then its ratios
    for report in reports:
        ratios = report["loops"]["ratios"]
        lines.append((f"{device_in_words(report['environment'])}, torch {report['environment']['torch']}", None))
        lines += [(words, ratios[name]) for name, words in SHOWN.items() if name in ratios]
    figure = new_figure(1.2 + 0.21 * len(lines))
    axes = figure.subplots()
    axes.axvline(1, color=QUIET, linewidth=0.7, zorder=0)
    for height, (_, ratio) in enumerate(lines):
        if ratio is None:
            continue
        axes.axhline(height, color=FAINT, linewidth=0.6, zorder=0)
        axes.plot([ratio["low"], ratio["high"]], [height, height], color=BLUE, linewidth=1.4)
        axes.plot(ratio["median"], height, "o", color=BLUE, markersize=5)
        digits, place = f"{ratio['median']:.2f}", (ratio["high"], height)
        axes.annotate(digits, place, (6, 0), textcoords="offset points", va="center", fontsize=SMALL)
    axes.set_yticks(range(len(lines)), [words for words, _ in lines])
    for label, (_, ratio) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_color(INK if ratio is None else QUIET)
        label.set_fontweight("bold" if ratio is None else "normal")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    log_axis(axes)
    axes.set_xlabel("our images/s, as a multiple of")
    head(figure, TITLE, "median over turns, lowest to highest")
    return figure
