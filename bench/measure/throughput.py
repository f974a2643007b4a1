"""Images per second of every model family, and of our loop beside the one that a user would write.

Everything is measured on images of noise: no speed depends on what is seen, and no data set is needed. Training rows train every
parameter. The result is one JSON value per device, for ``results/throughput/``.
"""

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import environment, memory
from bench.engine import network as networks
from bench.engine.device_data import DeviceSplit
from bench.engine.evaluate import BATCH as EVALUATION_BATCH
from bench.engine.execution import Choices, Execution, Measurements, choose
from bench.engine.graphs import WARM_UP
from bench.experiment import Experiment
from bench.measure import loops, roofline
from bench.measure.apart import Apart
from bench.measure.cost import multiply_adds, training_flops
from bench.measure.energy import EnergyCounter
from bench.measure.sharing import shared_speeds
from bench.measure.timing import Spread, interleaved, memory_in_use, memory_left, ratio, seconds_of, synchronize, warmed_up

SCHEMA = 1
EPOCH = 50_000  # images of a CIFAR-100 epoch
BATCH_SIZES = {"cpu": (64, 128, 256), "cuda": (128, 512, 2048)}

# The loops of the comparison; ratios name them.
OURS, BARE = "ours", "bare step"
CONVENTIONAL, CONVENTIONAL_BEST = "conventional, fp32", "conventional, best flags"
EAGER = "eager on device-resident tensors, best flags"
NOT_COMPILED = "ours, not compiled"
# The next eight are not compiled, and stand beside "ours, not compiled" where "ours" is: compiling takes half a minute each time.
NOT_DETERMINISTIC, REFERENCE_DEPTHWISE = "ours, not deterministic", "ours, reference depthwise"
REFERENCE_PATCHES = "ours, reference patch convolutions"
DEFAULT_LAYOUT, NOT_FUSED = "ours, not channels last", "ours, AdamW not fused"
MEMORY_RETURNED = "ours, freed memory returned"
LIBRARY_BF16 = "ours, bf16 as the library computes it"
IN_FP32 = "ours, in fp32"
NO_GRAPH = "ours, no CUDA graph"
COMPILED = "ours, compiled"
LOOPS = (
    OURS,
    BARE,
    EAGER,
    CONVENTIONAL_BEST,
    CONVENTIONAL,
    IN_FP32,
    NOT_COMPILED,
    NOT_DETERMINISTIC,
    REFERENCE_DEPTHWISE,
    REFERENCE_PATCHES,
    DEFAULT_LAYOUT,
    NOT_FUSED,
    MEMORY_RETURNED,
    LIBRARY_BF16,
    NO_GRAPH,
    COMPILED,
)
PLAIN = (REFERENCE_DEPTHWISE, REFERENCE_PATCHES, DEFAULT_LAYOUT, NOT_FUSED, MEMORY_RETURNED, LIBRARY_BF16, NOT_DETERMINISTIC)
TOO_SLOW_TO_SEARCH = 3.0  # seconds of a step
MOST_SLOWDOWN = 8.0  # times as slow: from there on a single step of the library's bf16 takes the better part of a minute
ROOM = 2.0  # times the memory of the largest network so far, for the next one
SHARED_SECONDS = 5.0  # that processes train together
RATIOS = (
    (OURS, BARE),
    (OURS, CONVENTIONAL),
    (OURS, CONVENTIONAL_BEST),
    (IN_FP32, CONVENTIONAL),
    (OURS, EAGER),
    (OURS, NO_GRAPH),
    (OURS, NOT_COMPILED),
    (COMPILED, OURS),
    *((ours, other) for ours in (OURS, NOT_COMPILED) for other in PLAIN),
)

Report = dict[str, Any]


class Bench:
    """The measurements of one device.

    Args:
        choices: how the user wants steps to be computed.
        window_seconds: about how long one turn of one contender lasts.
        windows: turns of each contender.
        least_seconds: of everything; the loops come last and take turns until then.
        search: whether to look for each family's best batch size, and to time the loops that take long or begin slowly.
        say: takes a line on what is being measured.
    """

    def __init__(
        self,
        device: torch.device,
        choices: Choices,
        *,
        window_seconds: float,
        windows: int,
        least_seconds: float = 0.0,
        search: bool,
        say: Callable[[str], None],
    ) -> None:
        self._device, self._choices = device, choices
        self._window_seconds, self._windows, self._search, self._say = window_seconds, windows, search, say
        self._ends = time.perf_counter() + least_seconds
        images, labels = loops.random_images(loops.IMAGES, loops.CLASSES)
        self._images, self._labels = images, labels
        self._split = DeviceSplit(images, labels, padding=4, mean=loops.MEAN, std=loops.STD, device=device)
        self._energy = EnergyCounter(device)
        self._measurements = Measurements(device, choices.kept)

    def report(self, headline: Experiment, families: dict[str, Experiment]) -> Report:
        """Measure the loops on ``headline`` and every family.

        Args:
            families: by the name that the tables give them.
        """
        started = time.perf_counter()
        environment.make_deterministic()
        self._say("peak of matrix products and copies")
        peak = roofline.measured_peak(self._device)
        rows = self.networks(families, peak)
        sharing = self._sharing(headline)
        compared = self.compare_loops(headline)
        return {
            "schema": SCHEMA,
            "code": environment.code_state(),
            "environment": environment.describe(self._device),
            "settings": {"windows": self._windows, "window_seconds": self._window_seconds, "images": loops.IMAGES},
            "peak": peak,
            "vendor_peak": roofline.vendor_peak(environment.device_name(self._device)),
            "loops": compared,
            "families": rows,
            "sharing": sharing,
            "methods": Measurements(self._device, self._choices.kept).seconds,
            "seconds": time.perf_counter() - started,
        }

    def _sharing(self, experiment: Experiment) -> dict[str, float] | None:
        """How fast several processes are together on one GPU."""
        if self._device.type != "cuda" or not self._search:
            return None
        self._say("processes that share the GPU")
        torch.cuda.empty_cache()  # the memory is theirs now
        return shared_speeds(experiment.name, self._device, self._choices, seconds=SHARED_SECONDS)

    # ---- loops ---------------------------------------------------------------------------------------------------------

    def compare_loops(self, experiment: Experiment) -> Report:
        """Our loop beside the others, all in turns, at the recipe's batch size."""
        batch_size = experiment.recipe.batch_size
        execution = self._choose(experiment)
        flags = self._best_flags(experiment, units=execution.bf16 == "units")
        contenders: dict[str, loops.Steps] = {}
        most = 0  # bytes of one
        with ExitStack() as open_:
            for name, make in self._contenders(experiment, execution, flags, open_).items():
                left = memory_left(self._device)
                if left is not None and left < ROOM * most:
                    self._say(f"no more loops, for want of memory: {name} and those after it are left out")
                    break
                self._say(name)
                contenders[name] = make()
                contenders[name](WARM_UP + 2 if self._device.type == "cuda" else 2)  # plans, allocations, workers, a graph
                after = memory_left(self._device)
                most = max(most, left - after) if left is not None and after is not None else 0
            speeds = interleaved(
                contenders,
                images=dict.fromkeys(contenders, batch_size),
                device=self._device,
                window_seconds=self._window_seconds,
                windows=self._windows,
                least_seconds=self._ends - time.perf_counter(),
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
                if not (execution.compiled and one == OURS and other in PLAIN)
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
            return _in_mode(loop, on=False)

        def mine(execution: Execution, on: bool = True, experiment: Experiment = experiment, **without: bool) -> loops.Steps:
            split, classes = self._split, loops.CLASSES
            steps = loops.ours(experiment, split, execution, batch_size=batch_size, classes=classes, device=device, **without)
            return _in_mode(steps, on=on)

        def eager() -> loops.Steps:
            network = networks.build(experiment.model, classes=loops.CLASSES, seed=0)
            steps = loops.eager_on_device(network, self._split, batch_size=batch_size, device=device, flags=flags)
            return _in_mode(steps, on=False)

        def bare() -> loops.Steps:
            steps = loops.bare_step(experiment, execution, batch_size=batch_size, classes=loops.CLASSES, device=device)
            return _in_mode(steps, on=True)

        plain = replace(execution, compiled=False)
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
        if experiment.recipe.precision == "bf16" and execution.bf16 == "units":
            in_fp32 = replace(experiment, recipe=replace(experiment.recipe, precision="fp32"))
            variants[IN_FP32] = lambda: mine(replace(self._choose(in_fp32), compiled=False), experiment=in_fp32)
        if execution.depthwise:
            variants[REFERENCE_DEPTHWISE] = lambda: mine(replace(plain, depthwise={}))
        if execution.patches != "convolution":
            variants[REFERENCE_PATCHES] = lambda: mine(replace(plain, patches="convolution"))
        if execution.bf16 != "units" and self._search and self._measurements.bf16_slowdown() < MOST_SLOWDOWN:
            variants[LIBRARY_BF16] = lambda: mine(replace(plain, bf16="units"))
        if execution.cuda_graph:
            variants[NO_GRAPH] = lambda: mine(replace(execution, cuda_graph=False))
        if device.type == "cuda" and not execution.compiled and self._choices.compile != "off":
            variants[COMPILED] = lambda: mine(replace(execution, compiled=True))
        return variants

    def _best_flags(self, experiment: Experiment, *, units: bool) -> loops.Flags:
        """The fastest of the conventional loop's flags, by a few steps each; bf16 is tried where the device has units for it."""
        batch_size = experiment.recipe.batch_size

        def seconds(flags: loops.Flags) -> float:
            network = networks.build(experiment.model, classes=loops.CLASSES, seed=0)
            loop = _in_mode(
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

    # ---- networks ------------------------------------------------------------------------------------------------------

    def networks(self, experiments: dict[str, Experiment], peak: dict[str, float]) -> dict[str, Report]:
        """Training and inference of each network in our mode, all in turns, or as many at a time as the device has memory for."""
        rows: dict[str, Report] = {}
        waiting = dict(experiments)
        alone = memory_in_use(self._device)
        while waiting:
            entrants = self._entrants(waiting, alone)
            self._say("training, in turns")
            training = self._in_turns(entrants, {name: entrant.batch_size for name, entrant in entrants.items()})
            for name, entrant in entrants.items():
                rows[name] = self._row(experiments[name], entrant, training[name], peak)
            made = {name: entrant.execution for name, entrant in entrants.items()}
            del entrants  # their memory is needed now
            gc.collect()
            self._say("inference, in turns")
            batch_size = EVALUATION_BATCH[self._device.type]
            inference = {name: self._inference(experiments[name], execution) for name, execution in made.items()}
            for name, speeds in self._in_turns(inference, dict.fromkeys(inference, batch_size)).items():
                rows[name] |= {"inference_batch_size": batch_size, "inference_images_per_second": Spread.of(speeds).as_json()}
            del inference
            gc.collect()
            for name, execution in made.items():
                rows[name]["best_batch"] = self._best_batch(name, experiments[name], execution, rows[name])
        return {name: rows[name] for name in experiments}

    def _entrants(self, waiting: dict[str, Experiment], alone: int | None) -> dict[str, "_Entrant"]:
        """Make networks ready to train, as many as there is memory for, and take them out of ``waiting``.

        A capture that runs out of memory leaves CUDA in disorder, and a CPU's process may be killed, so there must be room ahead.

        Raises:
            RuntimeError: there is not enough memory for one.
        """
        entrants: dict[str, _Entrant] = {}
        while waiting:
            most = max((entrant.peak_memory_bytes or 0 for entrant in entrants.values()), default=0)
            left = memory_left(self._device)
            if left is not None and left < ROOM * most:
                break
            name, experiment = next(iter(waiting.items()))
            self._say(name)
            try:
                entrants[name] = self._entrant(experiment, alone)
            except Exception as error:
                if not entrants or not memory.ran_out(error):
                    raise
                break
            del waiting[name]
        return entrants

    def _entrant(self, experiment: Experiment, alone: int | None) -> "_Entrant":
        """A network that has done its first steps; its memory is what this process would have without the other networks."""
        device, batch_size = self._device, experiment.recipe.batch_size
        execution = self._choose(experiment)
        before = memory_in_use(device)
        step = loops.ours(experiment, self._split, execution, batch_size=batch_size, classes=loops.CLASSES, device=device)
        seconds = 0.0

        def warm() -> None:
            nonlocal seconds
            seconds = seconds_of(lambda: step(_cold(execution)), device)

        peak = warmed_up(warm, device)  # replaying a graph allocates nothing any more
        if peak is not None and before is not None and alone is not None:
            peak -= before - alone
        return _Entrant(step, execution, batch_size, seconds, peak, self._energy, device)

    def _row(self, experiment: Experiment, entrant: "_Entrant", speeds: list[float], peak: dict[str, float]) -> Report:
        precision, batch_size = experiment.recipe.precision, entrant.batch_size
        network = networks.build(experiment.model, classes=loops.CLASSES, seed=0)
        flops, training = training_flops(network), Spread.of(speeds)
        in_bf16 = precision == "bf16" and entrant.execution.bf16 == "units"
        least_bytes = roofline.least_bytes(network, batch_size, activation_bytes=2 if in_bf16 else 4)
        return {
            "experiment": experiment.name,
            "batch_size": batch_size,
            "precision": precision,
            "execution": entrant.execution.described(),
            "windows": len(speeds),
            "training_images_per_second": training.as_json(),
            "seconds_per_epoch": EPOCH / training.median,
            "roofline_seconds_per_epoch": roofline.least_seconds(flops * batch_size, least_bytes, peak, precision)
            * EPOCH
            / batch_size,
            "training_flops_per_image": flops,
            "flops_per_second": flops * training.median,
            "least_bytes_per_second": least_bytes * training.median / batch_size,
            "inference_flops_per_image": 2 * multiply_adds(network),
            "warm_up_seconds": entrant.warm_up_seconds,
            "peak_memory_bytes": entrant.peak_memory_bytes,
            "joules_per_1000_images": entrant.joules_per_1000_images,
        }

    def _inference(self, experiment: Experiment, execution: Execution) -> loops.Steps:
        batch_size = EVALUATION_BATCH[self._device.type]
        steps = loops.inference(experiment, execution, batch_size=batch_size, classes=loops.CLASSES, device=self._device)
        steps(1)
        return steps

    def _best_batch(self, name: str, experiment: Experiment, execution: Execution, row: Report) -> Report | None:
        """The batch size with the most images per second, of a few, not compiled; one too large for the memory ends the search.

        None where a step takes long: others would take a quarter of a minute for each network.
        """
        own, speed = row["batch_size"], row["training_images_per_second"]["median"]
        if not self._search or own / speed >= TOO_SLOW_TO_SEARCH:
            return None
        self._say(f"{name}, other batch sizes")
        speeds = {} if execution.compiled else {own: speed}
        execution = replace(execution, compiled=False)
        for batch_size in BATCH_SIZES[self._device.type]:
            if batch_size not in speeds:
                try:
                    speeds[batch_size] = self._once(experiment, execution, batch_size, speed)
                except Exception as error:
                    if not memory.ran_out(error):
                        raise
                    break
        if not speeds:  # not compiled, even the smallest batch is too large for the memory
            return None
        best = max(speeds, key=speeds.__getitem__)
        return {"batch_size": best, "training_images_per_second": speeds[best], "tried": sorted(speeds)}

    def _once(self, experiment: Experiment, execution: Execution, batch_size: int, expected: float) -> float:
        """Images per second in one window, at another batch size than the recipe's."""
        step = loops.ours(experiment, self._split, execution, batch_size=batch_size, classes=loops.CLASSES, device=self._device)
        step(_cold(execution))
        count = max(1, round(self._window_seconds * expected / batch_size))
        return batch_size * count / seconds_of(lambda: step(count), self._device)

    def _in_turns(self, contenders: Mapping[str, loops.Steps], images: Mapping[str, int]) -> dict[str, list[float]]:
        return interleaved(
            contenders, images=images, device=self._device, window_seconds=self._window_seconds, windows=self._windows
        )

    def _choose(self, experiment: Experiment) -> Execution:
        network = networks.build(experiment.model, classes=loops.CLASSES, seed=0)
        recipe = experiment.recipe
        steps = recipe.epochs * (EPOCH // recipe.batch_size)
        return choose(network, recipe.precision, self._device, self._choices, steps=steps)


@dataclass
class _Entrant:
    """A network that trains in turns with others; it counts the images and the energy of its turns."""

    step: loops.Steps
    execution: Execution
    batch_size: int
    warm_up_seconds: float
    peak_memory_bytes: int | None
    energy: EnergyCounter
    device: torch.device
    images: int = 0
    joules: float | None = 0.0

    def __call__(self, steps: int) -> None:
        """Do some steps."""
        before = self.energy.joules()
        self.step(steps)
        synchronize(self.device)
        after = self.energy.joules()
        self.images += steps * self.batch_size
        self.joules = None if self.joules is None or before is None or after is None else self.joules + after - before

    @property
    def joules_per_1000_images(self) -> float | None:
        """None where the device does not tell."""
        return None if self.joules is None else 1000 * self.joules / self.images


def _cold(execution: Execution) -> int:
    """Steps that are not yet as fast as all others: the first, or those up to the capture of the graph."""
    return WARM_UP + 1 if execution.cuda_graph else 1


def _in_mode(steps: loops.Steps, *, on: bool) -> loops.Steps:
    """The same steps, deterministic or not, whatever the process is set to."""

    def do(count: int) -> None:
        with loops.deterministic(on):
            steps(count)

    return do
