"""How many images fit the device's memory at once, found by trial, and its errors as sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Callable

import torch
from torch import nn

from pspnet.data.dataset import Batch
from pspnet.errors import DeviceMemoryError, is_out_of_memory
from pspnet.system.device import memory_in_words
from pspnet.system.distributed import Processes
from pspnet.training.step import TrainingStep

# What an optimizer keeps for a weight, at most (adam, rmsprop), and does not hold yet when the trial runs.
_OPTIMIZER_COPIES = 2


@contextlib.contextmanager
def memory_explained(advice: str) -> Iterator[None]:
    """An error for lack of memory inside this context becomes a DeviceMemoryError that ends with `advice`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceMemoryError(f"The device's memory is full ({first}). {advice}") from error


def largest_that_fits(fits: Callable[[int], bool], wanted: int) -> int:
    """The largest number up to `wanted` for which `fits` holds, 0 if none: by halving, then by bisection.

    `fits` must hold for every number below one for which it holds.
    """
    if fits(wanted):
        return wanted
    too_many, fitting = wanted, 0
    while too_many > 1 and not fitting:
        half = too_many // 2
        if fits(half):
            fitting = half
        else:
            too_many = half
    while fitting and too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits(middle):
            fitting = middle
        else:
            too_many = middle
    return fitting


def fits_in_memory(step: TrainingStep, network: nn.Module, images: int, crop_size: int) -> bool:
    """Whether forward and backward over so many images fit; the run is afterwards as if it had not been tried.

    Room for the optimizer's state, which comes with the first step, is held while it is tried, and in data-parallel
    runs for the gradients that travel.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    copies = _OPTIMIZER_COPIES + (step.processes.world_size > 1)
    pixels = torch.zeros(images, 3, crop_size, crop_size, dtype=torch.uint8)
    targets = torch.zeros(images, crop_size, crop_size, dtype=torch.uint8)
    held: list[torch.Tensor] = []
    try:
        held = [torch.empty_like(parameter) for parameter in network.parameters() for _ in range(copies)]
        step.try_out(Batch(pixels, targets, []), network)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        held.clear()
        step.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        if step.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def choose_micro_batch(
    setting: str | int | None,
    fits: Callable[[int], bool],
    share: int,
    crop_size: int,
    processes: Processes,
    device: torch.device,
    may_cut: bool = True,
) -> int | None:
    """How many images one device takes at once; None for all of a mini-batch.

    Args:
        setting: micro_batch_size.
        fits: whether so many images of the crop fit.
        share: images of a mini-batch that one process has, at most.
        may_cut: whether the run allows micro_batch_size; the advice leaves it out otherwise.

    Raises DeviceMemoryError, with the largest number that fits, where what was asked for does not.
    """
    wanted = share if setting in (None, "auto") else min(int(str(setting)), share)
    # The smallest of all processes' numbers: they cut their mini-batches alike.
    found = processes.least(largest_that_fits(fits, wanted), device)
    if not found or (found < wanted and setting != "auto"):
        place = memory_in_words(device)
        raise DeviceMemoryError(_too_large(setting, wanted, found, crop_size, processes.world_size, place, may_cut))
    return None if found == share else found


def _too_large(
    setting: str | int | None, wanted: int, found: int, crop_size: int, devices: int, place: str, may_cut: bool
) -> str:
    each = f" on each of {devices} devices" if devices > 1 else ""
    less = "--gradient_checkpointing True, which computes parts twice, or a smaller --crop_size"
    if not found:
        return f"Not even one image of crop_size {crop_size} fits {place} in training{each}. Use {less}."
    text = f"{wanted} images of crop_size {crop_size} at once do not fit {place}{each}: at most {found} do. Use "
    if setting is None:
        text += f"--mini_batch_size {found * devices}"
        if may_cut:
            text += ", or --micro_batch_size auto, which keeps the mini-batch and adds up the gradients of its parts"
        text += "; "
    else:
        text += f"--micro_batch_size {found} or auto; "
    return f"{text}or {less}, to fit more."
