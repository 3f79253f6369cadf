"""Requests of the host tests, and checks of their answers."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from benchmarks.support.hosts import Host, Reply
from pspnet.inference.prediction import Prediction


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth (H, W, 3) uint8 image, so that its JPEG is small and a random network predicts regions."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=image_format)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body))


def decoded(body: bytes) -> np.ndarray:
    """Pixels of an image file; indices if it has a palette."""
    with opened(body) as image:
        return np.asarray(image)


def post(
    host: Host,
    body: bytes,
    content_type: str | None = "image/png",
    accept: str | None = "image/png",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send a request on a new connection."""
    with host.client() as client:
        return client.post(body, content_type, accept, headers)


def assert_same_mask(found: np.ndarray, expected: Prediction) -> None:
    """Compare with the mask of another process wherever the top two classes differ by more than float32 rounding.

    The toolkit's environment has another version of PyTorch, with another order of summation.
    """
    assert expected.probabilities is not None
    best = np.sort(expected.probabilities, axis=0)  # (C, H, W)
    certain = best[-1] - best[-2] > 1e-5
    assert certain.mean() > 0.995
    assert found.shape == expected.mask.shape
    np.testing.assert_array_equal(found[certain], expected.mask[certain])


def assert_rejected(reply: Reply, status: int, *words: str) -> None:
    """Check for a 4xx whose body is one plain sentence with these words."""
    text = reply.body.decode()
    assert reply.status == status, text
    assert "Traceback" not in text
    assert "\n" not in text.strip()
    assert text.strip().endswith(".")
    for word in words:
        assert word in text
