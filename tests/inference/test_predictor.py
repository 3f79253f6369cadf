"""Image in, mask out: every kind of image, the same mask, and clear errors for the rest."""

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
from pspnet.errors import DataError, WeightsError
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


# --- what comes out ---------------------------------------------------------------------------------------------------


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


def test_path_pillow_image_and_array_give_the_same_mask(predictor: Predictor, tmp_path: Path) -> None:
    image = picture()
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = predictor(image)
    np.testing.assert_array_equal(predictor(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(predictor(str(tmp_path / "a.png")), expected)
    np.testing.assert_array_equal(predictor(Image.fromarray(image)), expected)
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(predictor(opened), expected)


def test_a_jpeg_is_read_as_pillow_reads_it(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        decoded = np.asarray(opened)
    np.testing.assert_array_equal(predictor(tmp_path / "a.jpg"), argmax_of(predictor.model, decoded))


def test_arrays_of_any_layout(predictor: Predictor) -> None:
    image = picture()
    mirrored = image[:, ::-1]  # negative strides
    np.testing.assert_array_equal(predictor(mirrored), predictor(np.ascontiguousarray(mirrored)))
    frozen = image.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(predictor(frozen), predictor(image))
    np.testing.assert_array_equal(predictor(np.asfortranarray(image)), predictor(image))
    np.testing.assert_array_equal(predictor(np.dstack([image, image])[..., :3]), predictor(image))


def test_the_image_is_left_as_it_was_and_the_mask_is_ones_own(predictor: Predictor) -> None:
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
    exif[0x0112] = 6  # to be turned by 90 degrees for show
    Image.fromarray(picture()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(picture()).save(tmp_path / "plain.jpg", quality=95)
    mask = predictor(tmp_path / "turned.jpg")
    assert mask.shape == (48, 64)
    np.testing.assert_array_equal(mask, predictor(tmp_path / "plain.jpg"))
    with Image.open(tmp_path / "turned.jpg") as opened:
        assert opened.getexif()[0x0112] == 6
        np.testing.assert_array_equal(predictor(opened), mask)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((48, 64), np.uint8), r"\(48, 64\) and type uint8"),
        (np.zeros((3, 48, 64), np.uint8), r"\(3, 48, 64\) and type uint8"),
        (np.zeros((48, 64, 4), np.uint8), r"\(48, 64, 4\) and type uint8"),
        (np.zeros((1, 48, 64, 3), np.uint8), r"\(1, 48, 64, 3\) and type uint8"),
        (np.zeros((48, 64, 3), np.float32), r"\(48, 64, 3\) and type float32"),
        (np.zeros((48, 64, 3), np.int64), r"\(48, 64, 3\) and type int64"),
    ],
)
def test_wrong_arrays_are_refused(predictor: Predictor, array: np.ndarray, found: str) -> None:
    with pytest.raises(DataError, match=rf"an array of shape {found}; expected \(H, W, 3\) uint8 RGB"):
        predictor(array)


def test_an_array_without_pixels_is_refused(predictor: Predictor) -> None:
    with pytest.raises(DataError, match=r"shape \(0, 40, 3\), which holds no pixels"):
        predictor(np.zeros((0, 40, 3), np.uint8))


def test_files_that_are_no_images_are_refused(predictor: Predictor, tmp_path: Path) -> None:
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


def test_the_predictor_goes_on_after_an_error(predictor: Predictor) -> None:
    expected = predictor(picture())
    with pytest.raises(DataError):
        predictor(picture(8, 8)[..., 0])
    np.testing.assert_array_equal(predictor(picture()), expected)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_three_lines_of_the_readme(model_dir: Path) -> None:
    predictor = pspnet.Predictor.load(str(model_dir))
    assert pspnet.Predictor is Predictor
    mask = predictor(picture())
    assert mask.shape == (48, 64)
    assert predictor.class_names == ("a", "b", "c", "d", "e")
    np.testing.assert_array_equal(predictor.palette, voc_palette())


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a model directory"):
        Predictor.load(tmp_path)


def test_a_model_in_training_mode_is_switched(model_dir: Path) -> None:
    model = load_artifact(model_dir).model.train()
    predictor = Predictor(model, ("a",) * CLASSES, voc_palette())
    assert not predictor.model.training
    np.testing.assert_array_equal(predictor(picture()), Predictor.load(model_dir, device="cpu")(picture()))


@pytest.mark.parametrize("size", [(48, 64), (35, 150), (96, 96)])
def test_the_inference_form_says_what_the_network_says(model_dir: Path, size: tuple[int, int]) -> None:
    image = picture(*size)
    prediction = Predictor.load(model_dir, device="cpu").predict([image], probabilities=True)[0]
    with torch.no_grad():
        logits = load_artifact(model_dir).model(torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0))[0]
    shares = logits.softmax(dim=0)
    np.testing.assert_allclose(prediction.probabilities, shares.numpy(), atol=1e-5)
    best = shares.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    np.testing.assert_array_equal(prediction.mask[clear], logits.argmax(dim=0).numpy()[clear])


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
