"""Models by name: published files, downloaded on first use, converted, and cached as model directories.

Imports torch only to convert. Endpoints have this module, but none of those that download and convert.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from pspnet.artifact.file_names import CONFIG_NAME
from pspnet.errors import DataError, WeightsError
from pspnet.models.zoo import PublishedModel, find_published, name_hint
from pspnet.system.locations import cache_folder

if TYPE_CHECKING:
    from torch import nn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ATTEMPTS = 3


def find_model(model: str | PathLike[str]) -> Path:
    """Return the directory of a model, given as a path or by the name of a published model.

    An existing path wins over a name. A published model is downloaded (resuming a partial file), checked, converted
    and cached on first use; later calls need no network.

    Raises WeightsError for an unknown name, and for a download or conversion that fails; then nothing is cached but the
    downloaded bytes.
    """
    path = Path(model)
    if path.exists() or path.is_absolute() or len(path.parts) != 1:
        return path
    published = find_published(path.name)
    if published is None:
        raise WeightsError(f"{path}: no such folder, and no published model has this name; {name_hint(path.name)}")
    folder = cached_folder(published)
    if not is_cached(published):
        _fetch(published, folder)
    return folder


def load_model(model: str | PathLike[str]) -> nn.Module:
    """Return the network of a model directory or published model in evaluation mode on the CPU.

    Its forward pass maps (N, 3, H, W) RGB in 0..255 to logits (N, C, H, W). Raises WeightsError.
    """
    from pspnet.artifact.model_directory import load_trained

    return load_trained(find_model(model)).model


def cached_folder(model: PublishedModel, env: Mapping[str, str] = os.environ) -> Path:
    """Return the model directory of a published model: `models/<key>` in PSPNET_HOME, else in the cache folder."""
    home = Path(env["PSPNET_HOME"]).expanduser() if env.get("PSPNET_HOME") else cache_folder(env)
    return home / "models" / model.key


def is_cached(model: PublishedModel) -> bool:
    """Return True if a published model can be used without a network."""
    return (cached_folder(model) / CONFIG_NAME).is_file()


def _fetch(model: PublishedModel, folder: Path) -> None:
    """Download and convert a model. Other processes that need the same one wait and find it."""
    # Imported here: endpoints lack these modules.
    from pspnet.artifact.import_weights import import_published
    from pspnet.system.atomic_folders import new_folder
    from pspnet.system.download import download

    url = (os.environ.get("PSPNET_MODELS_URL") or model.base_url).rstrip("/") + "/" + model.file
    file = folder.parent / "downloads" / model.file.rsplit("/", 1)[-1]
    try:
        with _lock(folder):
            if is_cached(model):
                return
            download(url, file, f"sha256:{model.sha256_prefix}", attempts=_ATTEMPTS)
            with new_folder(folder) as temporary:
                import_published(file, model, temporary, url)
            file.unlink()
    except (DataError, OSError) as error:  # OSError: a folder that cannot be written
        raise WeightsError(f"model {model.key}: {error}") from error


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a lock against other processes of this machine; released when the process ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
