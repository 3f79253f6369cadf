"""Micro-batch size that fits the device's memory, found by trial, and out-of-memory messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Callable

import torch
from torch import nn

from pspnet.data.loader import Batch
from pspnet.errors import DeviceMemoryError, is_out_of_memory
from pspnet.system.device import describe_memory
from pspnet.system.distributed import Processes
from pspnet.training.step import TrainingStep

# Largest number of values that an optimizer keeps per weight (adam, rmsprop); allocated only after the trial.
_OPTIMIZER_COPIES = 2


@contextlib.contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Context manager that turns an out-of-memory error into a DeviceMemoryError that ends with `advice`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceMemoryError(f"The device is out of memory ({first}). {advice}") from error


def largest_that_fits(fits: Callable[[int], bool], requested: int) -> int:
    """Return the largest number up to `requested` for which `fits` is true, 0 if none: by halving, then bisection.

    `fits` must be monotonic: true for every number below one for which it is true.
    """
    if fits(requested):
        return requested
    too_many, fitting = requested, 0
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
    """Return True if forward and backward over `images` images fit in memory; the run's state is restored afterwards.

    The trial reserves memory for the optimizer's state, which is allocated in the first step, and in data-parallel runs
    for the gradient buckets.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    copies = _OPTIMIZER_COPIES + (step.processes.world_size > 1)
    pixels = torch.zeros(images, 3, crop_size, crop_size, dtype=torch.uint8)
    targets = torch.zeros(images, crop_size, crop_size, dtype=torch.uint8)
    reserved: list[torch.Tensor] = []
    try:
        reserved = [torch.empty_like(parameter) for parameter in network.parameters() for _ in range(copies)]
        step.trial_pass(Batch(pixels, targets, []), network)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        reserved.clear()
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
    images_per_process: int,
    crop_size: int,
    processes: Processes,
    device: torch.device,
    may_split: bool = True,
) -> int | None:
    """Return the micro-batch size of one device; None for its whole mini-batch.

    Args:
        setting: micro_batch_size.
        fits: True if this number of crops fits in memory.
        images_per_process: largest number of images of a mini-batch in one process.
        may_split: whether the run allows micro_batch_size; the advice leaves it out otherwise.

    Raises DeviceMemoryError, with the largest number that fits, if the requested number does not fit.
    """
    requested = images_per_process if setting in (None, "auto") else min(int(str(setting)), images_per_process)
    # The minimum over all processes, so that they split their mini-batches alike.
    found = processes.min(largest_that_fits(fits, requested), device)
    if not found or (found < requested and setting != "auto"):
        memory = describe_memory(device)
        raise DeviceMemoryError(
            _too_large_message(setting, requested, found, crop_size, processes.world_size, memory, may_split)
        )
    return None if found == images_per_process else found


def _too_large_message(
    setting: str | int | None, requested: int, found: int, crop_size: int, devices: int, memory: str, may_split: bool
) -> str:
    each = f" on each of {devices} devices" if devices > 1 else ""
    less = "--gradient_checkpointing True, which recomputes activations, or a smaller --crop_size"
    if not found:
        return f"Not even one image of crop_size {crop_size} fits {memory} in training{each}. Use {less}."
    text = f"{requested} images of crop_size {crop_size} together do not fit {memory}{each}: at most {found} do. Use "
    if setting is None:
        text += f"--mini_batch_size {found * devices}"
        if may_split:
            text += ", or --micro_batch_size auto, which accumulates the gradients of smaller parts"
        text += "; "
    else:
        text += f"--micro_batch_size {found} or auto; "
    return f"{text}or {less}, to fit more."
