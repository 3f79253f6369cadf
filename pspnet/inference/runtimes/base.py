"""Runtime interface: images in, masks or logits out. Importing this module does not import torch.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from pspnet.errors import ConfigError

if TYPE_CHECKING:
    from typing import Protocol

    import numpy as np
    import torch
else:
    Protocol = object

RuntimeName = Literal[
    "auto", "eager", "compile", "onnxruntime", "onnxruntime:int8", "openvino", "openvino:int8", "tensorrt"
]
"""Values of `runtime`. `auto` selects one of the others, but never int8."""
AUTO = "auto"
NAMES: tuple[str, ...] = get_args(RuntimeName)


class RuntimeMissingError(ConfigError):
    """A runtime that cannot run here, because a package, a device, a compiler or an export is missing."""


class BrokenGraphError(RuntimeMissingError):
    """An export that its runtime cannot run although its package and device are available."""


class Runtime(Protocol):
    """A network that is ready to run. Runtimes are thread-safe.

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
        """Warm up for images of this size: compile, select algorithms, allocate memory, capture graphs."""
        ...


def check_name(name: str) -> str:
    """Return the name of a runtime; ConfigError for an unknown one."""
    if name not in NAMES:
        raise ConfigError(f"runtime: found {name!r}; use {', '.join(NAMES[:-1])} or {NAMES[-1]}.")
    return name
