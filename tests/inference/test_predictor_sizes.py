"""Predictor: images of all sizes, batches, and calls from several threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from pspnet.classes import voc_palette
from pspnet.errors import ImageTooLargeError
from pspnet.inference.limits import Limits
from pspnet.inference.predictor import Predictor
from pspnet.models.build import build_model
from pspnet.serving.protocol.request_error import as_request_error
from tests.serving.pictures import argmax_of, picture

CLASSES = 5
NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(3)
    return Predictor(build_model(CLASSES, width=8), NAMES, voc_palette())


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(31, 64), (64, 31), (1, 1), (5, 200), (3, 7)])
def test_small_images_are_padded_with_their_last_row_and_column(predictor: Predictor, height: int, width: int) -> None:
    image = picture(height, width)
    padded = np.pad(image, ((0, max(32 - height, 0)), (0, max(32 - width, 0)), (0, 0)), mode="edge")
    expected = argmax_of(predictor.model, padded)[:height, :width]
    np.testing.assert_array_equal(predictor(image), expected)
    found = predictor.predict([image], probabilities=True)[0].probabilities
    assert found is not None
    assert found.shape == (CLASSES, height, width)


class ByPixel(torch.nn.Module):
    """Pointwise network: class = red value / 52, so windows must leave no trace. Records the shapes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        centres = torch.arange(CLASSES).view(1, CLASSES, 1, 1) * 52 + 25.5
        return -((images[:, :1].float() - centres) ** 2) / 500


def by_pixel(**limits: Any) -> Predictor:
    return Predictor(ByPixel(), NAMES, voc_palette(), limits=Limits(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(200, 300), (65, 65), (1, 5000), (5000, 3), (33, 1000)])
def test_windows_leave_no_seam(height: int, width: int) -> None:
    image = picture(height, width)
    whole, tiled = by_pixel(), by_pixel(pass_pixels=64 * 64)
    expected = whole.predict([image], probabilities=True)[0]
    found = tiled.predict([image], probabilities=True)[0]
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    np.testing.assert_array_equal(found.mask, np.minimum(image[..., 0] // 52, 4))
    shapes = tiled.model.shapes
    assert len(shapes) > 1
    assert max(shape[2] * shape[3] for shape in shapes) <= 64 * 64
    assert len(whole.model.shapes) == 1


def test_windows_of_a_real_model_agree_with_one_forward_pass_nearly_everywhere(predictor: Predictor) -> None:
    image = picture(170, 200)
    tiled = Predictor(predictor.model, predictor.class_names, predictor.palette, limits=Limits(pass_pixels=128 * 128))
    assert (tiled(image) == predictor(image)).mean() > 0.7


def test_a_scaled_image_keeps_its_size_and_large_shapes() -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    image[:, 200:] = 250
    scaled = by_pixel(pass_pixels=64 * 64, large_images="scale")
    found = scaled.predict([image], probabilities=True)[0]
    assert found.mask.shape == (300, 400)
    assert (found.mask[:, :190] == 0).all()
    assert (found.mask[:, 210:] == 4).all()
    assert found.probabilities is not None
    np.testing.assert_array_equal(found.probabilities.argmax(axis=0), found.mask)
    assert scaled.model.shapes == [(1, 3, 55, 73)]


def test_large_images_are_refused_if_requested() -> None:
    predictor = by_pixel(pass_pixels=64 * 64, large_images="refuse")
    assert predictor(picture(64, 64)).shape == (64, 64)
    with pytest.raises(ImageTooLargeError, match=r"has 65x64 pixels; at most 4,096 are allowed as large") as caught:
        predictor(picture(64, 65))
    answer = as_request_error(caught.value)
    assert (answer.status, str(answer)) == (
        413,
        "The image has 65x64 pixels; this endpoint takes at most 4,096 of them (PSPNET_PASS_PIXELS) as "
        "PSPNET_LARGE_IMAGES is `refuse`. Send a smaller one.",
    )


# --- several images ---------------------------------------------------------------------------------------------------


def test_images_of_one_size_run_as_one_batch_and_keep_their_order() -> None:
    predictor = by_pixel()
    images = [np.full(size, value, np.uint8) for value, size in enumerate([(40, 50, 3), (50, 40, 3)] * 3, start=10)]
    for number, image in enumerate(images):
        image[...] = 45 * number
    found = predictor.predict(images)
    assert [int(entry.mask[0, 0]) for entry in found] == [min(45 * n // 52, 4) for n in range(6)]
    assert all(entry.image is image and entry.probabilities is None for entry, image in zip(found, images))
    assert predictor.model.shapes == [(3, 3, 40, 50), (3, 3, 50, 40)]
    assert predictor.predict([]) == []


def test_batches_are_bounded_by_pass_pixels() -> None:
    predictor = by_pixel(pass_pixels=8_000)
    predictor.predict([picture(40, 50)] * 9 + [picture(100, 100)])
    assert [shape[0] for shape in predictor.model.shapes[:3]] == [4, 4, 1]


def test_a_batch_equals_single_images(predictor: Predictor) -> None:
    images = [picture(48, 64), picture(48, 64)[::-1], picture(48, 64)[:, ::-1]]
    for image, found in zip(images, predictor.predict(images, probabilities=True)):
        np.testing.assert_array_equal(found.mask, predictor(image))
        with torch.no_grad():
            tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
            expected = predictor.model(tensor)[0].softmax(dim=0).numpy()
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
        np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)


def test_predict_iter_reads_only_as_many_images_as_a_forward_pass_takes() -> None:
    predictor = by_pixel(pass_pixels=8_000)
    images = [picture(40, 50), picture(50, 40), picture(100, 100), *[picture(40, 50)] * 5]
    read: list[int] = []

    def source() -> Iterator[np.ndarray]:
        for number, image in enumerate(images):
            read.append(number)
            yield image

    found = predictor.predict_iter(source(), confidence=True)
    assert read == []
    first = next(found)
    assert read == [0, 1, 2]
    for prediction, image in zip([first, *found], images):
        np.testing.assert_array_equal(prediction.mask, np.minimum(image[..., 0] // 52, 4))
        assert prediction.confidence().shape == prediction.mask.shape
    assert [shape[0] for shape in predictor.model.shapes if shape[2:] == (40, 50)] == [1, 4, 1]
    assert len(list(predictor.predict_iter(picture(40, 50)))) == 1


def test_threads_share_a_predictor(predictor: Predictor) -> None:
    images = [picture(40 + 8 * index, 64) for index in range(4)]
    expected = [predictor(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor, images * 4))
    for number, mask in enumerate(found):
        np.testing.assert_array_equal(mask, expected[number % 4])
