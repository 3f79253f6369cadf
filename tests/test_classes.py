from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pspnet.classes import (
    ADE20K_CLASSES,
    CAMVID_CLASSES,
    CITYSCAPES_CLASSES,
    NAMED_CLASS_SETS,
    SHAPES_CLASSES,
    VOC_CLASSES,
    default_class_names,
    load_label_map,
    palette_for,
    voc_palette,
)
from pspnet.errors import DataError


def write_map(folder: Path, content: object) -> Path:
    path = folder / "train_label_map.json"
    path.write_text(json.dumps(content))
    return path


def test_voc_palette_has_the_published_colours() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    published = {
        0: [0, 0, 0], 1: [128, 0, 0], 2: [0, 128, 0], 3: [128, 128, 0], 8: [64, 0, 0], 15: [192, 128, 128],
        20: [0, 64, 128], 255: [224, 224, 192],
    }  # fmt: skip
    assert {index: palette[index].tolist() for index in published} == published
    assert len({tuple(colour) for colour in palette.tolist()}) == 256


def test_class_sets_have_their_sizes_and_distinct_names() -> None:
    sizes = {name: len(names) for name, names in NAMED_CLASS_SETS.items()}
    assert sizes == {"voc": 21, "camvid": 11, "cityscapes": 19, "ade20k": 150, "shapes": 7}
    for names in NAMED_CLASS_SETS.values():
        assert len(set(names)) == len(names)
        assert not [name for name in names if name != name.strip() or "," in name]
    assert (VOC_CLASSES[0], VOC_CLASSES[15], VOC_CLASSES[20]) == ("background", "person", "tvmonitor")


def test_default_names_are_vocs_for_21_classes_only() -> None:
    assert default_class_names(21) == VOC_CLASSES
    assert default_class_names(3) == ("class_0", "class_1", "class_2")


def test_camvid_palette_replaces_the_first_eleven_colours() -> None:
    palette = palette_for(CAMVID_CLASSES)
    assert palette[0].tolist() == [128, 128, 128]
    assert palette[3].tolist() == [128, 64, 128]
    assert (palette[11:] == voc_palette()[11:]).all()
    assert (palette_for(SHAPES_CLASSES) == voc_palette()).all()


def test_published_names_and_colours_by_id() -> None:
    """Spot checks against cityscapesScripts' labels, and the scene parsing challenge's objectInfo150 and color150."""
    ade = palette_for(ADE20K_CLASSES)
    assert [ADE20K_CLASSES[index] for index in (0, 12, 19, 66, 90, 149)] == [
        "wall", "person", "chair", "flower", "airplane", "flag",
    ]  # fmt: skip
    assert [ade[index].tolist() for index in (0, 2, 66, 149)] == [
        [120, 120, 120], [6, 230, 230], [255, 0, 0], [92, 0, 255],
    ]  # fmt: skip
    cityscapes = palette_for(CITYSCAPES_CLASSES)
    assert (CITYSCAPES_CLASSES[0], CITYSCAPES_CLASSES[13], CITYSCAPES_CLASSES[18]) == ("road", "car", "bicycle")
    assert [cityscapes[index].tolist() for index in (0, 13, 18)] == [[128, 64, 128], [0, 0, 142], [119, 11, 32]]
    for palette, count in ((ade, 150), (cityscapes, 19)):
        assert (palette[count:] == voc_palette()[count:]).all()


@pytest.mark.parametrize("scale", [10, "10", 10.0])
def test_scale_divides_and_rounds_down(tmp_path: Path, scale: object) -> None:
    label_map = load_label_map(write_map(tmp_path, {"scale": scale}))
    mask = np.array([[0, 9, 10, 19, 20, 254, 255]], dtype=np.uint8)
    assert label_map.apply(mask).tolist() == [[0, 0, 1, 1, 2, 25, 255]]
    assert label_map.named.all()


def test_map_is_class_id_to_pixel_value(tmp_path: Path) -> None:
    label_map = load_label_map(write_map(tmp_path, {"map": {"0": 5, "1": "0", "2": 255}}))
    mask = np.array([[5, 0, 255, 7]], dtype=np.uint8)
    classes = label_map.apply(mask)
    assert classes.tolist() == [[0, 1, 2, 255]]
    assert classes.dtype == np.uint8
    assert np.flatnonzero(label_map.named).tolist() == [0, 5, 255]
    assert label_map.pixel_values(0) == [5]


def test_255_stays_ignored_unless_mapped(tmp_path: Path) -> None:
    label_map = load_label_map(write_map(tmp_path, {"map": {"0": 5}}))
    assert label_map.table[255] == 255
    assert label_map.named[255]


def test_two_pixel_values_may_share_a_class_through_ignore(tmp_path: Path) -> None:
    label_map = load_label_map(write_map(tmp_path, {"map": {"0": 0, "255": 9}}))
    assert label_map.apply(np.array([[9]], dtype=np.uint8)).tolist() == [[255]]
    assert label_map.pixel_values(255) == [9, 255]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r'has either \{"scale": k\} or .*found \[1, 2\]'),
        ({}, "found {}"),
        ({"scale": 2, "map": {}}, "has either"),
        ({"Scale": 2}, "found {'Scale': 2}"),
        ({"scale": 0}, '"scale" must be a number from 1 to 255; found 0'),
        ({"scale": 0.5}, "found 0.5"),
        ({"scale": "ten"}, "found 'ten'"),
        ({"scale": True}, "found True"),
        ({"scale": None}, "found None"),
        ({"scale": float("nan")}, "found nan"),
        ({"map": {}}, '"map" must have at least one class id; found {}'),
        ({"map": [0, 1]}, r"found \[0, 1\]"),
        ({"map": {"0": 5, "1": 5}}, "pixel value 5 is mapped to two class ids, 0 and 1"),
        ({"map": {"cat": 5}}, "a class id must be a whole number from 0 to 255; found 'cat'"),
        ({"map": {"300": 5}}, "a class id must be .* found '300'"),
        ({"map": {"0": 256}}, "a pixel value must be a whole number from 0 to 255; found 256"),
        ({"map": {"0": -1}}, "found -1"),
        ({"map": {"0": 1.5}}, "found 1.5"),
        ({"map": {"0": True}}, "found True"),
    ],
)
def test_invalid_label_maps(tmp_path: Path, content: object, message: str) -> None:
    path = write_map(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        load_label_map(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json: the label map cannot be read \(No such file"):
        load_label_map(tmp_path / "nothing.json")
    path = tmp_path / "broken.json"
    path.write_text('{"scale": ')
    with pytest.raises(DataError, match=r"broken\.json: the label map is not valid JSON"):
        load_label_map(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not valid JSON"):
        load_label_map(path)


def test_long_content_is_truncated_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.\.\.\.$") as caught:
        load_label_map(write_map(tmp_path, list(range(500))))
    assert len(str(caught.value)) < 300
