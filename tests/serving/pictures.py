"""Test images in memory, in every encoding that a request may have."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8 with patches of different colours, so that different classes are predicted."""
    patches = np.random.default_rng(0).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(patches, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width])


def argmax_of(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Predict (H, W) class ids with the model itself, at the image's own size."""
    images = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        result: np.ndarray = model(images).argmax(dim=1)[0].numpy()
    return result


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an image file."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format=kind, **options)
    return buffer.getvalue()


def saved(array: np.ndarray) -> bytes:
    """Encode an NPY file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    """Build an NPY file with an arbitrary header."""
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode("latin-1") + data


def png_of(width: int, height: int, pixels: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """Build a PNG file with any declared size and pixel data, matching or not."""
    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, content in ((b"IHDR", size), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(content)) + name + content)
        parts.append(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))
    return b"".join(parts)


def png_of_words(values: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint16 values as a 16-bit RGB PNG, which Pillow reads but does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png_of(values.shape[1], values.shape[0], rows, depth=16)


def kinds_of_files() -> dict[str, bytes]:
    """Image files in the formats that cameras and programs write, by description."""
    rgb = Image.fromarray(noise(6, 8, 1)).resize((64, 48), Image.Resampling.BICUBIC)
    alpha = Image.fromarray(np.arange(48 * 64, dtype=np.uint32).reshape(48, 64).astype(np.uint8))
    clear = rgb.copy()
    clear.putalpha(alpha)
    words = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated for display
    second = Image.new("RGB", rgb.size, (255, 0, 0))
    return {
        "jpeg": encoded(rgb, "JPEG", quality=90),
        "jpeg progressive": encoded(rgb, "JPEG", progressive=True),
        "jpeg grey": encoded(rgb.convert("L"), "JPEG"),
        "jpeg cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "jpeg turned": encoded(rgb, "JPEG", exif=exif),
        "jpeg 4:4:4": encoded(rgb, "JPEG", subsampling=0),
        "jpeg of several": encoded(rgb, "MPO", save_all=True, append_images=[second]),
        "png": encoded(rgb),
        "png grey": encoded(rgb.convert("L")),
        "png grey and alpha": encoded(clear.convert("LA")),
        "png 1-bit": encoded(rgb.convert("1")),
        "png rgba": encoded(clear),
        "png palette": encoded(rgb.convert("P")),
        "png palette with transparency": encoded(rgb.convert("P"), transparency=bytes(range(256))),
        "png 16-bit grey": encoded(Image.fromarray(words)),
        "png 16-bit rgb": png_of_words(np.stack([words, words[::-1], words[:, ::-1]], axis=2)),
        "png animated": encoded(rgb, "PNG", save_all=True, append_images=[second]),
        "webp": encoded(rgb, "WEBP"),
        "webp lossless alpha": encoded(clear, "WEBP", lossless=True),
        "webp animated": encoded(rgb, "WEBP", save_all=True, append_images=[second], lossless=True),
    }
