"""PSPNet semantic segmentation: train, evaluate, predict, export, serve. docs/api.md documents the public names.

`import pspnet` imports no torch; each public name is imported on first use. Start with `pspnet/models/pspnet.py` for
the network and `pspnet/training/loop.py` for the training loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pspnet.errors import PspnetError

if TYPE_CHECKING:
    from pspnet.artifact.published import load_model
    from pspnet.config.schema import Config
    from pspnet.evaluation.evaluate import evaluate
    from pspnet.evaluation.metrics import Scores
    from pspnet.exporting.export import export
    from pspnet.inference.prediction import Prediction
    from pspnet.inference.predictor import Predictor
    from pspnet.masks.reader import read_masks
    from pspnet.models.build import build_model
    from pspnet.models.pspnet import PSPNet
    from pspnet.training.train import TrainingResult, train

__version__ = "0.1.0"
__all__ = [
    "Config", "PSPNet", "Prediction", "Predictor", "PspnetError", "Scores", "TrainingResult", "__version__",
    "build_model", "evaluate", "export", "load_model", "read_masks", "train",
]  # fmt: skip

_MODULES = {
    "Config": "pspnet.config.schema",
    "PSPNet": "pspnet.models.pspnet",
    "Prediction": "pspnet.inference.prediction",
    "Predictor": "pspnet.inference.predictor",
    "Scores": "pspnet.evaluation.metrics",
    "TrainingResult": "pspnet.training.train",
    "build_model": "pspnet.models.build",
    "evaluate": "pspnet.evaluation.evaluate",
    "export": "pspnet.exporting.export",
    "load_model": "pspnet.artifact.published",
    "read_masks": "pspnet.masks.reader",
    "train": "pspnet.training.train",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'pspnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
