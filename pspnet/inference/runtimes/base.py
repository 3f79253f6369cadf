"""What every runtime is: images in, masks or logits out. Reading this module needs no torch.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from pspnet.errors import ConfigError

if TYPE_CHECKING:
    from typing import Protocol

    import torch
else:
    Protocol = object

AUTO = "auto"
RuntimeName = Literal[
    "auto", "eager", "compile", "onnxruntime", "onnxruntime:int8", "openvino", "openvino:int8", "tensorrt"
]
NAMES: tuple[str, ...] = get_args(RuntimeName)
"""What `runtime` may be. `auto` is a choice among the others; int8 is never its choice."""


class RuntimeMissingError(ConfigError):
    """A runtime that cannot run here: a package, a device, a compiler or an export is missing. The text says which."""


class BrokenGraphError(RuntimeMissingError):
    """An export that its runtime cannot run: a fault of this one graph, where all else is there."""


class Runtime(Protocol):
    """A network that is ready to run. Several threads may call one runtime at the same time.

    name: "eager", "compile", "onnxruntime", "openvino", "openvino:int8" ...
    """

    name: str

    def masks(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 RGB, H and W of 32 or more -> (N, H, W) uint8 class ids."""
        ...

    def logits(self, images: np.ndarray) -> torch.Tensor:
        """(N, H, W, 3) uint8 RGB, H and W of 32 or more -> (N, K, H, W) float32, on the runtime's device."""
        ...

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Do ahead of the first frame what images of this size need: compile, choose, warm up, capture graphs."""
        ...


def check_name(name: str) -> str:
    """The name of a runtime; ConfigError for one that is none."""
    if name not in NAMES:
        raise ConfigError(f"runtime = {name!r} is none; use {', '.join(NAMES[:-1])} or {NAMES[-1]}.")
    return name
