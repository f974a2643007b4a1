"""Our loop beside the one that a user would write, and beside itself without each part of what makes it fast."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import torch

from bench import memory
from bench.engine import network as networks
from bench.engine.execution import Choices, Execution, Measurements
from bench.engine.graphs import WARM_UP
from bench.experiment import Experiment
from bench.measure import loops
from bench.measure.apart import Apart
from bench.measure.contents import (
    BARE,
    COMPILED,
    CONVENTIONAL,
    CONVENTIONAL_BEST,
    DEFAULT_LAYOUT,
    EAGER,
    IN_FP32,
    LIBRARY_BF16,
    MEMORY_RETURNED,
    NO_GRAPH,
    NOT_COMPILED,
    NOT_DETERMINISTIC,
    NOT_FUSED,
    NOT_FUSED_BLOCKS,
    OURS,
    PLAIN,
    RATIOS,
    REFERENCE_DEPTHWISE,
    REFERENCE_PATCHES,
)
from bench.measure.timing import Spread, has_room, interleaved, memory_left, ratio, seconds_of

MOST_SLOWDOWN = 8.0  # times as slow: from there on a single step of the library's bf16 takes the better part of a minute
Report = dict[str, Any]


class Comparison:
    """The loops that train one network on one device, timed in turns.

    Args:
        choices: how the user wants steps to be computed.
        search: whether to time those too that take long or begin slowly.
        say: takes a line on what is being measured.
    """

    def __init__(self, device: torch.device, choices: Choices, *, search: bool, say: Callable[[str], None]) -> None:
        self._device, self._choices, self._search, self._say = device, choices, search, say
        self._images, self._labels = loops.random_images(loops.IMAGES, loops.CLASSES)
        self._split = loops.random_split(device)

    def of(self, experiment: Experiment, *, window_seconds: float, windows: int, ends: float) -> Report:
        """All loops in turns, at the recipe's batch size.

        Args:
            window_seconds: about how long one turn of one loop lasts.
            windows: turns of each loop.
            ends: the time, by ``time.perf_counter``, until which further turns are taken.
        """
        batch_size = experiment.recipe.batch_size
        execution = loops.execution_of(experiment, self._device, self._choices)
        whole = execution.compiled or execution.blocks == "fused"
        flags = self._best_flags(experiment, units=execution.bf16 == "units")
        contenders: dict[str, loops.Steps] = {}
        most = 0  # bytes of one
        with ExitStack() as open_:
            for name, make in self._contenders(experiment, execution, flags, open_).items():
                if not has_room(self._device, most):
                    self._say(f"no more loops, for want of memory: {name} and those after it are left out")
                    break
                self._say(name)
                left = memory_left(self._device)
                contenders[name] = make()
                contenders[name](WARM_UP + 2 if self._device.type == "cuda" else 1)  # plans, allocations, workers, a graph
                after = memory_left(self._device)
                most = max(most, left - after) if left is not None and after is not None else 0
            for contender in contenders.values():  # those made first have been idle, and their memory may have to come back
                contender(1)
            speeds = interleaved(
                contenders,
                images=dict.fromkeys(contenders, batch_size),
                device=self._device,
                window_seconds=window_seconds,
                windows=windows,
                least_seconds=ends - time.perf_counter(),
            )
        return {
            "experiment": experiment.name,
            "batch_size": batch_size,
            "precision": experiment.recipe.precision,
            "execution": execution.described(),
            "windows": len(speeds[OURS]),
            "best_flags": vars(flags),
            "images_per_second": {name: Spread.of(values).as_json() for name, values in speeds.items()},
            "ratios": {
                f"{one} / {other}": ratio(speeds, one, other).as_json()
                for one, other in RATIOS
                if one in speeds and other in speeds
                if not (whole and one == OURS and other in PLAIN)
            },
        }

    def _contenders(
        self, experiment: Experiment, execution: Execution, flags: loops.Flags, open_: ExitStack
    ) -> dict[str, Callable[[], loops.Steps]]:
        """What takes part, each made when it is its turn. Rows that would be ``ours`` again are left out.

        Args:
            open_: closes what must be closed.
        """
        batch_size, device = experiment.recipe.batch_size, self._device

        def conventional(flags: loops.Flags) -> loops.Steps:
            network = networks.build(experiment.model, classes=loops.CLASSES, seed=0)
            loop = loops.Conventional(network, self._images, self._labels, batch_size=batch_size, device=device, flags=flags)
            return loops.in_mode(loop, on=False)

        def mine(execution: Execution, on: bool = True, experiment: Experiment = experiment, **without: bool) -> loops.Steps:
            split, classes = self._split, loops.CLASSES
            steps = loops.ours(experiment, split, execution, batch_size=batch_size, classes=classes, device=device, **without)
            return loops.in_mode(steps, on=on)

        def eager() -> loops.Steps:
            network = networks.build(experiment.model, classes=loops.CLASSES, seed=0)
            steps = loops.eager_on_device(network, self._split, batch_size=batch_size, device=device, flags=flags)
            return loops.in_mode(steps, on=False)

        def bare() -> loops.Steps:
            steps = loops.bare_step(experiment, execution, batch_size=batch_size, classes=loops.CLASSES, device=device)
            return loops.in_mode(steps, on=True)

        plain = replace(execution, compiled=False, blocks="layers")
        variants = {
            OURS: lambda: mine(execution),
            BARE: bare,
            CONVENTIONAL: lambda: conventional(loops.Flags(workers=flags.workers)),
            CONVENTIONAL_BEST: lambda: conventional(flags),
            EAGER: eager,
            NOT_DETERMINISTIC: lambda: mine(plain, on=False),
            DEFAULT_LAYOUT: lambda: mine(plain, channels_last=False),
            NOT_FUSED: lambda: mine(plain, fused=False),
        }
        if device.type == "cpu" and self._search and memory.can_keep():
            variants[MEMORY_RETURNED] = lambda: open_.enter_context(closing(Apart(experiment.name, self._choices)))
        if execution.compiled:
            variants[NOT_COMPILED] = lambda: mine(plain)
        if execution.blocks == "fused":
            variants[NOT_FUSED_BLOCKS] = lambda: mine(plain)
        if experiment.recipe.precision == "bf16" and execution.bf16 == "units":
            in_fp32 = replace(experiment, recipe=replace(experiment.recipe, precision="fp32"))
            variants[IN_FP32] = lambda: mine(
                replace(loops.execution_of(in_fp32, device, self._choices), compiled=False), experiment=in_fp32
            )
        if execution.depthwise:
            variants[REFERENCE_DEPTHWISE] = lambda: mine(replace(plain, depthwise={}))
        if execution.patches != "convolution":
            variants[REFERENCE_PATCHES] = lambda: mine(replace(plain, patches="convolution"))
        if execution.bf16 != "units" and self._search and Measurements(device, self._choices.kept).bf16_slowdown() < MOST_SLOWDOWN:
            variants[LIBRARY_BF16] = lambda: mine(replace(plain, bf16="units"))
        if execution.cuda_graph:
            variants[NO_GRAPH] = lambda: mine(replace(execution, cuda_graph=False))
        if device.type == "cuda" and not execution.compiled and self._choices.compile != "off":
            variants[COMPILED] = lambda: mine(replace(plain, compiled=True))
        return variants

    def _best_flags(self, experiment: Experiment, *, units: bool) -> loops.Flags:
        """The fastest of the conventional loop's flags, by a few steps each; bf16 is tried where the device has units for it."""
        batch_size = experiment.recipe.batch_size

        def seconds(flags: loops.Flags) -> float:
            network = networks.build(experiment.model, classes=loops.CLASSES, seed=0)
            loop = loops.in_mode(
                loops.Conventional(network, self._images, self._labels, batch_size=batch_size, device=self._device, flags=flags),
                on=False,
            )
            loop(2)
            return seconds_of(lambda: loop(steps), self._device) / steps

        self._say("best flags of the conventional loop")
        on_cpu = self._device.type == "cpu"
        few, many = (0, 2) if on_cpu else (4, 8)  # workers
        steps = 3 if on_cpu else 3 * many  # on a GPU more than the workers hold ready: two batches each
        best = loops.Flags(bf16=units, channels_last=True, fused=True, workers=few)
        fastest = seconds(best)
        changes: list[dict[str, Any]] = [{"workers": many}, {"channels_last": False}, {"fused": False}]
        for change in [*changes, {"bf16": False}] if units else changes:
            flags = replace(best, **change)
            if (found := seconds(flags)) < fastest:
                best, fastest = flags, found
        return best
