"""What is seen of a run while it trains: a line per epoch, a live bar on a terminal, curves for TensorBoard, and other trackers.

Another tracker is one function, named before the suite starts, as in this script (of one process; ``JOBS`` starts others)::

    import sys, my_tracker
    from bench import cli, progress
    @progress.each_epoch
    def log(run, epoch, values):  # values: {"accuracy/test": 36.2, "loss/train": 2.1, ...}
        my_tracker.log({"run": run.key, "epoch": epoch, **values})
    sys.exit(cli.main(["grid"]))
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams

from bench.errors import UserError
from bench.experiment import Run
from bench.ledger import accuracy
from bench.words import duration

Entry = dict[str, Any]
Tracker = Callable[[Run, int, dict[str, float]], object]

METRICS = (
    "accuracy/test",
    "accuracy/validation",
    "accuracy/train",
    "loss/train",
    "images_per_second",
)  # of the hyper-parameter tab

_trackers: list[Tracker] = []


def each_epoch(tracker: Tracker) -> Tracker:
    """Call this function after every epoch with the run, the epoch's number from 1, and its scalars by TensorBoard's names.

    A run that continues tells its earlier epochs again. A tracker that fails is named and not called again: it stops no run.
    """
    _trackers.append(tracker)
    return tracker


class Curves:
    """TensorBoard's event file of one run, begun anew. A point is on its way to the disk when it has been added.

    TensorBoard's own writer writes from a thread, where an error reaches nobody, and puts the host's name into the file's.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._writable():
            folder.mkdir(parents=True, exist_ok=True)  # and never removed: what is open elsewhere leaves a file in it on NFS
            for earlier in folder.glob("*tfevents*"):  # an interrupted run writes its curves anew: no point stands twice
                earlier.unlink()
            self._file = (folder / f"events.out.tfevents.{int(time.time())}").open("wb")
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, epoch: int, values: dict[str, float]) -> None:
        """Add a point to each of the named curves."""
        self.write(Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]), epoch)

    def write(self, summary: Summary, epoch: int = 0) -> None:
        """Add any summary of TensorBoard's, such as the run's hyper-parameters."""
        with self._writable():
            self._write(Event(wall_time=time.time(), step=epoch, summary=summary))

    def close(self) -> None:
        """Close the file, to which everything has been written."""
        with suppress(OSError):  # has been told of
            self._file.close()

    def _write(self, event: Event) -> None:
        RecordWriter(self._file).write(event.SerializeToString())
        self._file.flush()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder}: cannot be written ({error.strerror}); free space or choose another folder with RESULTS="
            ) from error


class Unseen:
    """An observer that says and writes nothing."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Nothing."""

    def resumed(self, entries: list[Entry], timings: list[Entry]) -> None:
        """Nothing."""

    def epoch(self, entry: Entry, timing: Entry) -> None:
        """Nothing."""


class Watcher:
    """An observer of one run, used as a context manager.

    Args:
        run: the run it watches.
        curves: folder for TensorBoard's event files.
        position: where the run stands in a grid, as "3/12"; empty for a single run.
    """

    def __init__(self, run: Run, curves: Path, position: str = "") -> None:
        self._run = run
        self._curves_folder = curves
        self._label = f"{position + ' ' if position else ''}{run.experiment.name} seed {run.seed}"
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=12), TextColumn("{task.fields[speed]}"), TimeRemainingColumn(),
            console=Console(file=sys.stdout), transient=True, disable=not sys.stdout.isatty(),
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._curves = Curves(self._curves_folder)
        start, parameters, self._ended = hparams(hyper_parameters(self._run), dict.fromkeys(METRICS, 0.0))  # type: ignore[no-untyped-call]
        for summary in (start, parameters):
            self._curves.write(summary)
        recipe = self._run.experiment.recipe
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=recipe.epochs, speed="")
        self._epoch_started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        if error is None:
            self._curves.write(self._ended)
        self._curves.close()

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Move the bar. The speed is that of queueing steps; on a GPU it runs a little ahead of the device."""
        if self._bar.disable:
            return
        if step == 1:
            self._epoch_started = time.perf_counter()
        elapsed = time.perf_counter() - self._epoch_started
        recipe = self._run.experiment.recipe
        speed = f", {recipe.batch_size * step / elapsed:,.0f} images/s" if elapsed > 0 else ""
        self._bar.update(self._task, completed=epoch - 1 + step / steps, speed=f"epoch {epoch}/{recipe.epochs}{speed}")

    def resumed(self, entries: list[Entry], timings: list[Entry]) -> None:
        """Say where the run goes on, and draw the curves up to there."""
        self._print(f"{self._label}  continues after epoch {len(entries)}")
        for entry, timing in zip(entries, timings, strict=True):
            self._tell(entry, timing)
        self._bar.update(self._task, completed=len(entries))

    def epoch(self, entry: Entry, timing: Entry) -> None:
        """Print the epoch's line and append to the curves."""
        recipe = self._run.experiment.recipe
        seconds = timing["train_seconds"] + timing["evaluation_seconds"]
        left = (recipe.epochs - entry["epoch"]) * seconds
        parts = [
            f"{self._label}  epoch {entry['epoch']:>{len(str(recipe.epochs))}}/{recipe.epochs}",
            f"loss {entry['train']['loss']:.3f}",
            f"train {accuracy(entry['train']):.2f} %",
            f"validation {accuracy(entry['validation']):.2f} %" if entry["validation"] else "",
            f"test {accuracy(entry['test']):.2f} %",
            "".join(f"  alpha {site} {alpha:+.4f}" for site, alpha in entry.get("gates", {}).items()).strip(),
            f"{_images_per_second(entry, timing):,.0f} images/s",
            f"{seconds:.1f} s",
            f"{duration(left)} left" if left else "",
        ]
        self._print("  ".join(part for part in parts if part))
        self._bar.update(self._task, completed=entry["epoch"])
        self._tell(entry, timing)

    def _print(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _tell(self, entry: Entry, timing: Entry) -> None:
        """Append to TensorBoard's curves, and call the other trackers."""
        values = scalars(entry, timing)
        self._curves.add(entry["epoch"], values)
        for tracker in list(_trackers):
            try:
                tracker(self._run, entry["epoch"], dict(values))
            except Exception as error:  # noqa: BLE001 - a lost connection, say, which is no reason to lose the run
                _trackers.remove(tracker)
                self._print(f"{self._label}  goes on without {tracker!r}: {type(error).__name__}: {error}")


def scalars(entry: Entry, timing: Entry) -> dict[str, float]:
    """What is drawn of an epoch, by name; the same names for every run, as far as it has them."""
    values: dict[str, float] = {}
    for split in ("train", "validation", "test"):
        if entry[split]:
            values |= {f"loss/{split}": entry[split]["loss"], f"accuracy/{split}": accuracy(entry[split])}
    values |= {f"alpha/{site}": alpha for site, alpha in entry.get("gates", {}).items()}
    return values | {
        "learning_rate_factor": entry["learning_rate_factor"],
        "images_per_second": _images_per_second(entry, timing),
    }


def hyper_parameters(run: Run) -> dict[str, str | float | bool]:
    """What a run was given, under the same names for every run, as TensorBoard's table of hyper-parameters wants it."""
    experiment, recipe, attention = run.experiment, run.experiment.recipe, run.experiment.model.attention
    return {
        "experiment": experiment.name,
        "profile": run.profile,
        "seed": run.seed,
        "data": experiment.dataset,
        "model": experiment.model.family,
        "stem": experiment.model.stem or "",
        "attention": attention.kind if attention else "",
        "heads": attention.heads if attention and attention.kind == "mhsa" else 0,
        "sites": " ".join(experiment.model.sites or ()),
        "regime": experiment.regime,
        "weights": run.weights.name if run.weights else "",
        "train_images": experiment.train_images or 0,  # 0: all
        **{
            name: " ".join(map(str, value)) if isinstance(value, tuple) else 0 if value is None else value
            for name, value in vars(recipe).items()
        },
    }


def _images_per_second(entry: Entry, timing: Entry) -> float:
    return float(entry["train"]["images"] / timing["train_seconds"])
