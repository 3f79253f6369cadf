"""Training transform: exact results, aligned image and mask, a pure function of its generator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pspnet.data import transforms
from pspnet.data.transforms import TrainTransform
from pspnet.errors import ConfigError

MEAN_COLOUR = [124, 116, 104]


class FixedDraws:
    """A generator whose uniform numbers are all at `fraction` of their range.

    0 is the top left window of the image, 1 the bottom right one, 0.5 the middle; at 1 an image smaller than the window
    is in its top left corner.
    """

    def __init__(self, fraction: float = 0.5) -> None:
        self.fraction = fraction

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        value = low + self.fraction * (high - low)
        return value if size is None else np.full(size, value)

    def random(self) -> float:
        return self.fraction

    def permutation(self, count: int) -> np.ndarray:
        return np.arange(count)


def plain(crop_size: int, base_size: int, **changes: Any) -> TrainTransform:
    """A transform that only scales by base_size / long side and crops."""
    return TrainTransform(crop_size, base_size, **{"scale_min": 1.0, "scale_max": 1.0, "flip": 0.0, **changes})


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    return cv2.GaussianBlur(noise(height, width), (0, 0), 2.0)


def classes(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 7, (height, width), dtype=np.uint8)


def square(size: int = 90, corner: int = 30, side: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """A red square on blue, and its mask."""
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[corner : corner + side, corner : corner + side] = 1
    return np.where(mask[..., None] == 1, np.uint8([255, 0, 0]), np.uint8([0, 0, 255])), mask


@pytest.mark.parametrize("seed", range(3))
def test_identity(seed: int) -> None:
    image, mask = noise(48, 48), classes(48, 48)
    out, out_mask = plain(48, 48)(image, mask, np.random.default_rng(seed))
    assert out.dtype == out_mask.dtype == np.uint8
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(out_mask, mask)


@pytest.mark.parametrize(("fraction", "left", "top"), [(0.0, 0, 0), (0.25, 8, 4), (0.5, 16, 8), (1.0, 32, 16)])
def test_whole_pixel_windows_are_exact(fraction: float, left: int, top: int) -> None:
    image, mask = noise(48, 64), classes(48, 64)
    out, out_mask = plain(32, 64)(image, mask, FixedDraws(fraction))
    np.testing.assert_array_equal(out, image[top : top + 32, left : left + 32])
    np.testing.assert_array_equal(out_mask, mask[top : top + 32, left : left + 32])


def test_flip_mirrors_image_and_mask_together() -> None:
    image, mask = noise(48, 48), classes(48, 48)
    out, out_mask = plain(48, 48, flip=1.0)(image, mask, np.random.default_rng(0))
    np.testing.assert_array_equal(out, image[:, ::-1])
    np.testing.assert_array_equal(out_mask, mask[:, ::-1])


def test_flip_probability() -> None:
    image, mask = noise(32, 32), classes(32, 32)
    rng = np.random.default_rng(0)
    transform = plain(32, 32, flip=0.25)
    flipped = sum(np.array_equal(transform(image, mask, rng)[1], mask[:, ::-1]) for _ in range(400))
    assert 70 <= flipped <= 130


def test_a_small_image_is_padded_with_mean_and_ignore() -> None:
    image, mask = noise(24, 32), classes(24, 32)
    out, out_mask = plain(64, 32)(image, mask, FixedDraws(1.0))
    np.testing.assert_array_equal(out[:24, :32], image)
    np.testing.assert_array_equal(out_mask[:24, :32], mask)
    outside = np.ones((64, 64), dtype=bool)
    outside[:24, :32] = False
    assert (out[outside] == MEAN_COLOUR).all()
    assert (out_mask[outside] == 255).all()


def test_a_small_image_is_anywhere_inside_the_crop() -> None:
    image, mask = noise(16, 16), np.zeros((16, 16), dtype=np.uint8)
    rng = np.random.default_rng(0)
    lefts = []
    for _ in range(60):
        _, out_mask = plain(48, 16)(image, mask, rng)
        assert (out_mask == 0).sum() == 16 * 16  # never cut off
        lefts.append(int(np.flatnonzero((out_mask == 0).any(axis=0))[0]))
    assert min(lefts) < 6
    assert max(lefts) > 26


def test_the_window_never_leaves_a_large_image() -> None:
    transform = TrainTransform(32, 64, 0.5, 2.0)  # the short side is 32 px or more
    rng = np.random.default_rng(0)
    for _ in range(100):
        _, out_mask = transform(noise(64, 64), np.zeros((64, 64), dtype=np.uint8), rng)
        assert (out_mask == 0).all()


def test_other_ignore_value() -> None:
    _, out_mask = plain(64, 32, ignore_index=200)(noise(32, 32), classes(32, 32), FixedDraws(1.0))
    assert (out_mask[40:, 40:] == 200).all()


@pytest.mark.parametrize(("height", "width"), [(50, 100), (100, 50)])
def test_base_size_is_the_long_side(height: int, width: int) -> None:
    image, mask = noise(height, width), np.zeros((height, width), dtype=np.uint8)
    _, out_mask = plain(200, 200)(image, mask, FixedDraws(1.0))
    inside = out_mask == 0
    assert inside.sum() == 200 * 100
    assert inside[: 2 * height, : 2 * width].all()


def test_the_scale_spans_its_range() -> None:
    mask = np.zeros((40, 40), dtype=np.uint8)
    rng = np.random.default_rng(0)
    transform = TrainTransform(crop_size=90, base_size=40, scale_min=0.5, scale_max=2.0, flip=0.5)
    sides = [np.sqrt((transform(noise(40, 40), mask, rng)[1] == 0).sum()) for _ in range(200)]
    assert 19 <= min(sides) <= 23
    assert 77 <= max(sides) <= 81


def test_the_window_equals_resizing_and_cropping() -> None:
    image, mask = smooth(60, 80), classes(60, 80)
    out, out_mask = plain(40, 160)(image, mask, FixedDraws(0.25))  # the window's corner is at (30, 20)
    expected = cv2.resize(image, (160, 120), interpolation=cv2.INTER_LINEAR)[20:60, 30:70]
    difference = np.abs(out.astype(int) - expected)
    assert difference.max() <= 3  # OpenCV's warp interpolates in steps of 1/32 px
    assert difference.mean() < 0.5
    np.testing.assert_array_equal(out_mask, np.kron(mask, np.ones((2, 2), dtype=np.uint8))[20:60, 30:70])


def test_downscaling_equals_resizing_too() -> None:
    image, mask = smooth(120, 160), classes(120, 160)
    out, out_mask = plain(40, 100)(image, mask, FixedDraws(0.5))  # 75 x 100 px, the window's corner is at (30, 17.5)
    shifted = cv2.warpAffine(
        cv2.resize(image, (100, 75), interpolation=cv2.INTER_LINEAR), np.float64([[1, 0, -30], [0, 1, -17.5]]), (40, 40)
    )
    assert np.abs(out.astype(int) - shifted).mean() < 4  # one interpolation against two
    columns = np.floor((np.arange(30, 70) + 0.5) * 1.6).astype(int)
    rows = np.floor((np.arange(40) + 17.5 + 0.5) * 1.6).astype(int)
    assert (out_mask == mask[np.ix_(rows, columns)]).mean() > 0.99


def test_image_and_mask_stay_aligned() -> None:
    image, mask = square()
    transform = TrainTransform(64, 90, 0.7, 1.5, flip=0.5, rotation=10.0)
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(100):
        out, out_mask = transform(image, mask, rng)
        scored = out_mask != 255
        # The border between the nearest classes is half-way between the two colours. OpenCV's fixed-point
        # coordinates, which differ by version, change a few border pixels; a shift by one would change a hundred.
        wrong = (out[..., 0] > out[..., 2]) != (out_mask == 1)
        assert wrong[scored].sum() <= 15
        seen += int((out_mask == 1).any())
    assert seen > 90


def test_rotation_is_at_most_its_angle() -> None:
    image, mask = square()
    for fraction, expected in ((0.0, 10.0), (0.5, 0.0), (1.0, -10.0)):
        _, out_mask = plain(90, 90, rotation=10.0)(image, mask, FixedDraws(fraction))
        corners = cv2.boxPoints(cv2.minAreaRect(np.argwhere(out_mask == 1)[:, ::-1].astype(np.float32)))
        edges = np.roll(corners, -1, axis=0) - corners
        angles = (np.rad2deg(np.arctan2(edges[:, 1], edges[:, 0])) + 45) % 90 - 45
        assert angles.mean() == pytest.approx(expected, abs=1.5)
        assert (out_mask == 1).sum() == pytest.approx(900, abs=30)
    _, turned = plain(90, 90, rotation=10.0)(image, mask, FixedDraws(0.0))
    assert (turned == 255).any()  # the corners come from outside the image


def test_the_same_generator_state_gives_the_same_sample() -> None:
    image, mask = noise(50, 70), classes(50, 70)
    transform = TrainTransform(40, 60, rotation=10.0, blur=0.5)
    first = transform(image, mask, np.random.default_rng([3, 1, 4]))
    again = transform(image, mask, np.random.default_rng([3, 1, 4]))
    other = transform(image, mask, np.random.default_rng([3, 1, 5]))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_arguments_are_not_modified() -> None:
    image, mask = noise(32, 32), classes(32, 32)
    image.flags.writeable = mask.flags.writeable = False  # like Pillow's arrays
    out, out_mask = TrainTransform(32, 32, rotation=10.0, blur=1.0)(image, mask, np.random.default_rng(0))
    assert out.flags.writeable
    assert out_mask.flags.writeable
    np.testing.assert_array_equal(image, noise(32, 32))


def test_masks_have_only_existing_classes_or_ignore() -> None:
    mask = np.where(classes(50, 70) < 4, np.uint8(3), np.uint8(17))
    mask[:5] = 255
    transform = TrainTransform(48, 60, rotation=10.0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert set(np.unique(transform(noise(50, 70), mask, rng)[1])) <= {3, 17, 255}


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 2)])
def test_tiny_images_work(size: tuple[int, int]) -> None:
    image, mask = noise(*size), np.full(size, 4, dtype=np.uint8)
    out, out_mask = TrainTransform(32, 64, rotation=10.0, blur=1.0)(image, mask, np.random.default_rng(0))
    assert out.shape == (32, 32, 3)
    assert out_mask.shape == (32, 32)
    assert (out_mask == 4).any()


def test_blur_smooths_the_image_only() -> None:
    image, mask = noise(48, 48), classes(48, 48)
    out, out_mask = plain(48, 48, blur=1.0)(image, mask, FixedDraws(0.5))
    assert out.astype(float).std() < 0.8 * image.astype(float).std()
    assert np.abs(out.astype(float).mean() - image.mean()) < 1
    np.testing.assert_array_equal(out_mask, mask)


def test_blur_probability() -> None:
    image, mask = noise(32, 32), classes(32, 32)
    rng = np.random.default_rng(0)
    transform = plain(32, 32, blur=0.25)
    blurred = sum(not np.array_equal(transform(image, mask, rng)[0], image) for _ in range(200))
    assert 25 <= blurred <= 75


def test_color_jitter_changes_colours_only() -> None:
    pytest.importorskip("albumentations")
    image, mask = noise(48, 48), classes(48, 48)
    transform = plain(48, 48, color_jitter=0.4)
    first, out_mask = transform(image, mask, np.random.default_rng(0))
    again, _ = transform(image, mask, np.random.default_rng(0))
    other, _ = transform(image, mask, np.random.default_rng(1))
    assert first.dtype == np.uint8
    assert np.abs(first.astype(int) - image).mean() > 3
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(out_mask, mask)


def test_color_jitter_at_the_centre_of_its_ranges_is_the_identity() -> None:
    pytest.importorskip("albumentations")
    image, mask = noise(48, 48), classes(48, 48)
    out, _ = plain(48, 48, color_jitter=0.4)(image, mask, FixedDraws(0.5))
    assert np.abs(out.astype(int) - image).max() <= 1


def test_color_jitter_brightens_by_its_strength() -> None:
    pytest.importorskip("albumentations")
    grey = np.full((32, 32, 3), 100, dtype=np.uint8)  # contrast, saturation and hue leave a flat grey as it is
    out, _ = plain(32, 32, color_jitter=0.4)(grey, classes(32, 32), FixedDraws(1.0))
    assert np.abs(out.astype(int) - 140).max() <= 2


def test_color_jitter_without_albumentations_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    TrainTransform(32, 32)  # which needs it not
    with pytest.raises(ConfigError, match=r"color_jitter = 0\.3 needs the package albumentations.*pip install"):
        TrainTransform(32, 32, color_jitter=0.3)


def test_albumentations_is_imported_on_demand() -> None:
    code = (
        "import sys\nfrom pspnet.data.transforms import TrainTransform\nTrainTransform(32, 32, blur=0.5)\n"
        "print('albumentations' in sys.modules, 'torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("size", [(375, 500), (90, 60), (64, 64), (33, 300)])
def test_four_channels_give_the_pixels_of_three(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    image.flags.writeable = False
    mask = image[..., 0]
    crops = {}
    for wide in (True, False):
        monkeypatch.setattr(transforms, "_FOUR_CHANNELS", wide)
        transform = TrainTransform(160, 200, rotation=10.0)
        crops[wide] = [transform(image, mask, np.random.default_rng(number)) for number in range(5)]
    for (first, first_mask), (second, second_mask) in zip(crops[True], crops[False]):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first_mask, second_mask)


@pytest.mark.parametrize("seed", range(12))
def test_the_source_region_has_all_pixels_of_the_crop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to warping the whole image, also rotated and flipped; rounding between two pixels may differ."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(20, 300, size=2))
    image, mask = noise(height, width), classes(height, width)
    transform = TrainTransform(crop_size=int(rng.integers(32, 120)), base_size=200, rotation=40.0 if seed % 2 else 0.0)
    part = transform(image, mask, np.random.default_rng(seed))
    monkeypatch.setattr(transform, "_source_region", lambda height, width, matrix: (slice(0, height), slice(0, width)))
    whole = transform(image, mask, np.random.default_rng(seed))
    difference = np.abs(part[0].astype(int) - whole[0])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    assert (part[1] != whole[1]).mean() < 0.001
