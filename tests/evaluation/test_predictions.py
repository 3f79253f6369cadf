"""Mask files against annotations: exact counts, and mismatched files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import LabelMap, voc_palette
from pspnet.data.io.images import write_palette_png
from pspnet.errors import DataError
from pspnet.evaluation.per_image import Record
from pspnet.evaluation.predictions import pair_predictions, score_predictions


def write(folder: Path, name: str, values: list[list[int]]) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.array(values, dtype=np.uint8)).save(folder / f"{name}.png")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    masks, targets = tmp_path / "masks", tmp_path / "targets"
    write(targets, "a", [[0, 1, 2], [2, 255, 255]])
    write(targets, "b", [[1, 1]])
    masks.mkdir()
    # Ignored pixels may have any value.
    write_palette_png(masks / "a.png", np.array([[0, 0, 2], [1, 2, 255]]), voc_palette())
    write(masks, "b", [[1, 0]])
    return masks, targets


def test_counts_by_hand(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a_overlay.jpg").write_bytes(b"what predict leaves beside its masks")
    pairs = pair_predictions(*folders)
    assert [pair.stem for pair in pairs] == ["a", "b"]
    record = Record(3)
    score_predictions(pairs, record)
    assert record.matrix("a").tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert record.matrix("b").tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_annotations_scored_against_themselves_are_perfect(folders: tuple[Path, Path]) -> None:
    record = Record(3)
    score_predictions(pair_predictions(folders[1], folders[1]), record)
    assert record.total().tolist() == np.diag([1, 3, 2]).tolist()


def test_the_label_map_applies_to_the_annotations(folders: tuple[Path, Path]) -> None:
    table = np.arange(256, dtype=np.uint8)
    table[[0, 1]] = [1, 0]
    record = Record(3)
    score_predictions(pair_predictions(*folders), record, LabelMap(table, np.ones(256, dtype=bool)))
    assert record.matrix("b").tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_an_ignored_class_is_not_scored(folders: tuple[Path, Path]) -> None:
    record = Record(3)
    score_predictions(pair_predictions(*folders), record, ignore_index=2)
    assert record.matrix("a").tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_unpaired_files_are_named(folders: tuple[Path, Path]) -> None:
    masks, targets = folders
    write(targets, "c", [[0]])
    with pytest.raises(DataError, match=r"masks: no PNG file of the same stem for 1 files of .*targets: c\.png"):
        pair_predictions(masks, targets)
    write(masks, "c", [[0]])
    write(masks, "d", [[0]])
    with pytest.raises(DataError, match=r"targets: no PNG file of the same stem for 1 files of .*masks: d\.png"):
        pair_predictions(masks, targets)


def test_folders_that_are_empty_or_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        pair_predictions(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no annotations"):
        pair_predictions(tmp_path / "empty", tmp_path / "empty")


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ([[1, 0], [0, 0]], r"b\.png: the mask is 2x2 px but .*b\.png is 2x1 px; expected the same size"),
        ([[1, 3]], r"b\.png: class ids \[3\] at scored pixels; expected 0\.\.2"),
        ([[255, 1]], r"class ids \[255\] at scored pixels"),
    ],
)
def test_mismatched_masks_are_named(folders: tuple[Path, Path], mask: list[list[int]], text: str) -> None:
    write(folders[0], "b", mask)
    with pytest.raises(DataError, match=text):
        score_predictions(pair_predictions(*folders), Record(3))


def test_annotations_with_unknown_classes_are_named(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"a\.png: class ids \[2\] are outside 0\.\.1"):
        score_predictions(pair_predictions(*folders), Record(2))
