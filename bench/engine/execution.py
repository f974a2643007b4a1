"""How a run's steps are computed on this device: choices that change its speed, and its results by rounding alone.

Results are the same bit for bit within one mode only, so a run keeps the mode it began with (its checkpoint holds it), its record
names it, and what a choice was measured on is kept beside the ledger, so that the next run on this device makes the same choice.
"""

import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import Tensor, nn

from bench import machine, memory
from bench.engine import parity
from bench.engine.device_data import SIDE
from bench.engine.graphs import captured
from bench.engine.thresholds import BATCH, FASTER_BY
from bench.errors import UserError, found_in
from bench.experiment import Precision, canonical_json
from bench.leases import available_locks
from bench.ledger import write_bytes_atomically
from models.attention import AttentionLayer, AttentionMethod, ScaledDotProduct, attention_layers, compute_attention_by
from models.depthwise import Method, depthwise_maps, methods_for, triton_works, use_methods
from models.patches import PatchLayer, PatchMethod, compute_patches_by, patch_layers
from models.shapes import Call, calls

Switch = Literal["auto", "on", "off"]
Blocks = Literal["layers", "fused"]

TIMED = 7  # measurements of each method, after one that warms up; the shortest decides, for other work can only lengthen them
ENOUGH = 0.4  # seconds of them, after which a slow method (bf16 without units takes 0.4 s) is measured no more often
REPLAYED = 20  # of a graph in one measurement
METHODS = {"cpu": 4, "cuda": 5}  # counts the changes to what a method takes: what was measured before is measured again
AMPERE = 8, 0  # its compute capability
IMAGE_CHANNELS = 3  # what has no more of them is an image, which needs no gradient


@dataclass(frozen=True)
class Execution:
    """One mode. The default is the reference: plain PyTorch, step by step."""

    depthwise: Mapping[int, Method] = field(default_factory=dict)  # by the map's side; the rest are convolutions
    patches: PatchMethod = "convolution"  # what downsamples or embeds patches
    attention: AttentionMethod = "fused"
    bf16: Literal["units", "fp32"] = "units"  # what a recipe's bf16 is computed in: the processor's own arithmetic, or fp32
    compiled: bool = False
    cuda_graph: bool = False
    blocks: Blocks = "layers"  # or "fused": in few kernels, whatever the methods of their layers are

    def precision(self, device: torch.device, precision: Precision) -> AbstractContextManager[None]:
        """Within it, a forward pass computes in the recipe's precision, or in fp32 for a bf16 that is no faster here."""
        lower = precision == "bf16" and self.bf16 == "units"
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower)

    def use_in(self, network: nn.Module) -> None:
        """Let a network's layers compute in the mode, in place; it lies on the device where it will compute."""
        if self.blocks == "fused":
            _fuse(network)
            return
        use_methods(network, self.depthwise)
        compute_patches_by(network, self.patches)
        compute_attention_by(network, self.attention)

    def described(self) -> dict[str, Any]:
        """The mode in a record's words."""
        methods = ", ".join(f"{side}x{side} {method}" for side, method in sorted(self.depthwise.items()))
        words = asdict(self) | {"depthwise": methods or "convolution"}
        if self.blocks == "fused":
            return words | {"depthwise": "fused", "patches": "fused", "attention": "fused"}
        del words["blocks"]  # as in records from before there was a choice
        return words


def _fuse(network: nn.Module) -> None:
    from models.fused import fuse  # here: Triton is not on every system

    fuse(network)


@dataclass(frozen=True)
class Choices:
    """What the user leaves to measurement (``auto``) and what not."""

    depthwise: Literal["auto", "reference"] = "auto"
    compile: Switch = "auto"
    cuda_graph: Switch = "auto"
    kept: Path | None = None  # the file of earlier measurements; None: measure anew


# From how many steps of a run compilation has paid for its own warm-up; None: it does not. Two CPU cores: a minute or more of
# compiling for steps that are no faster, the methods above on: in bf16 with units 0.99 (ConvNeXt-Tiny), 1.03 (its CIFAR stem), 1.00
# (ViT-Tiny) and 0.96 (Mixer-Tiny) of the eager speed, in fp32 0.9 to 1.0 (ConvNeXt-Tiny).
# An H100, where blocks cannot be fused: half a minute for ConvNeXt-Tiny's blocks, five seconds for ViT's, once for all runs of a
# process, and a third off every step of 3 to 7 ms. One run alone of the study's shortest, 7,800 steps, loses some seconds by it.
COMPILE_FROM_STEPS: dict[str, int | None] = {"cpu": None, "cuda": 5_000}


def choose(network: nn.Module, precision: Precision, device: torch.device, choices: Choices, *, steps: int) -> Execution:
    """Choose the mode for a run.

    Args:
        network: on any device; it is not changed.
        steps: optimizer steps of the whole run.

    Raises:
        UserError: the file of measurements cannot be read or written, or a switch asks for what the device has not.
    """
    if choices.cuda_graph == "on" and device.type != "cuda":
        raise UserError(f"CUDA_GRAPH=on: expected a CUDA device, found {device.type}; set CUDA_GRAPH=auto")
    measured = Measurements(device, choices.kept)
    bf16 = measured.bf16() if precision == "bf16" else "units"
    methods: dict[int, Method] = {}
    patches: PatchMethod = "convolution"
    attention: AttentionMethod = "fused"
    arithmetic: Precision = "fp32" if bf16 == "fp32" else precision
    seen = layers_of(network) if choices.depthwise == "auto" else []
    if choices.depthwise == "auto":
        patches = measured.patches(patch_layers(seen), arithmetic)
        attention = measured.attention(attention_layers(seen), arithmetic)
        for side, width in sorted(depthwise_maps(seen)):
            if (method := measured.depthwise(side, width, arithmetic)) != "convolution":
                methods[side] = method
    execution = Execution(
        depthwise=methods,
        patches=patches,
        attention=attention,
        bf16=bf16,
        cuda_graph=device.type == "cuda" and choices.cuda_graph != "off",
    )
    if choices.depthwise == "auto" and choices.compile != "on" and measured.blocks(network, seen, execution, arithmetic) == "fused":
        return replace(execution, blocks="fused")
    pays_from = COMPILE_FROM_STEPS[device.type]
    pays = pays_from is not None and steps >= pays_from
    return replace(execution, compiled=choices.compile == "on" or (choices.compile == "auto" and pays))


def layers_of(network: nn.Module) -> list[Call]:
    """The layers that may be computed in several ways, with the shapes of their maps; it takes a forward pass of one image."""
    return calls(network, nn.Conv2d, ScaledDotProduct, side=SIDE)


class Measurements:
    """Seconds of each alternative on this device, measured once and kept in a file.

    Args:
        kept: the file; None keeps them for this object alone.

    Raises:
        UserError: the file is no such file.
    """

    def __init__(self, device: torch.device, kept: Path | None) -> None:
        self._device = device
        self._kept = kept
        on_cpu = f", {machine.instructions(device)}, {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        self._machine = f"{machine.device_name(device)}{on_cpu}, torch {torch.__version__}, methods {METHODS[device.type]}"
        self._seconds: dict[str, dict[str, float]] = self._read().get(self._machine, {})

    @property
    def seconds(self) -> dict[str, dict[str, float]]:
        """Of each alternative for each layer, forward and backward, as far as they were measured."""
        return self._seconds

    def bf16(self) -> Literal["units", "fp32"]:
        """What to compute bf16 in. A GPU has units for it, from NVIDIA's Ampere on.

        Of a CPU neither its name nor its flags decide: libraries emulate what it lacks, instruction by instruction, and a Xeon
        whose virtual machine shows ``avx512_bf16`` and hides AMX multiplies 85 GFLOP/s a core with that, 172 in fp32. So does CUDA
        on older GPUs.
        """
        return "fp32" if self.bf16_slowdown() > FASTER_BY[self._device.type] else "units"

    def bf16_slowdown(self) -> float:
        """How many times as long as in fp32 a linear layer's two passes take in bf16; 0 where nobody needs to ask."""
        if self._device.type == "cuda" and torch.cuda.get_device_capability(self._device) >= AMPERE:
            return 0.0

        def times() -> dict[str, float]:
            layer = nn.Linear(384, 1536).to(self._device)
            forward = partial(layer, torch.randn(4 * BATCH, 384, device=self._device, requires_grad=True))
            return self._in_turns({"units": self._passes(forward, "bf16"), "fp32": self._passes(forward, "fp32")})

        seconds = self._once("bf16", ("units", "fp32"), times)
        return seconds["units"] / seconds["fp32"]

    def depthwise(self, side: int, width: int, precision: Precision) -> Method:
        """The method for 7x7 depthwise convolutions of ``width`` channels on maps of ``side``."""
        candidates = methods_for(side, self._device)
        if len(candidates) == 1:
            return candidates[0]

        def times() -> dict[str, float]:
            x = torch.randn(BATCH, width, side, side, device=self._device).to(memory_format=torch.channels_last).requires_grad_()
            ways: dict[str, Callable[[], None]] = {}
            for method in candidates:
                convolution = nn.Conv2d(width, width, 7, padding=3, groups=width).to(self._device)
                use_methods(convolution, {side: method})
                ways[method] = self._passes(partial(convolution, x), precision)
            return self._in_turns(ways)

        seconds = self._once(f"depthwise {side}x{side}x{width} {precision}", candidates, times)
        chosen: Method = "convolution"
        for method in candidates:
            if seconds[method] * FASTER_BY[self._device.type] < seconds[chosen]:
                chosen = method
        return chosen

    def patches(self, layers: Set[PatchLayer], precision: Precision) -> PatchMethod:
        """The method for all of a network's convolutions over patches: the faster one in sum."""
        seconds = {"convolution": 0.0, "matrix": 0.0}
        for layer in sorted(layers):
            key = f"patches {layer.patch}x{layer.patch} of {layer.side}x{layer.side}x{layer.channels} to {layer.width} {precision}"
            its_seconds = self._once(key, tuple(seconds), partial(self._of_patches, layer, precision))
            for method in seconds:
                seconds[method] += its_seconds[method]
        return "matrix" if seconds["matrix"] * FASTER_BY[self._device.type] < seconds["convolution"] else "convolution"

    def _of_patches(self, layer: PatchLayer, precision: Precision) -> dict[str, float]:
        x = torch.randn(BATCH, layer.channels, layer.side, layer.side, device=self._device).to(memory_format=torch.channels_last)
        x.requires_grad_(layer.channels > IMAGE_CHANNELS)
        ways: dict[str, Callable[[], None]] = {}
        methods: tuple[PatchMethod, ...] = ("convolution", "matrix")
        for method in methods:
            convolution = nn.Conv2d(layer.channels, layer.width, layer.patch, stride=layer.patch).to(self._device)
            convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            compute_patches_by(convolution, method)
            ways[method] = self._passes(partial(convolution, x), precision)
        return self._in_turns(ways)

    def attention(self, layers: Set[AttentionLayer], precision: Precision) -> AttentionMethod:
        """The method for all of a network's self-attention: the faster one in sum; a GPU keeps the fused operator."""
        if self._device.type != "cpu":
            return "fused"
        seconds = {"fused": 0.0, "products": 0.0}
        for layer in sorted(layers):
            key = f"attention {layer.tokens} tokens, {layer.heads} x {layer.width} {precision}"
            its_seconds = self._once(key, tuple(seconds), partial(self._of_attention, layer, precision))
            for method in seconds:
                seconds[method] += its_seconds[method]
        return "products" if seconds["products"] * FASTER_BY[self._device.type] < seconds["fused"] else "fused"

    def _of_attention(self, layer: AttentionLayer, precision: Precision) -> dict[str, float]:
        tokens, heads, width = layer
        qkv = torch.randn(BATCH, tokens, 3, heads, width, device=self._device)  # as one linear layer gives them
        qkv = (qkv.bfloat16() if precision == "bf16" else qkv).requires_grad_()

        def mixed(mixing: ScaledDotProduct) -> Tensor:
            mixture: Tensor = mixing(*qkv.permute(2, 0, 3, 1, 4).unbind())
            return mixture

        ways: dict[str, Callable[[], None]] = {}
        methods: tuple[AttentionMethod, ...] = ("fused", "products")
        for method in methods:
            mixing = ScaledDotProduct()
            mixing.method = method
            ways[method] = self._passes(partial(mixed, mixing), precision)
        return self._in_turns(ways)

    def blocks(self, network: nn.Module, seen: Sequence[Call], layers: Execution, precision: Precision) -> Blocks:
        """How to compute the blocks of ``network``, by both passes through all of it; on a CPU, layer by layer.

        Args:
            seen: from :func:`layers_of`.
            layers: the mode to compute the layers in.
        """
        if self._device.type != "cuda" or not triton_works():
            return "layers"
        # stems and heads change no count of parameters
        maps = "".join(f", {side}x{side}" for side, _ in sorted(depthwise_maps(seen)))
        attention = "".join(f", {tokens} tokens {heads} x {width}" for tokens, heads, width in sorted(attention_layers(seen)))
        numbers = sum(parameter.numel() for parameter in network.parameters())
        key = f"blocks of {type(network).__name__}{maps}{attention}, {numbers:,} parameters {precision}"
        try:
            seconds = self._once(key, ("layers", "fused"), partial(self._of_blocks, network, layers, precision))
        except Exception as error:
            if isinstance(error, UserError) or memory.ran_out(error) or not machine.answers(self._device):
                raise
            warnings.warn(f"the blocks are computed layer by layer, fused they fail on this GPU: {error}", stacklevel=2)
            return "layers"
        return "fused" if seconds["fused"] * FASTER_BY["cuda"] < seconds["layers"] else "layers"

    def _of_blocks(self, network: nn.Module, layers: Execution, precision: Precision) -> dict[str, float]:
        images = torch.randn(BATCH, IMAGE_CHANNELS, SIDE, SIDE, device=self._device)
        images = images.to(memory_format=torch.channels_last)

        def own(mode: Execution) -> nn.Module:
            mine = copy.deepcopy(network).to(device=self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            mode.use_in(mine)
            return mine  # type: ignore[no-any-return]

        fused = own(replace(layers, blocks="fused"))
        within, lowest = Execution().precision(self._device, precision), torch.bfloat16 if precision == "bf16" else torch.float32
        if not parity.fused_blocks_agree(fused, own(Execution()), images, within, lowest):
            raise RuntimeError("their gradients are not the layers'")
        ways = {"layers": own(layers), "fused": fused}
        pool = torch.cuda.graph_pool_handle()  # in turns they need no more than the larger of them, as a run does
        return self._in_turns({name: self._passes(partial(way.eval(), images), precision, pool) for name, way in ways.items()})

    def _once(self, key: str, ways: Collection[str], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        if key not in self._seconds:
            with self._alone():
                self._seconds |= self._read().get(self._machine, {})  # what another process has measured meanwhile
                if key not in self._seconds:
                    self._seconds[key] = measure()
                    self._keep()
        seconds = self._seconds[key]
        if not all(0 < seconds.get(way, 0.0) < math.inf for way in ways):
            raise self._damaged(f"seconds of {' and '.join(ways)} for {key}, found {seconds}")
        return seconds

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within it, no other process measures for the same file: all runs of a ledger make the same choice, of quiet times."""
        if self._kept is None:
            yield
            return
        lock = FileLock(self._kept.with_suffix(".lock"), fallback_to_soft=False)
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            with available_locks():
                lock.acquire()
        except OSError as error:
            raise UserError(
                f"{self._kept.parent}: cannot be written ({error.strerror}); choose another folder with RESULTS="
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _keep(self) -> None:
        if self._kept is None:
            return
        everything = self._read()
        self._seconds = everything.get(self._machine, {}) | self._seconds
        write_bytes_atomically(self._kept, canonical_json(everything | {self._machine: self._seconds}).encode())

    def _read(self) -> dict[str, dict[str, dict[str, float]]]:
        if self._kept is None:
            return {}
        try:
            if not self._kept.exists():
                return {}
            content = json.loads(self._kept.read_bytes())
            return {
                where: {key: {name: float(value) for name, value in seconds.items()} for key, seconds in by_key.items()}
                for where, by_key in content.items()
            }
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(f"measurements in JSON, found {found_in(error)}") from error

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self._kept}: expected {reason}; delete the file to measure again")

    def _passes(self, forward: Callable[[], Tensor], precision: Precision, pool: Any = None) -> Callable[[], None]:
        """A forward and a backward pass; on CUDA within a graph, as a step is: launches would hide the kernels.

        Args:
            pool: memory for the graph.
        """

        def compute() -> None:
            with Execution().precision(self._device, precision):
                y = forward()
            y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]

        return captured(compute, pool) if self._device.type == "cuda" else compute

    def _in_turns(self, ways: Mapping[str, Callable[[], None]]) -> dict[str, float]:
        """The shortest seconds of each way to do the same work; they take turns, so that a burst of other work falls on all."""
        times = REPLAYED if self._device.type == "cuda" else 1

        def once(way: str) -> float:
            self._synchronize()
            started = time.perf_counter()
            for _ in range(times):
                ways[way]()
            self._synchronize()
            return (time.perf_counter() - started) / times

        for way in ways:
            once(way)
        seconds = {way: [once(way)] for way in ways}
        while due := [way for way, its in seconds.items() if len(its) < TIMED and sum(its) < ENOUGH]:
            for way in due:
                seconds[way].append(once(way))
        return {way: min(its) for way, its in seconds.items()}

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
