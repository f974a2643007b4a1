"""Arithmetic on traces made by hand: nesting, regions with their backward pass, kernels and idle time, memory."""

from typing import Any

import pytest

from bench.measure import profiling
from bench.measure.operators import IDLE
from bench.measure.recording import Profile
from bench.measure.trace import Event, memory_of_last_step, on_device, on_host


def span(name: str, start: float, duration: float, *, category: str = "cpu_op", thread: int = 1, **args: Any) -> Event:
    """An event; an operator's External id is the start's number."""
    number = {"External id": int(start)} if category in ("cpu_op", "user_annotation") else {}
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 0 if category == "kernel" else 1,
        "tid": thread,
        "ts": start,
        "dur": duration,
        "args": number | {key.replace("_", " "): value for key, value in args.items()},
    }


def kernel(name: str, start: float, duration: float, launcher: int, **args: Any) -> Event:
    event = span(name, start, duration, category=args.pop("category", "kernel"), thread=7)
    event["args"] = {"External id": launcher, "device": 0, "stream": 7, "correlation": launcher, "grid": [1], "block": [1]}
    return event


DEPTHWISE_SHAPES = [[128, 96, 8, 8], [96, 1, 7, 7]]
HOST = [
    span("ProfilerStep#1", 100, 1000, category="user_annotation"),
    span("aten::linear", 110, 200, Sequence_number=5),
    span("aten::addmm", 120, 100),
    span("aten::item", 400, 10, Sequence_number=6),  # makes no node: the next operator's number is the same
    span("depthwise convolution", 420, 80, category="user_annotation"),
    span("mine::convolve", 430, 50, Sequence_number=6),
    span("aten::copy_", 440, 10),
    span("autograd::engine::evaluate_function: MineBackward0", 600, 100, thread=2, Sequence_number=6, Fwd_thread_id=1),
    span("aten::mul", 610, 40, thread=2),
    span("autograd::engine::evaluate_function: AddmmBackward0", 700, 20, thread=2, Sequence_number=5, Fwd_thread_id=1),
    span("Optimizer.step#AdamW.step", 1000, 50, category="user_annotation"),
    span("aten::_fused_adamw_", 1010, 30),
]


def test_a_hand_made_step_on_the_host() -> None:
    on_one_thread = [event | {"tid": 1} for event in HOST]
    breakdown = on_host(on_one_thread)
    assert breakdown.milliseconds == 1
    assert {kind: share for kind, share in breakdown.shares.items() if share} == pytest.approx(
        {
            "matrix product": 0.2,  # the linear layer's own 100 and addmm's 100
            "depthwise convolution": 0.15,  # 50 forward, 100 backward
            "bookkeeping": 0.03,  # item and the other node
            "optimizer": 0.03,
            "idle": 0.59,  # annotations' own time is Python's
        }
    )
    assert breakdown.operator_calls == 9


EAGER = [
    *HOST,
    span("cudaLaunchKernel", 130, 5, category="cuda_runtime"),
    span("cudaLaunchKernel", 435, 5, category="cuda_runtime"),
    span("cudaMemcpyAsync", 445, 5, category="cuda_runtime"),
    kernel("gemm", 200, 100, 120),
    kernel("depthwise_kernel", 500, 100, 430),
    kernel("Memcpy DtoD (Device -> Device)", 560, 80, 440, category="gpu_memcpy"),  # overlaps by 40
    kernel("mul_kernel", 700, 60, 610),
    kernel("adamw_kernel", 1100, 100, 1010),
    kernel("from nowhere", 1200, 100, 9999),
]
GRAPH = [
    span("ProfilerStep#1", 200, 200, category="gpu_user_annotation"),
    span("ProfilerStep#1", 100, 300, category="user_annotation"),
    span("ProfilerStep#2", 400, 300, category="user_annotation"),
    *(span("cudaGraphLaunch", start, 5, category="cuda_runtime") for start in (110, 410)),
    *(kernel("gemm", start, 90, 77) for start in (200, 300, 400, 510)),
]


def test_a_hand_made_step_on_a_device() -> None:
    breakdown = on_device(EAGER)
    assert breakdown.milliseconds == 1.1, "from the first kernel's start to the last one's end"
    busy = 100 + 140 + 60 + 100 + 100
    assert breakdown.shares[IDLE] == pytest.approx(1 - busy / 1100)
    assert sum(breakdown.shares.values()) == pytest.approx(1)
    scale = busy / 540 / 1100
    assert breakdown.shares["matrix product"] == pytest.approx(100 * scale)
    assert breakdown.shares["depthwise convolution"] == pytest.approx(240 * scale), "its copy and its backward pass too"
    assert breakdown.shares["optimizer"] == breakdown.shares["other"] == pytest.approx(100 * scale)
    assert (breakdown.launches, breakdown.kernels) == (3, 6)
    lines = {(line.name, line.kind): line for line in breakdown.operators}
    assert lines["aten::addmm", "matrix product"].device_ms == 0.1
    assert lines["aten::copy_", "depthwise convolution"].host_ms == 0.01
    assert [line.device_ms for line in breakdown.operators[:4]] == [0.1] * 4, "the longest first"


def test_a_graphs_idle_share_and_the_operators_of_its_kernels() -> None:
    graph = on_device(GRAPH)
    assert graph.milliseconds == 0.2
    assert graph.shares[IDLE] == pytest.approx(0.1)
    assert (graph.launches, graph.kernels) == (1, 2)
    launched, replayed = (Profile("{}", seconds, 0, None) for seconds in (0.002, 0.0003))
    figures = profiling._figures(on_device(EAGER), graph, launched, replayed)
    assert figures["step_ms"] == 0.3 and figures["launches"] == 1
    assert figures["shares"][IDLE] == pytest.approx(0.1)
    assert sum(figures["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert figures["shares"]["matrix product"] == pytest.approx(0.9 * 100 / 540, abs=1e-6)
    assert figures["without_graph"]["step_ms"] == 2 and figures["without_graph"]["launches"] == 3
    assert sum(line["share"] for line in figures["operators"]) == pytest.approx(0.9, abs=1e-5)


@pytest.mark.parametrize("broken", [[], HOST, [event for event in EAGER if "Step" not in event["name"]]])
def test_a_trace_without_steps_or_kernels_is_refused(broken: list[Event]) -> None:
    with pytest.raises(ValueError, match="the trace holds no step, or no kernel"):
        on_device(broken)


def test_memory_is_counted_from_what_earlier_recordings_left() -> None:
    def change(time: float, total: int, count: int, device: int = 0) -> Event:
        args = {"Total Allocated": total, "Bytes": count, "Device Type": device}
        return {"ph": "i", "name": "[memory]", "ts": time, "args": args}

    events = [
        *(span(f"ProfilerStep#{i}", start, 100, category="user_annotation") for i, start in enumerate((0, 100))),
        span("ProfilerStep#1", 180, 5, category="gpu_user_annotation"),  # the device's view of it
        change(10, 1007, 7),
        change(125, 1057, 50),
        change(140, 1017, -40),
        change(130, 5, 5, device=1),
        change(250, 1, -1016),
    ]
    assert memory_of_last_step(events, cuda=False, parts=4) == [7, 57, 17, 17]
    assert memory_of_last_step(events, cuda=True, parts=4) == [0, 5, 5, 5]
