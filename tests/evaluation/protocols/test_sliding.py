"""Sliding windows and scales against one pass, a slow loop over full maps, and cases with known results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pspnet.evaluation.protocols import sliding
from pspnet.evaluation.protocols.sliding import SlidingPredictor
from pspnet.evaluation.protocols.whole import predict_whole
from pspnet.evaluation.protocols.windows import SCALES, WindowSettings
from pspnet.models.build import build_model
from pspnet.models.fused.folded import build_inference_model

CLASSES = 4
COLOUR = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)


class PerPixel(nn.Module):
    """Per-pixel function of the colour, so windows and mirror images cannot change the result."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = torch.randn(CLASSES, 3, 1, 1, generator=generator) / 40
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        x = (images.float() - COLOUR).to(torch.float64)
        return F.conv2d(x, self.weight.double())


def make_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def tiny_pspnet() -> nn.Module:
    """Network whose predictions vary over the image: the classifier's weights are enlarged."""
    torch.manual_seed(1)
    model = build_model(CLASSES, width=4).double().eval()
    with torch.no_grad():
        model.head.classifier.weight.mul_(30)
    return model


def predictor(model: nn.Module, settings: WindowSettings, window_batch: int = 4) -> SlidingPredictor:
    return SlidingPredictor(model, CLASSES, settings, COLOUR, window_batch, dtype=torch.float64)


def slow_probabilities(model: nn.Module, image: torch.Tensor, settings: WindowSettings) -> torch.Tensor:
    """Algorithm of the public test code: full maps, one window at a time. (1, 3, H, W) -> (1, C, H, W)."""
    height, width = image.shape[-2:]
    side, total = settings.crop_size, torch.zeros(1, CLASSES, height, width, dtype=torch.float64)
    for scaled_height, scaled_width in settings.scaled_sizes(height, width):
        scaled = image.float()
        if (scaled_height, scaled_width) != (height, width):
            scaled = F.interpolate(scaled, (scaled_height, scaled_width), mode="bilinear", align_corners=False)
        top, left = max(side - scaled_height, 0) // 2, max(side - scaled_width, 0) // 2
        full_height, full_width = max(side, scaled_height), max(side, scaled_width)
        padded = COLOUR.expand(1, 3, full_height, full_width).clone()
        padded[:, :, top : top + scaled_height, left : left + scaled_width] = scaled
        summed = torch.zeros(1, CLASSES, full_height, full_width, dtype=torch.float64)
        counts = torch.zeros(full_height, full_width, dtype=torch.float64)
        for row in range(-(-(full_height - side) // settings.stride) + 1):
            for column in range(-(-(full_width - side) // settings.stride) + 1):
                bottom = min(row * settings.stride + side, full_height)
                right = min(column * settings.stride + side, full_width)
                place = (..., slice(bottom - side, bottom), slice(right - side, right))
                window = padded[place]
                with torch.no_grad():
                    result = model(window).softmax(1)
                    if settings.flip:
                        result = (result + model(window.flip(3)).softmax(1).flip(3)) / 2
                summed[place] += result
                counts[place] += 1
        summed = (summed / counts)[:, :, top : top + scaled_height, left : left + scaled_width]
        total += F.interpolate(summed, (height, width), mode="bilinear", align_corners=False)
    return total / len(settings.scales)


@pytest.mark.parametrize("size", [(48, 48), (40, 48), (33, 40)])
def test_one_window_over_the_image_equals_whole(size: tuple[int, int]) -> None:
    """Without padding for the square; the others are compared with the padded image."""
    model, images = tiny_pspnet(), make_images(2, *size)
    slide = predictor(model, WindowSettings(48))
    top, left = (48 - size[0]) // 2, (48 - size[1]) // 2
    padded = COLOUR.expand(2, 3, 48, 48).clone()
    padded[:, :, top : top + size[0], left : left + size[1]] = images
    cut = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    with torch.no_grad():
        expected = model(padded).softmax(dim=1)[cut]
    torch.testing.assert_close(slide.probabilities(images), expected, rtol=0, atol=1e-12)
    assert torch.equal(slide.masks(images), predict_whole(model, padded)[cut])
    assert len(slide.masks(images).unique()) > 1


def test_one_window_in_float32_equals_whole_to_the_last_digits() -> None:
    model, images = tiny_pspnet().float(), make_images(1, 64, 64)
    result = SlidingPredictor(model, CLASSES, WindowSettings(64), COLOUR).probabilities(images)
    assert result.dtype == torch.float32
    # The same memory format: another order of sums would change digits that the enlarged classifier amplifies.
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(result, model(images).softmax(dim=1), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("size", "base_size", "scales"),
    [((70, 90), 0, (1.0,)), ((90, 70), 64, (1.0,)), ((50, 31), 40, (0.5, 1.0, 1.75)), ((34, 101), 101, (1.3,))],
)
def test_strips_equal_the_slow_loop(
    size: tuple[int, int], base_size: int, scales: tuple[float, ...], flip: bool
) -> None:
    model, images = tiny_pspnet(), make_images(2, *size)
    settings = WindowSettings(32, base_size, scales, flip)
    result = predictor(model, settings, window_batch=3).probabilities(images)
    expected = torch.cat([slow_probabilities(model, image, settings) for image in images.split(1)])
    # Images are float32 in both; the sums are float64.
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.sum(dim=1), torch.ones(2, *size, dtype=torch.float64), rtol=0, atol=1e-9)


def test_probabilities_are_averaged_over_the_covering_windows() -> None:
    """Network whose output depends on the position in its window: the result averages over the windows."""

    class Columns(nn.Module):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            certain = torch.full((len(windows), 2, 32, 32), -1e4, dtype=torch.float64)
            certain[:, 0, :, :16] = certain[:, 1, :, 16:] = 1e4
            return certain

    # Windows at columns 0, 22 (stride ceil(32 x 2/3)) and 28; each predicts class 0 on its left half.
    settings = WindowSettings(32)
    result = SlidingPredictor(Columns(), 2, settings, COLOUR, dtype=torch.float64).probabilities(make_images(1, 32, 60))
    first = result[0, 0]  # (32, 60) fraction of windows that predict class 0
    assert first[0, :16].tolist() == [1.0] * 16
    assert first[0, 16:22].tolist() == [0.0] * 6
    assert first[0, 22:28].tolist() == [0.5] * 6  # windows 1 and 2
    assert first[0, 28:32].tolist() == pytest.approx([2 / 3] * 4, abs=1e-15)  # all three
    assert first[0, 32:38].tolist() == [1.0] * 6  # windows 2 and 3
    assert first[0, 38:44].tolist() == [0.5] * 6
    assert first[0, 44:].tolist() == [0.0] * 16
    assert torch.equal(first, first[:1].expand(32, 60))


@pytest.mark.parametrize("flip", [False, True])
def test_a_per_pixel_function_is_unchanged_by_windows_and_mirrors(flip: bool) -> None:
    images = make_images(3, 50, 75)
    model = PerPixel()
    direct = model(images).softmax(dim=1)
    result = predictor(model, WindowSettings(32, flip=flip)).probabilities(images)
    torch.testing.assert_close(result, direct, rtol=0, atol=1e-12)
    assert torch.equal(predictor(model, WindowSettings(32, flip=flip)).masks(images), direct.argmax(dim=1))


def test_a_per_pixel_function_on_flat_images_is_the_same_at_all_scales() -> None:
    colours = make_images(2, 1, 1, seed=3)
    images = colours.expand(2, 3, 40, 61).contiguous()
    model = PerPixel()
    result = predictor(model, WindowSettings(32, 48, SCALES, flip=True)).probabilities(images)
    # Resized colours are float32, whatever the network's own type.
    torch.testing.assert_close(result, model(images).softmax(dim=1), rtol=0, atol=1e-7)


def test_scale_1_without_mirrors_is_slide() -> None:
    model, images = tiny_pspnet(), make_images(1, 50, 70)
    slide, multiple = WindowSettings(32, 60), WindowSettings(32, 60, scales=(1.0,), flip=False)
    assert torch.equal(predictor(model, slide).probabilities(images), predictor(model, multiple).probabilities(images))


def test_mirrored_images_give_mirrored_masks_with_flip() -> None:
    """With flip the mask of a mirror image is the mirrored mask, if windows are symmetric."""
    model, images = tiny_pspnet(), make_images(1, 32, 54)  # windows at 0 and 22
    settings = WindowSettings(32, flip=True)
    result = predictor(model, settings).probabilities(images)
    mirrored = predictor(model, settings).probabilities(images.flip(3))
    torch.testing.assert_close(mirrored, result.flip(3), rtol=0, atol=1e-12)
    without = predictor(model, WindowSettings(32)).probabilities(images.flip(3))
    assert not torch.allclose(without, predictor(model, WindowSettings(32)).probabilities(images).flip(3), atol=1e-3)


@pytest.mark.parametrize(("window_batch", "flip"), [(1, False), (4, False), (5, True), (1, True)])
def test_no_window_is_run_twice_and_batches_are_full(window_batch: int, flip: bool) -> None:
    model, settings, seen = PerPixel(), WindowSettings(32, 0, (1.0, 1.5), flip), []
    predictor(model, settings, window_batch).probabilities(make_images(3, 50, 75), seen.append)
    assert sum(model.batches) == sum(seen) == 3 * settings.passes(50, 75)
    assert max(model.batches) == max(2 if flip else 1, window_batch - window_batch % 2 if flip else window_batch)


def test_images_are_split_if_their_sums_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    images, model = make_images(3, 40, 50), PerPixel()
    expected = predictor(model, WindowSettings(32), 99).masks(images)
    model.batches.clear()
    monkeypatch.setattr(sliding, "_SUM_BYTES", 4 * CLASSES * 40 * 50 * 2)
    assert torch.equal(predictor(model, WindowSettings(32), 99).masks(images), expected)
    assert model.batches == [2 * 2, 2 * 2, 2, 2]  # rows of two windows: of two images, then of one


def test_bfloat16_is_summed_in_float32() -> None:
    model, images = tiny_pspnet().float(), make_images(1, 50, 64)
    exact = SlidingPredictor(model, CLASSES, WindowSettings(32), COLOUR).probabilities(images)
    folded = build_inference_model(model, torch.bfloat16)
    half = SlidingPredictor(folded, CLASSES, WindowSettings(32), COLOUR).probabilities(images)
    assert half.dtype == torch.float32
    assert (exact.argmax(1) == half.argmax(1)).float().mean() > 0.8
    assert not half.requires_grad
