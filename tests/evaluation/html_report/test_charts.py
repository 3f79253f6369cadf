"""Geometry of charts, and the calibration sentence."""

from __future__ import annotations

import numpy as np
import pytest

from pspnet.evaluation.html_report.charts import (
    calibration_sentence,
    extent,
    line_chart,
    nice_ticks,
    reliability_bins,
)


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks"),
    [
        (0, 24, 6, [0, 5, 10, 15, 20, 25]),
        (0, 0.887, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0.001, 5, [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]),
        (-3, 5, 5, [-4, -2, 0, 2, 4, 6]),
        (0, 0, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 3e6, 4, [0, 1e6, 2e6, 3e6]),
    ],
)
def test_ticks_are_round(low: float, high: float, count: int, ticks: list[float]) -> None:
    assert nice_ticks(low, high, count) == pytest.approx(ticks)


def test_a_line_matches_its_axes() -> None:
    chart = line_chart("Loss", {"loss": [(0.0, 4.0), (5.0, 2.0), (10.0, 0.0)]})
    assert (chart.x_ticks[0], chart.x_ticks[-1]) == ((chart.left, "0"), (chart.right, "10"))
    assert (chart.y_ticks[0], chart.y_ticks[-1]) == ((chart.bottom, "0"), (chart.top, "4"))
    middle = f"{(chart.left + chart.right) / 2:.1f},{(chart.top + chart.bottom) / 2:.1f}"
    assert chart.lines == [
        ("loss", f"{chart.left:.1f},{chart.top:.1f} {middle} {chart.right:.1f},{chart.bottom:.1f}", "0")
    ]


def test_a_single_point_and_negative_values_fit() -> None:
    assert line_chart("x", {"x": [(1.0, 0.0)]}).lines[0][2] == "0"
    negative = line_chart("x", {"x": [(1.0, -2.0), (2.0, 3.0)]})
    assert negative.y_ticks[0][1] == "-2"


def test_bins_without_pixels_are_left_out() -> None:
    counts = np.zeros((3, 15), dtype=np.int64)
    counts[:, 14] = 300, 270, 300 * 1450
    counts[:, 0] = 100, 10, 100 * 50
    low, high = reliability_bins(counts)
    assert (low.low, low.high, low.fraction, low.accuracy) == (0.0, 1 / 15, 0.25, 0.1)
    assert (high.fraction, high.accuracy) == (0.75, 0.9)
    assert high.confidence == pytest.approx(1450 / 1500)


@pytest.mark.parametrize(
    ("correct", "text"),
    [
        (
            50,
            "The network is overconfident: mean confidence 80.0 %, accuracy 50.0 %; expected calibration error 30.00",
        ),
        (95, "The network is underconfident: mean confidence 80.0 %, accuracy 95.0 %"),
        (80, "On average the confidence matches the accuracy: mean confidence 80.0 %"),
    ],
)
def test_calibration_sentence(correct: int, text: str) -> None:
    counts = np.zeros((3, 15), dtype=np.int64)
    counts[:, 12] = 100, correct, 100 * 1200
    assert calibration_sentence(counts).startswith(text)


def test_the_axis_contains_all_differences() -> None:
    assert extent([0.1, None, -0.34]) >= 0.34
    assert extent([]) == pytest.approx(0.01)
