"""One run on the terminal, and what is different between two."""

import json
import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.errors import UserError
from bench.ledger import Ledger, Record, accuracy, read_record
from bench.report.cells import commit
from bench.report.export import FINAL
from bench.report.rows import Found

MISSING = "—"
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a Braille character, by line and column
RATIOS = ("parameters", "multiply adds", "training s/epoch, median", "training images/s", "total s")
ONE_RUN = "One run of each decides nothing; RESULTS.md compares over seeds."

# ---- which run -----------------------------------------------------------------------------------------------------------


def is_run(name: str) -> bool:
    """Whether a name stands for a run: a record's key, an experiment, or the file of a record."""
    if not name.endswith(".json"):
        return True
    try:
        content = json.loads(Path(name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "run" in content


def find_run(results: Path, name: str, *, seed: int, profile: str) -> Found:
    """Return the record that a user means.

    Args:
        results: the ledger's folder.
        name: a record's file, its key (``mini/cifar100/baseline/seed0-20032188``), or an experiment.
        seed, profile: of the experiment.

    Raises:
        UserError: there is no such record, or there are several.
    """
    if name.endswith(".json"):
        return Path(name), read_record(Path(name))
    ledger = Ledger(results)
    keys = {path.relative_to(ledger.folder).with_suffix("").as_posix(): path for path in ledger.paths()}
    of_row = [key for key in keys if _row(key) == name]
    of_seed = [key for key in of_row if key.rpartition("/")[2].startswith(f"seed{seed}-")]
    fitting = [name] if name in keys else [key for key in of_seed if key.startswith(f"{profile}/")]
    if len(fitting) == 1:
        return keys[fitting[0]], read_record(keys[fitting[0]])
    if fitting:
        raise UserError(f"{name} seed {seed}: expected one record, found {len(fitting)}; name one of {', '.join(fitting)}")
    others = dict.fromkeys(f"profile {key.partition('/')[0]} {key.rpartition('/')[2].partition('-')[0]}" for key in sorted(of_row))
    found = f"those of {', '.join(others)}" if others else "none; `python -m bench list` shows what was run"
    raise UserError(f"{name[:200]!r}, profile {profile}, seed {seed}: expected a record in {ledger.folder}, found {found}")


def _row(key: str) -> str:
    """The experiment of a key."""
    return key.partition("/")[2].rpartition("/")[0]


# ---- one run -------------------------------------------------------------------------------------------------------------


def shown(item: Found) -> str:
    """Everything that a person asks of one run: its numbers, its curves, what it was and where it ran."""
    path, record = item
    results = record["results"]
    state = results["status"] + (f": {results['error']}" if results["error"] else "")
    sections = [
        f"{title_of(record)}: {state}\n{path}",
        _section("results", _numbers(record)),
        *_curves(record),
        *(_section(name, flat(record[name])) for name in ("configuration", "data", "environment", "code") if record[name]),
    ]
    return "\n\n".join(section for section in sections if section)


def title_of(record: Record) -> str:
    """Profile, experiment and seed."""
    run = record["run"]
    return f"{run['profile']}, {run['experiment']}, seed {run['seed']}"


def _section(title: str, values: dict[str, Any]) -> str:
    return _aligned(title, [(name, _cell(value)) for name, value in values.items()]) if values else ""


def _aligned(title: str, rows: Sequence[tuple[str, ...]], headers: Sequence[str] = ()) -> str:
    text = tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True)
    return f"{title}\n{textwrap.indent(text, '  ')}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:,.2f}"
    return f"{value:,}" if type(value) is int else MISSING if value is None else str(value)


def _numbers(record: Record) -> dict[str, Any]:
    """The numbers of a run in the order in which they are asked for; those that it lacks are left out."""
    final, epochs, timings, cost = record["results"]["final"] or {}, record["results"]["epochs"], record["timings"], record["cost"]
    numbers: dict[str, Any] = {
        f"{kind.replace('_', ' ')} (%)": float(value["accuracy"]) for kind in FINAL if (value := final.get(kind))
    }
    numbers |= {f"{kind.replace('_', ' ')}, epoch": value.get("epoch") for kind in FINAL[::3] if (value := final.get(kind))}
    if epochs:
        numbers |= {"epochs": len(epochs), "last training loss": epochs[-1]["train"].get("loss")}
        numbers |= {f"alpha {site}": alpha for site, alpha in epochs[-1].get("gates", {}).items()}
    for name in ("parameters", "attention_parameters", "multiply_adds"):
        numbers[name.replace("_", " ")] = (cost or {}).get(name)
    if timings["epochs"]:
        seconds = statistics.median(epoch["train_seconds"] for epoch in timings["epochs"])
        numbers |= {"training s/epoch, median": seconds, "training images/s": epochs[0]["train"]["images"] / seconds}
        numbers["total s"] = sum(epoch["train_seconds"] + epoch["evaluation_seconds"] for epoch in timings["epochs"])
    return numbers | {"restarts": timings["restarts"]}


def _curves(record: Record) -> Iterator[str]:
    """Test accuracy and training loss by epoch, where there are epochs enough to draw."""
    quantities: dict[str, Callable[[dict[str, Any]], float | None]] = {
        "test accuracy (%)": lambda epoch: accuracy(test) if (test := epoch.get("test")) and test["images"] else None,
        "training loss": lambda epoch: epoch["train"].get("loss"),
    }
    for title, quantity in quantities.items():
        values = [value for epoch in record["results"]["epochs"] if (value := quantity(epoch)) is not None]
        if len(values) > 1:
            yield f"{title}, epochs 1 to {len(values)}\n{plot(values)}"


def plot(values: Sequence[float], width: int = 60, height: int = 6) -> str:
    """A line through at least two values in Braille dots, with the highest and the lowest value beside it."""
    low, high = min(values), max(values)
    cells = [[0x2800] * width for _ in range(height)]
    columns, lines = 2 * width, 4 * height
    previous = None
    for x in range(columns):
        place = x / (columns - 1) * (len(values) - 1)
        left = min(int(place), len(values) - 2)
        value = values[left] + (place - left) * (values[left + 1] - values[left])
        y = round((high - value) / (high - low) * (lines - 1)) if high > low else lines // 2
        for step in range(min(y, previous or y), max(y, previous or y) + 1):  # no gap where it is steep
            cells[step // 4][x // 2] |= DOTS[step % 4][x % 2]
        previous = y
    labels = [_cell(float(high)), *[""] * (height - 2), _cell(float(low))]
    margin = max(map(len, labels))
    return "\n".join(
        f"  {label:>{margin}} ┤{''.join(map(chr, line)).rstrip(chr(0x2800))}" for label, line in zip(labels, cells, strict=True)
    )


def flat(value: dict[str, Any], place: str = "") -> dict[str, Any]:
    """The leaves of nested objects by their dotted names; a list is one leaf."""
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        here = f"{place}.{name}" if place else name
        if isinstance(item, dict):
            leaves |= flat(item, here)
        else:
            leaves[here] = ", ".join(map(str, item)) if isinstance(item, list) else item
    return leaves


# ---- two runs --------------------------------------------------------------------------------------------------------------


def differences(before: Found, after: Found) -> str:
    """What two runs were given that differs, and their numbers side by side."""
    (_, one), (_, other) = before, after
    sections = [f"A: {title_of(one)}, commit {commit(one)}\nB: {title_of(other)}, commit {commit(other)}"]
    for name in ("run", "configuration", "data", "environment", "code"):
        old, new = (flat(record[name] or {}) for record in (one, other))
        changed = [key for key in {**old, **new} if old.get(key, MISSING) != new.get(key, MISSING)]
        rows: list[tuple[str, ...]] = [(key, str(old.get(key, MISSING)), str(new.get(key, MISSING))) for key in changed]
        sections += [_aligned(name, rows, ("", "A", "B"))] if rows else []
    old, new = _numbers(one), _numbers(other)
    rows = [(key, _cell(old.get(key)), _cell(new.get(key)), _change(key, old.get(key), new.get(key))) for key in old | new]
    return "\n\n".join([*sections, _aligned("results", rows, ("", "A", "B", "B to A")), ONE_RUN])


def _change(name: str, old: Any, new: Any) -> str:
    """Points between accuracies, a ratio of costs and times, a difference of everything else."""
    if old is None or new is None or old == new:
        return ""
    if name.endswith("(%)"):
        return f"{new - old:+.2f} points"
    return f"{new / old:.3f}x" if name in RATIOS and old else f"{new - old:+,.4g}" if isinstance(new, float) else f"{new - old:+,}"
