"""Pixel counts of the classes in a mask."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pspnet.masks.class_counts import class_counts


@pytest.mark.slow
def test_classes_are_listed_by_id_with_fractions_of_six_decimals() -> None:
    mask = np.array([[5, 5, 1], [0, 0, 255]], dtype=np.uint8)
    assert json.loads(json.dumps(class_counts(mask, ("road", "car", "sky")))) == [
        {"id": 0, "name": "road", "pixels": 2, "fraction": 0.333333},
        {"id": 1, "name": "car", "pixels": 1, "fraction": 0.166667},
        {"id": 5, "name": "class_5", "pixels": 2, "fraction": 0.333333},
        {"id": 255, "name": "class_255", "pixels": 1, "fraction": 0.166667},
    ]
