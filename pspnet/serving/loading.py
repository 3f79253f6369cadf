"""A predictor on the device that serving was told to use."""

from __future__ import annotations

from pathlib import Path

import torch

from pspnet.artifact.bundle import unpacked
from pspnet.artifact.file_names import ARCHIVE_NAME
from pspnet.errors import ConfigError, WeightsError
from pspnet.inference.limits import Limits
from pspnet.inference.predictor import Predictor
from pspnet.serving.serve_settings import AUTO, ServeSettings
from pspnet.system.precision import choose_precision


def load_predictor(settings: ServeSettings, limits: Limits, slot: int) -> Predictor:
    """The predictor of a worker, in the thread that will run it: thread counts belong to the thread that sets them.

    Raises WeightsError for a model that cannot be read and ConfigError for a device, a precision or a runtime that is
    not there.
    """
    torch.set_num_threads(settings.threads_per_worker())
    with unpacked(settings.model_dir) as directory:
        if directory != settings.model_dir and settings.runtime not in (AUTO, "eager", "compile"):
            raise WeightsError(
                f"{settings.model_dir / ARCHIVE_NAME}: the runtime {settings.runtime} runs an export, and a packed "
                "model is served without any. Unpack it, run `pspnet export` on that folder, and serve the folder."
            )
        return open_predictor(directory, settings, limits, slot)


def open_predictor(directory: Path, settings: ServeSettings, limits: Limits, slot: int = 0) -> Predictor:
    """The predictor of a model directory on the device, in the number format and by the runtime of the settings.

    Errors as `load_predictor`.
    """
    device = choose_serving_device(settings.device, slot)
    dtype = None if settings.precision == AUTO else choose_precision(settings.precision, device).dtype
    return Predictor.load(directory, str(device), limits, dtype, settings.runtime)


def choose_serving_device(name: str, slot: int) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> a device. With auto and cuda, workers take turns over the GPUs.

    Raises ConfigError where a GPU is asked for and is not there.
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
