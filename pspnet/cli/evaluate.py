"""`pspnet evaluate`: score a model, or mask files, on images with annotations."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.classes import IGNORE_INDEX, MAX_CLASSES, LabelMap, default_class_names, load_label_map, palette_for
from pspnet.cli.predict import add_model_arguments, make_folder
from pspnet.cli.report import report_masks, report_model
from pspnet.config.values import parse_value
from pspnet.data.channels import load_pairs
from pspnet.data.io.images import write_palette_png
from pspnet.errors import ConfigError
from pspnet.system.atomic_files import atomic_write

if TYPE_CHECKING:
    import numpy as np

    from pspnet.artifact.model_directory import Artifact
    from pspnet.evaluation.partial_results import EvaluationState
    from pspnet.evaluation.per_image import Record
    from pspnet.evaluation.protocols.factory import Protocol
    from pspnet.evaluation.run import Evaluator, Scored
    from pspnet.evaluation.summary import Result
    from pspnet.system.distributed import Processes
    from pspnet.system.precision import Precision

_DESCRIPTION = """\
Score a model on images with annotations, by one protocol or several (docs/evaluation.md):
whole, one pass per image at its own size; slide, overlapping windows of crop_size; multiscale, slide at several scales
with mirror images; builtin, what SageMaker's built-in algorithm would report, always beside whole.
With --predictions, score mask files instead; then no model is run.
Under torchrun every process takes its share: torchrun --nproc_per_node 2 -m pspnet.cli evaluate ..."""


def register(subparsers: Any) -> None:
    """Add `evaluate` to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model, or mask files, on images with annotations",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, optional=True)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of JPEG or PNG images")
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help="folder of PNG annotations")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="gets metrics.json, report.html and more"
    )
    _option(parser, "label_map", "FILE", "JSON file: pixel value to class id", kind=Path)
    _option(parser, "ignore", "ID", f"class id that is not scored (default: {IGNORE_INDEX})", str(IGNORE_INDEX))
    _option(parser, "protocol", "NAMES", "whole, slide, multiscale, builtin, or several with commas between", "whole")
    _option(parser, "crop_size", "PX", "side of windows and of builtin's crop (default: the model's)")
    _option(parser, "base_size", "PX", "long side of slide and multiscale; 0: the image's own (default: the model's)")
    _option(parser, "scales", "LIST", "of multiscale (default: 0.5,0.75,1,1.25,1.5,1.75)")
    _option(parser, "flip", "BOOL", "average windows with their mirror images (default: multiscale True, slide False)")
    _option(parser, "batch_size", "N", "images or windows in one pass (default: 4)", "4")
    _option(parser, "workers", "N", "processes that load images (default: auto)", "auto")
    _option(parser, "resume", "WHEN", "never starts over, auto goes on with what --output holds (default)", "auto")
    _option(
        parser, "save_masks", "DIR", "gets <name>.png of every image; a folder for each of several protocols", kind=Path
    )
    _option(parser, "predictions", "DIR", "score these PNG masks of class ids; no model is run", kind=Path)
    _option(parser, "num_classes", "N", "with --predictions, where no MODEL_DIR names the classes")
    _option(parser, "details", "BOOL", "count confidences and boundaries for the report too (default: True)", "True")
    _option(parser, "report", "BOOL", "write report.html (default: True)", "True")
    parser.set_defaults(run=run_evaluate)


def _option(
    parser: argparse.ArgumentParser, name: str, metavar: str, text: str, default: str | None = None, kind: Any = str
) -> None:
    flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*flags, metavar=metavar, help=text, default=default, type=kind)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Score by every protocol asked for; writes metrics.json and per_image.npz and prints a table."""
    ignore = _whole(arguments, "ignore", 0, 255)
    arguments.details = _parse(arguments, "details", bool, "True or False")
    arguments.report = _parse(arguments, "report", bool, "True or False")
    label_map = None if arguments.label_map is None else load_label_map(arguments.label_map)
    if arguments.predictions is not None:
        return _score_masks(arguments, label_map, ignore)
    if arguments.model_dir is None or arguments.images is None:
        raise ConfigError("evaluate needs MODEL_DIR and --images, or --predictions with mask files to score.")
    if arguments.resume not in ("auto", "never"):
        raise ConfigError(f"--resume: found {arguments.resume!r}; expected auto or never.")
    return _score_model(arguments, label_map, ignore)


def _score_model(arguments: argparse.Namespace, label_map: LabelMap | None, ignore: int) -> int:
    from pspnet.artifact.model_directory import load_trained
    from pspnet.data.samplers import image_sizes
    from pspnet.evaluation.partial_results import EvaluationState, pair_signature
    from pspnet.evaluation.run import Scored
    from pspnet.evaluation.summary import Result
    from pspnet.system.device import choose_device
    from pspnet.system.distributed import join_processes
    from pspnet.system.precision import choose_precision

    device = choose_device(arguments.device, int(os.environ.get("LOCAL_RANK", "0")))
    precision = choose_precision(arguments.precision, device)
    pairs = load_pairs(arguments.images, arguments.annotations, "evaluation")
    artifact = load_trained(arguments.model_dir)
    protocols = _choose(arguments, artifact)
    scored = Scored(pairs, {pair.stem: pair_signature(pair) for pair in pairs}, label_map, ignore)
    processes = join_processes(device.type)
    try:
        evaluator = _build_evaluator(arguments, artifact, device, precision, processes)
        common: dict[str, Any] = {}
        if processes.is_main:  # it alone keeps the state and writes
            make_folder(arguments.output)
            common = {"precision": precision.name, "device": device.type, "ignore": ignore, **_hashes(arguments)}
            common["details"] = arguments.details
        state = EvaluationState(arguments.output, common, arguments.resume == "auto" and processes.is_main)
        folders = _mask_folders(arguments, protocols)
        for protocol in protocols:
            _run_protocol(evaluator, protocol, scored, state, folders.get(protocol.name), artifact)
    finally:
        processes.shutdown()
    if processes.is_main:
        sizes = image_sizes(pairs)
        results = {
            protocol.name: Result.of(
                protocol.name,
                state.records[protocol.name],
                sum(protocol.passes(height, width) for width, height in sizes),
            )
            for protocol in protocols
        }
        _conclude(arguments.output, results, state.records[protocols[0].name], artifact.class_names)
        report_model(arguments, scored, evaluator, protocols[0], state, artifact)
        if folders and "builtin" in results:
            print(f"builtin scores a resized crop and not the image, so it left no masks in {arguments.save_masks}.")
    return 0


def _choose(arguments: argparse.Namespace, artifact: Artifact) -> list[Protocol]:
    """The protocols asked for; what no option says is as in training."""
    from pspnet.evaluation.protocols.factory import choose_protocols

    trained = artifact.training.get("config") or {}
    names = [name.strip() for name in arguments.protocol.split(",") if name.strip()]
    crop_size = _whole(arguments, "crop_size") if arguments.crop_size else trained.get("crop_size")
    base_size = _whole(arguments, "base_size") if arguments.base_size else trained.get("base_size")
    scales = _parse(arguments, "scales", tuple[float, ...], "numbers with commas between")
    return choose_protocols(names, crop_size, base_size, scales, _parse(arguments, "flip", bool, "True or False"))


def _build_evaluator(
    arguments: argparse.Namespace, artifact: Artifact, device: Any, precision: Precision, processes: Processes
) -> Evaluator:
    from pspnet.evaluation.image_counts import DETAILS
    from pspnet.evaluation.run import Evaluator
    from pspnet.models.fused.folded import build_inference_model
    from pspnet.system.device import choose_workers

    workers = "auto" if arguments.workers == "auto" else _whole(arguments, "workers", 0)
    return Evaluator(
        build_inference_model(artifact.model.to(device), precision.dtype),
        len(artifact.class_names),
        artifact.model.mean,
        device,
        processes,
        _whole(arguments, "batch_size", 1),
        choose_workers(workers, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        progress=processes.is_main and sys.stderr.isatty(),
        details=DETAILS if arguments.details else (),
    )


def _hashes(arguments: argparse.Namespace) -> dict[str, Any]:
    """What tells this model and label map from others."""
    from pspnet.artifact.file_names import CONFIG_NAME, WEIGHTS_NAME
    from pspnet.evaluation.partial_results import file_hash

    content = json.loads((arguments.model_dir / CONFIG_NAME).read_text(encoding="utf-8"))
    return {
        "model": file_hash(arguments.model_dir / WEIGHTS_NAME),
        "architecture": content["architecture"],
        "label_map": None if arguments.label_map is None else file_hash(arguments.label_map),
    }


def _mask_folders(arguments: argparse.Namespace, protocols: list[Protocol]) -> dict[str, Path]:
    """Where each protocol's masks go: one folder, or one for each of several that leave masks."""
    if arguments.save_masks is None:
        return {}
    names = [protocol.name for protocol in protocols if protocol.view is None]
    folder = arguments.save_masks
    return {name: folder if len(names) == 1 else folder / name for name in names}


def _run_protocol(
    evaluator: Evaluator,
    protocol: Protocol,
    scored: Scored,
    state: EvaluationState,
    folder: Path | None,
    artifact: Artifact,
) -> None:
    """Score what the state does not hold yet; whatever ends it, what was scored is kept."""
    record = state.record(protocol.name, evaluator.num_classes, protocol.settings, scored.signatures, folder)
    is_main = evaluator.processes.is_main
    while state.notes:
        note = state.notes.pop(0)
        if is_main:
            print(note)

    def write_mask(name: str, mask: np.ndarray) -> None:
        assert folder is not None
        write_palette_png(folder / f"{name}.png", mask, artifact.palette)

    try:
        evaluator.run(protocol, scored, record, state.save_if_due, None if folder is None else write_mask)
    finally:
        if is_main and len(record):
            state.save()


def _score_masks(arguments: argparse.Namespace, label_map: LabelMap | None, ignore: int) -> int:
    from pspnet.artifact.model_directory import load_artifact
    from pspnet.evaluation.per_image import PER_IMAGE_NAME, Record, write_records
    from pspnet.evaluation.predictions import pair_predictions, score_predictions
    from pspnet.evaluation.summary import Result

    if arguments.model_dir is not None:
        artifact = load_artifact(arguments.model_dir)
        class_names, palette = artifact.class_names, artifact.palette
    elif arguments.num_classes is not None:
        class_names = default_class_names(_whole(arguments, "num_classes", 1, MAX_CLASSES))
        palette = palette_for(class_names)
    else:
        raise ConfigError("--predictions needs the classes: give --num_classes, or the MODEL_DIR that predicted them.")
    pairs = pair_predictions(arguments.predictions, arguments.annotations)
    make_folder(arguments.output)
    record = Record(len(class_names), {"settings": {"masks": str(arguments.predictions)}})
    score_predictions(pairs, record, label_map, ignore, sys.stderr.isatty(), boundaries=arguments.details)
    write_records(arguments.output / PER_IMAGE_NAME, {"predictions": record})
    _conclude(arguments.output, {"predictions": Result.of("predictions", record)}, record, class_names)
    report_masks(arguments, record, pairs, (class_names, palette), label_map, ignore)
    return 0


def _conclude(output: Path, results: dict[str, Result], first: Record, class_names: tuple[str, ...]) -> None:
    """Write metrics.json and show the scores."""
    from pspnet.evaluation.metrics import constant_scores
    from pspnet.evaluation.summary import format_results, metrics_json

    with atomic_write(output / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics_json(results, class_names), indent=1) + "\n", encoding="utf-8")
    constant = constant_scores(first.total())
    print(format_results(results, class_names))
    print(
        f"Always answering the commonest class would score mIoU {100 * constant.mIOU:.1f} and pixel accuracy "
        f"{100 * constant.pixel_accuracy:.1f}."
    )
    print(f"Written: {output / 'metrics.json'}")


def _whole(arguments: argparse.Namespace, name: str, low: int | None = None, high: int | None = None) -> int:
    """An option as a whole number; ConfigError for anything else and outside low..high."""
    text = getattr(arguments, name)
    try:
        value: int = parse_value(text, int)
    except ValueError:
        value, low = -1, 0 if low is None else low
    if (low is not None and value < low) or (high is not None and value > high):
        auto = "auto or " if name == "workers" else ""
        bounds = f", {low} or more" if high is None else f" from {low} to {high}"
        raise ConfigError(f"--{name}: found {text!r}; expected {auto}a whole number{bounds}.")
    return value


def _parse(arguments: argparse.Namespace, name: str, kind: Any, expected: str) -> Any:
    """An option of any type, None where it was not given."""
    text = getattr(arguments, name)
    try:
        return None if text is None else parse_value(text, kind)
    except ValueError as error:
        raise ConfigError(f"--{name}: found {text!r}; expected {expected}.") from error
