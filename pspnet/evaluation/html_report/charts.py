"""Geometry of the report's charts in drawing units; the templates render them as SVG.

Colours and strokes belong to the style sheet. y grows downwards, as in SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pspnet.evaluation.calibration import expected_calibration_error, reliability
from pspnet.evaluation.html_report.curves import Line


@dataclass(frozen=True)
class Chart:
    """Lines over common axes.

    Attributes:
        title: caption.
        x_ticks, y_ticks: (x, text) below, (y, text) on the left.
        lines: name, `points` of a polyline, and the last value as text.
    """

    title: str
    x_label: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[tuple[str, str, str]]


def line_chart(title: str, lines: Mapping[str, Line], x_label: str = "epoch") -> Chart:
    """Return a chart of non-empty lines; the y axis starts at 0 unless values are negative."""
    width, height, left, right, top, bottom = 360, 220, 52, 350, 12, 184
    x_values = [x for line in lines.values() for x, _ in line]
    y_values = [y for line in lines.values() for _, y in line]
    x_ticks = nice_ticks(0.0, max(x_values), 6)
    y_ticks = nice_ticks(min(0.0, *y_values), max(y_values), 5)
    x_range, y_range = (x_ticks[0], max(x_ticks[-1], max(x_values))), (y_ticks[0], max(y_ticks[-1], max(y_values)))

    def x_of(value: float) -> float:
        return round(left + (value - x_range[0]) / (x_range[1] - x_range[0]) * (right - left), 1)

    def y_of(value: float) -> float:
        return round(bottom - (value - y_range[0]) / (y_range[1] - y_range[0]) * (bottom - top), 1)

    drawn = [
        (name, " ".join(f"{x_of(x)},{y_of(y)}" for x, y in line), f"{line[-1][1]:.4g}") for name, line in lines.items()
    ]
    return Chart(
        title,
        x_label,
        width,
        height,
        left,
        right,
        top,
        bottom,
        [(x_of(value), f"{value:g}") for value in x_ticks],
        [(y_of(value), f"{value:g}") for value in y_ticks],
        drawn,
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` ticks that cover `low` to `high`, spaced 1, 2 or 5 times a power of ten."""
    span = high - low if high > low else abs(high) or 1.0
    rough = span / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= 0.8 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


@dataclass(frozen=True)
class Bin:
    """One bin of confidence: lower and upper end, fraction of the pixels, accuracy and mean confidence, 0..1."""

    low: float
    high: float
    fraction: float
    accuracy: float
    confidence: float


def reliability_bins(counts: np.ndarray) -> list[Bin]:
    """(3, B) confidence counts -> the non-empty bins."""
    accuracy, confidence = reliability(counts)
    bins, total = counts.shape[1], counts[0].sum()
    return [
        Bin(i / bins, (i + 1) / bins, float(counts[0, i] / total), float(accuracy[i]), float(confidence[i]))
        for i in range(bins)
        if counts[0, i]
    ]


def calibration_sentence(counts: np.ndarray) -> str:
    """Return a sentence that compares confidence with accuracy."""
    pixels = counts[0].sum()
    accuracy, confidence = counts[1].sum() / pixels, counts[2].sum() / 1500 / pixels
    error = 100 * float(expected_calibration_error(counts))
    if abs(accuracy - confidence) < 0.005:
        verdict = "On average the confidence matches the accuracy"
    else:
        verdict = "The network is overconfident" if confidence > accuracy else "The network is underconfident"
    return (
        f"{verdict}: mean confidence {100 * confidence:.1f} %, accuracy {100 * accuracy:.1f} %; expected calibration "
        f"error {error:.2f} %."
    )


def extent(values: Sequence[float | None]) -> float:
    """Return the limit of a symmetric axis around 0 that contains all values: a round number, at least 0.01."""
    largest = max([abs(value) for value in values if value is not None], default=0.0)
    return nice_ticks(0.0, max(largest, 0.01), 2)[-1]
