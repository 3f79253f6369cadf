"""Predictor: every kind of image gives the same mask, everything else one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pspnet
from pspnet.artifact.model_directory import architecture_of, load_artifact, save_artifact
from pspnet.classes import voc_palette
from pspnet.config.schema import Config
from pspnet.data.io.images import to_rgb
from pspnet.errors import ConfigError, DataError, WeightsError
from pspnet.inference.predictor import Predictor
from pspnet.models.build import build_algorithm, build_model
from tests.serving.pictures import argmax_of, picture

CLASSES = 5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    config = Config(num_classes=CLASSES, data="x", width=8, use_pretrained_model=False, class_names="a, b, c, d, e")
    torch.manual_seed(3)
    save_artifact(directory, build_model(**architecture_of(config)), config, {}, {})
    return directory


@pytest.fixture(scope="module")
def predictor(model_dir: Path) -> Predictor:
    return Predictor.load(model_dir, device="cpu")


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(48, 64), (32, 32), (33, 47), (61, 32), (35, 150)])
def test_the_mask_is_the_models_argmax_at_the_images_size(predictor: Predictor, height: int, width: int) -> None:
    image = picture(height, width)
    mask = predictor(image)
    assert mask.dtype == np.uint8
    assert mask.shape == (height, width)
    np.testing.assert_array_equal(mask, argmax_of(predictor.model, image))
    if height * width > 2000:
        assert len(np.unique(mask)) > 1


def test_a_deep_stem_gives_the_same_mask_in_both_layouts() -> None:
    """PyTorch 1.12 computes it wrongly for one image whose batch stride is not that of a whole image."""
    torch.manual_seed(0)
    model = build_model(CLASSES, stem="deep", width=8).eval()
    image = picture(41, 57)
    expected = argmax_of(model, image)
    np.testing.assert_array_equal(Predictor(model, tuple("abcde"), voc_palette())(image), expected)


def test_every_kind_of_image_gives_the_same_mask(predictor: Predictor, tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    expected = predictor(image)
    alpha = np.dstack([image, image[..., 0]])
    tensor = torch.from_numpy(image)
    with Image.open(path) as opened:
        kinds = [path, str(path), Image.fromarray(image), opened, alpha, tensor, tensor.permute(2, 0, 1)]
        for kind in kinds:
            np.testing.assert_array_equal(predictor(kind), expected)
            np.testing.assert_array_equal(predictor.predict(kind).mask, expected)
        for masks in (predictor(kinds), predictor(tuple(kinds)), [one.mask for one in predictor.predict(kinds)]):
            assert len(masks) == len(kinds)
            assert all((mask == expected).all() for mask in masks)
    assert predictor([]) == []


def test_a_grey_array_is_read_as_rgb(predictor: Predictor) -> None:
    grey = picture()[..., 0]
    np.testing.assert_array_equal(predictor(grey), predictor(np.repeat(grey[..., None], 3, axis=2)))


def test_prediction_conversions(predictor: Predictor, tmp_path: Path) -> None:
    plain, exact = predictor.predict(picture()), predictor.predict(picture(), probabilities=True)
    levels = predictor.predict([picture()], confidence=True)[0]
    np.testing.assert_array_equal(levels.mask, plain.mask)
    assert levels.confidence().dtype == np.uint8
    assert exact.probabilities is not None
    assert np.abs(levels.confidence() - 255 * exact.probabilities.max(axis=0)).max() <= 0.51
    assert np.abs(exact.confidence().astype(int) - levels.confidence()).max() <= 1
    with pytest.raises(ConfigError, match="no confidences; predict with confidence=True or probabilities=True"):
        plain.confidence()
    counts = plain.counts()
    assert [entry["id"] for entry in counts] == np.unique(plain.mask).tolist()
    assert sum(entry["pixels"] for entry in counts) == 48 * 64
    assert counts[0]["fraction"] == round(counts[0]["pixels"] / (48 * 64), 6)
    plain.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), plain.mask)
    with pytest.raises(ConfigError, match=r"mask\.jpg: a mask is saved as PNG"):
        plain.save(tmp_path / "mask.jpg")
    expected = (picture() * 0.5 + plain.palette[plain.mask] * 0.5 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(plain.overlay()), expected)
    assert plain._repr_png_()[:4] == b"\x89PNG"
    largest = max(counts, key=lambda entry: entry["pixels"])
    start = f"Prediction(64x48, {len(counts)} of 5 classes: {largest['name']} {100 * largest['fraction']:.1f} %"
    assert repr(plain).startswith(start)


def test_a_jpeg_is_read_as_pillow_reads_it(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        decoded = np.asarray(opened)
    np.testing.assert_array_equal(predictor(tmp_path / "a.jpg"), argmax_of(predictor.model, decoded))


def test_arrays_of_any_memory_layout(predictor: Predictor) -> None:
    image = picture()
    mirrored = image[:, ::-1]  # negative strides
    np.testing.assert_array_equal(predictor(mirrored), predictor(np.ascontiguousarray(mirrored)))
    frozen = image.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(predictor(frozen), predictor(image))
    np.testing.assert_array_equal(predictor(np.asfortranarray(image)), predictor(image))
    np.testing.assert_array_equal(predictor(np.dstack([image, image])[..., :3]), predictor(image))


def test_the_image_is_unchanged_and_the_mask_is_a_new_array(predictor: Predictor) -> None:
    image = picture()
    mask = predictor(image)
    np.testing.assert_array_equal(image, picture())
    mask[:] = 9
    assert predictor(image).max() < CLASSES


# --- kinds of images --------------------------------------------------------------------------------------------------


def of_mode(mode: str) -> Image.Image:
    rgb = Image.fromarray(picture())
    if mode == "I;16":
        return Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    if mode == "RGBA":
        rgb.putalpha(Image.fromarray(np.arange(48 * 64, dtype=np.uint32).reshape(48, 64).astype(np.uint8)))
        return rgb
    return rgb.convert(mode)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_images_of_other_modes(predictor: Predictor, mode: str) -> None:
    image = of_mode(mode)
    rgb = to_rgb(image)
    assert rgb.shape == (48, 64, 3)
    np.testing.assert_array_equal(predictor(image), argmax_of(predictor.model, rgb))


@pytest.mark.parametrize(
    ("mode", "name"), [("L", "a.png"), ("RGBA", "a.png"), ("P", "a.png"), ("I;16", "a.png"), ("CMYK", "a.jpg")]
)
def test_files_of_other_modes(predictor: Predictor, tmp_path: Path, mode: str, name: str) -> None:
    of_mode(mode).save(tmp_path / name)
    mask = predictor(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        assert opened.mode == mode or (mode, opened.mode) == ("I;16", "I")  # the latter before Pillow 11
        np.testing.assert_array_equal(mask, argmax_of(predictor.model, to_rgb(opened)))


def test_transparency_is_dropped_not_blended(predictor: Predictor) -> None:
    np.testing.assert_array_equal(predictor(of_mode("RGBA")), predictor(picture()))


def test_16_bit_greyscale_is_scaled(predictor: Predictor) -> None:
    grey = np.repeat(picture()[..., :1], 3, axis=2)
    np.testing.assert_array_equal(predictor(of_mode("I;16")), predictor(grey))


def test_exif_orientation_is_not_applied(predictor: Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees for display
    Image.fromarray(picture()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(picture()).save(tmp_path / "plain.jpg", quality=95)
    mask = predictor(tmp_path / "turned.jpg")
    assert mask.shape == (48, 64)
    np.testing.assert_array_equal(mask, predictor(tmp_path / "plain.jpg"))
    with Image.open(tmp_path / "turned.jpg") as opened:
        assert opened.getexif()[0x0112] == 6
        np.testing.assert_array_equal(predictor(opened), mask)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((3, 48, 64), np.uint8), r"\(3, 48, 64\) and type uint8"),
        (np.zeros((48, 64, 1), np.uint8), r"\(48, 64, 1\) and type uint8"),
        (np.zeros((1, 48, 64, 3), np.uint8), r"\(1, 48, 64, 3\) and type uint8"),
        (np.zeros((48, 64, 3), np.float32), r"\(48, 64, 3\) and type float32"),
        (np.zeros((48, 64), np.int64), r"\(48, 64\) and type int64"),
    ],
)
def test_wrong_arrays_are_refused(predictor: Predictor, array: np.ndarray, found: str) -> None:
    with pytest.raises(DataError, match=rf"an array of shape {found}; expected \(H, W\), \(H, W, 3\)"):
        predictor(array)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(3, 9, 9), r"a tensor of shape \(3, 9, 9\) and type torch.float32; expected \(3, H, W\)"),
        (torch.zeros(9, 9, dtype=torch.uint8), r"a tensor of shape \(9, 9\) and type torch.uint8"),
        (torch.zeros(3, 0, 9, dtype=torch.uint8), r"a tensor of shape \(3, 0, 9\), which holds no pixels"),
        ([b"bytes"], "of type bytes; expected a path, a Pillow image, a numpy array, a torch tensor, or a list"),
        (b"bytes", "of type bytes"),
        (7, "of type int"),
        (None, "of type NoneType"),
    ],
)
def test_other_values_are_refused(predictor: Predictor, value: Any, text: str) -> None:
    for call in (predictor, predictor.predict, lambda images: list(predictor.predict_iter(images))):
        with pytest.raises(DataError, match=f"the image is {text}"):
            call(value)


def test_an_array_without_pixels_is_refused(predictor: Predictor) -> None:
    with pytest.raises(DataError, match=r"shape \(0, 40, 3\), which holds no pixels"):
        predictor(np.zeros((0, 40, 3), np.uint8))


def test_files_that_are_not_images_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg: not a readable image \(no such file\)"):
        predictor(tmp_path / "nowhere.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg: not a readable image \(unknown image format\)"):
        predictor(str(tmp_path / "text.jpg"))
    with pytest.raises(DataError, match="not a readable image"):
        predictor(tmp_path)


def test_truncated_images_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(DataError, match=r"half\.png: not a readable image \(.*truncated"):
        predictor(path)
    with Image.open(path) as opened, pytest.raises(DataError, match=r"the image cannot be read: .*truncated"):
        predictor(opened)


def test_the_predictor_works_after_an_error(predictor: Predictor) -> None:
    expected = predictor(picture())
    with pytest.raises(DataError):
        predictor(picture(8, 8)[..., :2])
    np.testing.assert_array_equal(predictor(picture()), expected)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_three_lines_of_the_readme(model_dir: Path) -> None:
    predictor = pspnet.Predictor.load(str(model_dir))
    assert pspnet.Predictor is Predictor
    mask = predictor(picture())
    assert mask.shape == (48, 64)
    assert predictor.class_names == ("a", "b", "c", "d", "e")
    np.testing.assert_array_equal(predictor.palette, voc_palette())


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a model directory"):
        Predictor.load(tmp_path)


def test_a_model_in_training_mode_is_set_to_evaluation_mode(model_dir: Path) -> None:
    model = load_artifact(model_dir).model.train()
    predictor = Predictor(model, ("a",) * CLASSES, voc_palette())
    assert not predictor.model.training
    np.testing.assert_array_equal(predictor(picture()), Predictor.load(model_dir, device="cpu")(picture()))


@pytest.mark.parametrize("size", [(48, 64), (35, 150), (96, 96)])
def test_the_fused_model_agrees_with_the_network(model_dir: Path, size: tuple[int, int]) -> None:
    image = picture(*size)
    prediction = Predictor.load(model_dir, device="cpu").predict([image], probabilities=True)[0]
    with torch.no_grad():
        logits = load_artifact(model_dir).model(torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0))[0]
    probabilities = logits.softmax(dim=0)
    np.testing.assert_allclose(prediction.probabilities, probabilities.numpy(), atol=1e-5)
    best = probabilities.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    np.testing.assert_array_equal(prediction.mask[clear], logits.argmax(dim=0).numpy()[clear])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fcn", "deeplab"])
def test_other_algorithms_predict_too(algorithm: str) -> None:
    torch.manual_seed(0)
    model = build_algorithm(algorithm, num_classes=3).eval()
    exact = Predictor(model, tuple("abc"), voc_palette())
    np.testing.assert_array_equal(exact(picture()), argmax_of(model, picture()))
    half = Predictor(model, tuple("abc"), voc_palette(), dtype=torch.bfloat16)
    assert (half(picture()) == exact(picture())).mean() > 0.8


def test_predictions_need_no_gradients(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    forward = predictor.model.forward

    def spy(images: torch.Tensor) -> Any:
        seen.append(torch.is_grad_enabled())
        return forward(images)

    monkeypatch.setattr(predictor.model, "forward", spy)
    predictor(picture())
    assert seen == [False]


def test_bfloat16_predicts_nearly_the_same(predictor: Predictor, model_dir: Path) -> None:
    half = Predictor.load(model_dir, "cpu", dtype=torch.bfloat16)
    assert (half(picture()) == predictor(picture())).mean() > 0.8
