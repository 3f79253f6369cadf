"""Windows, scaled sizes, padding, and resizing of arrays."""

from __future__ import annotations

import numpy as np
import pytest

from pspnet.inference.tiling import OVERLAP, enlarge, pad, padded_pixels, scaled_size, shrink, windows
from tests.serving.pictures import noise

PASS = 1280 * 1024
SIZES = [(3000, 4000), (1025, 1280), (1144, 1146), (1200, 1200), (1, 65_500), (65_500, 1), (33, 60_000), (60_000, 40),
         (5000, 300), (2160, 3840), (4166, 6000)]  # fmt: skip


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("pass_pixels", [4_096, 65_536, PASS])
def test_every_pixel_is_kept_from_exactly_one_window(height: int, width: int, pass_pixels: int) -> None:
    if height * width > 3_000_000:
        pass_pixels = max(pass_pixels, 65_536)  # thousands of windows otherwise
    found = windows(height, width, pass_pixels)
    seen = np.zeros((height, width), np.uint8)
    sizes = set()
    for window in found:
        view = seen[window.rows, window.columns]
        sizes.add(view.shape)
        assert padded_pixels(*view.shape) <= pass_pixels
        view[window.kept] += 1
        assert window.rows.start <= window.kept_rows.start < window.kept_rows.stop <= window.rows.stop
        assert window.columns.start <= window.kept_columns.start < window.kept_columns.stop <= window.columns.stop
    assert (seen == 1).all()
    assert len(sizes) == 1  # one shape, so that a compiled model compiles once


def test_inner_edges_are_well_inside_their_windows() -> None:
    for window in windows(3000, 4000, PASS):
        for span, kept, length in (
            (window.rows, window.kept_rows, 3000),
            (window.columns, window.kept_columns, 4000),
        ):
            assert kept.start == 0 or kept.start - span.start >= OVERLAP // 2
            assert kept.stop == length or span.stop - kept.stop >= OVERLAP // 2


def test_a_camera_picture_takes_few_windows() -> None:
    found = windows(3000, 4000, PASS)
    work = sum(padded_pixels(w.rows.stop - w.rows.start, w.columns.stop - w.columns.start) for w in found)
    assert len(found) == 12
    assert work < 1.25 * 3000 * 4000


def test_an_image_that_fits_is_one_window() -> None:
    (window,) = windows(1024, 1280, PASS)
    assert (window.rows, window.columns) == (slice(0, 1024), slice(0, 1280))
    assert window.kept == (slice(0, 1024), slice(0, 1280))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_scaled_sizes_fit_and_keep_the_aspect_ratio(height: int, width: int) -> None:
    small_height, small_width = scaled_size(height, width, PASS)
    assert 1 <= small_height <= height
    assert 1 <= small_width <= width
    assert padded_pixels(small_height, small_width) <= PASS
    if min(height, width) > 100:
        assert small_height * small_width > 0.98 * PASS
        assert small_height / small_width == pytest.approx(height / width, rel=0.02)


def test_padding_repeats_the_last_row_and_column() -> None:
    image = noise(5, 40)
    padded = pad(image)
    assert padded.shape == (32, 40, 3)
    np.testing.assert_array_equal(padded[:5], image)
    np.testing.assert_array_equal(padded[5:], np.broadcast_to(image[4], (27, 40, 3)))
    assert pad(noise(32, 32)).shape == (32, 32, 3)
    assert pad(noise(1, 1)).shape == (32, 32, 3)
    large = noise(33, 40)
    assert pad(large) is large


def test_shrink_averages_the_covered_pixels() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.abs(shrink(stripes, 8, 8).astype(int) - 100).max() <= 5


def test_enlarge_takes_the_nearest_pixel() -> None:
    small = np.array([[1, 2], [3, 4]], np.uint8)
    np.testing.assert_array_equal(enlarge(small, 4, 4), np.kron(small, np.ones((2, 2), np.uint8)))
    np.testing.assert_array_equal(enlarge(small, 2, 3), [[1, 2, 2], [3, 4, 4]])
    volume = np.stack([small, small + 4])
    np.testing.assert_array_equal(enlarge(volume, 5, 6)[1], enlarge(small, 5, 6) + 4)
    np.testing.assert_array_equal(enlarge(small, 2, 2), small)
