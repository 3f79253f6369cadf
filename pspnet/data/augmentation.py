"""Additional augmentation by an albumentations pipeline, read from a file in albumentations' own format.

Legend: H, W image height and width; S crop_size.

albumentations is imported on demand, because that takes a second or more.
"""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pspnet.errors import ConfigError, DataError


class Augmentation:
    """Pipeline of `albumentations.save`, applied to an image and its mask.

    Args:
        path: .json, or YAML with any other suffix.
        crop_size: S, the side of the square that the pipeline has to return, in pixels.

    Raises:
        ConfigError: the file cannot be read or is not a pipeline, or albumentations is not installed.
    """

    def __init__(self, path: str, crop_size: int) -> None:
        self.path = path
        self.crop_size = crop_size
        albumentations = import_albumentations(f"augmentation = {path}", "remove augmentation")
        try:
            with warnings.catch_warnings():
                # albumentations only warns about unknown arguments of a transform.
                warnings.filterwarnings("error", message=".*not valid")
                kind = "json" if Path(path).suffix == ".json" else "yaml"
                self.pipeline: Any = albumentations.load(path, data_format=kind)
        except OSError as error:
            raise ConfigError(f"augmentation = {path}: cannot be read ({error.strerror or error}).") from error
        except KeyError as error:
            raise self._invalid(f"missing or unknown name {error}") from error
        except Exception as error:  # of the parser, or of any transform's arguments
            raise self._invalid(_one_line(error)) from error
        if not isinstance(self.pipeline, (albumentations.BasicTransform, albumentations.BaseCompose)):
            raise self._invalid(f"found a {type(self.pipeline).__name__}")

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 RGB and (H, W) uint8 -> (S, S, 3) uint8 and (S, S) uint8, all random numbers from `rng`.

        Raises DataError if the pipeline fails or returns other sizes or types.
        """
        shape = f"{image.shape[1]}x{image.shape[0]} px image"
        try:
            result = self._apply(image.copy(), mask.copy(), rng)  # a transform may work in place
        except Exception as error:
            raise DataError(f"augmentation = {self.path}: failed on a {shape} ({_one_line(error)}).") from error
        image, mask = np.ascontiguousarray(result["image"]), np.ascontiguousarray(result["mask"])
        side = self.crop_size
        shapes = image.shape == (side, side, 3) and mask.shape == (side, side)
        if not (shapes and image.dtype == mask.dtype == np.uint8):
            raise DataError(
                f"augmentation = {self.path}: returned {image.dtype} {image.shape} and a mask {mask.dtype} "
                f"{mask.shape} for a {shape}; expected uint8 ({side}, {side}, 3) and uint8 ({side}, {side}), that "
                "is crop_size, without normalisation or conversion to tensors."
            )
        return image, mask

    def _apply(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Any:
        seed = int(rng.integers(2**32))
        if hasattr(self.pipeline, "set_random_state"):  # albumentations 1.4.21 and later
            # Not set_random_seed: it gives every transform the same random numbers, so two flips always coincide.
            self.pipeline.set_random_state(rng, random.Random(seed))
            return self.pipeline(image=image, mask=mask)
        states = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        try:
            return self.pipeline(image=image, mask=mask)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

    def _invalid(self, reason: str) -> ConfigError:
        return ConfigError(
            f"augmentation = {self.path}: not an albumentations pipeline ({reason}). Write the file with "
            "albumentations.save(pipeline, path, data_format='yaml')."
        )


def import_albumentations(setting: str, alternative: str) -> ModuleType:
    """Return the module albumentations. ConfigError that names the setting that needs it, if it is not installed."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would request its newest version from a server
    try:
        import albumentations
    except ImportError as error:
        raise ConfigError(
            f"{setting} needs the package albumentations, which is not installed: run `pip install albumentations`, or "
            f"{alternative}."
        ) from error
    module: ModuleType = albumentations
    return module


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
