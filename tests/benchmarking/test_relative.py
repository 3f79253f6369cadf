"""Comparison entries and their table, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pspnet.benchmarking.interleave import Quartiles, Timing
from pspnet.benchmarking.relative import Agreement, Entry, agree, compare, table

PLAIN, OURS = Timing((0.4, 0.8, 0.4)), Timing((0.2, 0.2, 0.1))


class Fixed:
    """A runtime with given logits and masks."""

    def __init__(self, logits: torch.Tensor, masks: np.ndarray) -> None:
        self._logits, self._masks = logits, masks

    def logits(self, images: np.ndarray) -> torch.Tensor:
        assert self._logits is not None, "logits must not be computed"
        return self._logits

    def masks(self, images: np.ndarray) -> np.ndarray:
        return self._masks


def test_entries() -> None:
    plain, ours = compare({"plain": PLAIN, "ours": OURS}, "plain", {"plain": 80, "ours": 80}, {}, {"ours": 1.5})
    assert plain.gain is None
    assert ours.gain == Quartiles(3.0, 4.0, 4.0)
    assert ours.fraction_of_peak(1000.0) == pytest.approx(80 / 0.2 / 1000)
    assert (plain.ready, ours.ready) == (None, 1.5)
    record = ours.record(1000.0, images=2)
    assert record["gain"] == [3.0, 4.0, 4.0]
    assert record["images_per_second"] == 10.0
    assert record["share_of_peak"] == 0.4
    assert "same_pixels" not in record
    (alone,) = compare({"ours": OURS}, "plain", {}, {}, {})
    assert (alone.gain, alone.fraction_of_peak(1.0), alone.record(1.0)["share_of_peak"]) == (None, None, None)


def test_agreement_of_masks_and_logits() -> None:
    reference = torch.tensor([[[[3.0, 0.0]], [[1.0, 2.0]], [[0.0, -4.0]]]])  # (1, 3, 1, 2): classes 0 and 1
    logits = reference.clone()
    logits[0, 2, 0, 1] = -3.0
    runtime = Fixed(logits, np.array([[[0, 2]]], dtype=np.uint8))
    images = np.zeros((1, 1, 2, 3), np.uint8)
    assert agree(runtime, images, reference) == Agreement(same_pixels=0.5, difference=0.25)
    masks_only = Fixed(None, np.array([[[0, 1]]], dtype=np.uint8))
    assert agree(masks_only, images, reference, with_logits=False) == Agreement(1.0)


def test_empty_columns_are_left_out() -> None:
    entries = [Entry("plain", PLAIN), Entry("ours", OURS, Quartiles(3.0, 4.0, 4.0), agreement=Agreement(0.9999, 1e-6))]
    assert table(entries, 1e9, "plain").splitlines() == [
        "| case  |         ms (quartiles) | images/s |             to plain | logits differ by | same pixels |",
        "| ----- | ---------------------: | -------: | -------------------: | ---------------: | ----------: |",
        "| plain | 400.0 (400.0 to 600.0) |     2.50 |                      |                  |             |",
        "| ours  | 200.0 (150.0 to 200.0) |     5.00 | 4.00x (3.00 to 4.00) |          1.0e-06 |    99.990 % |",
    ]
