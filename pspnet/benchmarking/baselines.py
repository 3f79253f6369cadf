"""Baselines: networks in plain PyTorch with the runtimes' interface.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pspnet.benchmarking.flops import count_flops
from pspnet.benchmarking.plain import make_plain
from pspnet.errors import PspnetError
from pspnet.models.pspnet import PSPNet


class NetworkRuntime:
    """A network in plain PyTorch: float32, evaluation mode, images in the default memory format.

    Args:
        name: for tables.
        network: (N, 3, H, W) uint8 -> logits (N, K, H, W); moved to the device and switched to evaluation mode.
        compiled: whether to use torch.compile with its default settings.
    """

    def __init__(self, name: str, network: nn.Module, device: torch.device, compiled: bool = False) -> None:
        self.name = name
        self.device = device
        self.network = network.to(device).eval()
        self._run: Any = torch.compile(self.network) if compiled else self.network
        self._compiled = compiled

    @torch.no_grad()
    def masks(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 RGB -> (N, H, W) uint8 class ids."""
        result: np.ndarray = self._run(self._to_device(images)).argmax(dim=1).to(torch.uint8).cpu().numpy()
        return result

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> Tensor:
        """(N, H, W, 3) uint8 RGB -> (N, K, H, W) float32, on the device."""
        logits: Tensor = self._run(self._to_device(images))
        return logits

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Run a pass, which compiles if needed. PspnetError if torch.compile does not work here."""
        try:
            self.masks(np.zeros((batch, height, width, 3), np.uint8))
        except Exception as error:  # a missing compiler raises one of many types
            if not self._compiled:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PspnetError(
                f"torch.compile does not work here ({reason[:300]}); it needs a C++ compiler (g++ or clang++)."
            ) from error

    def _to_device(self, images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device)  # (N, H, W, 3)
        return pixels.permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)


def plain_network(network: nn.Module) -> nn.Module:
    """A copy of a network, in the published form if it is a PSPNet."""
    network = copy.deepcopy(network)
    return make_plain(network) if isinstance(network, PSPNet) else network


def network_flops(network: nn.Module, height: int, width: int, batch: int = 1) -> int:
    """Operations of a network in its plain form for a batch of images, counted on the meta device."""
    meta_network = plain_network(network).to("meta").eval()
    images = torch.empty(batch, 3, height, width, dtype=torch.uint8, device="meta")
    with torch.no_grad():
        return count_flops(lambda: meta_network(images))


def settle_statistics(network: nn.Module, images: np.ndarray) -> None:
    """Set the batch norm statistics of random weights from some images, for activations of a trained network's scale.

    Residual branches, which start at 0, become active.

    Args:
        network: in evaluation mode before and after.
        images: (N, H, W, 3) uint8 RGB.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        norm.momentum = 1.0
        if not norm.weight.any():
            nn.init.ones_(norm.weight)
    with torch.no_grad():
        network(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    network.eval()
