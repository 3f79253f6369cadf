"""Files of a finished evaluation: metrics.json, and report.html with the masks of the images that it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pspnet.data.channels import Pair
from pspnet.evaluation.html_report.page import REPORT_NAME, write_report
from pspnet.evaluation.metrics import constant_scores
from pspnet.evaluation.per_image import Record
from pspnet.evaluation.run import Scored
from pspnet.evaluation.samples import SAMPLES_NAME, choose_samples, keep_masks
from pspnet.evaluation.summary import Result, format_results, metrics_json
from pspnet.system.atomic_files import atomic_write

SAMPLES = 3
"""Number of best, of median and of worst images in the report."""

Log = Callable[[str], object]


def write_metrics(
    output: Path, results: dict[str, Result], first: Record, class_names: tuple[str, ...], log: Log
) -> None:
    """Write metrics.json and log the scores."""
    with atomic_write(output / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics_json(results, class_names), indent=1) + "\n", encoding="utf-8")
    constant = constant_scores(first.total())
    log(format_results(results, class_names))
    log(
        f"Always answering the commonest class would score mIoU {100 * constant.mIOU:.1f} and pixel accuracy "
        f"{100 * constant.pixel_accuracy:.1f}."
    )
    log(f"Written: {output / 'metrics.json'}")


def write_page(
    output: Path,
    protocol: str,
    record: Record,
    scored: Scored,
    palette: np.ndarray,
    predict: Callable[[Pair, np.ndarray], np.ndarray],
    log: Log,
) -> None:
    """Save the masks of the images that the report shows, and write it next to metrics.json."""
    names = {name for chosen in choose_samples(record, SAMPLES).values() for name, _ in chosen}
    shown = [pair for pair in scored.pairs if pair.stem in names]
    folder = output / SAMPLES_NAME / protocol
    keep_masks(folder, record, shown, palette, predict, scored.label_map, scored.ignore_index)
    write_report([output], output / REPORT_NAME)
    log(f"Written: {output / REPORT_NAME}")
