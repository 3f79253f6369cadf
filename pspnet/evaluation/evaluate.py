"""Evaluation of a model directory, or of mask files, on images with annotations: scores, files and report."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pspnet.artifact.file_names import CONFIG_NAME, WEIGHTS_NAME
from pspnet.artifact.model_directory import Artifact, load_artifact, load_trained
from pspnet.artifact.published import find_model
from pspnet.classes import LabelMap, default_class_names, load_label_map, palette_for
from pspnet.data.channels import Pair, load_pairs
from pspnet.data.io.images import read_annotation, write_palette_png
from pspnet.data.samplers import image_sizes
from pspnet.evaluation.evaluation_request import EvaluationRequest
from pspnet.evaluation.html_report.outputs import Log, write_outputs
from pspnet.evaluation.image_counts import DETAILS
from pspnet.evaluation.metrics import Scores
from pspnet.evaluation.partial_results import EvaluationState, file_hash, pair_signature
from pspnet.evaluation.per_image import PER_IMAGE_NAME, Record, write_records
from pspnet.evaluation.predictions import pair_predictions, score_predictions
from pspnet.evaluation.protocols.factory import Protocol, choose_protocols
from pspnet.evaluation.provenance import describe_device
from pspnet.evaluation.run import Evaluator, Scored
from pspnet.evaluation.summary import Result
from pspnet.models.fused.folded import build_inference_model
from pspnet.system.atomic_folders import make_output_folder
from pspnet.system.device import choose_device, choose_workers
from pspnet.system.distributed import Processes, join_processes
from pspnet.system.precision import Precision, choose_precision


def evaluate(
    model: str | PathLike[str],
    images: str | PathLike[str],
    annotations: str | PathLike[str],
    *,
    protocol: str = "whole",
    output: str | PathLike[str] | None = None,
) -> Scores:
    """Score a model directory on images with annotations and return the scores of the first protocol named.

    Args:
        model: model directory.
        images: folder of JPEG or PNG images.
        annotations: folder of PNG annotations of the same stems.
        protocol: whole, slide, multiscale or builtin; several separated by commas.
        output: folder for metrics.json, per_image.npz, provenance.json and report.html; None to write nothing.

    Runs in this process alone. Raises PspnetError for a model, images, annotations or a protocol that cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="pspnet-evaluation-") as temporary:
        request = EvaluationRequest(
            model_dir=model,
            images=images,
            annotations=annotations,
            output=temporary if output is None else output,
            protocol=protocol,
            details=output is not None,
            report=output is not None,
        )
        results = run_evaluation(request, processes=Processes())
    return results[request.protocol[0]].scores


def run_evaluation(
    request: EvaluationRequest,
    log: Log = lambda _: None,
    processes: Processes | None = None,
    command: str = "pspnet.evaluate",
) -> dict[str, Result]:
    """Score by every protocol and write the results to the output folder.

    Args:
        log: called in the main process with notes, the table of scores and the paths of the written files.
        processes: the processes that share the images; None for those that torchrun started.
        command: command line, for provenance.json.

    Returns:
        Results by protocol, or under "predictions" for mask files; empty in all but the main process.

    Raises PspnetError for a model or files that cannot be used, OSError if a file cannot be written.
    """
    label_map = None if request.label_map is None else load_label_map(request.label_map)
    paths = {key: getattr(request, key) for key in ("images", "annotations", "label_map")}
    resolved = {key: None if path is None else str(path.resolve()) for key, path in paths.items()}
    facts = {"command": command, **resolved, "ignore": request.ignore}
    if request.predictions is not None:
        return _score_masks(request, request.predictions, label_map, facts, log)
    assert request.model_dir is not None and request.images is not None  # noqa: PT018
    return _score_model(request, request.model_dir, request.images, label_map, facts, log, processes)


def _score_model(
    request: EvaluationRequest,
    model_dir: Path,
    images: Path,
    label_map: LabelMap | None,
    facts: dict[str, Any],
    log: Log,
    processes: Processes | None,
) -> dict[str, Result]:
    device = choose_device(request.device, int(os.environ.get("LOCAL_RANK", "0")))
    precision = choose_precision(request.precision, device)
    pairs = load_pairs(images, request.annotations, "evaluation")
    model_dir = find_model(model_dir)
    artifact = load_trained(model_dir)
    content = json.loads((model_dir / CONFIG_NAME).read_text(encoding="utf-8"))
    protocols = _choose(request, artifact)
    scored = Scored(pairs, {pair.stem: pair_signature(pair) for pair in pairs}, label_map, request.ignore)
    processes = join_processes(device.type) if processes is None else processes
    log = log if processes.is_main else _discard
    try:
        evaluator = _build_evaluator(request, artifact, device, precision, processes)
        common: dict[str, Any] = {}
        if processes.is_main:  # only this process keeps the state and writes
            make_output_folder(request.output)
            common = {
                "precision": precision.name,
                "device": device.type,
                "ignore": request.ignore,
                "model": file_hash(model_dir / WEIGHTS_NAME),
                "architecture": content["architecture"],
                "label_map": None if request.label_map is None else file_hash(request.label_map),
                "details": request.details,
            }
        state = EvaluationState(request.output, common, request.resume == "auto" and processes.is_main)
        folders = _mask_folders(request, protocols)
        for protocol in protocols:
            _run_protocol(evaluator, protocol, scored, state, folders.get(protocol.name), artifact, log)
    finally:
        processes.shutdown()
    if not processes.is_main:
        return {}
    sizes = image_sizes(pairs)
    results = {
        protocol.name: Result.of(
            protocol.name,
            state.records[protocol.name],
            sum(protocol.passes(height, width) for width, height in sizes),
        )
        for protocol in protocols
    }
    model = {key: value for key, value in content.items() if key not in ("classes", "palette", "scores", "format")}
    facts = {
        **facts,
        "device": describe_device(device),
        "precision": precision.name,
        "batch_size": evaluator.batch_size,
        "processes": processes.world_size,
        "model": {"directory": str(model_dir.resolve()), "sha256": common["model"], **model},
    }
    record = state.records[protocols[0].name]

    def predict(_pair: Pair, image: np.ndarray) -> np.ndarray:
        return evaluator.predict_one(protocols[0], image)  # the first protocol always scores whole images

    labels = artifact.class_names, artifact.palette
    write_outputs(request.output, results, record, scored, labels, facts, predict if request.report else None, log)
    if folders and "builtin" in results:
        log(f"builtin scores a resized crop and not the image, so it left no masks in {request.save_masks}.")
    return results


def _discard(_text: str) -> None:
    return None


def _choose(request: EvaluationRequest, artifact: Artifact) -> list[Protocol]:
    """Build the requested protocols; sizes that are not given are those of the training."""
    trained = artifact.training.get("config") or {}
    crop_size = trained.get("crop_size") if request.crop_size is None else request.crop_size
    base_size = trained.get("base_size") if request.base_size is None else request.base_size
    return choose_protocols(request.protocol, crop_size, base_size, request.scales, request.flip)


def _build_evaluator(
    request: EvaluationRequest, artifact: Artifact, device: torch.device, precision: Precision, processes: Processes
) -> Evaluator:
    return Evaluator(
        build_inference_model(artifact.model.to(device), precision.dtype),
        len(artifact.class_names),
        artifact.model.mean,
        device,
        processes,
        request.batch_size,
        choose_workers(request.workers, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        progress=processes.is_main and sys.stderr.isatty(),
        details=DETAILS if request.details else (),
    )


def _mask_folders(request: EvaluationRequest, protocols: list[Protocol]) -> dict[str, Path]:
    """Return the mask folder of each protocol that predicts whole images."""
    if request.save_masks is None:
        return {}
    names = [protocol.name for protocol in protocols if protocol.view is None]
    folder = request.save_masks
    return {name: folder if len(names) == 1 else folder / name for name in names}


def _run_protocol(
    evaluator: Evaluator,
    protocol: Protocol,
    scored: Scored,
    state: EvaluationState,
    folder: Path | None,
    artifact: Artifact,
    log: Log,
) -> None:
    """Score the images that the state does not hold yet; keep the state on any exception."""
    record = state.record(protocol.name, evaluator.num_classes, protocol.settings, scored.signatures, folder)
    while state.notes:
        log(state.notes.pop(0))

    def write_mask(name: str, mask: np.ndarray) -> None:
        assert folder is not None
        write_palette_png(folder / f"{name}.png", mask, artifact.palette)

    try:
        evaluator.run(protocol, scored, record, state.save_if_due, None if folder is None else write_mask)
    finally:
        if evaluator.processes.is_main and len(record):
            state.save()


def _score_masks(
    request: EvaluationRequest, predictions: Path, label_map: LabelMap | None, facts: dict[str, Any], log: Log
) -> dict[str, Result]:
    if request.model_dir is not None:
        artifact = load_artifact(find_model(request.model_dir))
        class_names, palette = artifact.class_names, artifact.palette
    else:
        assert request.num_classes is not None
        class_names = default_class_names(request.num_classes)
        palette = palette_for(class_names)
    masks = pair_predictions(predictions, request.annotations)
    make_output_folder(request.output)
    record = Record(len(class_names), {"settings": {"masks": str(predictions)}})
    score_predictions(masks, record, label_map, request.ignore, sys.stderr.isatty(), boundaries=request.details)
    write_records(request.output / PER_IMAGE_NAME, {"predictions": record})
    results = {"predictions": Result.of("predictions", record)}
    pairs = [] if request.images is None else load_pairs(request.images, request.annotations, "evaluation")
    scored, files = Scored(pairs, {}, label_map, request.ignore), {pair.stem: pair.image for pair in masks}

    def read_mask(pair: Pair, _image: np.ndarray) -> np.ndarray:
        return read_annotation(files[pair.stem])

    labels, shown = (class_names, palette), read_mask if request.report else None
    write_outputs(request.output, results, record, scored, labels, facts, shown, log)
    return results
