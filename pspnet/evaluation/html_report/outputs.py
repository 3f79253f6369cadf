"""Files of a finished evaluation: metrics.json, provenance.json, and report.html with the masks that it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pspnet.data.channels import Pair
from pspnet.evaluation.html_report.page import REPORT_NAME, write_report
from pspnet.evaluation.html_report.report_request import ReportRequest
from pspnet.evaluation.html_report.samples import SAMPLES_NAME, choose_samples, keep_masks
from pspnet.evaluation.metrics import constant_scores
from pspnet.evaluation.per_image import Record
from pspnet.evaluation.provenance import data_fingerprint, write_provenance
from pspnet.evaluation.run import Scored
from pspnet.evaluation.summary import Result, format_results, metrics_json
from pspnet.system.atomic_files import atomic_write

SAMPLES = 3
"""Number of best, of median and of worst images in the report."""

Log = Callable[[str], object]


def write_outputs(
    output: Path,
    results: dict[str, Result],
    record: Record,
    scored: Scored,
    labels: tuple[tuple[str, ...], np.ndarray],
    facts: dict[str, Any],
    predict: Callable[[Pair, np.ndarray], np.ndarray] | None,
    log: Log,
) -> None:
    """Write metrics.json, provenance.json and report.html of a finished evaluation, and log the scores.

    Args:
        record: of the first protocol.
        labels: class names and (256, 3) uint8 palette.
        facts: for provenance.json; data and classes are added.
        predict: a pair and its (H, W, 3) image -> (H, W) mask, for the pictures; None for no report.
    """
    class_names, palette = labels
    with atomic_write(output / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics_json(results, class_names), indent=1) + "\n", encoding="utf-8")
    constant = constant_scores(record.total())
    log(format_results(results, class_names))
    log(
        f"Always answering the commonest class would score mIoU {100 * constant.mIOU:.1f} and pixel accuracy "
        f"{100 * constant.pixel_accuracy:.1f}."
    )
    log(f"Written: {output / 'metrics.json'}")
    facts = {
        **facts,
        "data": data_fingerprint(scored.pairs) if scored.pairs else {},
        "classes": list(class_names),
        "palette": palette[: len(class_names)].tolist(),
    }
    write_provenance(output, facts)
    if predict is None:
        return
    names = {name for chosen in choose_samples(record, SAMPLES).values() for name, _ in chosen}
    shown = [pair for pair in scored.pairs if pair.stem in names]
    folder = output / SAMPLES_NAME / next(iter(results))
    keep_masks(folder, record, shown, palette, predict, scored.label_map, scored.ignore_index)
    write_report(ReportRequest(folders=[output], output=output / REPORT_NAME))
    log(f"Written: {output / REPORT_NAME}")
