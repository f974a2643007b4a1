"""One training step, from the choice of its images to the update, without a word between host and device.

All that changes from step to step lies in tensors on the device: the step's number, the epoch's draws and learning rates, the sums
of losses and hits. So every step is the same sequence of kernels, which CUDA can record once and launch as one.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.engine import graphs, ranks
from bench.engine.compiling import compile_blocks
from bench.engine.device_data import DeviceSplit, Draws
from bench.engine.execution import Execution
from bench.experiment import Recipe
from models.stochastic_depth import give_factors, rates


class TrainingStep:
    """The step of one phase of a run: as long as the same parameters train.

    Args:
        network: on the device, with ``requires_grad`` set for the phase.
        optimizer: over the network's parameters; each group has a ``peak_lr``.
        split: the images to train on.
        steps: in an epoch.

    Attributes:
        blocks: how many blocks of the network have stochastic depth: the draws of an epoch say when they are left out.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        split: DeviceSplit,
        recipe: Recipe,
        execution: Execution,
        *,
        steps: int,
    ) -> None:
        self._optimizer, self._split, self._recipe, self._execution = optimizer, split, recipe, execution
        share = recipe.batch_size // ranks.size()  # of this process: a slice of each batch
        self._device = device = split.labels.device
        if execution.compiled:
            compile_blocks(network)
        self._rates = torch.tensor(rates(network), device=device)
        self.blocks = len(self._rates)
        self._depth = torch.ones(self.blocks, share, device=device)
        give_factors(network, self._depth)
        self._network = ranks.averaging(network)
        self._captures = execution.cuda_graph and ranks.size() == 1
        self._draws: Draws | None = None
        self._offsets = ranks.rank() * share + torch.arange(share, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        # fused AdamW reads float32 rates on CUDA; the CPU's takes the full precision of the schedule
        precision = torch.float64 if device.type == "cpu" else torch.float32
        self._factors = torch.zeros(steps, dtype=precision, device=device)
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=precision, device=device)
        # the fused optimizer leaves everything as it is while this is not zero: nothing after a bad loss touches the weights
        self._not_finite = torch.zeros((), device=device)
        optimizer.found_inf, optimizer.grad_scale = self._not_finite, None  # type: ignore[attr-defined]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._aside = torch.cuda.Stream(device) if self._captures else None  # type: ignore[no-untyped-call]
        self._launched = 0

    def begin_epoch(self, draws: Draws, factors: list[float]) -> None:
        """Take an epoch's choices, and the factor on the peak learning rates at each of its steps."""
        if self._draws is None:
            self._draws = draws
        else:  # into the same memory, where a captured graph looks for them
            for kept, new in zip(vars(self._draws).values(), vars(draws).values(), strict=True):
                kept.copy_(new)
        self._factors.copy_(torch.tensor(factors, dtype=torch.float64))
        for sum_ in (self._step, self._loss_sum, self._correct):
            sum_.zero_()

    def __call__(self) -> None:
        """Queue the epoch's next step."""
        if not self._captures:
            self._compute()
        elif self._launched < graphs.WARM_UP:  # real steps, launched kernel by kernel
            graphs.aside(self._compute, self._device, stream=self._aside)
        else:
            self._graph = self._graph or graphs.capture(self._compute)
            self._graph.replay()
        self._launched += 1

    def end_epoch(self) -> tuple[float, int]:
        """Wait for the device; return the mean loss over the epoch's images, with smoothing, and how many were right.

        The loss is not finite if that of any step was not.
        """
        steps = int(self._step.item())
        if self._not_finite.item():
            return math.nan, 0
        return self._loss_sum.item() / steps, int(self._correct.item())

    def partial(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch needs to go on from here, beside network and optimizer."""
        return {
            "step": self._step.clone(),
            "loss_sum": self._loss_sum.clone(),
            "correct": self._correct.clone(),
        }

    def go_on(self, partial: dict[str, Any]) -> int:
        """Continue the epoch that has just begun from :meth:`partial`; return how many of its steps are done."""
        self._step.copy_(partial["step"])
        self._loss_sum.copy_(partial["loss_sum"])
        self._correct.copy_(partial["correct"])
        return int(self._step.item())

    def _compute(self) -> None:
        assert self._draws is not None, "begin_epoch comes first"
        places = self._step * self._recipe.batch_size + self._offsets
        images, labels = self._split.augmented(self._draws, places)
        if self.blocks:
            kept_NK = self._draws.depth[places] >= self._rates
            self._depth.copy_((kept_NK / (1 - self._rates)).t())
        factor = self._factors.index_select(0, self._step).squeeze()
        for group in self._optimizer.param_groups:
            group["lr"].copy_(factor * group["peak_lr"])
        with self._execution.precision(self._device, self._recipe.precision):
            logits: Tensor = self._network(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self._recipe.label_smoothing)
        self._not_finite.copy_(torch.maximum(self._not_finite, ranks.total((~torch.isfinite(loss.detach())).float())))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._loss_sum += ranks.mean(loss.detach())
        self._correct += ranks.total((logits.detach().argmax(1) == labels).sum())
        self._step += 1
