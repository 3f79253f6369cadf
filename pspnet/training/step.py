"""One optimizer step over one or several mini-batches, the same in one process and in many.

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

from pspnet.data.dataset import Batch
from pspnet.errors import NonFiniteLossError
from pspnet.system.device import Precision
from pspnet.system.distributed import Processes
from pspnet.training.optimization.ema import ExponentialMovingAverage
from pspnet.training.optimization.losses import loss_weight
from pspnet.training.optimization.optimizer import is_fused, load_optimizer_state
from pspnet.training.performance.prefetch import cut, to_device
from pspnet.training.performance.readback import Readback

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class StepOutcome:
    """What one step came to: the loss over all processes, and whether one of them wants to stop."""

    loss: float
    stop: bool


@dataclass(frozen=True)
class _Figures:
    """What is read back of a step; `own` are the losses of this process's parts."""

    loss: float
    wrong: float
    stops: float
    norm: float
    own: tuple[float, ...]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> _Figures:
        loss, wrong, stops, norm, *own = numbers
        return cls(loss, wrong, stops, norm, tuple(own))


class TrainingStep:
    """Forward, backward and optimizer step.

    The gradient is that of the mean loss over all scored pixels of all mini-batches in all processes: each mini-batch's
    mean is weighted by its share of them. So accumulation and data parallelism change nothing but the statistics that
    batch norm sees.

    On a GPU steps are deferred: the host gives the device one step after the other, and reads what came of a step while
    the next one runs. No step waits for the host, or the host for more than the step before.

    Args:
        model: the network, as it is, compiled, or wrapped for data parallelism.
        criterion: (outputs, targets) -> scalar mean loss.
        class_weights: the loss's class weights, which then also weigh the mini-batches.
        max_norm: largest gradient norm; 0 for no clipping.
        micro_batch_size: images that the device takes at once; larger mini-batches are cut. None cuts none.
        deferred: whether steps are; by default on GPUs.
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
        self._spoilt = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, batches: Sequence[Batch], step: int, network: nn.Module, stop: object = False) -> torch.Tensor:
        """Take one optimizer step, number `step` of the run, with the mean gradient over `batches`.

        `network` is the bare model behind `model`; `stop` is true once this process wants to stop. Returns the loss
        over all processes, a float64 scalar on the device.

        Raises NonFiniteLossError, with the weights untouched, if a loss is NaN or infinite; a deferred step leaves
        that to `take_in`.
        """
        # Dropout's numbers depend on (seed, step, process) alone: nothing of them has to be saved for a resume.
        torch.manual_seed(self.seed + 1_000_003 * step + 7_919 * self.processes.rank)
        parts = [
            part
            for batch in batches
            for part in cut(to_device(batch, self.device, self.channels_last), self.micro_batch_size)
        ]
        shares = self._shares(parts)
        losses = []
        for number, part in enumerate(parts):
            with self._synchronised(number == len(parts) - 1):
                losses.append(self._backward(part, shares[number]))
        own = torch.stack(losses).double()  # (parts,)
        figures = self._figures(own, shares, stop)  # (3,)
        names = [part.names for part in parts]
        if not self.deferred:
            self._raise_if_wrong(_Figures.of(torch.cat([figures, figures.new_zeros(1), own]).tolist()), names)
        norm = self._update(network, figures[1] > 0)  # (1,)
        self._pending.append((Readback(torch.cat([figures, norm, own])), names))
        return figures[0]

    def take_in(self, wait: bool = True) -> list[StepOutcome]:
        """What came of the steps since the last call, in their order.

        Without `wait`, a deferred step that was only just given to the device is left for the next call.

        Raises NonFiniteLossError if the loss of one was NaN or infinite, or the norm of its gradient. The weights are
        then as they were before it where the optimizer is fused, otherwise they are spoilt, and batch norm's
        statistics may be: whoever saves or scores a model has to take in all steps before.
        """
        outcomes = []
        while len(self._pending) > (1 if self.deferred and not wait else 0):
            readback, names = self._pending.popleft()
            figures = _Figures.of(readback.numbers())
            self._raise_if_wrong(figures, names)
            outcomes.append(StepOutcome(figures.loss, stop=figures.stops > 0))
        return outcomes

    def try_out(self, batch: Batch, network: nn.Module) -> None:
        """Forward and backward over one mini-batch, which leaves gradients and statistics for the caller to undo."""
        loss = self._loss(network, to_device(batch, self.device, self.channels_last))
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _shares(self, parts: Sequence[Batch]) -> torch.Tensor:
        """(len(parts),) float64: what each mean loss is multiplied by before the gradients are averaged."""
        weights = torch.stack([loss_weight(part.targets, self.class_weights) for part in parts])
        total = self.processes.sum(weights.sum()) / self.processes.world_size
        return weights / total.clamp(min=1e-12)

    def _synchronised(self, last: bool) -> Any:
        """Data-parallel gradients travel once a step, with the last mini-batch."""
        model = getattr(self.model, "original", self.model)  # a compiled one's
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return contextlib.nullcontext()

    def _loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        dtype = self.precision.autocast_dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            outputs = model(batch.images)  # (N, 3, H, W) uint8 -> logits
        loss: torch.Tensor = self.criterion(outputs, batch.targets)
        return loss

    def _backward(self, batch: Batch, share: torch.Tensor) -> torch.Tensor:
        loss = self._loss(self.model, batch)
        scaled = loss * share.to(loss.dtype)
        (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        return loss.detach()

    def _figures(self, losses: torch.Tensor, shares: torch.Tensor, stop: object) -> torch.Tensor:
        """(3,) float64 over all processes: loss, how many met a loss that is not finite, how many want to stop."""
        wrong = (~torch.isfinite(losses)).any().double()
        # Filled in on the device: a tensor from the host would have to be waited for.
        wish = torch.full((), float(bool(stop)), dtype=torch.float64, device=losses.device)
        figures = self.processes.sum(torch.stack([(losses * shares).sum() / self.processes.world_size, wrong, wish]))
        return figures

    def _raise_if_wrong(self, figures: _Figures, names: Sequence[Sequence[str]]) -> None:
        """NonFiniteLossError if the figures say so."""
        if figures.wrong:
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLossError(_loss_message(figures.own, names, self._ending()))
        # A scaler leaves such a step out by itself; without one, clipping would turn every weight into NaN.
        if self.scaler is None and not math.isfinite(figures.norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLossError(
                f"The norm of the gradient is {figures.norm} although the loss is finite; training stopped "
                f"{self._ending()}. Lower learning_rate, or train with --precision float32."
            )

    def _ending(self) -> str:
        if self.deferred and not is_fused(self.optimizer):
            return "after this step, and nothing of it was saved"
        return "before the optimizer step"

    def _update(self, network: nn.Module, wrong: torch.Tensor) -> torch.Tensor:
        """Let the optimizer step; (1,) float64, the norm of the gradient or 0 where it is not clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = torch.zeros(1, dtype=torch.float64, device=self.device)
        if self.max_norm > 0:
            norm = nn.utils.clip_grad_norm_(network.parameters(), self.max_norm).double().reshape(1)
            if not self.deferred:
                self._raise_if_wrong(_Figures(0.0, 0.0, 0.0, float(norm), ()), ())
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.deferred and is_fused(self.optimizer):
            optimizer: Any = self.optimizer
            self._spoilt = self._spoilt | wrong | ~torch.isfinite(norm).all()
            optimizer.found_inf = self._spoilt.float()  # 1: the device leaves out this step, and those that follow
            optimizer.step()
            del optimizer.found_inf
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(network)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of optimizer, scaler and averaged weights."""
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


def _loss_message(losses: Sequence[float], names: Sequence[Sequence[str]], ending: str) -> str:
    wrong = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
    if not wrong:
        return "The loss became NaN or infinite in another process; training stopped there."
    files = [name for number in wrong for name in names[number]]
    shown = "\n  ".join(files[:_NAMES_SHOWN])
    more = f"\n  and {len(files) - _NAMES_SHOWN} more" if len(files) > _NAMES_SHOWN else ""
    return (
        f"The loss is {losses[wrong[0]]}; training stopped {ending}. The mini-batch was:\n  {shown}{more}\n"
        "Lower learning_rate, set clip_grad_norm or warmup_epochs, or train with --precision float32; the last "
        "checkpoint is from before this step."
    )


def build_scaler(enabled: bool) -> Any:
    """What scales float16's losses on a GPU, or None."""
    if not enabled:
        return None
    scaler = getattr(torch.amp, "GradScaler", None)  # torch 2.3 and newer
    return torch.cuda.amp.GradScaler() if scaler is None else scaler("cuda")
