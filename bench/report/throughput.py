"""The throughput section of RESULTS.md, and what changed between two measurements."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.catalog import EXPERIMENTS, find
from bench.engine.thresholds import BATCH, FASTER_BY
from bench.environment import device_in_words
from bench.measure.contents import LOOPS, RATIOS
from bench.provenance import shown
from bench.report.cells import attention_name, model_name, table
from bench.report.measurements import NETWORKS, PARTIAL, Report, read_reports

PAIRS = [f"{one} / {other}" for one, other in RATIOS]
NOTE = """\
Made by `make bench-throughput`, on images of noise: no speed depends on what is seen. Medians of windows, lowest to highest in
brackets; loops took turns, and so did networks where their number of windows is given. Else one network came minutes after another,
and on a shared machine one's speed says little of the other's: such rows do not tell what attention costs.
*Conventional* is the loop of torchvision's and timm's training scripts: DataLoader, PIL transforms, loss and accuracy read at each
step, in fp32 but for TF32 in a GPU's convolutions, as torch has it by itself; its best flags are the fastest that a few steps found
among those of precision, layout, optimizer and workers. The *bare step* is
forward, backward and update on one batch that never changes. All of ours is deterministic but where the row says otherwise; rows
that lack one part of ours, compiling, fused blocks or the CUDA graph apart, are computed layer by layer and not compiled, and to be
held against *ours, not compiled* or *ours, blocks not fused* where there is such a row. A ratio is the median of each turn's own.
FLOPs are those of convolutions, linear layers and attention's products, forward and backward, by the reference's count. The
*roofline* is the time that the device's measured peak in matrix products and in copies allows for that arithmetic and for the least
traffic of parameters and activations, whose share of the bandwidth is that of copies. Training is in the mode of the row, inference
neither compiled nor in a graph. The warm-up is what the first steps take, with the compiling of what no row above has compiled. The
best batch is the fastest of a few, not compiled, in a window each; where a step takes several seconds, or time was short, it is
empty, for only the recipe's batch was measured. A network's row and its loop were measured minutes apart, which on a shared
machine may be a third. Peak memory is that of the process, with its libraries and data on a CPU, with what torch has allocated on
a GPU; the joules are the GPU's own count.
"""
METHODS_NOTE = f"""\
The mode was chosen by the times of single layers and of a network's blocks, the shortest of several at batch {BATCH} (maps are
side x side x channels, attention is heads x channels, those of blocks are all of the network's). The library's operator
(*convolution*, *fused*, the processor's *units* for bf16) is replaced by a method that is {FASTER_BY["cpu"]} times as fast, on
a GPU {FASTER_BY["cuda"]} times; of patches and attention the sum over a network's layers counts.
"""


def throughput_section(folder: Path) -> str:
    """Markdown for every device that was measured; empty where none was."""
    reports = read_reports(folder)
    if not reports:
        return ""
    return "\n".join([f"## Throughput\n\n{NOTE}", *(_device_section(path, report) for path, report in reports)])


def _device_section(path: Path, report: Report) -> str:
    loops = report["loops"]
    part = ", a part of the measurements" if path.stem.endswith(PARTIAL) else ""
    if len(report["families"]) < len(NETWORKS):
        part += f", {len(report['families'])} of {len(NETWORKS)} networks"
    lines = [
        f"### {device_in_words(report['environment'])}{part}\n",
        f"{_peaks(report)} {_origin(report)}\n",
        f"Loops on `{loops['experiment']}`, batch {loops['batch_size']}; ours in {_mode(loops)}. "
        f"The conventional loop's best flags are {_flags(loops['best_flags'])}.\n",
        table([{"loop": name, "images/s": _spread(speed)} for name, speed in _in_order(loops["images_per_second"], LOOPS)]) + "\n",
        table([{"ratio": name, "times as fast": _spread(value, 2)} for name, value in _in_order(loops["ratios"], PAIRS)]) + "\n",
        table([_family_line(row, report) for row in sorted(report["families"].values(), key=_place)]) + "\n",
    ]
    if methods := report.get("methods"):
        lines += [METHODS_NOTE, table([_method_line(layer, seconds) for layer, seconds in sorted(methods.items())]) + "\n"]
    if sharing := report.get("sharing"):
        speeds = ", ".join(f"{_number(speed, None)} images/s with JOBS={count}" for count, speed in sharing.items())
        lines.append(f"Processes that share this GPU, each training `{loops['experiment']}`, not compiled: {speeds}.\n")
    return "\n".join(lines)


def _peaks(report: Report) -> str:
    peak, vendor = report["peak"], report["vendor_peak"]
    measured = (
        f"Measured peaks: {peak['fp32_flops_per_second'] / 1e12:.3g} TFLOP/s in fp32, "
        f"{peak['bf16_flops_per_second'] / 1e12:.3g} in bf16, copies at {peak['bytes_per_second'] / 1e9:.4g} GB/s"
    )
    if vendor is None:
        return f"{measured}."
    stated = f"{vendor['flops_per_second'] / 1e12:.4g} TFLOP/s in bf16, {vendor['bytes_per_second'] / 1e9:.4g} GB/s"
    return f"{measured}; the vendor states {stated}."


def _origin(report: Report) -> str:
    """Version, commit and how long it took."""
    commit = shown(report["code"])
    return f"Torch {report['environment']['torch']}, commit `{commit}`, {report['seconds'] / 60:.1f} minutes."


def _in_order(values: dict[str, Any], names: Sequence[str]) -> list[tuple[str, Any]]:
    """As the measurement made them: a file of JSON has its names in the alphabet's order."""
    return sorted(values.items(), key=lambda item: names.index(item[0]) if item[0] in names else len(names))


def _place(row: Report) -> int:
    """Where the network's experiment stands in the catalog."""
    return EXPERIMENTS.index(find(row["experiment"]))


def _family_line(row: Report, report: Report) -> dict[str, Any]:
    measured = max(report["peak"]["fp32_flops_per_second"], report["peak"]["bf16_flops_per_second"])
    bandwidth, traffic = report["peak"]["bytes_per_second"], row.get("least_bytes_per_second")
    vendor = report["vendor_peak"]
    best, memory, joules = row["best_batch"], row["peak_memory_bytes"], row["joules_per_1000_images"]
    experiment = find(row["experiment"])
    return {
        "model": model_name(experiment),
        "attention": attention_name(experiment),
        "batch": row["batch_size"],
        "training images/s": _spread(row["training_images_per_second"]),
        "s per CIFAR-100 epoch": _number(row["seconds_per_epoch"], None),
        "roofline s": _number(row["roofline_seconds_per_epoch"], None),
        "TFLOP/s": f"{row['flops_per_second'] / 1e12:.3g}",
        "of measured peak": f"{row['flops_per_second'] / measured:.0%}",
        "of vendor's peak": f"{row['flops_per_second'] / vendor['flops_per_second']:.0%}" if vendor else "",
        "of measured bandwidth": f"{traffic / bandwidth:.0%}" if traffic else "",
        "of vendor's bandwidth": f"{traffic / vendor['bytes_per_second']:.0%}" if traffic and vendor else "",
        "windows": row.get("windows", ""),
        "inference images/s": _spread(row["inference_images_per_second"]),
        "its batch": row["inference_batch_size"],
        "peak memory (GB)": f"{memory / 1e9:.2f}" if memory else "",
        "J per 1,000 images": f"{joules:.1f}" if joules else "",
        "warm-up (s)": f"{row['warm_up_seconds']:.1f}",
        "best batch": f"{best['batch_size']} ({best['training_images_per_second']:,.0f} images/s)" if best else "",
        "mode": _mode(row),
    }


def _method_line(layer: str, seconds: dict[str, float]) -> dict[str, str]:
    fastest_first = sorted(seconds.items(), key=lambda item: item[1])
    return {
        "layer": "linear layer of a bf16 recipe" if layer == "bf16" else layer,
        "ms, forward and backward": ", ".join(f"{method} {1000 * its:.3g}" for method, its in fastest_first),
    }


def _mode(row: Report) -> str:
    return mode(row["execution"], row["precision"], depthwise=find(row["experiment"]).model.family == "convnext_tiny")


def mode(execution: Report, precision: str, *, depthwise: bool) -> str:
    """How a step was computed, in words; ``depthwise``: whether the network has such convolutions."""
    bf16 = {"units": "bf16", "fp32": "bf16 computed in fp32"}[execution["bf16"]]
    parts = [bf16 if precision == "bf16" else "fp32"]
    if execution.get("blocks") == "fused":
        parts += ["fused blocks"]
    elif depthwise:
        parts += [f"depthwise {execution['depthwise']}"]
    parts += ["patches as matrix products"] if execution.get("patches") == "matrix" else []
    parts += ["attention as matrix products"] if execution.get("attention") == "products" else []
    parts += [word for word, on in (("compiled", execution["compiled"]), ("CUDA graph", execution["cuda_graph"])) if on]
    return "; ".join(parts)


def _flags(flags: Report) -> str:
    words = ["bf16" if flags["bf16"] else "fp32", *(name.replace("_", " ") for name in ("channels_last", "fused") if flags[name])]
    return ", ".join([*words, f"{flags['workers']} workers"])


def _spread(value: dict[str, float], digits: int | None = None) -> str:
    median, low, high = (_number(value[name], digits) for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def _number(value: float, digits: int | None) -> str:
    if digits is not None:
        return f"{value:.{digits}f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# ---- comparing two measurements ------------------------------------------------------------------------------------------


def compared(before: Report, after: Report) -> str:
    """What changed beyond noise, a speed whose windows do not overlap, and what could explain it or cannot be compared."""
    lines = [*_only_in_one(before, after), *_settings(before, after)]
    changed = [(name, old, new) for name, old, new in _speeds(before, after) if _apart(old, new)]
    for name, old, new in changed:
        lines.append(
            f"{name}: {_spread(old)} -> {_spread(new)} images/s, {_number(new['median'] / old['median'], None)} times as fast"
        )
    if not changed:
        lines.append("no speed changed beyond noise")
    return "\n".join(lines)


def _apart(old: dict[str, float], new: dict[str, float]) -> bool:
    return new["low"] > old["high"] or new["high"] < old["low"]


def _only_in_one(before: Report, after: Report) -> Iterator[str]:
    """Loops and networks that one of two measurements has not."""
    for kind, (old, new) in {
        "loop": (before["loops"]["images_per_second"], after["loops"]["images_per_second"]),
        "network": (before["families"], after["families"]),
    }.items():
        yield from (f"{kind} only in the first: {name}" for name in old if name not in new)
        yield from (f"{kind} only in the second: {name}" for name in new if name not in old)


def _speeds(before: Report, after: Report) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    for name, old in before["loops"]["images_per_second"].items():
        if name in after["loops"]["images_per_second"]:
            yield f"loop: {name}", old, after["loops"]["images_per_second"][name]
    for family, row in before["families"].items():
        for kind in ("training", "inference"):
            if family in after["families"]:
                yield f"{family}: {kind}", row[f"{kind}_images_per_second"], after["families"][family][f"{kind}_images_per_second"]


def _settings(before: Report, after: Report) -> Iterator[str]:
    """Differences of the machine, the mode and what was measured, which explain differences of speed."""
    for name in sorted(before["environment"].keys() | after["environment"].keys()):
        old, new = before["environment"].get(name), after["environment"].get(name)
        if old != new:
            yield f"environment: {name}: {old} -> {new}"
    pairs = {"loops": (before["loops"], after["loops"])}
    pairs |= {name: (row, after["families"][name]) for name, row in before["families"].items() if name in after["families"]}
    for name, (one, other) in pairs.items():
        for setting, old, new in zip(_SETTINGS, _settings_of(one), _settings_of(other), strict=True):
            if old != new:
                yield f"{name}: {setting}: {old} -> {new}"


_SETTINGS = ("experiment", "mode", "batch", "inference batch", "best flags")


def _settings_of(row: Report) -> tuple[Any, ...]:
    flags = _flags(row["best_flags"]) if "best_flags" in row else None
    return row["experiment"], _mode(row), row["batch_size"], row.get("inference_batch_size"), flags
