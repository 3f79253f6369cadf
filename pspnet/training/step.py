"""One optimizer step over one or several mini-batches, the same in one process and in many.

Legend: N images in a mini-batch, H, W their size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pspnet.data.dataset import Batch
from pspnet.errors import NonFiniteLossError
from pspnet.training.device import Precision
from pspnet.training.distributed import Processes
from pspnet.training.losses import loss_weight
from pspnet.training.optim import ExponentialMovingAverage

_NAMES_SHOWN = 8


class TrainingStep:
    """Forward, backward and optimizer step.

    The gradient is that of the mean loss over all scored pixels of all mini-batches in all processes: each mini-batch's
    mean is weighted by its share of them. So accumulation and data parallelism change nothing but the statistics that
    batch norm sees.

    Args:
        model: the network, as it is, compiled, or wrapped for data parallelism.
        criterion: (outputs, targets) -> scalar mean loss.
        class_weights: the loss's class weights, which then also weigh the mini-batches.
        max_norm: largest gradient norm; 0 for no clipping.
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
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.device = device
        self.precision = precision
        self.processes = processes
        self.class_weights = class_weights
        self.max_norm = max_norm
        self.ema = ema
        self.channels_last = channels_last
        self.seed = seed
        self.scaler: Any = _build_scaler(precision.scale_loss)

    def __call__(self, batches: Sequence[Batch], step: int, network: nn.Module) -> torch.Tensor:
        """Take one optimizer step, number `step` of the run, with the mean gradient over `batches`.

        `network` is the bare model behind `model`. Returns the loss over all processes, a float64 scalar on the
        device. Raises NonFiniteLossError, with the weights untouched, if a loss is NaN or infinite.
        """
        # Dropout's numbers depend on (seed, step, process) alone: nothing of them has to be saved for a resume.
        torch.manual_seed(self.seed + 1_000_003 * step + 7_919 * self.processes.rank)
        shares = self._shares(batches)
        losses = []
        for number, batch in enumerate(batches):
            with self._synchronised(number == len(batches) - 1):
                losses.append(self._backward(batch, shares[number]))
        self._check_finite(losses, batches)
        self._update(network)
        loss = torch.stack(losses).double().mul(shares.to(self.device)).sum()
        return self.processes.sum(loss) / self.processes.world_size

    def _shares(self, batches: Sequence[Batch]) -> torch.Tensor:
        """(len(batches),) float64: what each mean loss is multiplied by before the gradients are averaged."""
        weights = torch.stack([loss_weight(batch.targets, self.class_weights) for batch in batches])
        total = self.processes.sum(weights.sum().to(self.device)).cpu() / self.processes.world_size
        return weights / total.clamp(min=1e-12)

    def _synchronised(self, last: bool) -> Any:
        """Data-parallel gradients travel once a step, with the last mini-batch."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _backward(self, batch: Batch, share: torch.Tensor) -> torch.Tensor:
        images = batch.images.to(self.device, non_blocking=True)  # (N, 3, H, W) uint8
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets = batch.targets.to(self.device, non_blocking=True)  # (N, H, W) uint8
        dtype = self.precision.autocast_dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            outputs = self.model(images)
        loss = self.criterion(outputs, targets)
        scaled = loss * float(share)
        (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        detached: torch.Tensor = loss.detach()
        return detached

    def _check_finite(self, losses: Sequence[torch.Tensor], batches: Sequence[Batch]) -> None:
        finite = torch.isfinite(torch.stack(list(losses)))
        if not self.processes.any(not bool(finite.all()), self.device):
            return
        self.optimizer.zero_grad(set_to_none=True)
        wrong = [number for number, good in enumerate(finite.tolist()) if not good]
        if not wrong:
            raise NonFiniteLossError("The loss became NaN or infinite in another process; training stopped there.")
        names = [name for number in wrong for name in batches[number].names]
        shown = "\n  ".join(names[:_NAMES_SHOWN])
        more = f"\n  and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        raise NonFiniteLossError(
            f"The loss is {losses[wrong[0]].item()}; training stopped before the optimizer step. The mini-batch was:\n"
            f"  {shown}{more}\nLower learning_rate, set clip_grad_norm or warmup_epochs, or train with --precision "
            "float32; the last checkpoint is from before this step."
        )

    def _update(self, network: nn.Module) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.max_norm > 0:
            norm = nn.utils.clip_grad_norm_(network.parameters(), self.max_norm)
            # A scaler skips such a step by itself; without one, clipping would turn every weight into NaN.
            if self.scaler is None and not bool(torch.isfinite(norm)):
                self.optimizer.zero_grad(set_to_none=True)
                raise NonFiniteLossError(
                    f"The norm of the gradient is {norm.item()} although the loss is finite; training stopped before "
                    "the optimizer step. Lower learning_rate, or train with --precision float32."
                )
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(network)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of optimizer, scaler and averaged weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "ema": None if self.ema is None else {"steps": self.ema.steps, "shadow": self.ema.shadow},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    # In the parameter's memory layout, which a file does not keep: with another one the update is slow.
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.steps = state["ema"]["steps"]
            for name, value in state["ema"]["shadow"].items():
                self.ema.shadow[name].copy_(value)


def _build_scaler(enabled: bool) -> Any:
    if not enabled:
        return None
    scaler = getattr(torch.amp, "GradScaler", None)  # torch 2.3 and newer
    return torch.cuda.amp.GradScaler() if scaler is None else scaler("cuda")
