"""Window geometry: every pixel covered, sizes by hand, padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pspnet.evaluation.protocols.windows import WindowSettings, coverage, pad_images, resize_images, window_starts


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(crop=st.integers(1, 120), extra=st.integers(0, 700), rate=st.floats(0.05, 1.0))
def test_windows_cover_all_pixels_without_duplicates(crop: int, extra: int, rate: float) -> None:
    length, stride = crop + extra, math.ceil(crop * rate)
    starts = window_starts(length, crop, stride)
    counts = coverage(length, crop, starts)
    assert starts[0] == 0
    assert starts[-1] + crop == length
    assert starts == sorted(set(starts))
    assert counts.min() >= 1
    assert int(counts.sum()) == crop * len(starts)
    assert max(np.diff(starts), default=0) <= stride
    # Minimal: one window fewer could not reach the end.
    assert len(starts) == 1 or (len(starts) - 2) * stride + crop < length


def test_windows_by_hand() -> None:
    # 480x360 at crop 240: stride ceil(240 x 2/3) = 160.
    assert WindowSettings(240).stride == 160
    assert window_starts(480, 240, 160) == [0, 160, 240]
    assert window_starts(360, 240, 160) == [0, 120]
    assert window_starts(240, 240, 160) == [0]
    assert window_starts(400, 240, 160) == [0, 160]
    # semseg's own crop of 473: ceil(315.33) = 316.
    assert WindowSettings(473).stride == 316
    assert coverage(5, 3, [0, 2]).tolist() == [1, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("base_size", "scale", "size", "expected"),
    [
        (0, 1.0, (360, 480), (360, 480)),
        (512, 1.0, (375, 500), (384, 512)),
        (512, 1.0, (500, 333), (512, 341)),  # 512 / 500 x 333 = 340.99
        (512, 1.75, (375, 500), (672, 896)),
        (512, 0.5, (281, 500), (144, 256)),  # 256 / 500 x 281 = 143.87
        (0, 0.5, (5, 5), (2, 2)),  # round(2.5) is 2 in Python
        (16, 0.5, (1, 400), (1, 8)),  # never empty
    ],
)
def test_scaled_sizes_by_hand(base_size: int, scale: float, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert WindowSettings(32, base_size, (scale,)).scaled_sizes(*size) == [expected]


def test_passes_by_hand() -> None:
    # Rows x columns: 2 x 3 at 360x480, 1 x 1 at 180x240 (padded), 3 x 4 at 540x720.
    assert WindowSettings(240).passes(360, 480) == 6
    assert WindowSettings(240, 0, (0.5,)).passes(360, 480) == 1
    assert WindowSettings(240, 0, (1.5,)).passes(360, 480) == 3 * 4
    assert WindowSettings(240, 0, (0.5, 1.0, 1.5), flip=True).passes(360, 480) == 2 * (1 + 6 + 12)


def test_images_are_padded_evenly_with_the_colour() -> None:
    images = torch.full((1, 3, 3, 6), 7, dtype=torch.uint8)
    colour = torch.tensor([1.5, 2.0, 3.0]).view(1, 3, 1, 1)
    padded, top, left = pad_images(images, 6, colour)
    assert (top, left) == (1, 0)
    assert padded.shape == (1, 3, 6, 6)
    assert padded[0, 0].tolist() == [[1.5] * 6, *[[7.0] * 6] * 3, *[[1.5] * 6] * 2]
    assert padded[0, 2, 0].tolist() == [3.0] * 6
    same, top, left = pad_images(images, 3, colour)
    assert same is images
    assert (top, left) == (0, 0)


def test_resizing_is_opencvs() -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
    for size in ((20, 29), (37, 80), (90, 100)):
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        result = resize_images(tensor, size)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(result, expected, atol=0.01)
    assert resize_images(tensor, (37, 53)) is tensor
