"""metrics.json and the table of several protocols."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pspnet.evaluation.metrics import format_scores
from pspnet.evaluation.per_image import Record
from pspnet.evaluation.summary import Result, format_results, metrics_json

NAMES = ("sky", "a_rather_long_name", "car")


def record_of(counts: list[list[int]], **about: object) -> Record:
    record = Record(3, dict(about))
    record.add("a", np.array(counts), "")
    return record


def both() -> dict[str, Result]:
    counts = [[3, 1, 0], [0, 4, 0], [0, 0, 0]]
    return {
        "whole": Result.of("whole", record_of(counts, settings={}, seconds=12.345), passes=1),
        "builtin": Result.of("builtin", record_of(counts, settings={"crop_size": 240}, seconds=3.0), passes=1),
    }


def test_metrics_json_by_hand() -> None:
    content = json.loads(json.dumps(metrics_json(both(), NAMES)))
    assert list(content) == [
        "mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou", "per_class_iou", "pixels", "images", "protocol",
        "protocols",
    ]  # fmt: skip
    assert content["mIOU"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert (content["protocol"], content["images"], content["pixels"]) == ("whole", 1, 8)
    whole, builtin = content["protocols"]["whole"], content["protocols"]["builtin"]
    assert {key: whole[key] for key in ("mIOU", "per_class_iou")} == {
        key: content[key] for key in ("mIOU", "per_class_iou")
    }
    assert (whole["settings"], whole["seconds"], whole["passes"], whole["images"]) == ({}, 12.35, 1, 1)
    assert "mIOU_of_present_classes" not in whole
    assert builtin["mIOU"] == pytest.approx((3 / 4 + 4 / 5) / 3)
    assert builtin["mIOU_of_present_classes"] == content["mIOU"]
    assert builtin["settings"] == {"crop_size": 240}


def test_mask_files_have_no_cost() -> None:
    result = Result.of("predictions", record_of([[1, 0, 0], [0, 1, 0], [0, 0, 1]], settings={"masks": "x"}))
    entry = metrics_json({"predictions": result}, NAMES)["protocols"]["predictions"]
    assert entry["mIOU"] == 1
    assert "seconds" not in entry
    assert "passes" not in entry


def test_one_protocol_has_the_plain_table() -> None:
    result = both()["whole"]
    assert format_results({"whole": result}, NAMES) == format_scores(result.scores, NAMES, 1)


def test_several_protocols_stand_side_by_side() -> None:
    assert format_results(both(), NAMES).splitlines() == [
        "IoU %                   whole    builtin",
        "sky                      75.0       75.0",
        "a_rather_long_name       80.0       80.0",
        "car                         -          -",
        "----------------------------------------",
        "mIoU                     77.5       51.7",
        "pixel accuracy           87.5       87.5",
        "mean accuracy            87.5       87.5",
        "fw IoU                   77.5       77.5",
        "seconds                    12          3",
        "passes                      1          1",
        "scored pixels               8          8",
        "1 images",
    ]
