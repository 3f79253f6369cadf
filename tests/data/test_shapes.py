from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import SHAPES_CLASSES, voc_palette
from pspnet.data import shapes
from pspnet.data.channels import load_pairs
from pspnet.data.io.images import read_annotation, read_image
from pspnet.data.shapes import draw_scene, write_shapes
from pspnet.errors import DataError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shapes") / "set"
    write_shapes(output, train=3, validation=2, size=(80, 64), seed=7)
    return output


def test_four_channels_are_written(small_set: Path) -> None:
    assert {path.name for path in small_set.iterdir()} == {
        "train", "train_annotation", "validation", "validation_annotation", "shapes.json",
    }  # fmt: skip
    assert len(load_pairs(small_set / "train", small_set / "train_annotation")) == 3
    pairs = load_pairs(small_set / "validation", small_set / "validation_annotation", "validation")
    assert [pair.image.name for pair in pairs] == ["validation_00000.jpg", "validation_00001.jpg"]
    with Image.open(pairs[0].image) as image, Image.open(pairs[0].annotation) as mask:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 64))
        assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (80, 64))
        assert mask.getpalette() == voc_palette().ravel().tolist()


def test_the_same_seed_gives_the_same_bytes(small_set: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "again", train=3, validation=2, size=(80, 64), seed=7)
    assert contents(tmp_path / "again") == contents(small_set)


def test_a_picture_depends_on_seed_split_and_index_only(small_set: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "longer", train=4, validation=1, size=(80, 64), seed=7)
    write_shapes(tmp_path / "other", train=1, validation=1, size=(80, 64), seed=8)
    first, longer, other = contents(small_set), contents(tmp_path / "longer"), contents(tmp_path / "other")
    assert longer["train/train_00002.jpg"] == first["train/train_00002.jpg"]
    assert longer["validation/validation_00000.jpg"] == first["validation/validation_00000.jpg"]
    assert other["train/train_00000.jpg"] != first["train/train_00000.jpg"]
    assert len({content for name, content in longer.items() if name.endswith(".jpg")}) == 5


def test_a_constant_predictor_scores_below_a_tenth() -> None:
    counts = np.zeros(256, dtype=np.int64)
    for index in range(40):
        image, mask = draw_scene(np.random.default_rng([0, 0, index]), (96, 72))
        assert image.shape == (72, 96, 3)
        assert image.dtype == mask.dtype == np.uint8
        counts += np.bincount(mask.ravel(), minlength=256)
    classes = counts[: len(SHAPES_CLASSES)]
    shares = classes / classes.sum()
    assert counts.sum() - classes.sum() == counts[255]  # nothing but class ids and ignored pixels
    assert shares.max() == shares[0]
    assert shares[0] / len(SHAPES_CLASSES) < 0.10
    assert shares[1:].min() > 0.02
    assert 0.03 < counts[255] / counts.sum() < 0.20


def test_ignored_pixels_are_between_the_objects() -> None:
    _, mask = draw_scene(np.random.default_rng([0, 0, 3]), (128, 96))
    labelled = mask != 255
    # Two labelled neighbours always belong to the same instance, so they have the same class.
    for one, two in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
        both = (one != 255) & (two != 255)
        assert (one[both] == two[both]).all()
    assert 0 < (~labelled).sum() < labelled.sum() / 3


def test_colour_alone_does_not_determine_the_class() -> None:
    """The hue of a class's pixels is in its family for most objects, not for all."""
    near = total = 0
    for index in range(40):
        image, mask = draw_scene(np.random.default_rng([1, 0, index]), (96, 72))
        hues = np.asarray(Image.fromarray(image).convert("HSV"))[..., 0] * (360 / 256)
        for class_id, hue in enumerate(shapes._HUE_FAMILIES.values(), start=1):
            distance = np.abs((hues[mask == class_id] - hue + 180) % 360 - 180)
            near += int((distance < 30).sum())
            total += distance.size
    assert 0.6 < near / total < 0.95


def test_the_same_set_is_reused_unchanged(small_set: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_set.rglob("*")}
    write_shapes(small_set, train=3, validation=2, size=(80, 64), seed=7)
    assert {path: path.stat().st_mtime_ns for path in small_set.rglob("*")} == before


def test_other_content_is_never_overwritten(small_set: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'seed': 7.*requested was .*'seed': 9.*Choose another folder, or remove this"):
        write_shapes(small_set, train=3, validation=2, size=(80, 64), seed=9)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is not a synthetic set \(no shapes\.json\)"):
        write_shapes(tmp_path)
    with pytest.raises(DataError, match="is not a synthetic set"):
        write_shapes(tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_set_with_missing_files_is_not_reused(tmp_path: Path) -> None:
    write_shapes(tmp_path / "set", train=2, validation=1, size=(48, 48))
    (tmp_path / "set" / "train_annotation" / "train_00001.png").unlink()
    with pytest.raises(DataError, match=r"train_annotation: contains 1 of 2 files"):
        write_shapes(tmp_path / "set", train=2, validation=1, size=(48, 48))
    (tmp_path / "set" / "shapes.json").write_text("{")
    with pytest.raises(DataError, match=r"shapes\.json: cannot be read"):
        write_shapes(tmp_path / "set", train=2, validation=1, size=(48, 48))


def test_the_manifest_has_the_arguments(small_set: Path) -> None:
    manifest = json.loads((small_set / "shapes.json").read_text())
    assert manifest == {"format": 2, "seed": 7, "width": 80, "height": 64, "train": 3, "validation": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train=0, validation=40; each split needs at least one"),
        ({"validation": -1}, "validation=-1"),
        ({"size": (128, 31)}, "found size 128 x 31; both sides must be at least 32 pixels"),
        ({"seed": -1}, "found seed -1; expected 0 or more"),
    ],
)
def test_invalid_arguments_are_named(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_shapes(tmp_path / "set", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupt(*arguments: object) -> tuple[np.ndarray, np.ndarray]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_scene(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shapes, "draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "set", train=3, validation=1, size=(48, 48))
    assert list(tmp_path.iterdir()) == []


def test_a_set_written_by_another_process_meanwhile_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "set"
    original = shapes._write_split

    def race(folder: Path, split: str, count: int, size: tuple[int, int], seed: int) -> None:
        original(folder, split, count, size, seed)
        if split == "validation":
            monkeypatch.setattr(shapes, "_write_split", original)
            write_shapes(output, train=1, validation=1, size=(48, 48))

    monkeypatch.setattr(shapes, "_write_split", race)
    write_shapes(output, train=1, validation=1, size=(48, 48))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert read_image(output / "train" / "train_00000.jpg").shape == (48, 48, 3)
    assert read_annotation(output / "train_annotation" / "train_00000.png").shape == (48, 48)
