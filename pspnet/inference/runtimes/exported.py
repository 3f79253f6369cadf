"""Helpers of the runtimes of exported graphs: package import, pixel layout, logits.

Legend: N images in a batch, H, W image height and width, K classes, h, w rows and columns of the head's map.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet.inference.runtimes.base import RuntimeMissingError
from pspnet.inference.runtimes.openvino_telemetry import silence_openvino


def import_package(package: str, runtime: str, extra: str) -> Any:
    """Import an optional package; RuntimeMissingError with the install command if that fails."""
    silence_openvino()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RuntimeMissingError(
            f"runtime {runtime} needs the package {package}, which cannot be imported ({error}); install it: "
            f"pip install 'pspnet[{extra}]', or use the runtime eager."
        ) from error


def to_planes(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) of any layout -> contiguous (N, 3, H, W)."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def enlarge_logits(logits: np.ndarray, height: int, width: int, align_corners: bool) -> Tensor:
    """(N, K, h, w) output of the graph -> (N, K, H, W) float32."""
    small = torch.from_numpy(np.require(logits, np.float32, ["C", "W"]))
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=align_corners)
