"""Images per second of every model family, and of our loop beside the one that a user would write.

Everything is measured on images of noise: no speed depends on what is seen, and no data set is needed. Training rows train every
parameter. The result is one JSON value per device, for ``results/throughput/``.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import environment, machine, memory
from bench.engine import network as networks
from bench.engine.evaluate import BATCH as EVALUATION_BATCH
from bench.engine.execution import Choices, Execution, Measurements
from bench.engine.graphs import WARM_UP
from bench.experiment import Experiment
from bench.measure import loops, roofline
from bench.measure.comparison import Comparison
from bench.measure.contents import THROUGHPUT_SCHEMA
from bench.measure.cost import multiply_adds, training_flops
from bench.measure.energy import EnergyCounter
from bench.measure.sharing import shared_speeds
from bench.measure.timing import Spread, has_room, interleaved, memory_in_use, seconds_of, warmed_up

BATCH_SIZES = {"cpu": (64, 128, 256), "cuda": (128, 512, 2048)}

TOO_SLOW_TO_SEARCH = 3.0  # seconds of a step
# Seconds after the beginning from which no further turn begins and no other batch size is tried. They decide on two slow cores
# alone, where a turn of training or of inference is 45 seconds, and the loops need four of the ten minutes.
TRAINING_ENDS, INFERENCE_ENDS, SEARCH_ENDS = 200.0, 290.0, 340.0
ENERGY_SECONDS = 2.0  # of training while the energy is counted, which the driver does some ten times a second
SHARED_SECONDS = 5.0  # that processes train together

Report = dict[str, Any]


class Bench:
    """The measurements of one device.

    Args:
        choices: how the user wants steps to be computed.
        window_seconds: about how long one turn of one contender lasts.
        windows: turns of each contender; of the networks two at least, more only while there is time (``TRAINING_ENDS``).
        least_seconds: of everything; the loops come last and take turns until then.
        search: whether to look for each family's best batch size, and to compare the loops that take long or begin slowly.
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
        self._began, self._least_seconds = time.perf_counter(), least_seconds
        self._split = loops.random_split(device)
        self._energy = EnergyCounter(device)

    def report(self, headline: Experiment, families: dict[str, Experiment]) -> Report:
        """Measure the loops on ``headline`` and every family.

        Args:
            families: by the name that the tables give them.
        """
        started = time.perf_counter()
        machine.make_deterministic()
        self._say("peak of matrix products and copies")
        peak = roofline.measured_peak(self._device)
        rows = self.networks(families, peak)
        sharing = self._sharing(headline)
        comparison = Comparison(self._device, self._choices, search=self._search, say=self._say)
        ends = self._began + self._least_seconds
        compared = comparison.of(headline, window_seconds=self._window_seconds, windows=self._windows, ends=ends)
        return {
            "schema": THROUGHPUT_SCHEMA,
            "code": environment.code_state(),
            "environment": machine.describe(self._device),
            "settings": {"windows": self._windows, "window_seconds": self._window_seconds, "images": loops.IMAGES},
            "peak": peak,
            "vendor_peak": roofline.vendor_peak(machine.device_name(self._device)),
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

    def networks(self, experiments: dict[str, Experiment], peak: dict[str, float]) -> dict[str, Report]:
        """Training and inference of each network in our mode, all in turns, or as many at a time as the device has memory for."""
        rows: dict[str, Report] = {}
        waiting = dict(experiments)
        alone = memory_in_use(self._device)
        while waiting:
            entrants = self._entrants(waiting, alone)
            self._say("training, in turns")
            training = self._in_turns(
                {name: entrant.step for name, entrant in entrants.items()},
                {name: entrant.batch_size for name, entrant in entrants.items()},
                ends=TRAINING_ENDS,
            )
            for name, entrant in entrants.items():
                rows[name] = self._row(experiments[name], entrant, training[name], peak)
                rows[name]["joules_per_1000_images"] = self._joules(entrant, rows[name]["training_images_per_second"]["median"])
            made = {name: entrant.execution for name, entrant in entrants.items()}
            del entrants, entrant  # their memory is needed now
            gc.collect()
            self._say("inference, in turns")
            batch_size = EVALUATION_BATCH[self._device.type]
            inference = {name: self._inference(experiments[name], execution) for name, execution in made.items()}
            for name, speeds in self._in_turns(inference, dict.fromkeys(inference, batch_size), ends=INFERENCE_ENDS).items():
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
            if not has_room(self._device, most):
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
        execution = loops.execution_of(experiment, self._device, self._choices)
        before = memory_in_use(device)
        step = loops.ours(experiment, self._split, execution, batch_size=batch_size, classes=loops.CLASSES, device=device)
        seconds = 0.0

        def warm() -> None:
            nonlocal seconds
            seconds = seconds_of(lambda: step(_cold(execution)), device)

        peak = warmed_up(warm, device)  # replaying a graph allocates nothing any more
        if peak is not None and before is not None and alone is not None:
            peak -= before - alone
        return _Entrant(step, execution, batch_size, seconds, peak)

    def _joules(self, entrant: "_Entrant", speed: float) -> float | None:
        """Energy of 1,000 images in training, from a window of its own: reading the counter takes milliseconds.

        Args:
            speed: images per second.
        """
        count = max(1, round(ENERGY_SECONDS * speed / entrant.batch_size))
        before = self._energy.joules()
        if before is None:
            return None
        seconds_of(lambda: entrant.step(count), self._device)
        after = self._energy.joules()
        return None if after is None else 1000 * (after - before) / (count * entrant.batch_size)

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
            "seconds_per_epoch": loops.EPOCH / training.median,
            "roofline_seconds_per_epoch": roofline.least_seconds(flops * batch_size, least_bytes, peak, precision)
            * loops.EPOCH
            / batch_size,
            "training_flops_per_image": flops,
            "flops_per_second": flops * training.median,
            "least_bytes_per_second": least_bytes * training.median / batch_size,
            "inference_flops_per_image": 2 * multiply_adds(network),
            "warm_up_seconds": entrant.warm_up_seconds,
            "peak_memory_bytes": entrant.peak_memory_bytes,
        }

    def _inference(self, experiment: Experiment, execution: Execution) -> loops.Steps:
        batch_size = EVALUATION_BATCH[self._device.type]
        steps = loops.inference(experiment, execution, batch_size=batch_size, classes=loops.CLASSES, device=self._device)
        if self._device.type == "cuda":  # on two cores the first is as fast as the others
            steps(1)
        return steps

    def _best_batch(self, name: str, experiment: Experiment, execution: Execution, row: Report) -> Report | None:
        """The batch size with the most images per second, of a few, not compiled; one too large for the memory ends the search.

        None where a step takes long, for others would take a quarter of a minute for each network, and where time is short.
        """
        own, speed = row["batch_size"], row["training_images_per_second"]["median"]
        if not self._search or own / speed >= TOO_SLOW_TO_SEARCH or self._passed() > SEARCH_ENDS:
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
        gc.collect()  # a network is a cycle, and the last one holds its memory until then
        step = loops.ours(experiment, self._split, execution, batch_size=batch_size, classes=loops.CLASSES, device=self._device)
        step(_cold(execution))
        count = max(1, round(self._window_seconds * expected / batch_size))
        return batch_size * count / seconds_of(lambda: step(count), self._device)

    def _in_turns(self, contenders: Mapping[str, loops.Steps], images: Mapping[str, int], *, ends: float) -> dict[str, list[float]]:
        return interleaved(
            contenders,
            images=images,
            device=self._device,
            window_seconds=self._window_seconds,
            windows=self._windows,
            most_seconds=ends - self._passed(),
        )

    def _passed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began


@dataclass(frozen=True)
class _Entrant:
    """A network that trains in turns with others."""

    step: loops.Steps
    execution: Execution
    batch_size: int
    warm_up_seconds: float
    peak_memory_bytes: int | None


def _cold(execution: Execution) -> int:
    """Steps that are not yet as fast as all others: the first, or those up to the capture of the graph."""
    return WARM_UP + 1 if execution.cuda_graph else 1
