"""Report page: reads evaluations, compares them and writes one self-contained HTML file."""

from __future__ import annotations

import base64
import datetime
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import pspnet
from pspnet.classes import IGNORE_INDEX, LabelMap, load_label_map
from pspnet.data.channels import Pair, list_files
from pspnet.data.io.images import ANNOTATION_SUFFIXES, IMAGE_SUFFIXES
from pspnet.errors import DataError
from pspnet.evaluation.html_report.intervals import RESAMPLES, SEED
from pspnet.evaluation.html_report.pictures import Samples, collect_samples
from pspnet.evaluation.html_report.report_inputs import Subject, read_subjects
from pspnet.evaluation.html_report.report_request import ReportRequest
from pspnet.evaluation.html_report.views import (
    LOWER_IS_BETTER,
    Comparison,
    Measured,
    SubjectView,
    compare,
    view_of,
    view_of_run,
)
from pspnet.system.atomic_files import atomic_write

REPORT_NAME = "report.html"
_DASH, _MINUS = "\u2013", "\u2212"
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(request: ReportRequest) -> None:
    """Write the report of one evaluation (or training run), or a comparison of several, atomically.

    Raises DataError for unreadable folders and evaluations that cannot be compared, ConfigError for missing protocols,
    OSError if the file cannot be written.
    """
    folders = request.folders
    subjects = [subject for folder in folders for subject in _subjects_of(folder, request)]
    measured = [Measured.of(subject, subject.record) for subject in subjects if subject.record is not None]
    if len(subjects) > 1 and len(measured) < len(subjects):
        run = next(subject for subject in subjects if subject.record is None)
        raise DataError(
            f"{run.folder}: a training run has no per-image counts, so it cannot be compared. Score its model first: "
            f"pspnet evaluate {run.folder / 'model'} --images DIR --annotations DIR --output OUT; then give OUT here."
        )
    comparison = compare(measured, strict=len(folders) > 1) if len(measured) > 1 else None
    shown = measured if len(folders) > 1 else measured[:1]
    views = [view_of(one, _samples(one.subject, request)) for one in shown] or [view_of_run(subjects[0])]
    title = ", ".join(view.label for view in views) if len(folders) > 1 else folders[0].resolve().name
    page = render(views, comparison, title)
    with atomic_write(request.output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(views: Sequence[SubjectView], comparison: Comparison | None, title: str) -> str:
    """Render the page. Its content security policy allows only its own style, script and data."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(percent=percent, signed=signed, interval=interval_text, known=known)
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    now = datetime.datetime.now(datetime.timezone.utc)
    return environment.get_template("report.html").render(
        title=title,
        views=views,
        comparison=comparison,
        style=style,
        script=script,
        script_digest=digest,
        written=now.isoformat(timespec="seconds"),
        version=pspnet.__version__,
        resamples=RESAMPLES,
        seed=SEED,
        lower_is_better=LOWER_IS_BETTER,
    )


def known(value: float | None) -> bool:
    """Return True for a number, False for None and NaN."""
    return value is not None and not math.isnan(value)


def percent(value: float | None, digits: int = 1) -> str:
    """0.1234 -> `12.3`; an en dash for None and NaN."""
    return _DASH if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """Format a difference in percentage points with its sign; a true minus, and no sign for 0."""
    if value is None or math.isnan(value):
        return _DASH
    text = f"{100 * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", _MINUS)


def interval_text(interval: Any, as_difference: bool = False, digits: int = 1) -> str:
    """Format both ends in percent; an en dash without an interval."""
    if interval.low is None or interval.high is None:
        return _DASH
    if as_difference:
        return f"{signed(interval.low, digits)} to {signed(interval.high, digits)}"
    return f"{percent(interval.low, digits)}{_DASH}{percent(interval.high, digits)}"


def _subjects_of(folder: Path, request: ReportRequest) -> list[Subject]:
    found = read_subjects(folder, request.protocol, request.run)
    if len(request.folders) == 1:
        return found
    if request.protocol is None:
        found = found[:1]
    names = Counter(other.resolve().name for other in request.folders)
    resolved = folder.resolve()
    name = resolved.name if names[resolved.name] == 1 else f"{resolved.parent.name}/{resolved.name}"
    return [
        Subject(**{**vars(subject), "label": name if len(found) == 1 else f"{name}: {subject.protocol}"})
        for subject in found
    ]


def _samples(subject: Subject, request: ReportRequest) -> Samples:
    if request.samples == 0 or subject.record is None:
        return Samples({})
    if subject.protocol == "builtin":
        return Samples({}, "The protocol builtin scores a resized crop instead of the image, so no images are shown.")
    facts = subject.provenance
    folders = []
    for given, key in ((request.images, "images"), (request.annotations, "annotations")):
        written = facts.get(key)
        folders.append(given if given is not None else Path(written) if written else None)
    images = _files(folders[0], IMAGE_SUFFIXES, request.images is not None)
    annotations = _files(folders[1], ANNOTATION_SUFFIXES, request.annotations is not None)

    def find_pair(name: str) -> Pair | None:
        return Pair(images[name], annotations[name]) if name in images and name in annotations else None

    ignore = int(facts.get("ignore", IGNORE_INDEX))
    try:
        label_map: LabelMap | None = load_label_map(Path(facts["label_map"])) if facts.get("label_map") else None
    except DataError as error:
        return Samples({}, f"No images are shown: {error}")
    return collect_samples(
        subject.folder, subject.protocol, subject.record, find_pair, subject.palette, label_map, ignore, request.samples
    )


def _files(folder: Path | None, suffixes: tuple[str, ...], required: bool) -> dict[str, Path]:
    """Return files by stem. A folder from the options must exist; a recorded one may be missing."""
    if folder is None or not (required or folder.is_dir()):
        return {}
    return {path.stem: path for path in list_files(folder, suffixes, "report")}
