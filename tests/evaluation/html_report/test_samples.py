"""Best, median and worst images, and their saved masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import voc_palette
from pspnet.data.channels import Pair
from pspnet.evaluation.html_report.samples import choose_samples, keep_masks, mask_disagreement, rank_images
from pspnet.evaluation.per_image import Record


def record_of(correct: dict[str, int]) -> Record:
    """Images of ten pixels of class 0 with the given numbers of correct pixels."""
    record = Record(2)
    for name, right in correct.items():
        record.add(name, np.array([[right, 10 - right], [0, 0]]))
    return record


def names(groups: dict[str, list[tuple[str, float]]]) -> dict[str, list[str]]:
    return {group: [name for name, _ in chosen] for group, chosen in groups.items()}


def test_images_are_ranked_by_their_own_score() -> None:
    record = record_of({"b": 10, "a": 10, "c": 2, "d": 8})
    record.add("nothing", np.zeros((2, 2), dtype=np.int64))
    # Image d: class 0 has 8/10, class 1 is only predicted: 0/2.
    assert rank_images(record) == [("a", 1.0), ("b", 1.0), ("d", pytest.approx(0.4)), ("c", pytest.approx(0.1))]


def test_groups_are_disjoint() -> None:
    record = record_of({f"{index:02d}": index for index in range(1, 11)})
    assert names(choose_samples(record, 2)) == {
        "best": ["10", "09"],
        "median": ["06", "05"],
        "worst": ["02", "01"],
    }
    few = record_of({"a": 9, "b": 8, "c": 7, "d": 6})
    assert names(choose_samples(few, 3)) == {"best": ["a", "b", "c"], "median": [], "worst": ["d"]}
    assert names(choose_samples(few, 1)) == {"best": ["a"], "median": ["b"], "worst": ["d"]}
    assert names(choose_samples(Record(2), 3)) == {"best": [], "median": [], "worst": []}
    assert names(choose_samples(few, 0)) == {"best": [], "median": [], "worst": []}


def test_masks_are_predicted_once_and_again_if_they_differ(tmp_path: Path) -> None:
    target = np.zeros((2, 5), dtype=np.uint8)
    mask = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=np.uint8)
    Image.fromarray(np.zeros((2, 5, 3), dtype=np.uint8)).save(tmp_path / "x.jpg")
    Image.fromarray(target).save(tmp_path / "x_target.png")
    pair, record, calls = Pair(tmp_path / "x.jpg", tmp_path / "x_target.png"), record_of({"x": 8}), []

    def predict(found: Pair, image: np.ndarray) -> np.ndarray:
        calls.append((found.stem, image.shape))
        return mask

    for _ in range(2):
        keep_masks(tmp_path / "kept", record, [pair], voc_palette(), predict, None, 255)
    assert calls == [("x", (2, 5, 3))]
    path = tmp_path / "kept" / "x.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), mask)
    assert mask_disagreement(path, target, record) == 0
    Image.fromarray(target).save(path)
    assert mask_disagreement(path, target, record) == pytest.approx(4 / 20)
    keep_masks(tmp_path / "kept", record, [pair], voc_palette(), predict, None, 255)
    assert len(calls) == 2
    for wrong in (np.zeros((3, 5), dtype=np.uint8), np.full((2, 5), 2, dtype=np.uint8)):
        Image.fromarray(wrong).save(path)
        assert mask_disagreement(path, target, record) == 1.0
    path.write_bytes(b"no image")
    assert mask_disagreement(path, target, record) == 1.0
