"""Fixtures of the tests of imported weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def _randomise(module: nn.Module) -> None:
    """Set random weights and batch norm statistics that keep activations near 1."""
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
        elif value.dim() == 4:
            value.normal_(std=(2 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():
            value.uniform_(0.3, 0.8)


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], None]:
    return _randomise


@pytest.fixture
def skip_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the slow random initialisation of networks whose values are set or loaded afterwards."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "uniform_", "normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.fixture(scope="session")
def random_image() -> Callable[[int, int], Tensor]:
    """(height, width) -> (1, 3, height, width) uint8, deterministic per size."""

    def image(height: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * height + width)
        return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)

    return image
