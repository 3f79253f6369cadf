"""Optimizer step over one or several mini-batches, with the same result in one process and in many.

Legend: N images in a mini-batch, H, W their size.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pspnet.data.loader import Batch
from pspnet.errors import NonFiniteLossError
from pspnet.system.distributed import Processes
from pspnet.system.precision import Precision
from pspnet.training.optimization.ema import ExponentialMovingAverage
from pspnet.training.optimization.losses import loss_weight
from pspnet.training.optimization.optimizer import is_fused, load_optimizer_state
from pspnet.training.performance.prefetch import split_batch, to_device
from pspnet.training.performance.readback import Readback

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class StepResult:
    """Result of one step: the loss over all processes, and whether one of them asked to stop."""

    loss: float
    stop: bool


@dataclass(frozen=True)
class _StepNumbers:
    """Numbers read back from a step; `part_losses` are the losses of this process's parts."""

    loss: float
    nonfinite: float
    stops: float
    norm: float
    part_losses: tuple[float, ...]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> _StepNumbers:
        loss, nonfinite, stops, norm, *part_losses = numbers
        return cls(loss, nonfinite, stops, norm, tuple(part_losses))


class TrainingStep:
    """Forward pass, backward pass and optimizer step.

    The gradient is that of the mean loss over all scored pixels of all mini-batches in all processes: each mini-batch's
    mean is weighted by its fraction of these pixels. So accumulation and data parallelism only change the batch
    statistics of batch norm.

    On a GPU steps are deferred: the host queues the next step before it reads the results of the previous one (async
    readback), so the device never waits for the host.

    Args:
        model: the network, possibly compiled or wrapped for data parallelism.
        criterion: (outputs, targets) -> scalar mean loss.
        class_weights: the loss's class weights, which also weight the mini-batches.
        max_norm: largest gradient norm; 0 for no clipping.
        micro_batch_size: largest number of images in a forward pass; larger mini-batches are split. None: no limit.
        deferred: whether steps are deferred; by default on GPUs.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: Precision,
        processes: Processes,
        class_weights: torch.Tensor | None = None,
        max_norm: float = 0.0,
        ema: ExponentialMovingAverage | None = None,
        channels_last: bool = True,
        seed: int = 0,
        micro_batch_size: int | None = None,
        deferred: bool | None = None,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.device = device
        self.precision = precision
        self.processes = processes
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.max_norm = max_norm
        self.ema = ema
        self.channels_last = channels_last
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.deferred = device.type == "cuda" if deferred is None else deferred
        self.scaler: Any = build_scaler(precision.scale_loss)
        self._pending: deque[tuple[Readback, list[list[str]]]] = deque()
        self._corrupted = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, batches: Sequence[Batch], step: int, network: nn.Module, stop: object = False) -> torch.Tensor:
        """Run optimizer step number `step` of the run with the mean gradient over `batches`.

        `network` is the bare model inside `model`; `stop` is true once this process should stop. Returns the loss over
        all processes, a float64 scalar on the device.

        Raises NonFiniteLossError, with the weights unchanged, if a loss is NaN or infinite; for a deferred step `drain`
        raises it.
        """
        # Dropout depends only on (seed, step, process), so a checkpoint needs no random state.
        torch.manual_seed(self.seed + 1_000_003 * step + 7_919 * self.processes.rank)
        parts = [
            part
            for batch in batches
            for part in split_batch(to_device(batch, self.device, self.channels_last), self.micro_batch_size)
        ]
        weights = self._part_weights(parts)
        losses = []
        for number, part in enumerate(parts):
            with self._synchronised(number == len(parts) - 1):
                losses.append(self._backward(part, weights[number]))
        part_losses = torch.stack(losses).double()  # (parts,)
        sums = self._global_sums(part_losses, weights, stop)  # (3,)
        names = [part.names for part in parts]
        if not self.deferred:
            self._check_finite(_StepNumbers.of(torch.cat([sums, sums.new_zeros(1), part_losses]).tolist()), names)
        norm = self._update(network, sums[1] > 0)  # (1,)
        self._pending.append((Readback(torch.cat([sums, norm, part_losses])), names))
        return sums[0]

    def drain(self, wait: bool = True) -> list[StepResult]:
        """Return the results of the steps since the last call, in order.

        Without `wait`, the most recent deferred step is left for the next call.

        Raises NonFiniteLossError if a step's loss or gradient norm was NaN or infinite. With a fused optimizer the
        weights are then those before that step; otherwise they are corrupted. Batch-norm statistics may be corrupted in
        both cases, so drain all steps before saving or evaluating the model.
        """
        results = []
        while len(self._pending) > (1 if self.deferred and not wait else 0):
            readback, names = self._pending.popleft()
            numbers = _StepNumbers.of(readback.numbers())
            self._check_finite(numbers, names)
            results.append(StepResult(numbers.loss, stop=numbers.stops > 0))
        return results

    def trial_pass(self, batch: Batch, network: nn.Module) -> None:
        """Run forward and backward over one mini-batch; the caller restores gradients and statistics."""
        loss = self._loss(network, to_device(batch, self.device, self.channels_last))
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _part_weights(self, parts: Sequence[Batch]) -> torch.Tensor:
        """Return (len(parts),) float64: factors of the mean losses before the gradients are averaged."""
        weights = torch.stack([loss_weight(part.targets, self.class_weights) for part in parts])
        total = self.processes.sum(weights.sum()) / self.processes.world_size
        return weights / total.clamp(min=1e-12)

    def _synchronised(self, last: bool) -> Any:
        """Synchronise data-parallel gradients once per step, with the last part."""
        model = getattr(self.model, "original", self.model)  # of a CompiledModel
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return contextlib.nullcontext()

    def _loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        dtype = self.precision.autocast_dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            outputs = model(batch.images)  # (N, 3, H, W) uint8 -> logits
        loss: torch.Tensor = self.criterion(outputs, batch.targets)
        return loss

    def _backward(self, batch: Batch, weight: torch.Tensor) -> torch.Tensor:
        loss = self._loss(self.model, batch)
        scaled = loss * weight.to(loss.dtype)
        (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        return loss.detach()

    def _global_sums(self, losses: torch.Tensor, weights: torch.Tensor, stop: object) -> torch.Tensor:
        """Return (3,) float64: loss, number of processes with a non-finite loss, number that asked to stop."""
        nonfinite = (~torch.isfinite(losses)).any().double()
        # Created on the device: copying a tensor from the host would synchronise.
        stops = torch.full((), float(bool(stop)), dtype=torch.float64, device=losses.device)
        loss = (losses * weights).sum() / self.processes.world_size
        return self.processes.sum(torch.stack([loss, nonfinite, stops]))

    def _check_finite(self, numbers: _StepNumbers, names: Sequence[Sequence[str]]) -> None:
        """Raise NonFiniteLossError for a non-finite loss or gradient norm."""
        if numbers.nonfinite:
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLossError(_loss_message(numbers.part_losses, names, self._stop_point()))
        # A loss scaler skips such a step itself; without one, clipping would turn every weight into NaN.
        if self.scaler is None and not math.isfinite(numbers.norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLossError(
                f"The norm of the gradient is {numbers.norm} although the loss is finite; training stopped "
                f"{self._stop_point()}. Lower learning_rate, or train with --precision float32."
            )

    def _stop_point(self) -> str:
        if self.deferred and not is_fused(self.optimizer):
            return "after this step, which was not saved"
        return "before the optimizer step"

    def _update(self, network: nn.Module, nonfinite: torch.Tensor) -> torch.Tensor:
        """Run the optimizer; return (1,) float64, the gradient norm, or 0 without clipping."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = torch.zeros(1, dtype=torch.float64, device=self.device)
        if self.max_norm > 0:
            norm = nn.utils.clip_grad_norm_(network.parameters(), self.max_norm).double().reshape(1)
            if not self.deferred:
                self._check_finite(_StepNumbers(0.0, 0.0, 0.0, float(norm), ()), ())
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.deferred and is_fused(self.optimizer):
            optimizer: Any = self.optimizer
            self._corrupted = self._corrupted | nonfinite | ~torch.isfinite(norm).all()
            optimizer.found_inf = self._corrupted.float()  # 1: the device skips this step and all later ones
            optimizer.step()
            del optimizer.found_inf
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(network)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimizer, scaler and averaged weights for a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "ema": None if self.ema is None else {"steps": self.ema.steps, "shadow": self.ema.shadow},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.steps = state["ema"]["steps"]
            for name, value in state["ema"]["shadow"].items():
                self.ema.shadow[name].copy_(value)


def _loss_message(losses: Sequence[float], names: Sequence[Sequence[str]], stop_point: str) -> str:
    nonfinite = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
    if not nonfinite:
        return "The loss became NaN or infinite in another process; training stopped there."
    files = [name for number in nonfinite for name in names[number]]
    shown = "\n  ".join(files[:_NAMES_SHOWN])
    more = f"\n  and {len(files) - _NAMES_SHOWN} more" if len(files) > _NAMES_SHOWN else ""
    return (
        f"The loss is {losses[nonfinite[0]]}; training stopped {stop_point}. The mini-batch was:\n  {shown}{more}\n"
        "Lower learning_rate, set clip_grad_norm or warmup_epochs, or train with --precision float32; the last "
        "checkpoint is from before this step."
    )


def build_scaler(enabled: bool) -> Any:
    """Return the loss scaler for float16 on a GPU, or None."""
    if not enabled:
        return None
    scaler = getattr(torch.amp, "GradScaler", None)  # torch 2.3 and newer
    return torch.cuda.amp.GradScaler() if scaler is None else scaler("cuda")
