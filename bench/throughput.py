"""``make bench-throughput``: what is measured, and where it is written."""

from pathlib import Path

from bench import environment, machine
from bench.catalog import find
from bench.doctor import check_folder
from bench.errors import UserError
from bench.experiment import canonical_json
from bench.grid import choices
from bench.ledger import write_bytes_atomically
from bench.measure.throughput import Bench
from bench.report.measurements import HEADLINE, NETWORKS, PARTIAL
from bench.settings import Settings

QUICK = ("ConvNeXt-Tiny, default stem", "ViT-Tiny")

# Seconds of a window, windows of each contender, and seconds of everything, which further turns of the loops fill: on two cores,
# where windows of the same loop differ by a tenth and more, nine minutes make the ratios steadier. Windows of a GPU hardly differ.
WINDOWS = {("cpu", False): (1.0, 3, 540), ("cpu", True): (0.5, 3, 0), ("cuda", False): (0.3, 5, 0), ("cuda", True): (0.2, 3, 0)}


def measure(settings: Settings, *, quick: bool) -> Path:
    """Measure this device and write ``throughput/<device>.json`` in the results folder; return its path.

    A measurement of some networks, or a quick one, takes another name: it is no substitute for a whole one.

    Raises:
        UserError: there is no such device, or the file cannot be written.
    """
    device = machine.prepared(settings.device)
    window_seconds, windows, least_seconds = WINDOWS[device.type, quick]
    bench = Bench(
        device,
        choices(settings),
        window_seconds=window_seconds,
        windows=windows,
        least_seconds=least_seconds,
        search=not quick,
        say=lambda line: print(f"measuring {line}", flush=True),
    )
    chosen = {experiment.name for experiment in settings.experiments()}
    names = {name: row for name, row in NETWORKS.items() if row in chosen and (not quick or name in QUICK)}
    part = PARTIAL if quick or len(names) < len(NETWORKS) else ""
    path = settings.results / "throughput" / f"{environment.device_slug(machine.describe(device))}{part}.json"
    folder = check_folder("throughput", path.parent, "RESULTS", needed=0)
    if not folder.ok:  # said now rather than after ten minutes
        raise UserError(f"{folder.found}: {folder.advice}")
    report = bench.report(find(HEADLINE), {name: find(row) for name, row in names.items()})
    write_bytes_atomically(path, canonical_json(report).encode())
    return path
