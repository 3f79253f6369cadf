"""PSPNet-ResNet50 semantic segmentation: train, evaluate, predict, serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pspnet.inference.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that reading a config or running the doctor never pays for importing torch.
    if name == "Predictor":
        from pspnet.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'pspnet' has no attribute {name!r}")
