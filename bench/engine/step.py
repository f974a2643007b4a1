"""One training step, from the choice of its images to the update, without a word between host and device.

All that changes from step to step lies in tensors on the device: the step's number, the sums of losses and hits, and the epoch's
plan, laid out before it begins with a row for each step, so that a step takes one row of each of its tensors and computes nothing
that could be known before. So every step is the same sequence of kernels, which CUDA can record once and launch as one.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.engine import graphs, ranks
from bench.engine.compiling import compile_blocks
from bench.engine.device_data import DeviceSplit, Draws
from bench.engine.execution import Execution
from bench.engine.optimizer import updates_beside
from bench.experiment import Recipe
from models.beside import beside
from models.stochastic_depth import give_factors, rates


class _Plan(NamedTuple):
    """An epoch, step by step: S steps, B images of each in this process, K blocks with stochastic depth, G parameter groups."""

    images: Tensor  # [S, B, H + W + 1], of DeviceSplit.located
    depth: Tensor  # [S, K, B], what to multiply the branches by
    learning_rates: Tensor  # [S, G]


class TrainingStep:
    """The step of one phase of a run: as long as the same parameters train.

    Args:
        network: on the device, with ``requires_grad`` set for the phase.
        optimizer: over the network's parameters; each group has a ``peak_lr``.
        split: the images to train on.
        steps: in an epoch; as many batches are in the split.

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
        assert steps * recipe.batch_size <= len(split), "an epoch sees no image twice"
        self._optimizer, self._split, self._recipe, self._execution = optimizer, split, recipe, execution
        self._steps, self._share = steps, recipe.batch_size // ranks.size()  # of this process: a slice of each batch
        self._device = device = split.labels.device
        if execution.compiled:
            compile_blocks(network)
        self._rates = torch.tensor(rates(network), device=device)
        self.blocks = len(self._rates)
        self._depth = torch.ones(1, self.blocks, self._share, device=device)
        give_factors(network, self._depth[0])
        self._network = ranks.averaging(network)
        self._captures = execution.cuda_graph and ranks.size() == 1
        self._plan: _Plan | None = None
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        # fused AdamW reads float32 rates on CUDA; the CPU's takes the full precision of the schedule
        precision = torch.float64 if device.type == "cpu" else torch.float32
        self._peaks = torch.tensor([group["peak_lr"] for group in optimizer.param_groups], dtype=torch.float64)
        self._learning_rates = torch.zeros(1, len(self._peaks), dtype=precision, device=device)
        for group, learning_rate in zip(optimizer.param_groups, self._learning_rates[0], strict=True):
            group["lr"] = learning_rate
        # the fused optimizer leaves everything as it is while this is not zero: nothing after a bad loss touches the weights
        self._not_finite = torch.zeros((), device=device)
        optimizer.found_inf, optimizer.grad_scale = self._not_finite, None  # type: ignore[attr-defined]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._launched = 0

    def begin_epoch(self, draws: Draws, factors: Sequence[float]) -> None:
        """Take an epoch's choices, and the factor on the peak learning rates at each of its steps."""
        kept_NK = draws.depth >= self._rates
        plan = _Plan(
            images=self._of_steps(self._split.located(draws)),
            depth=self._of_steps(kept_NK / (1 - self._rates)).mT.contiguous(),
            learning_rates=(torch.tensor(factors, dtype=torch.float64)[:, None] * self._peaks).to(self._learning_rates),
        )
        if self._plan is None:
            self._plan = plan
        else:  # into the same memory, where a captured graph looks for it
            for kept, new in zip(self._plan, plan, strict=True):
                kept.copy_(new)
        for sum_ in (self._step, self._loss_sum, self._correct):
            sum_.zero_()

    def _of_steps(self, of_images: Tensor) -> Tensor:
        """``[N, ...]`` in the epoch's order as ``[S, B, ...]``: this process's images of each step."""
        used = of_images[: self._steps * self._recipe.batch_size]
        return used.view(self._steps, ranks.size(), self._share, *used.shape[1:])[:, ranks.rank()].contiguous()

    def __call__(self) -> None:
        """Queue the epoch's next step."""
        if not self._captures:
            self._compute()
        elif self._launched < graphs.WARM_UP:  # real steps, launched kernel by kernel
            graphs.aside(self._compute)
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
        assert self._plan is not None, "begin_epoch comes first"
        self._optimizer.zero_grad(set_to_none=True)  # first, so that activations have the gradients' memory
        images, labels = self._split.batch(self._plan.images, self._step)
        torch.index_select(self._plan.depth, 0, self._step, out=self._depth)
        with self._execution.precision(self._device, self._recipe.precision):
            logits: Tensor = self._network(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self._recipe.label_smoothing)
        with updates_beside(self._optimizer, self._device, on=self._captures):
            beside(lambda: self._note(logits.detach(), labels, loss.detach()), (logits, labels, loss))
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._step += 1

    def _note(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """What the update needs, and what the epoch's end reads."""
        assert self._plan is not None
        torch.index_select(self._plan.learning_rates, 0, self._step, out=self._learning_rates)
        bad = loss * 0 != 0  # infinite or not a number: fewer kernels than torch.isfinite has
        torch.logical_or(self._not_finite, ranks.total(bad.float()), out=self._not_finite)  # 1 exactly, as the optimizer expects
        self._loss_sum += ranks.mean(loss)
        self._correct += ranks.total((logits.argmax(1) == labels).sum())
