"""`pspnet report`: evaluations as one HTML page; and the page that `pspnet evaluate` leaves behind."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.classes import LabelMap
from pspnet.data.channels import load_pairs
from pspnet.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from pspnet.artifact.model_directory import Artifact
    from pspnet.data.channels import Pair
    from pspnet.evaluation.partial_results import EvaluationState
    from pspnet.evaluation.per_image import Record
    from pspnet.evaluation.protocols.factory import Protocol
    from pspnet.evaluation.run import Evaluator, Scored

_DESCRIPTION = """\
Write one self-contained HTML file about an evaluation, or several side by side (docs/evaluation.md): scores with
intervals, classes, confusions, calibration, pictures, training curves, and how all of it was made. Several folders are
compared, the others with the first, on the same images. A training run's folder alone gives its curves and scores."""
_SAMPLES = 3
_MOST_SAMPLES = 20


def register(subparsers: Any) -> None:
    """Add `report` to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "report",
        help="an HTML page about an evaluation, or comparing several",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="what evaluate wrote; or one run's folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the HTML file")
    parser.add_argument("--protocol", metavar="NAMES", help="of those that were evaluated, with commas between")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where the images are now, if they were moved")
    parser.add_argument("--annotations", type=Path, metavar="DIR", help="where the annotations are now")
    parser.add_argument("--run", dest="run_folder", type=Path, metavar="DIR", help="the training run, for its curves")
    parser.add_argument(
        "--samples", type=int, default=_SAMPLES, metavar="N", help="best, median and worst images (default: 3 of each)"
    )
    parser.set_defaults(run=run_report)


def run_report(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from pspnet.evaluation.html_report.page import ReportOptions, write_report

    if not 0 <= arguments.samples <= _MOST_SAMPLES:
        raise ConfigError(f"--samples: found {arguments.samples}; expected a whole number from 0 to {_MOST_SAMPLES}.")
    if arguments.output.is_dir():
        raise ConfigError(f"--output: {arguments.output} is a folder; expected the name of the HTML file.")
    resolved = [folder.resolve() for folder in arguments.folders]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("report: the same folder stands there twice; give each once.")
    names = arguments.protocol and [name.strip() for name in arguments.protocol.split(",") if name.strip()]
    options = ReportOptions(
        names or None, arguments.images, arguments.annotations, arguments.run_folder, arguments.samples
    )
    write_report(arguments.folders, arguments.output, options)
    print(f"Written: {arguments.output}")
    return 0


def report_model(
    arguments: argparse.Namespace,
    scored: Scored,
    evaluator: Evaluator,
    protocol: Protocol,
    state: EvaluationState,
    artifact: Artifact,
) -> None:
    """The end of `evaluate` for a model: provenance.json and, where it is wanted, the page about this protocol. The
    model answers once more for the images on it, unless their masks are there from before."""
    from pspnet.artifact.file_names import CONFIG_NAME
    from pspnet.evaluation.provenance import describe_device

    content = json.loads((arguments.model_dir / CONFIG_NAME).read_text(encoding="utf-8"))
    model = {key: value for key, value in content.items() if key not in ("classes", "palette", "scores", "format")}
    facts = {
        "device": describe_device(evaluator.device),
        "precision": state.common["precision"],
        "batch_size": evaluator.batch_size,
        "processes": evaluator.processes.world_size,
        "model": {"directory": str(arguments.model_dir.resolve()), "sha256": state.common["model"], **model},
    }
    _write_facts(arguments, scored, artifact.class_names, artifact.palette, facts)
    if arguments.report:
        # A cropped view has no picture of an image.
        shown = scored if protocol.view is None else dataclasses.replace(scored, pairs=[])

        def predict(_pair: Pair, image: np.ndarray) -> np.ndarray:
            return evaluator.predict_one(protocol, image)

        _write_page(arguments.output, protocol.name, state.records[protocol.name], shown, artifact.palette, predict)


def report_masks(
    arguments: argparse.Namespace,
    record: Record,
    masks: list[Pair],
    classes: tuple[tuple[str, ...], np.ndarray],
    label_map: LabelMap | None,
    ignore: int,
) -> None:
    """The end of `evaluate` for mask files; the page shows images where --images says where they are.

    Args:
        masks: mask files, as `image`, with their annotations.
        classes: names and palette.
    """
    from pspnet.data.io.images import read_annotation
    from pspnet.evaluation.run import Scored

    pairs = [] if arguments.images is None else load_pairs(arguments.images, arguments.annotations, "evaluation")
    scored, files = Scored(pairs, {}, label_map, ignore), {pair.stem: pair.image for pair in masks}
    _write_facts(arguments, scored, *classes, {})
    if arguments.report:

        def read_mask(pair: Pair, _image: np.ndarray) -> np.ndarray:
            return read_annotation(files[pair.stem])

        _write_page(arguments.output, "predictions", record, scored, classes[1], read_mask)


def _write_facts(
    arguments: argparse.Namespace,
    scored: Scored,
    class_names: tuple[str, ...],
    palette: np.ndarray,
    facts: dict[str, Any],
) -> None:
    from pspnet.evaluation.provenance import data_fingerprint, write_provenance

    def where(path: Path | None) -> str | None:
        return None if path is None else str(path.resolve())

    common = {
        "command": arguments.command_line,
        "images": where(arguments.images),
        "annotations": where(arguments.annotations),
        "label_map": where(arguments.label_map),
        "ignore": scored.ignore_index,
        "data": data_fingerprint(scored.pairs) if scored.pairs else {},
        "classes": list(class_names),
        "palette": palette[: len(class_names)].tolist(),
    }
    write_provenance(arguments.output, {**common, **facts})


def _write_page(
    output: Path,
    protocol: str,
    record: Record,
    scored: Scored,
    palette: np.ndarray,
    predict: Callable[[Pair, np.ndarray], np.ndarray],
) -> None:
    """Keep the masks of the images that the page shows, and write it beside metrics.json."""
    from pspnet.evaluation.html_report.page import REPORT_NAME, write_report
    from pspnet.evaluation.samples import SAMPLES_NAME, choose_samples, keep_masks

    names = {name for chosen in choose_samples(record, _SAMPLES).values() for name, _ in chosen}
    shown = [pair for pair in scored.pairs if pair.stem in names]
    folder = output / SAMPLES_NAME / protocol
    keep_masks(folder, record, shown, palette, predict, scored.label_map, scored.ignore_index)
    write_report([output], output / REPORT_NAME)
    print(f"Written: {output / REPORT_NAME}")
