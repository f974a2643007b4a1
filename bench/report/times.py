"""How long the epochs of a row took. A time belongs to a device, its software and the mode of computing."""

import statistics

from bench.environment import device_in_words
from bench.report.cells import Line
from bench.report.environments import REFERENCE, made_alike
from bench.report.rows import Row
from bench.report.throughput import mode

TIME_NOTE = (
    "Seconds and images per second are medians over the epochs of all seeds, as they came while training; other work may have "
    "shared the machine. An epoch is over the row's own training images, of which rows differ in number, and where parts are "
    "frozen at first those epochs count too. Where the runs of a row were not all made on one device, with the same versions "
    "and in one mode, they are of the largest group that was: *runs timed* says how many those are."
)


def time_line(row: Row) -> Line:
    """How long the epochs of a row took, which has been timed, by the runs of one device and environment."""
    records = made_alike(row.timed)
    epochs = [epoch for record in records for epoch in record["timings"]["epochs"]]
    images = records[0]["results"]["epochs"][0]["train"]["images"]
    seconds = statistics.median(epoch["train_seconds"] for epoch in epochs)
    evaluation = statistics.median(epoch["evaluation_seconds"] for epoch in epochs)
    return {
        "experiment": f"`{row.experiment.name}`",
        "device": device_in_words(records[0]["environment"]),
        "training s/epoch": f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}",
        "training images/s": f"{images / seconds:,.0f}",
        "evaluation s/epoch": f"{evaluation:.2f}" if evaluation < 10 else f"{evaluation:.1f}",
        "runs timed": "" if len(records) == len(row.done) else f"{len(records)} of {len(row.done)}",
        "mode": mode(
            REFERENCE | records[0]["environment"],
            row.experiment.recipe.precision,
            depthwise=row.experiment.model.family == "convnext_tiny",
        ),
    }
