"""The timed images, and their sizes as text."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pspnet.benchmarking.benchmark_request import BenchmarkRequest, Size
from pspnet.config.settings import settings_of
from pspnet.data.io.images import read_image
from pspnet.data.shapes import draw_scene


def parse_size(text: str) -> Size:
    """`360x480` -> (360, 480), height first; ValueError for other texts and for sides that are too short."""
    size: Size = settings_of(BenchmarkRequest)["size"].parse(text)
    return size


def size_text(size: Size) -> str:
    """(360, 480) -> `360x480`."""
    return f"{size[0]}x{size[1]}"


def make_images(size: Size, batch: int = 1, path: Path | None = None) -> np.ndarray:
    """Images (N, H, W, 3) uint8 RGB: a file at this size, or synthetic scenes. DataError for an unreadable file."""
    height, width = size
    if path is not None:
        picture = Image.fromarray(read_image(path)).resize((width, height), Image.Resampling.BILINEAR)
        return np.repeat(np.asarray(picture)[None], batch, axis=0)
    return np.stack([draw_scene(np.random.default_rng(seed), (width, height))[0] for seed in range(batch)])


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    """Encode an (H, W, 3) uint8 image as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
