"""Eager runtime: the fused inference model in PyTorch, without compiling.

On a CPU in float32. On a GPU in its fastest precision: pixels are copied as bytes from pinned memory, the arg-max runs
on the GPU, only class ids are copied back, and recurring sizes are captured as CUDA graphs.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pspnet.errors import is_out_of_memory
from pspnet.models.fused.folded import build_inference_model

if TYPE_CHECKING:
    from pspnet.inference.runtimes.cuda_graphs import GraphCache, MaskGraph

_Done = TypeVar("_Done")


def fastest_dtype(device: torch.device) -> torch.dtype:
    """float32 on CPUs and on GPUs before Volta, float16 on newer GPUs.

    GPUs with fast bfloat16 units run float16 at the same speed, and float16 keeps three more bits of the logits.
    """
    if device.type != "cuda":
        return torch.float32
    return torch.float16 if torch.cuda.get_device_capability(device)[0] >= 7 else torch.float32


class EagerRuntime:
    """Runs a fused inference model; `model` maps (N, 3, H, W) uint8 to logits (N, K, H, W) float32.

    Args:
        network: a network in float32, or a fused inference model.
        device: the network is moved to it.
        dtype: of weights and activations; None for the fastest of the device. A network whose values overflow float16
            then continues in a wider dtype.
    """

    name = "eager"

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.device = device
        self.dtype = dtype or fastest_dtype(device)
        network = network.to(device)
        # The source of a wider model in case float16 overflows. While it is set, every pass is checked for overflow.
        self._spare = network if dtype is None and self.dtype == torch.float16 else None
        self.model = self._form(network)
        self._lock = threading.Lock()
        self._graphs: GraphCache[MaskGraph] | None = None
        if device.type == "cuda":
            from pspnet.inference.runtimes.cuda_graphs import GraphCache

            self._graphs = GraphCache(self._capture)

    def _form(self, network: nn.Module) -> nn.Module:
        return build_inference_model(network, self.dtype)

    def masks(self, images: np.ndarray) -> np.ndarray:
        """See Runtime."""
        with torch.no_grad():
            if self._graphs is None:
                return self._plain_masks(images)
            with self._lock:
                graph = self._graphs.find(images.shape[:3])
                if graph is not None:
                    masks, finite = graph(images)
                    if finite:
                        return masks
                    self._widen()
                return self._with_room(lambda: self._plain_masks(images))

    def logits(self, images: np.ndarray) -> Tensor:
        """See Runtime."""
        with torch.no_grad():
            if self._graphs is None:
                return self._checked_logits(self.to_device(images))
            with self._lock:
                return self._with_room(lambda: self._checked_logits(self.to_device(images)))

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Run a pass, which selects algorithms and allocates memory for this size; on a GPU capture its graph."""
        noise = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        with torch.no_grad(), self._lock:
            self._with_room(lambda: self._plain_masks(noise))
            if self._graphs is not None:
                self._graphs.prepare((batch, height, width))

    def to_device(self, images: np.ndarray) -> Tensor:
        """(N, H, W, 3) uint8 of any layout -> the same on the device."""
        if images.shape[0] == 1:
            # numpy may use any batch stride for one image, and PyTorch 1.12 miscomputes a deep stem with some.
            pixels = torch.from_numpy(np.require(images[0], requirements=["C", "W"])).unsqueeze(0)
        else:
            pixels = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return pixels.to(self.device, non_blocking=True)

    def _capture(self, size: tuple[int, ...]) -> MaskGraph:
        from pspnet.inference.runtimes.cuda_graphs import MaskGraph, lasting_tensors

        held = lasting_tensors(self._classes, torch.zeros((*size, 3), dtype=torch.uint8, device=self.device))
        return MaskGraph(self._classes, size, self.device, held)

    def _with_room(self, step: Callable[[], _Done]) -> _Done:
        """Run a step; if it runs out of memory, release the graphs and retry."""
        try:
            return step()
        except Exception as error:
            if not self._graphs or not is_out_of_memory(error):
                raise
            self._graphs.clear()
        return step()

    def _plain_masks(self, images: np.ndarray) -> np.ndarray:
        pixels = self.to_device(images)
        classes, finite = self._classes(pixels)
        if finite is not None and not bool(finite):
            self._widen()
            classes, _ = self._classes(pixels)
        result: np.ndarray = classes.cpu().numpy()
        return result

    def _classes(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, H, W, 3) uint8 -> (N, H, W) uint8 and `all_finite` of the logits if checked, all on the device."""
        logits = self._forward(pixels)  # (N, K, H, W)
        finite = None if self._spare is None else all_finite(logits)
        return logits.argmax(dim=1).to(torch.uint8), finite

    def _forward(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> logits (N, K, H, W) float32, both on the device."""
        logits: Tensor = self.model(pixels.permute(0, 3, 1, 2))  # already channels_last in memory
        return logits

    def _checked_logits(self, pixels: Tensor) -> Tensor:
        """The logits, in a wider dtype if float16 overflowed."""
        logits = self._forward(pixels)  # (N, K, H, W)
        if self._spare is not None and not bool(all_finite(logits)):
            self._widen()
            logits = self._forward(pixels)
        return logits

    def _widen(self) -> None:
        network, self._spare = self._spare, None
        if network is None:  # another thread has done it
            return
        has_bfloat16 = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] >= 8
        self.dtype = torch.bfloat16 if has_bfloat16 else torch.float32
        warnings.warn(f"this network's values overflow float16; it now runs in {self.dtype}.", stacklevel=3)
        self.model = self._form(network)
        if self._graphs is not None:
            self._graphs.clear()


def all_finite(logits: Tensor) -> Tensor:
    """True if all values are finite: () bool on the device, in one pass without a copy.

    Values in float16's range have a finite sum in float32; an infinite or NaN value makes the sum non-finite.
    """
    finite: Tensor = logits.sum(dtype=torch.float32).isfinite()
    return finite
