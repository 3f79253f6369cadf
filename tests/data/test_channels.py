from __future__ import annotations

from pathlib import Path

import pytest

from pspnet.classes import load_label_map
from pspnet.data.channels import find_label_map, format_names, label_problem, load_pairs, pair_files
from pspnet.errors import DataError


def folders(root: Path, images: str, annotations: str) -> tuple[Path, Path]:
    for name, files in (("train", images), ("train_annotation", annotations)):
        (root / name).mkdir()
        for file in files.split():
            (root / name / file).touch()
    return root / "train", root / "train_annotation"


def test_pairs_are_sorted_by_stem_for_every_suffix(tmp_path: Path) -> None:
    images, annotations = folders(tmp_path, "b.JPG a.png c.jpeg notes.txt ._a.jpg", "c.png a.PNG b.png readme.md")
    pairs = load_pairs(images, annotations)
    assert [(pair.stem, pair.image.name, pair.annotation.name) for pair in pairs] == [
        ("a", "a.png", "a.PNG"),
        ("b", "b.JPG", "b.png"),
        ("c", "c.jpeg", "c.png"),
    ]


def test_stems_with_dots(tmp_path: Path) -> None:
    images, annotations = folders(tmp_path, "frame.1.jpg frame.2.jpg", "frame.1.png frame.2.png")
    assert [pair.stem for pair in load_pairs(images, annotations)] == ["frame.1", "frame.2"]


def test_pairing_reports_every_kind_of_unpaired_file(tmp_path: Path) -> None:
    images, annotations = folders(tmp_path, "a.jpg b.jpg c.jpg c.png", "a.png d.png c.png")
    pairing = pair_files(images, annotations)
    assert [pair.stem for pair in pairing.pairs] == ["a"]
    assert [path.name for path in pairing.images_without_annotation] == ["b.jpg"]
    assert [path.name for path in pairing.annotations_without_image] == ["d.png"]
    assert [path.name for path in pairing.ambiguous] == ["c.jpg", "c.png"]


def test_loading_reports_all_unpaired_files_together(tmp_path: Path) -> None:
    images, annotations = folders(tmp_path, "a.jpg b.jpg c.jpg c.png", "a.png d.png c.png")
    with pytest.raises(DataError) as caught:
        load_pairs(images, annotations, "train")
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert "1 images" in lines[0]
    assert "no annotation of the same stem" in lines[0]
    assert "b.jpg. Add the annotations or remove the images." in lines[0]
    assert "d.png. Add the images or remove the annotations." in lines[1]
    assert "share their stem with another file of the folder: c.jpg, c.png. Keep one of each." in lines[2]


def test_many_names_are_abbreviated(tmp_path: Path) -> None:
    names = [f"{index:02d}.jpg" for index in range(9)]
    images, annotations = folders(tmp_path, " ".join(names), "00.png")
    with pytest.raises(DataError, match=r"8 images .*01\.jpg, 02\.jpg, 03\.jpg, 04\.jpg, 05\.jpg and 3 more"):
        load_pairs(images, annotations)
    assert format_names([Path("x/a.jpg"), Path("b.jpg")]) == "a.jpg, b.jpg"


def test_an_empty_channel_is_an_error(tmp_path: Path) -> None:
    images, annotations = folders(tmp_path, "", "")
    with pytest.raises(DataError, match=r"channel validation: no images in .*train; expected files ending in \.jpg"):
        load_pairs(images, annotations, "validation")


def test_a_missing_folder_or_a_file_instead_is_named(tmp_path: Path) -> None:
    images, annotations = folders(tmp_path, "a.jpg", "a.png")
    with pytest.raises(DataError, match=r"channel train: .*nowhere does not exist; expected a folder of \.jpg"):
        load_pairs(tmp_path / "nowhere", annotations)
    with pytest.raises(DataError, match=r"channel train_annotation: .*a\.jpg is a file; expected a folder of \.png"):
        load_pairs(images, images / "a.jpg")


def test_label_maps_are_found_per_channel(tmp_path: Path) -> None:
    (tmp_path / "train_label_map.json").write_text('{"scale": 10}')
    label_map = find_label_map(tmp_path, "train")
    assert label_map is not None
    assert label_map.table[20] == 2
    assert find_label_map(tmp_path, "validation") is None
    assert find_label_map(None, "train") is None


def test_a_label_map_folder_without_any_map_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"channel label_map: .*contains no \.json file; expected train_label_map\.json"
    ):
        find_label_map(tmp_path, "train")
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(DataError, match=r"contains labels\.json; expected train_label_map\.json and/or"):
        find_label_map(tmp_path, "train")
    with pytest.raises(DataError, match=r"channel label_map: .*gone is not a folder"):
        find_label_map(tmp_path / "gone", "train")


def test_label_problem_suggests_a_label_map_or_names_its_entries(tmp_path: Path) -> None:
    text = label_problem([21, 30], 21, None, Path("a.png"), "validation")
    assert text.startswith("a.png: class ids [21, 30] are outside 0..20 and are not 255 (ignored). ")
    assert "raise --num_classes" in text
    assert "add a label map" in text

    path = tmp_path / "train_label_map.json"
    path.write_text('{"map": {"0": 0, "30": 7}}')
    text = label_problem([30], 21, load_label_map(path), Path("a.png"), "train")
    assert "They come from pixel values [7] through the label map" in text
