"""What the tests of hosts send, and how they read what comes back."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from benchmarks.hosts import Host, Reply


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth (H, W, 3) uint8 image, so that its JPEG stays small and a random network sees regions in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=image_format)
    return buffer.getvalue()


def decoded(body: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(body)) as image:
        return np.asarray(image)


def post(
    host: Host,
    body: bytes,
    content_type: str | None = "image/png",
    accept: str | None = "image/png",
    custom_attributes: str | None = None,
) -> Reply:
    """One request on a connection of its own."""
    headers = {"X-Amzn-SageMaker-Custom-Attributes": custom_attributes} if custom_attributes else None
    with host.client() as client:
        return client.post(body, content_type, accept, headers)


def assert_refused(reply: Reply, status: int, *words: str) -> None:
    """A 4xx whose whole body is one plain sentence with these words."""
    text = reply.body.decode()
    assert reply.status == status, text
    assert "Traceback" not in text
    assert "\n" not in text.strip()
    assert text.strip().endswith(".")
    for word in words:
        assert word in text
