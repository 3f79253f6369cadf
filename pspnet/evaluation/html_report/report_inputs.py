"""Inputs of a report: output folders of `pspnet evaluate`, and folders of training runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pspnet.classes import default_class_names, palette_for
from pspnet.errors import ConfigError, DataError
from pspnet.evaluation.html_report.curves import METRICS_LOG, Curves, read_curves
from pspnet.evaluation.per_image import PER_IMAGE_NAME, Record, read_records
from pspnet.evaluation.provenance import read_provenance


@dataclass(frozen=True)
class Subject:
    """Evaluation by one protocol, or a training run with scores but without per-image counts (record None).

    Attributes:
        label: its name in the report.
        metrics: its entry in metrics.json.
        palette: (256, 3) uint8.
        curves: of the training, None without a log.
    """

    label: str
    folder: Path
    protocol: str
    record: Record | None
    class_names: tuple[str, ...]
    palette: np.ndarray
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    curves: Curves | None = None


def read_subjects(folder: Path, protocols: Sequence[str] | None = None, run: Path | None = None) -> list[Subject]:
    """Read all evaluations of a folder, ordered as in metrics.json, or those of `protocols`; or a run's scores.

    Args:
        run: folder of the training run, None to look for it next to the model.

    Raises DataError for a folder without either, damaged files and incomplete evaluations; ConfigError for missing
    protocols.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected an --output folder of `pspnet evaluate` or a run's folder."
        )
    if not (folder / PER_IMAGE_NAME).is_file():
        return [_read_run(folder)]
    records, provenance = read_records(folder / PER_IMAGE_NAME), read_provenance(folder)
    metrics = _read_json(folder / "metrics.json")
    entries = metrics.get("protocols", {})
    chosen = [name for name in entries if name in records] if protocols is None else list(protocols)
    missing = [name for name in chosen if name not in records]
    if missing:
        raise ConfigError(f"--protocol: found {missing[0]!r}; {folder} holds {', '.join(records)}.")
    if not chosen:
        raise DataError(f"{folder}: metrics.json names no protocol of {PER_IMAGE_NAME}; evaluate again.")
    names, palette = _classes(provenance, metrics, records[chosen[0]].num_classes)
    curves = _find_curves(provenance, run)
    subjects = []
    for name in chosen:
        record, entry = records[name], entries.get(name, {})
        if not len(record) or entry.get("images", len(record)) != len(record):
            raise DataError(
                f"{folder}: {PER_IMAGE_NAME} has {len(record)} images of {name}, metrics.json another number: the "
                "evaluation is incomplete or still running. Finish it, then report."
            )
        subjects.append(Subject(name, folder, name, record, names, palette, entry, provenance, curves))
    return subjects


def _read_run(folder: Path) -> Subject:
    if not (folder / METRICS_LOG).is_file():
        raise DataError(
            f"{folder}: contains neither {PER_IMAGE_NAME} (an evaluation) nor {METRICS_LOG} (a training run). Expected "
            "an --output folder of `pspnet evaluate` or a run's folder."
        )
    metrics = _read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    config_path = folder / "model" / "config.json"
    model = _read_json(config_path) if config_path.is_file() else {}
    count = len(metrics.get("per_class_iou", {})) or len(model.get("classes", []))
    names, palette = _classes({**model, "model": {}}, metrics, count)
    facts = {"model": {key: value for key, value in model.items() if key not in ("classes", "palette", "scores")}}
    curves = read_curves(folder / METRICS_LOG)
    return Subject(folder.name, folder, "training", None, names, palette, metrics, facts if model else {}, curves)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; `pspnet evaluate` writes it at the end.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); evaluate again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}; evaluate again.")
    return content


def _classes(facts: dict[str, Any], metrics: dict[str, Any], count: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names and palette: the recorded ones, else the names of metrics.json, else default ones."""
    names = tuple(str(name) for name in facts.get("classes", metrics.get("per_class_iou", ())))
    if len(names) != count:
        names = default_class_names(count)
    palette = palette_for(names)
    colours = facts.get("palette", [])
    if len(colours) == count:
        palette[:count] = np.array(colours, dtype=np.uint8).reshape(-1, 3)
    return names, palette


def _find_curves(provenance: dict[str, Any], run: Path | None) -> Curves | None:
    """Read the curves of the given run, else of the folder that contains the model directory."""
    if run is not None:
        if not (run / METRICS_LOG).is_file():
            raise DataError(f"--run: {run} holds no {METRICS_LOG}; expected a training run's folder.")
        return read_curves(run / METRICS_LOG)
    directory = provenance.get("model", {}).get("directory")
    path = Path(directory).parent / METRICS_LOG if directory else None
    return read_curves(path) if path is not None and path.is_file() else None
