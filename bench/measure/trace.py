"""Where the time of training steps went, from the events of a trace that ``torch.profiler`` wrote.

A trace is a JSON file of Chrome's format. Its events have a time stamp and a duration in microseconds. On the host they nest: a
step holds operators, these hold the operators that they call. An event's own time is its duration without that of the events
within it. On the device there are kernels, each with the number of the operator that launched it.

Backward operators run far from their modules, but each carries the sequence number of the forward operator that it belongs to. So
what lies within an annotated region (a depthwise convolution, attention, an attention block) counts with its backward pass.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.measure.operators import ATTENTION, COMPILED, COPY, DEPTHWISE, IDLE, KINDS, OPTIMIZER, OTHER, OURS, kind_of, kind_within

Event = dict[str, Any]

ATTENTION_BLOCK = "attention block"  # the whole module: its norm, linear layers and gate too

_STEP = "ProfilerStep#"
_OPTIMIZER = "Optimizer."
_BACKWARD = "autograd::engine::evaluate_function: "
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cuMemcpy", "cudaMemset", "cuMemset")


@dataclass
class HostEvent:
    """An operator or an annotation, with where it stands."""

    name: str
    thread: int
    start: float  # microseconds
    end: float
    own: float  # microseconds, without the events within it
    annotation: bool
    again: bool  # an operator that calls itself for another kind of tensor: one call
    in_step: bool
    in_attention_block: bool
    kind_within: str | None  # of everything in it, where something around it or itself decides

    @property
    def kind(self) -> str:
        """Of its own time. An annotation computes nothing: its own time is Python's, between two operators.

        Only the compiler's annotations stand around code that is no operator.
        """
        if self.annotation and kind_of(self.name) != COMPILED:
            return IDLE
        return self.kind_within or kind_of(self.name)


@dataclass
class Line:
    """One operator of a breakdown, of one kind; figures per step."""

    name: str
    kind: str
    calls: float = 0.0
    host_ms: float = 0.0
    device_ms: float = 0.0
    share: float = 0.0  # of the time that is broken down


@dataclass(frozen=True)
class Breakdown:
    """Where the time went. All figures are per step."""

    milliseconds: float
    shares: dict[str, float]  # by kind; their sum is 1
    attention_blocks: float  # share of what ran within them, forward and backward
    operator_calls: float  # of operators by Python and by other operators
    launches: float  # calls that put work on the device
    kernels: float  # of the device, with its copies and fills
    operators: list[Line]  # the longest first


@dataclass
class _Sums:
    """Adds up microseconds by kind and by operator."""

    by_kind: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    lines: dict[tuple[str, str], Line] = field(default_factory=dict)
    attention_blocks: float = 0.0

    def line(self, name: str, kind: str) -> Line:
        return self.lines.setdefault((name, kind), Line(name, kind))

    def add(self, kind: str, duration: float, *, in_attention_block: bool) -> None:
        self.by_kind[kind] += duration
        self.attention_blocks += duration * in_attention_block

    def add_call(self, item: HostEvent) -> None:
        line = self.line(item.name, item.kind)
        line.calls += not item.again
        line.host_ms += item.own / 1e3


# ---- the host --------------------------------------------------------------------------------------------------------------


def host_events(events: Iterable[Event]) -> list[tuple[Event, HostEvent]]:
    """All operators and annotations in the order of their start, nested by thread."""
    on_host = [event for event in events if event.get("cat") in ("cpu_op", "user_annotation") and event.get("ph") == "X"]
    found = []
    open_: dict[int, list[HostEvent]] = {}  # by thread, the outermost first
    forward: dict[int, HostEvent] = {}  # by sequence number: the operator that made this node of the graph
    for event in sorted(on_host, key=lambda event: (event["ts"], -event["dur"])):
        stack = open_.setdefault(event["tid"], [])
        while stack and stack[-1].end <= event["ts"]:
            stack.pop()
        node = event.get("args", {}).get("Sequence number")
        origin = forward.get(node) if event["name"].startswith(_BACKWARD) else None
        item = _placed(event, stack[-1] if stack else None, origin)
        if stack:
            stack[-1].own -= event["dur"]
        stack.append(item)
        # of operators with the same number the last one made the node: numbers rise when nodes are made
        if node is not None and origin is None:
            forward[node] = item
        found.append((event, item))
    return found


def _placed(event: Event, around: HostEvent | None, origin: HostEvent | None) -> HostEvent:
    """What an event inherits from the event around it, and from the forward operator whose gradient it computes."""
    name, annotation = event["name"], event["cat"] == "user_annotation"
    outer = [other for other in (around, origin) if other]
    kind = next((other.kind_within for other in outer if other.kind_within), None)
    if not kind and annotation:
        kind = name if name in (DEPTHWISE, ATTENTION) else OPTIMIZER if name.startswith(_OPTIMIZER) else None
    elif not kind:
        kind = kind_within(name, event.get("args", {}).get("Input Dims", ()))
    return HostEvent(
        name=name,
        thread=event["tid"],
        start=event["ts"],
        end=event["ts"] + event["dur"],
        own=event["dur"],
        annotation=annotation,
        again=bool(around and around.name == name),
        in_step=name.startswith(_STEP) or bool(around and around.in_step),
        in_attention_block=name == ATTENTION_BLOCK or any(other.in_attention_block for other in outer),
        kind_within=kind,
    )


def on_host(events: Sequence[Event]) -> Breakdown:
    """Break the steps' time down by the operators that ran in them, on the thread that runs the steps.

    Raises:
        ValueError: there is no step in the trace.
    """
    items = [item for _, item in host_events(events) if item.in_step]
    steps = [item for item in items if item.name.startswith(_STEP)]
    if not steps:
        raise ValueError("the trace holds no step")
    sums = _Sums()
    for item in items:
        sums.add(item.kind, item.own, in_attention_block=item.in_attention_block and not item.annotation)
        if item.kind != IDLE:
            sums.add_call(item)
            sums.line(item.name, item.kind).share += item.own
    return _breakdown(sums, sum(step.end - step.start for step in steps), len(steps), events)


# ---- the device ------------------------------------------------------------------------------------------------------------


def on_device(events: Sequence[Event]) -> Breakdown:
    """Break the time from the first kernel's start to the last one's end down by the operators that launched them.

    Where kernels overlap, each gets its part of the time. Kernels of a captured graph have no operator: their kind is ``other``.

    Raises:
        ValueError: there is no step or no kernel in the trace.
    """
    hosted = host_events(events)
    steps = sum(item.name.startswith(_STEP) for _, item in hosted)
    kernels = [event for event in events if event.get("cat") in _ON_DEVICE and event.get("ph") == "X"]
    if not steps or not kernels:
        raise ValueError("the trace holds no step, or no kernel of a device")
    by_id = {event["args"]["External id"]: item for event, item in hosted if "External id" in event.get("args", {})}
    window = max(kernel["ts"] + kernel["dur"] for kernel in kernels) - min(kernel["ts"] for kernel in kernels)
    busy = _union(kernels)
    overlap = busy / sum(kernel["dur"] for kernel in kernels)
    sums = _Sums()
    for _, item in hosted:
        if item.kind != IDLE:
            sums.add_call(item)
    for kernel in kernels:
        launcher = by_id.get(kernel.get("args", {}).get("External id"))
        kind = _kind_of_kernel(kernel, launcher)
        sums.add(kind, kernel["dur"] * overlap, in_attention_block=bool(launcher and launcher.in_attention_block))
        line = sums.line(launcher.name if launcher else kernel["name"], kind)
        line.device_ms += kernel["dur"] / 1e3
        line.share += kernel["dur"] * overlap
    sums.by_kind[IDLE] = window - busy
    return _breakdown(sums, window, steps, events)


def _kind_of_kernel(kernel: Event, launcher: HostEvent | None) -> str:
    if kind := OURS.get(kernel["name"]):
        return kind
    if launcher and launcher.kind != IDLE:
        return launcher.kind
    return OTHER if kernel["cat"] == "kernel" else COPY


def _union(kernels: Sequence[Event]) -> float:
    """Microseconds in which at least one of the kernels ran."""
    covered, until = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel["ts"]):
        end = kernel["ts"] + kernel["dur"]
        covered += max(0.0, end - max(until, kernel["ts"]))
        until = max(until, end)
    return covered


def _breakdown(sums: _Sums, duration: float, steps: int, events: Sequence[Event]) -> Breakdown:
    lines = sorted(sums.lines.values(), key=lambda line: (-line.device_ms, -line.host_ms))
    return Breakdown(
        milliseconds=duration / steps / 1e3,
        shares={kind: own / duration for kind, own in sums.by_kind.items()},
        attention_blocks=sums.attention_blocks / duration,
        operator_calls=sum(line.calls for line in lines) / steps,
        launches=sum(event.get("name", "").startswith(_LAUNCHES) for event in events if event.get("ph") == "X") / steps,
        kernels=sum(event.get("cat") in _ON_DEVICE for event in events) / steps,
        operators=[
            Line(line.name, line.kind, line.calls / steps, line.host_ms / steps, line.device_ms / steps, line.share / duration)
            for line in lines
        ],
    )


# ---- memory ----------------------------------------------------------------------------------------------------------------


def memory_of_last_step(events: Sequence[Event], *, cuda: bool, parts: int = 24) -> list[int]:
    """The bytes that are allocated in the course of the last step: the most in each of some equal parts of it.

    On CUDA that is whatever torch has allocated; on the CPU what it has allocated since the recording began. By the last of several
    steps this lacks only what stays from step to step: weights, optimizer state, images.
    """
    steps = [event for event in events if event.get("cat") == "user_annotation" and event["name"].startswith(_STEP)]
    step = max(steps, key=lambda event: event["ts"])
    changes = [
        (event["ts"], event["args"]["Total Allocated"], event["args"]["Bytes"])
        for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
        if (event["args"]["Device Type"] == 1) == cuda
    ]
    # on the CPU torch goes on from what earlier recordings in the same process have left allocated
    base = changes[0][1] - changes[0][2] if changes and not cuda else 0
    edges = [step["ts"] + step["dur"] * part / parts for part in range(parts + 1)]
    timeline, last = [], base
    for begin, end in pairwise([-math.inf, *edges]):
        within = [allocated for time, allocated, _ in changes if begin <= time < end]
        timeline.append(max([last, *within]) - base)
        last = within[-1] if within else last
    return timeline[1:]
