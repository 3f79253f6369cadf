"""Selection of calibration and scoring images, and the scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.data.shapes import write_shapes
from pspnet.errors import DataError
from pspnet.exporting.calibration_set import Calibration, evenly


def write_pair(folder: Path, channel: str, stem: str, mask: np.ndarray) -> None:
    for place, array in ((channel, np.zeros((*mask.shape, 3), np.uint8)), (f"{channel}_annotation", mask)):
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / place / f"{stem}.png")


def test_evenly_spaced_items() -> None:
    assert evenly(list(range(10)), 3) == [1, 5, 8]
    assert evenly(list(range(3)), 5) == [0, 1, 2]
    assert evenly(list(range(100)), 1) == [50]


def test_with_both_channels_train_calibrates_and_validation_scores(tmp_path: Path) -> None:
    write_shapes(tmp_path / "set", train=5, validation=3, size=(40, 32))
    found = Calibration.find(tmp_path / "set", 2, 10)
    assert [path.stem for path in found.images] == ["train_00001", "train_00003"]
    assert [pair.stem for pair in found.scored] == ["validation_00000", "validation_00001", "validation_00002"]
    assert (found.channel, found.disjoint) == ("validation", True)


def test_the_images_of_one_channel_alternate(tmp_path: Path) -> None:
    for number in range(8):
        write_pair(tmp_path, "validation", f"{number}", np.zeros((32, 32), np.uint8))
    found = Calibration.find(tmp_path, 64, 64)
    assert [path.stem for path in found.images] == ["0", "2", "4", "6"]
    assert [pair.stem for pair in found.scored] == ["1", "3", "5", "7"]
    assert found.disjoint


def test_few_images_are_used_for_both(tmp_path: Path) -> None:
    for number in range(3):
        write_pair(tmp_path, "train", f"{number}", np.zeros((32, 32), np.uint8))
    found = Calibration.find(tmp_path, 64, 64)
    assert [path.stem for path in found.images] == [pair.stem for pair in found.scored] == ["0", "1", "2"]
    assert not found.disjoint
    assert found.channel == "train"


def test_a_folder_without_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder train or validation; expected a data set"):
        Calibration.find(tmp_path, 1, 1)


def test_a_channel_without_annotations_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "validation", "a", np.zeros((32, 32), np.uint8))
    (tmp_path / "validation_annotation" / "a.png").unlink()
    with pytest.raises(DataError, match="have no annotation of the same stem"):
        Calibration.find(tmp_path, 1, 1)


def test_batches_are_padded_to_the_minimum_size(tmp_path: Path) -> None:
    write_pair(tmp_path, "validation", "a", np.zeros((20, 40), np.uint8))
    (batch,) = Calibration.find(tmp_path, 1, 1).batches()
    assert (batch.shape, batch.dtype) == ((1, 3, 32, 40), np.uint8)


def test_scores_with_label_map_and_ignore(tmp_path: Path) -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[:, :20] = 10  # class 1 through the map
    mask[:5] = 30  # class 2 through the map, which is ignored
    write_pair(tmp_path, "validation", "a", mask)
    (tmp_path / "label_map").mkdir()
    content = {"map": {"0": 0, "1": 10, "2": 30}}
    (tmp_path / "label_map" / "validation_label_map.json").write_text(json.dumps(content))
    calibration = Calibration.find(tmp_path, 1, 1, ignore_index=2)

    def all_ones(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert images.shape == (1, 3, 32, 40)  # padded
        return np.ones((1, 32, 40), np.uint8), np.zeros((1, 3, 4, 5), np.float32)

    scores = calibration.score(all_ones, 3)
    assert scores.pixels == 15 * 40
    assert scores.per_class_iou == (0.0, 0.5, None)
