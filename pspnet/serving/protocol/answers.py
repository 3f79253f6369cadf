"""Encoding of predictions to answers within the size limits.

Legend: H, W image height and width; C classes.
"""

from __future__ import annotations

import io
import json
import math

import numpy as np

from pspnet.inference.limits import DEFAULT_LIMITS, Limits
from pspnet.inference.prediction import Prediction
from pspnet.masks.class_counts import class_counts
from pspnet.masks.png import encode_mask
from pspnet.serving.protocol import npy, recordio
from pspnet.serving.protocol.accept import FORMS, NPY, NPZ, OVERLAY, PALETTE, SUMMARY, AnswerForm, choose_answer
from pspnet.serving.protocol.request_error import RequestError

__all__ = ["FORMS", "AnswerForm", "check_answer", "choose_answer", "encode", "encode_mask"]

_JPEG_QUALITY = 90
# Probabilities are compressed in one piece, so their uncompressed size is limited too, to this multiple.
_COMPRESSION = 4


def check_answer(form: AnswerForm, height: int, width: int, classes: int, limits: Limits) -> None:
    """Raise RequestError 413 before prediction if class probabilities cannot fit into limits.answer_bytes.

    Other answers are small; `encode` checks the size of its result.
    """
    if not form.needs_probabilities:
        return
    value_bytes = np.dtype(form.dtype).itemsize
    limit = limits.answer_bytes * (_COMPRESSION if form.media_type == NPZ else 1)
    size = recordio.encoded_size(classes, height, width) - classes * height * width * (4 - value_bytes)
    if size <= limit:
        return
    side = math.isqrt(max(0, limit - 128) // (classes * value_bytes))
    smaller = "" if (form.media_type, form.dtype) == (NPZ, "uint8") else "application/x-npz; probabilities=uint8, or "
    raise RequestError(
        413,
        f"Probabilities of {classes} classes for {width}x{height} pixels take {size:,} bytes as {form.dtype}; this "
        f"endpoint allows at most {limit:,}. Send at most about {side}x{side} pixels, or accept {smaller}image/png for "
        "the mask alone.",
    )


def encode(prediction: Prediction, form: AnswerForm, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Return the body of the answer. Raises RequestError 413 if it is larger than limits.answer_bytes."""
    body = _encode(prediction, form)
    if len(body) > limits.answer_bytes:
        raise RequestError(
            413,
            f"The answer has {len(body):,} bytes; this endpoint returns at most {limits.answer_bytes:,}. "
            "Send a smaller image or accept image/png.",
        )
    return body


def _encode(prediction: Prediction, form: AnswerForm) -> bytes:
    if form.needs_probabilities:
        return _encode_probabilities(prediction, form)
    if form.kind == SUMMARY:
        return _encode_summary(prediction)
    if form.kind == OVERLAY:
        return _encode_overlay(prediction)
    if form.media_type == NPY:
        return npy.write(prediction.mask)
    if form.media_type == NPZ:
        return npy.write_compressed("mask", prediction.mask)
    return encode_mask(prediction.mask, prediction.palette if form.kind == PALETTE else None)


def _encode_probabilities(prediction: Prediction, form: AnswerForm) -> bytes:
    probabilities = prediction.probabilities  # (C, H, W) float32
    if probabilities is None:
        raise RequestError(406, f"No probabilities were computed, so the answer cannot be {form.media_type}.")
    if form.media_type not in (NPY, NPZ):
        try:
            return recordio.encode_probabilities(probabilities)
        except recordio.TooLongError as error:
            raise RequestError(413, f"The answer is too long: {error}") from None
    values = np.empty(probabilities.shape, dtype=form.dtype)
    for index, plane in enumerate(probabilities):  # (H, W) at a time, to keep temporary copies small
        values[index] = np.rint(plane * 255) if form.dtype == "uint8" else plane
    return npy.write(values) if form.media_type == NPY else npy.write_compressed("probabilities", values)


def _encode_overlay(prediction: Prediction) -> bytes:
    buffer = io.BytesIO()
    prediction.overlay().save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _encode_summary(prediction: Prediction) -> bytes:
    """Encode the size of the mask and its class counts as JSON."""
    height, width = prediction.mask.shape
    # `share` is the old name of `fraction`; remove it after the next release.
    classes = [{**entry, "share": entry["fraction"]} for entry in class_counts(prediction.mask, prediction.class_names)]
    return json.dumps({"height": height, "width": width, "classes": classes}).encode()
