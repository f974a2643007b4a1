"""The section of RESULTS.md on where a training step spends its time, from the summaries that ``make profile`` writes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.catalog import EXPERIMENTS
from bench.environment import device_in_words
from bench.errors import UserError, found_in
from bench.measure.contents import DISTURBED, PROFILE_SCHEMA
from bench.measure.operators import ATTENTION, BOOKKEEPING, COMPILED, COPY, DEPTHWISE, ELEMENTWISE, IDLE, KINDS, OPTIMIZER, OTHER
from bench.provenance import shown
from bench.report.cells import Line, table
from bench.report.throughput import mode

Entry = dict[str, Any]

FASTER = 1.05  # times: no step gains by being recorded

NOTE = """\
Made by `make profile`: a few steps of the engine on images of noise under `torch.profiler`, all parameters training. Shares are of
the step's time, by the kind of operator: on a CPU each operator's own time without the operators that it calls, on CUDA the kernels
that it launched. Depthwise convolutions count with all that their method needs, forward and backward; attention is the scaled
dot-product alone, an attention block everything in its module, which other columns hold too; copies are casts, gathers and fills
too; bookkeeping is views, allocation and autograd's own work; idle is the time in which no operator ran (CPU: Python between two
of them), or no kernel. The profiler makes steps slower, those with many short operators most. Memory is the most that torch had
allocated in each part of a step, from its start to its end.
"""
MENTIONED = 0.04  # a kind of operator below this share of the time is left out of the sentence
IN_A_SENTENCE = {
    ATTENTION: "attention",
    ELEMENTWISE: "elementwise work",
    OPTIMIZER: "the optimizer",
    COPY: "copies",
    COMPILED: "compiled code",
    OTHER: "operators of unknown kind",
}
BLOCKS = "▁▂▃▄▅▆▇█"


def where_time_goes(profiles: Path, folder: Path) -> str:
    """Markdown for every device that was profiled: a table, and a paragraph for each network; empty where there is none.

    Args:
        profiles: the folder of the summaries.
        folder: where the page will lie; links are relative to it.

    Raises:
        UserError: a file is no summary.
    """
    sections = [_device_section(path, folder) for path in sorted(profiles.glob("*.json"))]
    return "\n".join([f"## Where the time goes\n\n{NOTE}", *sections]) if sections else ""


def _device_section(path: Path, folder: Path) -> str:
    try:
        content = json.loads(path.read_bytes())
        if content["schema"] != PROFILE_SCHEMA or not content["networks"]:
            raise ValueError(f"schema {content['schema']!r} with {len(content['networks'])} networks")
        entries = sorted(content["networks"].values(), key=_place)
        text = [
            _heading(entries, Path(os.path.relpath(path, folder)).as_posix()),
            table([_line(entry) for entry in entries]) + "\n",
        ]
        return "\n".join([*text, *(f"{paragraph(entry)}\n" for entry in entries)])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(
            f"{path}: expected a summary of profiles of schema {PROFILE_SCHEMA}, found {found_in(error)}; "
            "delete it and run `make profile`"
        ) from error


def _place(entry: Entry) -> tuple[int, str]:
    """In the order of the catalog."""
    names = [experiment.name for experiment in EXPERIMENTS]
    name = entry["experiment"]
    return (names.index(name) if name in names else len(names)), entry["name"]


def _heading(entries: Sequence[Entry], link: str) -> str:
    torches = ", ".join(sorted({entry["environment"]["torch"] for entry in entries}))
    commits = ", ".join(sorted({f"`{shown(entry['code'])}`" for entry in entries}))
    device = device_in_words(entries[0]["environment"])
    return f"### Where the time goes: {device}\n\nTorch {torches}, commit {commits}; [all figures]({link}).\n"


def _line(entry: Entry) -> Line:
    on_cuda = entry["environment"]["cuda"] is not None
    memory = entry["memory"]
    return {
        "network": entry["name"],
        "ms a step": _ms(entry["step_ms"]),
        "ms, profiled": _ms(entry["profiled_step_ms"]),
        **{kind: _percent(entry["shares"][kind]) for kind in KINDS},
        "in attention blocks": _percent(entry["attention_blocks"]),
        "operator calls": "" if on_cuda else f"{entry['operator_calls']:,.0f}",
        "kernels": f"{entry['kernels']:,.0f}" if on_cuda else "",
        "launches": f"{entry['launches']:,.0f}" if on_cuda else "",
        "peak memory (MB)": _megabytes(memory["peak_bytes"]),
        "memory over a step": sparkline(memory["timeline_bytes"]),
        "batch": entry["batch_size"],
        "mode": mode(entry["environment"], entry["precision"], depthwise=bool(entry["shares"][DEPTHWISE])),
    }


def sparkline(values: Sequence[float]) -> str:
    """A block for each value, the highest for the largest of them: a curve that fits a cell."""
    largest = max([*values, 1])
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(value / largest * len(BLOCKS)))] for value in values)


# ---- a network in words ----------------------------------------------------------------------------------------------------


def paragraph(entry: Entry) -> str:
    """Say where a network's time goes, from the numbers of its entry."""
    sentences = [
        f"**{entry['name']}.** A step of {entry['batch_size']} images takes {_ms(entry['step_ms'])} ms.",
        _kinds(entry["shares"]),
        _operators(entry["operators"]),
        _attention_blocks(entry),
        _overhead(entry),
        _disturbed(entry),
        f"Memory peaks at {_megabytes(entry['memory']['peak_bytes'])} MB, of which "
        f"{_megabytes(entry['memory']['held_bytes'])} MB stay from step to step.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _kinds(shares: dict[str, float]) -> str:
    """The kinds of operator that compute, from the largest share down."""
    computing = {kind: share for kind, share in shares.items() if kind not in (BOOKKEEPING, IDLE)}
    ranked = sorted(computing, key=lambda kind: (-computing[kind], kind))
    named = [kind for kind in ranked if computing[kind] >= MENTIONED] or ranked[:1]
    rest = sum(computing.values()) - sum(computing[kind] for kind in named)
    listed = ", ".join(f"{IN_A_SENTENCE.get(kind, f'{kind}s')} ({computing[kind]:.0%})" for kind in named)
    return f"The time goes to {listed}, and all other kinds of work ({rest:.0%})."


def _operators(operators: Sequence[Entry]) -> str:
    longest = [f"`{line['name']}` ({line['kind']}, {line['share']:.0%})" for line in operators[:3]]
    return f"The longest operators: {', '.join(longest)}."


def _attention_blocks(entry: Entry) -> str:
    if not entry["attention_blocks"]:
        return ""
    return f"Attention blocks, with their norms, linear layers and gates, take {_percent(entry['attention_blocks'])}."


def _overhead(entry: Entry) -> str:
    """What computes nothing: on a CPU around the operators, on CUDA between the kernels."""
    idle, graph = entry["shares"][IDLE], entry["without_graph"]
    if entry["environment"]["cuda"] is None:
        lost = idle + entry["shares"][BOOKKEEPING]
        calls = f"{entry['operator_calls']:,.0f}"
        return f"In {lost:.0%} of the time nothing is computed: bookkeeping and Python around {calls} operator calls."
    if graph is None:
        return f"The device idles for {idle:.0%} of the time, with {entry['launches']:,.0f} launches a step."
    return (
        f"As one CUDA graph the step leaves the device idle for {idle:.0%} of the time; launched kernel by kernel it takes "
        f"{_ms(graph['step_ms'])} ms, idle for {graph['idle']:.0%}, with {graph['launches']:,.0f} launches."
    )


def _disturbed(entry: Entry) -> str:
    ratio = entry["profiled_step_ms"] / entry["step_ms"]
    if entry["environment"]["cuda"] is not None or 1 / FASTER <= ratio <= DISTURBED:
        return ""
    if ratio < 1:
        return f"The steps without the profiler took {1 / ratio:.1f} times as long as those with it: something else disturbed them."
    return (
        f"The recorded steps took {ratio:.1f} times as long as those without the profiler: something else disturbed these shares."
    )


# ---- cells -----------------------------------------------------------------------------------------------------------------


def _percent(share: float) -> str:
    """One decimal; nothing for nothing, so that a column without content is left out."""
    return f"{share:.1%}" if share else ""


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.2f}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f}"
