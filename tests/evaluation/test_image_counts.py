"""Rows of per-image counts: layout and round trip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pspnet.evaluation.boundary import count_boundary
from pspnet.evaluation.calibration import count_confidence
from pspnet.evaluation.image_counts import DETAILS, Tally
from pspnet.evaluation.metrics import count_by_image
from pspnet.evaluation.per_image import Record, read_records, write_records


@pytest.mark.parametrize(
    ("details", "length"), [((), 16), (("boundary",), 28), (("confidence",), 61), (DETAILS, 16 + 45 + 12)]
)
def test_rows_round_trip(details: tuple[str, ...], length: int) -> None:
    tally = Tally(4, details)
    masks, targets = torch.randint(0, 4, (3, 9, 11)), torch.randint(0, 5, (3, 9, 11))
    targets[targets == 4] = 255
    confidences = torch.rand(3, 9, 11)
    rows = tally.rows(masks, targets, confidences)
    assert rows.shape == (3, length)
    assert rows.dtype == torch.int64
    for image, row in enumerate(rows.numpy()):
        matrix, found = tally.split(row)
        np.testing.assert_array_equal(matrix, count_by_image(masks, targets, 4)[image])
        assert set(found) == set(details)
        if "confidence" in details:
            np.testing.assert_array_equal(
                found["confidence"], count_confidence(confidences, masks, targets, 4)[image].numpy()
            )
        if "boundary" in details:
            pair = (part[image].numpy().astype(np.uint8) for part in (masks, targets))
            np.testing.assert_array_equal(found["boundary"], count_boundary(*pair, 4))


def test_details_are_saved_if_all_images_have_them(tmp_path: Path) -> None:
    record = Record(2)
    boundary = np.arange(6).reshape(2, 3)
    record.add("b", np.eye(2, dtype=np.int64), details={"boundary": boundary + 10})
    record.add("a", np.eye(2, dtype=np.int64), details={"boundary": boundary, "confidence": np.ones((3, 15))})
    write_records(tmp_path / "x.npz", {"whole": record})
    read = read_records(tmp_path / "x.npz")["whole"]
    np.testing.assert_array_equal(read.detail("boundary"), np.stack([boundary, boundary + 10]))
    assert read.detail("confidence") is None
    read.remove("b")
    assert read.detail("boundary").tolist() == [boundary.tolist()]
    assert Record(2).detail("boundary") is None
