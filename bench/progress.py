"""What is seen of a run while it trains: a line per epoch, a live bar on a terminal, curves for TensorBoard."""

import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from bench.engine.evaluate import accuracy
from bench.experiment import Run

Entry = dict[str, Any]


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
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn(),
            console=Console(file=sys.stdout), transient=True, disable=not sys.stdout.isatty(),
        )  # fmt: skip

    def __enter__(self) -> Self:
        # an interrupted run writes its curves anew from the checkpoint, so that no point stands twice
        shutil.rmtree(self._curves_folder, ignore_errors=True)
        self._curves = SummaryWriter(str(self._curves_folder))
        recipe = self._run.experiment.recipe
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=recipe.epochs, speed="")
        self._epoch_started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        self._curves.close()

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Move the bar. The speed is that of queueing steps; on a GPU it runs a little ahead of the device."""
        if self._bar.disable:
            return
        if step == 1:
            self._epoch_started = time.perf_counter()
        elapsed = time.perf_counter() - self._epoch_started
        speed = f"{self._run.experiment.recipe.batch_size * step / elapsed:,.0f} images/s" if elapsed > 0 else ""
        self._bar.update(self._task, completed=epoch - 1 + step / steps, speed=speed)

    def resumed(self, entries: list[Entry], timings: list[Entry]) -> None:
        """Say where the run goes on, and draw the curves up to there."""
        self._print(f"{self._label}  continues after epoch {len(entries)}")
        for entry, timing in zip(entries, timings, strict=True):
            self._scalars(entry, _images_per_second(entry, timing))
        self._bar.update(self._task, completed=len(entries))

    def epoch(self, entry: Entry, timing: Entry) -> None:
        """Print the epoch's line and append to the curves."""
        recipe = self._run.experiment.recipe
        speed = _images_per_second(entry, timing)
        parts = [
            f"{self._label}  epoch {entry['epoch']:>{len(str(recipe.epochs))}}/{recipe.epochs}",
            f"loss {entry['train']['loss']:.3f}",
            f"train {accuracy(entry['train']):.2f} %",
            f"validation {accuracy(entry['validation']):.2f} %" if entry["validation"] else "",
            f"test {accuracy(entry['test']):.2f} %",
            "".join(f"  alpha {site} {alpha:+.4f}" for site, alpha in entry.get("gates", {}).items()).strip(),
            f"{speed:,.0f} images/s",
            f"{timing['train_seconds'] + timing['evaluation_seconds']:.1f} s",
        ]
        self._print("  ".join(part for part in parts if part))
        self._bar.update(self._task, completed=entry["epoch"])
        self._scalars(entry, speed)

    def _print(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _scalars(self, entry: Entry, speed: float) -> None:
        for split in ("train", "validation", "test"):
            if entry[split]:
                self._curves.add_scalar(f"loss/{split}", entry[split]["loss"], entry["epoch"])
                self._curves.add_scalar(f"accuracy/{split}", accuracy(entry[split]), entry["epoch"])
        for site, alpha in entry.get("gates", {}).items():
            self._curves.add_scalar(f"alpha/{site}", alpha, entry["epoch"])
        self._curves.add_scalar("learning_rate_factor", entry["learning_rate_factor"], entry["epoch"])
        self._curves.add_scalar("images_per_second", speed, entry["epoch"])


def _images_per_second(entry: Entry, timing: Entry) -> float:
    return float(entry["train"]["images"] / timing["train_seconds"])
