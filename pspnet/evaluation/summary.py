"""What an evaluation says in the end: the content of metrics.json, and one table of all protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pspnet.evaluation.boundary import mean_boundary_iou
from pspnet.evaluation.calibration import expected_calibration_error
from pspnet.evaluation.metrics import Scores, format_scores
from pspnet.evaluation.per_image import Record
from pspnet.evaluation.protocols.builtin import builtin_scores


@dataclass(frozen=True)
class Result:
    """One protocol's scores and their cost: seconds of this machine, and passes of images or windows through the
    network. Neither is known (None) for mask files."""

    scores: Scores
    images: int
    settings: Mapping[str, Any]
    seconds: float | None = None
    passes: int | None = None
    present_mIOU: float | None = None  # noqa: N815 - as Scores.mIOU
    boundary_mIOU: float | None = None  # noqa: N815 - as Scores.mIOU; these two where they were counted
    calibration_error: float | None = None

    @classmethod
    def of(cls, name: str, record: Record, passes: int | None = None) -> Result:
        """The result that a complete record gives. The mean IoU of `builtin` counts absent classes as 0;
        `present_mIOU` is then the mean over the others."""
        counts = record.total()
        scores = Scores.from_counts(counts)
        settings, seconds = record.about.get("settings", {}), record.about.get("seconds")
        boundary, confidence = record.detail("boundary"), record.detail("confidence")
        details = {
            "boundary_mIOU": None if boundary is None else mean_boundary_iou(boundary.sum(axis=0)),
            "calibration_error": (
                None if confidence is None else float(expected_calibration_error(confidence.sum(axis=0)))
            ),
        }
        if name == "builtin":
            return cls(builtin_scores(counts), len(record), settings, seconds, passes, scores.mIOU, **details)
        return cls(scores, len(record), settings, seconds, passes, **details)

    def to_json(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Its entry in metrics.json."""
        entry = {**self.scores.to_json(class_names), "images": self.images, "settings": dict(self.settings)}
        if self.present_mIOU is not None:
            entry["mIOU_of_present_classes"] = self.present_mIOU
        for key in ("boundary_mIOU", "calibration_error"):
            if getattr(self, key) is not None:
                entry[key] = getattr(self, key)
        if self.seconds is not None:
            entry.update(seconds=round(self.seconds, 2), passes=self.passes)
        return entry


def metrics_json(results: Mapping[str, Result], class_names: tuple[str, ...]) -> dict[str, Any]:
    """The content of metrics.json: the first protocol's scores at the top, then every protocol's under `protocols`."""
    first = next(iter(results))
    return {
        **results[first].scores.to_json(class_names),
        "images": results[first].images,
        "protocol": first,
        "protocols": {name: result.to_json(class_names) for name, result in results.items()},
    }


def format_results(results: Mapping[str, Result], class_names: Sequence[str]) -> str:
    """A table in percent: of one protocol as `format_scores` shows it, of several with a column for each."""
    first = next(iter(results.values()))
    if len(results) == 1:
        return format_scores(first.scores, class_names, first.images)
    width = max(len(name) for name in (*class_names, "pixel accuracy"))
    columns = [max(len(name), 9) for name in results]

    def line(label: str, cells: Sequence[str]) -> str:
        return f"{label:<{width}}" + "".join(f"  {cell:>{column}}" for cell, column in zip(cells, columns))

    lines = [line("IoU %", list(results))]
    for index, name in enumerate(class_names):
        lines.append(line(name, [_percent(result.scores.per_class_iou[index]) for result in results.values()]))
    lines.append("-" * len(lines[0]))
    for label, key in (
        ("mIoU", "mIOU"),
        ("pixel accuracy", "pixel_accuracy"),
        ("mean accuracy", "mean_accuracy"),
        ("fw IoU", "fw_iou"),
    ):
        lines.append(line(label, [_percent(getattr(result.scores, key)) for result in results.values()]))
    lines.append(line("seconds", [f"{result.seconds or 0:.0f}" for result in results.values()]))
    lines.append(line("passes", [str(result.passes) for result in results.values()]))
    lines.append(line("scored pixels", [str(result.scores.pixels) for result in results.values()]))
    lines.append(f"{first.images} images")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
