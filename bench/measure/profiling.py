"""A few training steps of each network under ``torch.profiler``: the trace, and a summary of where the time went.

    <results>/profile/<device>/<network>/*.pt.trace.json.gz    for TensorBoard's profiler plugin and for Perfetto
    <results>/profile/<device>.json                            the summary of every network profiled on this device

What is profiled is the engine's own step in the mode that it would choose, on images of noise. A CUDA graph hides the operators
behind its one launch. So on CUDA there are two traces: of the step launched kernel by kernel, for the operators, and of the graph,
for its own time and idle share.
"""

import gc
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench import environment, machine
from bench.engine import network as networks
from bench.engine.execution import Choices, Execution, choose
from bench.environment import slug
from bench.errors import UserError, found_in
from bench.experiment import Experiment, Model, canonical_json
from bench.ledger import write_bytes_atomically
from bench.measure.contents import PROFILE_SCHEMA
from bench.measure.operators import IDLE
from bench.measure.recording import Profile, record
from bench.measure.trace import Breakdown, memory_of_last_step, on_device, on_host
from bench.profiles import at_profile
from bench.settings import DEFAULTS, Settings
from data.sources import SOURCES

# One experiment for each kind of network; ONLY names others.
REPRESENTATIVE = (
    "cifar100/baseline",
    "cifar100/stem_baseline",
    "cifar100/C_mhsa",
    "cifar100/C_se",
    "cifar100/C_eca",
    "cifar100/C_cbam",
    "cifar100/C_spatial",
    "cifar100/scratch_vit_tiny",
    "cifar100/scratch_mixer_tiny",
    "cifar100/matched_vit",
)
OPERATORS = 12  # in a summary

Entry = dict[str, Any]


def profile_networks(settings: Settings, choices: Choices) -> Iterator[str]:
    """Profile each distinct network of the chosen experiments; yield lines for the terminal as they come.

    The summary takes a network in as soon as it is profiled; networks that were profiled earlier stay in it.

    Raises:
        UserError: there is no such device, no experiment matches, a file cannot be written, or the earlier summary cannot be read.
    """
    device = machine.prepared(settings.device)
    folder = settings.results / "profile" / environment.device_slug(machine.describe(device))
    summary = folder.with_name(f"{folder.name}.json")
    entries = _entries(summary)
    chosen = distinct_networks(settings)
    started = time.perf_counter()
    for number, experiment in enumerate(chosen, 1):
        name = network_name(experiment.model)
        entry = profile_network(experiment, device, choices, folder / slug(name))
        entries[slug(name)] = entry
        write_bytes_atomically(summary, canonical_json({"schema": PROFILE_SCHEMA, "networks": entries}).encode())
        yield f"\n{number}/{len(chosen)} {name}\n{shown(entry)}"
        gc.collect()
    yield f"\nprofiled {len(chosen)} networks in {time.perf_counter() - started:.0f} s; wrote {summary}"
    yield f"traces: {folder}; open them with `make tensorboard`, or at https://ui.perfetto.dev"


def profile_network(experiment: Experiment, device: torch.device, choices: Choices, folder: Path) -> Entry:
    """Profile one network's training step, write its traces into ``folder`` and return its entry in the summary.

    Raises:
        UserError: a trace cannot be written, or the profiler saw no kernels on a GPU.
    """
    classes = len(SOURCES[experiment.dataset].spec.classes)
    execution = _mode(experiment, classes, device, choices)
    launched = record(experiment, classes, replace(execution, cuda_graph=False), device)
    write_bytes_atomically(folder / "step.pt.trace.json.gz", _compressed(launched.trace))
    breakdown, of_graph, graph = _broken_down(launched, device), None, None
    if execution.cuda_graph:
        gc.collect()
        graph = record(experiment, classes, execution, device)
        write_bytes_atomically(folder / "graph.pt.trace.json.gz", _compressed(graph.trace))
        of_graph = _broken_down(graph, device)
    return {
        "name": network_name(experiment.model),
        "experiment": experiment.name,
        "environment": machine.describe(device) | execution.described(),
        "code": environment.code_state(),
        "batch_size": experiment.recipe.batch_size,
        "precision": experiment.recipe.precision,
        **_figures(breakdown, of_graph, launched, graph),
        "memory": _memory(launched, graph, device),
    }


def _mode(experiment: Experiment, classes: int, device: torch.device, choices: Choices) -> Execution:
    """The mode that a run of the experiment would choose."""
    images = experiment.train_images or SOURCES[experiment.dataset].spec.train.count
    steps = experiment.recipe.epochs * (images // experiment.recipe.batch_size)
    network = networks.build(experiment.model, classes=classes, seed=0)
    return choose(network, experiment.recipe.precision, device, choices, steps=steps)


def _broken_down(profile: Profile, device: torch.device) -> Breakdown:
    if device.type == "cpu":
        return on_host(profile.events)
    try:
        return on_device(profile.events)
    except ValueError as error:
        raise UserError(
            f"the profiler's trace: expected kernels of {machine.device_name(device)}, found none ({error}); make sure that "
            "users of this GPU may read its activity (CUPTI), or set DEVICE=cpu"
        ) from error


def _figures(breakdown: Breakdown, of_graph: Breakdown | None, launched: Profile, graph: Profile | None) -> Entry:
    """Times and shares of the mode that trains; with a graph those of the step launched kernel by kernel stand beside.

    The kernels in a graph are those that were launched one by one, so their shares fill what the graph leaves of its time.
    """
    main, profile = (of_graph, graph) if of_graph and graph else (breakdown, launched)
    idle = main.shares[IDLE]
    scale = (1 - idle) / (1 - breakdown.shares[IDLE])
    return {
        "step_ms": round(profile.seconds * 1e3, 4),
        "profiled_step_ms": round(main.milliseconds, 4),
        "shares": _rounded({kind: share * scale for kind, share in breakdown.shares.items()} | {IDLE: idle}),
        "attention_blocks": round(breakdown.attention_blocks * scale, 6),
        "operators": [_rounded(asdict(line) | {"share": line.share * scale}) for line in breakdown.operators[:OPERATORS]],
        "operator_calls": breakdown.operator_calls,
        "launches": main.launches,
        "kernels": main.kernels,
        "without_graph": {
            "step_ms": round(launched.seconds * 1e3, 4),
            "idle": round(breakdown.shares[IDLE], 6),
            "launches": breakdown.launches,
        }
        if of_graph
        else None,
    }


def _memory(launched: Profile, graph: Profile | None, device: torch.device) -> Entry:
    """What is kept between steps, the most that was allocated, and the course of it over a step."""
    cuda = device.type == "cuda"
    before = 0 if cuda else launched.held_bytes  # a trace knows on CUDA all that is allocated, on the CPU only what came since
    timeline = [before + allocated for allocated in memory_of_last_step(launched.events, cuda=cuda)]
    return {
        "held_bytes": launched.held_bytes,
        "peak_bytes": (graph or launched).peak_bytes or max(timeline),
        "timeline_bytes": timeline,
    }


# ---- names and files -------------------------------------------------------------------------------------------------------


def distinct_networks(settings: Settings) -> list[Experiment]:
    """The first of the chosen experiments for each network, at the chosen profile; a representative set where nothing is chosen."""
    chosen = settings.experiments()
    if settings.only == DEFAULTS["ONLY"]:
        chosen = [experiment for experiment in chosen if experiment.name in REPRESENTATIVE]
    first: dict[Model, Experiment] = {}
    for experiment in chosen:
        first.setdefault(experiment.model, experiment)
    # the data set stays: its images are not looked at, only how many there are, and of how many classes
    return [replace(at_profile(each, settings.profile), dataset=each.dataset) for each in first.values()]


def network_name(model: Model) -> str:
    """The network in words: ``ConvNeXt-Tiny, default stem, SE at P3``."""
    family = {
        "convnext_tiny": "ConvNeXt-Tiny",
        "vit_tiny": "ViT-Tiny",
        "mixer_tiny": "Mixer-Tiny",
        "matched_vit": "matched ViT",
    }[model.family]
    stem = {None: "", "default": ", default stem", "cifar": ", CIFAR stem"}[model.stem]
    if model.attention is None:
        return family + stem
    kind, heads = model.attention.kind, model.attention.heads
    attention = (
        f"MHSA with {heads} head{'s' if heads > 1 else ''}"
        if kind == "mhsa"
        else {"spatial": "spatial attention"}.get(kind, kind.upper())
    )
    return f"{family}{stem}, {attention} at {' and '.join(model.sites or ())}"


def _entries(summary: Path) -> dict[str, Entry]:
    """The networks in an earlier summary.

    Raises:
        UserError: the file is no summary.
    """
    if not summary.exists():
        return {}
    try:
        content = json.loads(summary.read_bytes())
        if content["schema"] != PROFILE_SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
        return dict(content["networks"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{summary}: expected a summary of profiles, found {found_in(error)}; delete the file") from error


def _compressed(trace: str) -> bytes:
    return gzip.compress(trace.encode(), compresslevel=5, mtime=0)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Six decimals: a share to a millionth, a millisecond to a nanosecond."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


def shown(entry: Entry) -> str:
    """An entry for the terminal: shares, and the operators that take longest."""
    on_cuda = entry["environment"]["cuda"] is not None
    by_share = sorted(entry["shares"].items(), key=lambda item: -item[1])
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in by_share if share >= 0.001)
    if entry["attention_blocks"]:
        shares += f"; attention blocks {entry['attention_blocks']:.1%}"
    lines = [f"{entry['step_ms']:.1f} ms a step, {entry['profiled_step_ms']:.1f} under the profiler: {shares}"]
    lines.append(f"  {'operator':<58} {'kind':<21} {'calls':>7} {'host ms':>9}" + f" {'device ms':>9}" * on_cuda)
    for line in entry["operators"]:
        device_ms = f" {line['device_ms']:9.3f}" * on_cuda
        lines.append(f"  {line['name']:<58.58} {line['kind']:<21} {line['calls']:7.0f} {line['host_ms']:9.2f}{device_ms}")
    return "\n".join(lines)
