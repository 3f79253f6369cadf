"""Post-training quantisation to 8 bits with NNCF, for OpenVINO and ONNX Runtime.

Weights are scaled per output channel and activations per tensor, calibrated on images. Operations on the image's size
stay in float32 (graph_operations.py). If the mIoU loss exceeds the bound, other settings are tried, fastest first.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from pspnet.artifact.export_record import INPUT_NAME
from pspnet.exporting.calibration_set import Calibration
from pspnet.exporting.formats import Run
from pspnet.exporting.graph_operations import count_quantised, first_and_last_convolutions, kept_in_float, operations
from pspnet.exporting.verification import ExportError
from pspnet.inference.runtimes.openvino_telemetry import silence_openvino

silence_openvino()

# Maximum loss of eight bits, in points of mIoU (1 point = 0.01).
BOUND = 0.5


@dataclass(frozen=True)
class Settings:
    """Settings of a quantisation.

    Attributes:
        name: for messages and the record.
        preset: "performance": symmetric ranges; "mixed": asymmetric ranges of activations.
        ends_in_float: keep the first convolution and the classifier in float32.
        fast_bias_correction: correct biases layer by layer from means; if False, by running the graph again.
    """

    name: str
    preset: str
    ends_in_float: bool = False
    fast_bias_correction: bool = True


ATTEMPTS = (
    Settings("symmetric", "performance"),
    Settings("asymmetric activations", "mixed"),
    Settings("asymmetric activations, first and last convolution in float32", "mixed", ends_in_float=True),
    Settings("the same with exact bias correction", "mixed", ends_in_float=True, fast_bias_correction=False),
)


@dataclass(frozen=True)
class Quantised:
    """The best quantised graph, and the record of its loss in `found` (JSON types)."""

    model: Any
    found: dict[str, Any]


def quantise(
    model: Any,
    open_model: Callable[[Any], Run],
    calibration: Calibration,
    num_classes: int,
    allow_loss: bool = False,
    report: Callable[[str], object] = print,
) -> Quantised:
    """Quantise a float32 graph and score both; tries the next of ATTEMPTS while the loss is above BOUND.

    Args:
        model: an openvino.Model or an onnx.ModelProto; unchanged.
        open_model: converts such a model to a function.
        calibration: images for calibration and pairs for scoring.
        allow_loss: return the best graph even if it loses more than BOUND.
        report: called with each line of progress.

    Raises ExportError if the loss is above BOUND and not allowed, DataError for unusable files.
    """
    before = calibration.score(open_model(model), num_classes).mIOU
    report(f"float32: mIoU {100 * before:.2f} on {_describe(calibration)}")
    images, nodes = calibration.batches(), operations(model)
    tried: list[dict[str, Any]] = []
    best: Any = None
    for settings in ATTEMPTS:
        quantised = _quantise(model, images, settings, nodes)
        after = calibration.score(open_model(quantised), num_classes).mIOU
        loss = 100 * (before - after)
        report(f"int8, {settings.name}: mIoU {100 * after:.2f}, {_change(loss)}")
        if best is None or after > max(entry["mIOU"] for entry in tried):
            best = quantised
        tried.append({"settings": settings.name, "mIOU": after, "loss_points": loss})
        if loss <= BOUND:
            break
    kept = min(tried, key=lambda entry: entry["loss_points"])
    if not kept["loss_points"] <= BOUND and not allow_loss:
        raise ExportError(
            f"int8 costs {kept['loss_points']:.2f} points of mIoU on {_describe(calibration)} (at most {BOUND:g}), "
            "with the best of all settings. Nothing was written. Use the float32 export, calibrate on more images "
            "(--calibration_images), or accept the loss with --allow_loss."
        )
    done, of = count_quantised(operations(best))
    return Quantised(
        best,
        {
            "float32_mIOU": before,
            "int8_mIOU": kept["mIOU"],
            "loss_points": kept["loss_points"],
            "bound_points": BOUND,
            "loss_allowed": allow_loss,
            "settings": kept["settings"],
            "tried": tried,
            "quantised_operations": done,
            "weighted_operations": of,
            "calibration_images": len(calibration.images),
            "scored_images": len(calibration.scored),
            "scored_channel": calibration.channel,
            "disjoint": calibration.disjoint,
        },
    )


def _quantise(model: Any, images: list[np.ndarray], settings: Settings, nodes: list[Any]) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    ignored = kept_in_float(nodes) + (first_and_last_convolutions(nodes) if settings.ends_in_float else [])
    return nncf.quantize(
        model,
        nncf.Dataset([{INPUT_NAME: image} for image in images]),
        preset=nncf.QuantizationPreset(settings.preset),
        subset_size=len(images),
        fast_bias_correction=settings.fast_bias_correction,
        # NNCF would not quantise all of these operations, so their names are not validated.
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
    )


def _describe(calibration: Calibration) -> str:
    count = len(calibration.scored)
    overlap = "disjoint from the calibration images" if calibration.disjoint else "also used for calibration"
    return f"{count} image{'s' if count > 1 else ''} of {calibration.channel}, {overlap}"


def _change(loss: float) -> str:
    return f"{abs(loss):.2f} points {'less' if loss > 0 else 'more'}"
