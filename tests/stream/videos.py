"""Test videos: CamVid frames if PSPNET_CAMVID is set to its folder, synthetic frames otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def frames(count: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """Yield (H, W, 3) uint8 images; `number_of` decodes the number of a synthetic one from its top left corner."""
    folder = os.environ.get("PSPNET_CAMVID")
    if folder:
        paths = sorted(path for path in Path(folder, "validation").iterdir() if path.suffix in (".jpg", ".png"))
        for index in range(count):
            with Image.open(paths[index % len(paths)]) as picture:
                yield np.asarray(picture.convert("RGB").resize((width, height)))
        return
    rows, columns = np.mgrid[:height, :width]
    for index in range(count):
        image = np.stack([(rows * 4 + index) % 256, (columns * 3) % 256, np.full_like(rows, 128)], axis=2)
        image[:32, :32] = 16
        for bit in range(8):
            if index >> bit & 1:
                top, left = bit // 4 * 16, bit % 4 * 8
                image[top : top + 16, left : left + 8] = 235
        yield image.astype(np.uint8)


def number_of(image: np.ndarray) -> int:
    """Return the number of a synthetic frame (modulo 256), robust to lossy codecs."""
    cells = [image[bit // 4 * 16 + 4 : bit // 4 * 16 + 12, bit % 4 * 8 + 2 : bit % 4 * 8 + 6] for bit in range(8)]
    return sum(1 << bit for bit, cell in enumerate(cells) if cell.mean() > 128)


def write_video(path: Path, count: int, rate: int = 10, height: int = 48, width: int = 64) -> Path:
    """Write an H.264 video; the suffix of the path selects the container."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, rate)
        stream.options = {"preset": "ultrafast", "g": "10", "threads": "1"}
        for image in frames(count, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def read_video(path: Path) -> list[tuple[float, np.ndarray]]:
    """Return the time stamp and the (H, W, 3) uint8 image of every frame."""
    with av.open(str(path)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
