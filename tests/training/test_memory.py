"""Micro-batch size found by trials against a simulated memory limit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pspnet.errors import DeviceMemoryError
from pspnet.system.distributed import Processes
from pspnet.system.precision import Precision
from pspnet.training.memory import (
    choose_micro_batch,
    explain_out_of_memory,
    fits_in_memory,
    largest_that_fits,
)
from pspnet.training.optimization.losses import build_loss
from pspnet.training.step import TrainingStep

CPU = torch.device("cpu")


@pytest.mark.parametrize("limit", range(0, 20))
def test_the_largest_number_is_found_with_few_trials(limit: int) -> None:
    tried: list[int] = []

    def fits(images: int) -> bool:
        tried.append(images)
        return images <= limit

    assert largest_that_fits(fits, 16) == min(limit, 16)
    assert len(tried) == len(set(tried)) <= 8


class Limited(nn.Module):
    """Network that runs out of memory above `limit` images."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.norm = nn.BatchNorm2d(3)
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.norm(images.float()))
        if len(images) > self.limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return logits


def step_of(network: nn.Module) -> TrainingStep:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return TrainingStep(network, build_loss("cross_entropy"), optimizer, CPU, Precision("float32", None), Processes())


def test_a_trial_restores_the_state() -> None:
    network = Limited(5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step = step_of(network)
    assert [fits_in_memory(step, network, images, 16) for images in (4, 5, 6)] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert step.optimizer.state_dict()["state"] == {}


def test_other_errors_in_a_trial_are_not_out_of_memory() -> None:
    network = Limited(5)
    network.layer = nn.Conv2d(4, 2, 1)
    with pytest.raises(RuntimeError, match="channels"):
        fits_in_memory(step_of(network), network, 1, 16)


def choose(
    setting: str | int | None, limit: int, share: int = 16, processes: Processes | None = None, may_split: bool = True
) -> int | None:
    partners = processes or Processes()
    return choose_micro_batch(setting, lambda images: images <= limit, share, 240, partners, CPU, may_split=may_split)


def test_a_mini_batch_that_fits_is_not_split() -> None:
    assert choose(None, 16) is None
    assert choose("auto", 16) is None
    assert choose(4, 16) == 4
    assert choose(99, 16) is None


def test_auto_uses_the_largest_that_fits() -> None:
    assert choose("auto", 11) == 11
    assert choose("auto", 1) == 1


def test_the_error_names_the_largest_mini_batch_that_fits() -> None:
    text = (
        "16 images of crop_size 240 together do not fit the memory: at most 11 do. Use --mini_batch_size 11, or --micro"
    )
    with pytest.raises(DeviceMemoryError, match=text):
        choose(None, 11)
    with pytest.raises(DeviceMemoryError, match=r"12 images .* at most 11 do\. Use --micro_batch_size 11 or auto; or"):
        choose(12, 11)
    with pytest.raises(DeviceMemoryError, match="Not even one image of crop_size 240 fits the memory in training"):
        choose("auto", 0)


def test_the_advice_leaves_out_settings_that_the_run_rejects() -> None:
    with pytest.raises(DeviceMemoryError, match=r"at most 11 do\. Use --mini_batch_size 11; or --gradient_checkp"):
        choose(None, 11, may_split=False)


class OneOfFour(Processes):
    """Process whose peers fit fewer images."""

    def min(self, number: int, device: torch.device | None = None) -> int:
        return min(number, 3)


def test_all_processes_use_the_minimum() -> None:
    assert choose("auto", 11, processes=OneOfFour(0, 4)) == 3
    with pytest.raises(DeviceMemoryError, match=r"on each of 4 devices: at most 3 do\. Use --mini_batch_size 12, or"):
        choose(None, 11, processes=OneOfFour(0, 4))


def test_out_of_memory_during_a_run_has_a_clear_message() -> None:
    full = r"out of memory \(CUDA out of memory\)\. Do less\."
    with pytest.raises(DeviceMemoryError, match=full), explain_out_of_memory("Do less."):
        raise RuntimeError("CUDA out of memory\nand much more")
    with pytest.raises(DeviceMemoryError, match="Do less"), explain_out_of_memory("Do less."):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    with pytest.raises(RuntimeError, match="shape mismatch"), explain_out_of_memory("Do less."):
        raise RuntimeError("shape mismatch")
