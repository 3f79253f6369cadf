"""Report of `pspnet doctor`: plain records, their text and their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

ERROR = "error"
WARNING = "warning"

_EXAMPLES_KEPT = 10
_ROWS = 40


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one channel: its count, description and fix, and the first files with details."""

    kind: str
    severity: str
    channel: str
    count: int
    message: str
    fix: str
    examples: list[str] = field(default_factory=list)
    # For label problems: value -> number of files with it.
    values: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ChannelSummary:
    """One channel's size: readable pairs, image sizes (width, height), and pixels per class id."""

    name: str
    images: int
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    class_pixels: list[int]
    class_images: list[int]
    ignored_pixels: int


@dataclass(frozen=True)
class Report:
    """Complete result. `class_weights` are from median frequency balancing on the first channel."""

    num_classes: int
    suggested: bool
    class_names: list[str]
    channels: list[ChannelSummary]
    problems: list[Problem]
    class_weights: list[float]

    @property
    def ok(self) -> bool:
        """False if training would fail, or would train or score on wrong data."""
        return not any(problem.severity == ERROR for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-compatible values."""
        return {"ok": self.ok, **asdict(self)}


def keep_examples(examples: Sequence[str]) -> list[str]:
    """The first examples, and the number of the others."""
    kept = list(examples[:_EXAMPLES_KEPT])
    return kept if len(examples) <= _EXAMPLES_KEPT else [*kept, f"... and {len(examples) - _EXAMPLES_KEPT:,} more"]


def format_report(report: Report) -> str:
    """The report for a terminal: sizes, class fractions, problems (errors first), suggested weights and verdict."""
    found = "found in the masks" if report.suggested else "as given"
    parts = [f"num_classes: {report.num_classes} ({found})", _channel_table(report), _class_table(report)]
    parts += [_format_problem(problem) for problem in sorted(report.problems, key=lambda p: p.severity != ERROR)]
    weights = ", ".join(f"{weight:g}" for weight in report.class_weights)
    parts.append(f"Suggested for rare classes (median frequency balancing):\nclass_weights: [{weights}]")
    parts.append(_verdict(report))
    return "\n\n".join(part for part in parts if part)


def _channel_table(report: Report) -> str:
    rows = [("channel", "pairs", "smallest", "largest", "ignored")]
    for channel in report.channels:
        pixels = sum(channel.class_pixels) + channel.ignored_pixels
        ignored = f"{channel.ignored_pixels / pixels:.1%}" if pixels else "-"
        rows.append((channel.name, f"{channel.images:,}", _size(channel.smallest), _size(channel.largest), ignored))
    return _table(rows, left=1)


def _class_table(report: Report) -> str:
    """Fraction of labelled pixels and number of images of each class, per channel."""
    if not report.channels:
        return ""
    rows = [("id", "class", *(f"{c.name} {what}" for c in report.channels for what in ("pixels", "images")))]
    for class_id, name in enumerate(report.class_names):
        if report.num_classes > _ROWS and not any(c.class_pixels[class_id] for c in report.channels):
            continue  # grey levels mistaken for ids give far more rows than classes
        cells = []
        for channel in report.channels:
            total = max(1, sum(channel.class_pixels))
            cells += [f"{channel.class_pixels[class_id] / total:.2%}", f"{channel.class_images[class_id]:,}"]
        rows.append((str(class_id), name, *cells))
    return _table(rows, left=2)


def _format_problem(problem: Problem) -> str:
    lines = [f"{problem.severity.upper()} {problem.channel}: {problem.message}"]
    lines += [f"    {example}" for example in problem.examples]
    return "\n".join([*lines, f"  fix: {problem.fix}"])


def _verdict(report: Report) -> str:
    errors = sum(problem.severity == ERROR for problem in report.problems)
    warnings = len(report.problems) - errors
    counts = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    return f"{counts}: " + (
        "ready to train." if report.ok else "training would fail or use wrong data until this is fixed."
    )


def _table(rows: Sequence[Sequence[str]], left: int) -> str:
    """An aligned table; the first `left` columns are text, the others numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(widths[column]) if column < left else cell.rjust(widths[column])
            for column, cell in enumerate(row)
        ).rstrip()
        for row in rows
    )


def _size(size: tuple[int, int] | None) -> str:
    return "-" if size is None else f"{size[0]}x{size[1]}"


def median_frequency_weights(pixels_per_image: np.ndarray) -> list[float]:
    """Class weights from (N, C) labelled pixels per image and class, rounded to 3 digits; absent classes get 1.

    weight(c) = median of all freq / freq(c), where freq(c) is the number of pixels of class c divided by the number of
    labelled pixels in the images that hold c. Source: Eigen & Fergus, "Predicting Depth, Surface Normals and Semantic
    Labels", ICCV 2015.
    """
    per_class = pixels_per_image.sum(axis=0).astype(np.float64)  # (C,)
    totals = pixels_per_image.sum(axis=1, keepdims=True)  # (N, 1)
    reachable = (totals * (pixels_per_image > 0)).sum(axis=0)  # (C,)
    present = per_class > 0
    weights = np.ones(len(per_class))
    frequency = per_class[present] / reachable[present]
    if present.any():
        weights[present] = np.median(frequency) / frequency
    return [round(float(weight), 3) for weight in weights]
