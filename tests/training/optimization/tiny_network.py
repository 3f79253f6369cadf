"""Network of the tests of optimizers and averages."""

import torch
from torch import nn


class Tiny(nn.Module):
    """Two layers with the names that parameter_groups uses, and a batch norm with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.backbone(x))
        return result
