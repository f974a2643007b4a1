"""Some training steps of a network under ``torch.profiler``."""

import functools
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, record_function

from bench.engine import graphs
from bench.engine import network as networks
from bench.engine.device_data import DeviceSplit, draw_epoch
from bench.engine.execution import Execution
from bench.engine.optimizer import adamw
from bench.engine.regime import EVERYTHING, release
from bench.engine.step import TrainingStep
from bench.experiment import Experiment
from bench.measure.contents import DISTURBED
from bench.measure.loops import MEAN, STD, build, random_images
from bench.measure.operators import ATTENTION, DEPTHWISE
from bench.measure.timing import seconds_of, synchronize, warmed_up
from bench.measure.trace import ATTENTION_BLOCK, Event
from models.attention import Gated, ScaledDotProduct, SelfAttention
from models.depthwise import DepthwiseConv2d

WARM_UP = 1  # steps under the profiler that it does not record: it slows its first one down
RECORDED = {"cpu": 2, "cuda": 5}  # steps; two at least, for the memory of the last one
MOST_RECORDINGS = 3  # of a disturbed step another is made, and the fastest of them taken
TIMED_SECONDS = 2  # of steps before, without the profiler
MOST_TIMED = 20  # steps


@dataclass(frozen=True)
class Profile:
    """What the profiled steps of one mode gave."""

    trace: str  # JSON
    seconds: float  # of a step without the profiler: the median of some
    held_bytes: int  # kept from step to step: weights, optimizer state, images
    peak_bytes: int | None  # where the device counts them

    @functools.cached_property
    def events(self) -> list[Event]:
        """The trace's events."""
        return list(json.loads(self.trace)["traceEvents"])


def record(experiment: Experiment, classes: int, execution: Execution, device: torch.device) -> Profile:
    """Time some steps of the engine without the profiler, then record some with it, on a CPU until they are not ``DISTURBED``.

    Args:
        experiment: its network trains from random weights, all parameters, on batches of its recipe.
        classes: the number of logits.
        execution: the mode.
    """
    cold = 1 + (graphs.WARM_UP + 1) * execution.cuda_graph
    recorded = RECORDED[device.type]
    most = cold + MOST_TIMED + MOST_RECORDINGS * (WARM_UP + recorded)
    prepared = _prepare(experiment, classes, execution, device, steps=most)

    def warm() -> None:
        for _ in range(cold):
            prepared.step()

    warmed_up(warm, device)
    seconds: list[float] = []
    while not seconds or (sum(seconds) < TIMED_SECONDS and len(seconds) < MOST_TIMED):
        seconds.append(seconds_of(prepared.step, device))
    usual = statistics.median(seconds)
    held = prepared.held_bytes()
    recordings = [_recorded(prepared.step, device, recorded)]
    while device.type == "cpu" and min(recordings).seconds > DISTURBED * usual and len(recordings) < MOST_RECORDINGS:
        recordings.append(_recorded(prepared.step, device, recorded))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Profile(min(recordings).trace, usual, held, peak)


class _Prepared(NamedTuple):
    step: Callable[[], None]
    held_bytes: Callable[[], int]


def _prepare(experiment: Experiment, classes: int, execution: Execution, device: torch.device, *, steps: int) -> _Prepared:
    """The engine's training step on images of noise, all parameters training, at a learning rate of zero."""
    recipe = experiment.recipe
    network = build(experiment, classes, device, execution).train()
    if not execution.compiled:  # an annotation would break the compiled graph
        annotate(network)
    part_of = networks.FAMILIES[experiment.model.family].part_of
    release(networks.by_part(network, part_of), EVERYTHING)
    optimizer = adamw(network, recipe, part_of)
    images, labels = random_images(recipe.batch_size * steps, classes)
    split = DeviceSplit(images, labels, padding=recipe.crop_padding, mean=MEAN, std=STD, device=device)
    step = TrainingStep(network, optimizer, split, recipe, execution, steps=steps)
    draws = draw_epoch(
        len(split), seed=0, epoch=1, padding=recipe.crop_padding, flip=recipe.flip, blocks=step.blocks, device=device
    )
    step.begin_epoch(draws, [0.0] * steps)

    def held_bytes() -> int:
        state = [value for values in optimizer.state.values() for value in values.values()]
        held = [*network.state_dict().values(), *state, split.images, split.labels]
        return sum(value.numel() * value.element_size() for value in held if isinstance(value, Tensor))

    return _Prepared(step, held_bytes)


def annotate(network: nn.Module) -> None:
    """Let modules whose operators do not tell what they belong to name themselves in the trace, in place."""
    for module in network.modules():
        if isinstance(module, DepthwiseConv2d):
            module.forward = _within(DEPTHWISE, module.forward)  # type: ignore[method-assign]
        elif isinstance(module, ScaledDotProduct):
            module.forward = _within(ATTENTION, module.forward)  # type: ignore[method-assign]
        elif isinstance(module, Gated | SelfAttention):
            module.forward = _within(ATTENTION_BLOCK, module.forward)  # type: ignore[method-assign]


def _within(region: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def annotated(*inputs: Tensor) -> Tensor:
        with record_function(region):
            return forward(*inputs)

    return annotated


class _Recording(NamedTuple):
    seconds: float  # of a step; on CUDA of its launches alone
    trace: str  # JSON without the host's name


def _recorded(step: Callable[[], None], device: torch.device, recorded: int) -> _Recording:
    """Some steps under the profiler, after one that it does not record."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    # the steps that were timed before are the schedule's wait
    schedule = torch.profiler.schedule(wait=0, warmup=WARM_UP, active=recorded, repeat=1)
    with torch.profiler.profile(activities=activities, schedule=schedule, record_shapes=True, profile_memory=True) as profiler:
        seconds = []
        for number in range(WARM_UP + recorded):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
            if number in (WARM_UP - 1, WARM_UP + recorded - 1):  # no kernel crosses the edges of what is recorded
                synchronize(device)
            profiler.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = re.sub(r'"(host_name|traceName)": "[^"]*"', r'"\1": ""', path.read_text())
    return _Recording(statistics.mean(seconds[WARM_UP:]), trace)
