"""Eight-bit graphs by post-training quantisation with NNCF, for OpenVINO and ONNX Runtime.

Weights get a scale for each output channel, activations one for each tensor, found on calibration images. What is
computed from the image's size stays in float32 (operations.py). Where the mIoU falls by more than it may, other
settings are tried, the faster graphs first.
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

# The most that eight bits may cost, in points of mIoU (1 point = 0.01).
BOUND = 0.5


@dataclass(frozen=True)
class Settings:
    """One way to quantise.

    Attributes:
        name: as it is shown.
        preset: "performance": ranges around zero; "mixed": activations have ranges of their own.
        ends_in_float: whether the first convolution and the classifier stay in float32.
        fast_bias_correction: whether biases are corrected layer by layer from means, or by running the graph again.
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
    """The best quantised graph that was found, and what it costs: fit for JSON in `found`."""

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
    """Quantise a float32 graph and score both; more of ATTEMPTS are tried as long as the loss is above BOUND.

    Args:
        model: an openvino.Model or an onnx.ModelProto; it stays as it is.
        open_model: makes such a model a function.
        calibration: the images to calibrate on and those to score with.
        allow_loss: whether the best is to be had even where it loses more than BOUND.
        say: told what was found, line by line.

    Raises ExportError where the loss is above BOUND and not allowed, DataError for files that can't be used.
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
            "with the best of all settings: nothing was kept. Use the float32 export, calibrate on more images "
            "(--calibration_images), or give --allow_loss to take it all the same."
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
        # Not all of these names are among what NNCF would quantise.
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
    )


def _describe(calibration: Calibration) -> str:
    count = len(calibration.scored)
    own = "none of which it is calibrated on" if calibration.disjoint else "the same that it is calibrated on"
    return f"{count} image{'s' if count > 1 else ''} of {calibration.channel}, {own}"


def _change(loss: float) -> str:
    return f"{abs(loss):.2f} points {'less' if loss > 0 else 'more'}"
