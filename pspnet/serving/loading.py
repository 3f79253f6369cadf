"""Predictor for the settings of serving."""

from __future__ import annotations

from pathlib import Path

import torch

from pspnet.artifact.bundle import unpacked
from pspnet.artifact.file_names import ARCHIVE_NAME
from pspnet.artifact.published import find_model
from pspnet.errors import ConfigError, WeightsError
from pspnet.inference.limits import Limits
from pspnet.inference.predictor import Predictor
from pspnet.serving.serve_settings import AUTO, ServeSettings
from pspnet.system.precision import choose_precision


def load_predictor(settings: ServeSettings, slot: int) -> Predictor:
    """Load the predictor of a worker. Call it in the model thread: the CPU thread count is per thread.

    Raises WeightsError for an unreadable model and ConfigError for an unavailable device, precision or runtime.
    """
    torch.set_num_threads(settings.threads_per_worker())
    model_dir = find_model(settings.model_dir)
    with unpacked(model_dir) as directory:
        if directory != model_dir and settings.runtime not in (AUTO, "eager", "compile"):
            raise WeightsError(
                f"{model_dir / ARCHIVE_NAME}: the runtime {settings.runtime} needs an export, and exports in "
                "a packed model are ignored. Unpack it, run `pspnet export` on that folder, and serve the folder."
            )
        return open_predictor(directory, settings, settings, slot)


def open_predictor(directory: Path, settings: ServeSettings, limits: Limits, slot: int = 0) -> Predictor:
    """Load the predictor of a model directory with the device, precision and runtime of the settings.

    Raises as `load_predictor`.
    """
    device = choose_serving_device(settings.device, slot)
    dtype = None if settings.precision == AUTO else choose_precision(settings.precision, device).dtype
    return Predictor.load(directory, str(device), limits, dtype, settings.runtime)


def choose_serving_device(name: str, slot: int) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`. auto and cuda assign workers to GPUs round-robin.

    Raises ConfigError if the requested GPU does not exist.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == AUTO and count == 0):
        return torch.device("cpu")
    index = int(name[5:]) if name.startswith("cuda:") else slot % max(1, count)
    if index >= count:
        raise ConfigError(
            f"--device {name}: this PyTorch ({torch.__version__}) sees {count} GPUs; use --device auto or --device cpu."
        )
    return torch.device("cuda", index)
