"""View models of the templates: one evaluation, and a comparison of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pspnet.errors import DataError
from pspnet.evaluation.html_report.charts import Bin, Chart, calibration_sentence, extent, line_chart, reliability_bins
from pspnet.evaluation.html_report.confusion import Confusions, draw_confusions
from pspnet.evaluation.html_report.intervals import Estimates, ImageCounts, Interval, difference, estimate
from pspnet.evaluation.html_report.pictures import Samples
from pspnet.evaluation.html_report.report_inputs import Subject
from pspnet.evaluation.metrics import constant_scores
from pspnet.evaluation.per_image import Record

SCORE_NAMES = {
    "mIOU": "mIoU",
    "pixel_accuracy": "Pixel accuracy",
    "mean_accuracy": "Mean accuracy",
    "fw_iou": "Frequency-weighted IoU",
    "boundary_mIOU": "Boundary mIoU",
    "calibration_error": "Calibration error",
}
LOWER_IS_BETTER = ("calibration_error",)


@dataclass(frozen=True)
class ScoreRow:
    """One score over all images. `constant` is the constant predictor's, None if undefined."""

    key: str
    label: str
    interval: Interval
    constant: float | None = None


@dataclass(frozen=True)
class ClassRow:
    """One class: scores (IoU with interval), fraction of the ground-truth pixels, images that contain it."""

    index: int
    name: str
    colour: str
    iou: Interval
    recall: float | None
    precision: float | None
    boundary_iou: float | None
    fraction: float
    images: int


@dataclass(frozen=True)
class Measured:
    """Counts and resamples of a subject, for comparisons."""

    subject: Subject
    counts: ImageCounts
    resampled: Mapping[str, np.ndarray]
    estimates: Estimates

    @classmethod
    def of(cls, subject: Subject, record: Record) -> Measured:
        counts = ImageCounts.of(record, absent_is_zero=subject.protocol == "builtin")
        resampled = counts.resampled()
        return cls(subject, counts, resampled, estimate(counts, resampled))


@dataclass(frozen=True)
class SubjectView:
    """Content of the page for one evaluation."""

    label: str
    protocol: str
    images: int
    pixels: int
    scores: list[ScoreRow]
    classes: list[ClassRow]
    has_boundary: bool
    confusions: Confusions | None
    calibration: list[Bin]
    calibration_text: str
    samples: Samples
    charts: list[Chart]
    facts: list[tuple[str, str]]
    config: list[tuple[str, str]]
    class_colours: list[str] = field(default_factory=list)
    best_epoch: str = ""


@dataclass(frozen=True)
class Column:
    """One evaluation in a comparison; `differences` to the first one by score, None for the first and for other images
    (`note` gives the reason)."""

    label: str
    estimates: Estimates
    differences: Estimates | None
    note: str = ""
    cost: str = ""


@dataclass(frozen=True)
class Comparison:
    """Evaluations side by side. `axis` is the limit of the symmetric axis of differences."""

    columns: list[Column]
    scores: list[tuple[str, str]]
    class_names: tuple[str, ...]
    axis: float
    score_axis: float
    marked: int


def view_of(measured: Measured, samples: Samples) -> SubjectView:
    """Return the view of an evaluation with per-image counts."""
    subject, counts, estimates = measured.subject, measured.counts, measured.estimates
    assert subject.record is not None
    total = subject.record.total()
    constant = constant_scores(total)
    confidence = None if counts.confidence is None else counts.confidence.sum(axis=0)
    calibrated = confidence is not None and confidence[0].sum() > 0
    return SubjectView(
        label=subject.label,
        protocol=subject.protocol,
        images=len(counts.names),
        pixels=int(total.sum()),
        scores=[
            ScoreRow(key, label, estimates[key][0], getattr(constant, key, None))
            for key, label in SCORE_NAMES.items()
            if key in estimates
        ],
        classes=_class_rows(measured),
        has_boundary=counts.boundary is not None,
        confusions=draw_confusions(total, subject.class_names),
        calibration=reliability_bins(confidence) if confidence is not None and calibrated else [],
        calibration_text=calibration_sentence(confidence) if confidence is not None and calibrated else "",
        samples=samples,
        charts=_charts(subject),
        facts=_facts(subject),
        config=_config(subject),
        class_colours=[colour_of(subject.palette, index) for index in range(len(subject.class_names))],
        best_epoch=_best_epoch(subject),
    )


def view_of_run(subject: Subject) -> SubjectView:
    """Return the view of a training run: without per-image counts its scores have no intervals."""
    metrics = subject.metrics
    scores = [
        ScoreRow(key, label, Interval(float(metrics[key]), None, None))
        for key, label in SCORE_NAMES.items()
        if isinstance(metrics.get(key), (int, float))
    ]
    ious = list(metrics.get("per_class_iou", {}).values())
    rows = [
        ClassRow(index, name, colour_of(subject.palette, index), _point(iou), None, None, None, math.nan, 0)
        for index, (name, iou) in enumerate(zip(subject.class_names, ious))
    ]
    return SubjectView(
        label=subject.label,
        protocol="training",
        images=int(metrics.get("images", 0)),
        pixels=int(metrics.get("pixels", 0)),
        scores=scores,
        classes=rows,
        has_boundary=False,
        confusions=None,
        calibration=[],
        calibration_text="",
        samples=Samples({}),
        charts=_charts(subject),
        facts=_facts(subject),
        config=_config(subject),
        best_epoch=_best_epoch(subject),
    )


def compare(measured: Sequence[Measured], strict: bool) -> Comparison:
    """Compare several evaluations with the first one.

    Args:
        strict: whether evaluations of other images raise DataError or are shown without differences.
    """
    first, columns = measured[0], []
    for other in measured:
        found, note = None, ""
        if other is not first:
            try:
                found = difference(first.counts, other.counts, (first.resampled, other.resampled))
            except DataError as error:
                if strict:
                    raise DataError(
                        f"{other.subject.folder} ({other.subject.protocol}) cannot be compared with "
                        f"{first.subject.folder} ({first.subject.protocol}): {error}. Evaluate both on the same images "
                        "and annotations, with the same classes."
                    ) from error
                note = f"no differences: {error}"
        columns.append(Column(other.subject.label, other.estimates, found, note, _cost(other.subject)))
    keys = [(key, label) for key, label in SCORE_NAMES.items() if any(key in column.estimates for column in columns)]
    paired = [column.differences for column in columns if column.differences]
    by_class = [interval for found in paired for interval in found["iou"]]
    overall = [interval for found in paired for key, _ in keys for interval in found.get(key, [])]
    return Comparison(
        columns,
        keys,
        first.subject.class_names,
        _axis(by_class),
        _axis(overall),
        sum(interval.excludes_zero for interval in by_class),
    )


def colour_of(palette: np.ndarray, index: int) -> str:
    """Return a class's colour as `#rrggbb`."""
    return "#" + bytes(int(part) for part in palette[index]).hex()


def _axis(intervals: Sequence[Interval]) -> float:
    known = [end for interval in intervals for end in (interval.value, interval.low, interval.high)]
    return extent([None if end is None or math.isnan(end) else end for end in known])


def _class_rows(measured: Measured) -> list[ClassRow]:
    subject, counts, estimates = measured.subject, measured.counts, measured.estimates
    pixels = counts.target.sum(axis=0)

    def value(key: str, index: int) -> float | None:
        return estimates[key][index].value if key in estimates else None

    return [
        ClassRow(
            index,
            name,
            colour_of(subject.palette, index),
            estimates["iou"][index],
            value("recall", index),
            value("precision", index),
            value("boundary_iou", index),
            float(pixels[index] / max(1, pixels.sum())),
            int((counts.target[:, index] > 0).sum()),
        )
        for index, name in enumerate(subject.class_names)
    ]


def _point(value: Any) -> Interval:
    return Interval(math.nan if value is None else float(value), None, None)


def _charts(subject: Subject) -> list[Chart]:
    if subject.curves is None:
        return []
    lines = subject.curves.lines
    groups = {
        "Training loss": ["training loss"],
        "Validation scores": ["mIoU", "pixel accuracy"],
        "Learning rate": ["learning rate"],
    }
    found = {title: {name: lines[name] for name in names if name in lines} for title, names in groups.items()}
    return [line_chart(title, chosen) for title, chosen in found.items() if chosen]


def _best_epoch(subject: Subject) -> str:
    line = [] if subject.curves is None else subject.curves.lines.get("mIoU", [])
    if not line:
        return ""
    epoch, value = max(line, key=lambda point: point[1])
    return f"Best validation mIoU {100 * value:.1f} % at epoch {epoch:g} of {line[-1][0]:g}."


def _cost(subject: Subject) -> str:
    seconds, passes = subject.metrics.get("seconds"), subject.metrics.get("passes")
    parts = [] if seconds is None else [f"{seconds:,.1f} s"]
    return ", ".join(parts + ([] if passes is None else [f"{passes:,} passes"]))


def _facts(subject: Subject) -> list[tuple[str, str]]:
    """Return the origin of the scores as terms and values; missing facts are left out."""
    facts, model = subject.provenance, subject.provenance.get("model") or {}
    data = facts.get("data", {})
    settings = {**subject.metrics.get("settings", {})}
    trained = model.get("training") or {}
    terms: list[tuple[str, Any]] = [
        ("Command", facts.get("command")),
        ("Evaluated", facts.get("date")),
        ("Protocol", subject.protocol if subject.record is not None else None),
        ("Protocol settings", _joined(settings)),
        ("Cost", _cost(subject)),
        ("Device", facts.get("device")),
        ("Precision", facts.get("precision")),
        ("Batch size", facts.get("batch_size")),
        ("Processes", facts.get("processes")),
        ("Images", facts.get("images")),
        ("Annotations", facts.get("annotations")),
        ("Label map", facts.get("label_map")),
        ("Ignored id", facts.get("ignore")),
        ("Number of images", data.get("count")),
        ("Fingerprint of images", data.get("images")),
        ("Fingerprint of annotations", data.get("annotations")),
        ("Model", model.get("directory")),
        ("Fingerprint of model", model.get("sha256")),
        ("Algorithm", model.get("algorithm")),
        ("Architecture", _joined(model.get("architecture") or {})),
        ("Weights from", _joined(model.get("source") or {})),
        ("Trained", _joined({key: value for key, value in trained.items() if key != "config"})),
        ("Training log", None if subject.curves is None else subject.curves.path),
        ("Versions", _joined(facts.get("versions", {}))),
        ("Training versions", _joined(model.get("versions") or {})),
        ("System", facts.get("system")),
    ]
    return [(term, str(value)) for term, value in terms if value not in (None, "")]


def _config(subject: Subject) -> list[tuple[str, str]]:
    config = ((subject.provenance.get("model") or {}).get("training") or {}).get("config") or {}
    return [(str(key), _text(value)) for key, value in config.items()]


def _joined(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in values.items())


def _text(value: Any) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)
