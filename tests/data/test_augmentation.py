"""Pipelines of albumentations: files, sizes, alignment, and samples that depend only on the generator."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pspnet.data.augmentation import Augmentation
from pspnet.data.transforms import TrainTransform
from pspnet.errors import ConfigError, DataError

pytest.importorskip("albumentations")

FLIPS = [{"__class_fullname__": name, "p": 0.5} for name in ("HorizontalFlip", "VerticalFlip")]
CROP = {"__class_fullname__": "RandomCrop", "p": 1.0, "height": 32, "width": 32}


def write_pipeline(path: Path, *transforms: dict[str, Any]) -> str:
    content = {"transform": {"__class_fullname__": "Compose", "p": 1.0, "transforms": transforms}}
    path.write_text(json.dumps(content))  # which is YAML too
    return str(path)


def sample(side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red channel is its mask."""
    image = np.random.default_rng(0).integers(0, 250, (side, side, 3), dtype=np.uint8)
    return image, image[..., 0].copy()


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_image_and_mask_stay_aligned(suffix: str, tmp_path: Path) -> None:
    rotate = {"__class_fullname__": "RandomRotate90", "p": 0.5}
    augmentation = Augmentation(write_pipeline(tmp_path / f"a.{suffix}", *FLIPS, rotate), 32)
    image, mask = sample()
    image.flags.writeable = False
    found = set()
    for seed in range(60):
        out, out_mask = augmentation(image, mask, np.random.default_rng(seed))
        np.testing.assert_array_equal(out[..., 0], out_mask)
        found.add(out_mask.tobytes())
    assert len(found) == 8  # every combination: the transforms draw independently
    np.testing.assert_array_equal(mask, image[..., 0])


def test_a_sample_depends_on_its_generator_only(tmp_path: Path) -> None:
    noise = {"__class_fullname__": "ISONoise", "p": 0.7}
    blur = {"__class_fullname__": "MedianBlur", "p": 0.5}
    augmentation = Augmentation(write_pipeline(tmp_path / "a.yaml", *FLIPS, noise, blur), 32)
    transform = TrainTransform(32, 40, blur=0.5, augmentation=augmentation)
    image, mask = sample(40)
    random.seed(1)
    np.random.seed(1)
    first = [transform(image, mask, np.random.default_rng(seed)) for seed in range(8)]
    assert (random.random(), np.random.random()) == (random.Random(1).random(), np.random.RandomState(1).random())
    random.seed(2)
    for seed in reversed(range(8)):
        again = transform(image, mask, np.random.default_rng(seed))
        np.testing.assert_array_equal(again[0], first[seed][0])
        np.testing.assert_array_equal(again[1], first[seed][1])
    assert len({out.tobytes() for out, _ in first}) == 8


def test_the_pipeline_replaces_the_window(tmp_path: Path) -> None:
    augmentation = Augmentation(write_pipeline(tmp_path / "a.yaml", CROP), 32)
    image, mask = sample(90)
    out, out_mask = TrainTransform(32, 16, augmentation=augmentation, window=False)(
        image, mask, np.random.default_rng(0)
    )
    windows = np.lib.stride_tricks.sliding_window_view(mask, (32, 32))
    assert (windows == out_mask).all(axis=(2, 3)).any()
    np.testing.assert_array_equal(out[..., 0], out_mask)


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (
            FLIPS[0],
            r"returned uint8 \(40, 40, 3\) and a mask uint8 \(40, 40\) for a 40x40 px image; expected uint8",
        ),
        ({"__class_fullname__": "Normalize", "p": 1.0}, r"returned float32 \(40, 40, 3\) .* without normalisation"),
        ({**CROP, "height": 99}, r"failed on a 40x40 px image \(.+\)\.$"),
    ],
)
def test_unusable_results_are_data_errors(transform: dict[str, Any], text: str, tmp_path: Path) -> None:
    augmentation = Augmentation(write_pipeline(tmp_path / "a.yaml", transform), 32)
    with pytest.raises(DataError, match=text) as caught:
        augmentation(*sample(40), np.random.default_rng(0))
    assert str(caught.value).startswith(f"augmentation = {tmp_path / 'a.yaml'}: ")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read (No such file or directory)."),
        ("a: [", "not an albumentations pipeline (while parsing"),
        ("[1, 2]", "not an albumentations pipeline (list indices"),
        ("epochs: 3", "not an albumentations pipeline (missing or unknown name 'transform')."),
        ("transform: {__class_fullname__: os.system, p: 1}", "(missing or unknown name 'os.system')."),
        ("transform: {__class_fullname__: HorizontalFlip, p: 3}", "(1 validation error"),
        ("transform: {__class_fullname__: HorizontalFlip, p: 1, speed: 2}", "'speed'"),
    ],
)
def test_invalid_files_are_one_sentence(content: str | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        Augmentation(str(path), 32)
    assert str(caught.value).startswith(f"augmentation = {path}: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_documented_pipeline_ignores_pixels_outside_the_image(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    text = document.split("```yaml\ntransform:")[1].split("```")[0]
    content = yaml.safe_load("transform:" + text)
    content["transform"]["transforms"][1]["p"] = 1.0
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    augmentation = Augmentation(str(tmp_path / "a.yaml"), 32)
    masks = [augmentation(*sample(), np.random.default_rng(seed))[1] for seed in range(10)]
    assert any((mask == 255).any() for mask in masks)
    assert not any((mask[12:20, 12:20] == 255).any() for mask in masks)
