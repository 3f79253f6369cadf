"""Forms of an answer, and content negotiation by request headers.

Source: RFC 9110, sections 12.4.2 (quality values) and 12.5.1 (Accept).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pspnet.serving.protocol.request_error import RequestError

MASK, PALETTE, OVERLAY, SUMMARY, PROBABILITIES = "mask", "palette", "overlay", "summary", "probabilities"
KINDS = (MASK, PALETTE, OVERLAY, SUMMARY, PROBABILITIES)

PNG, JPEG, JSON, NPY, NPZ = "image/png", "image/jpeg", "application/json", "application/x-npy", "application/x-npz"
PROTOBUF, RECORDIO = "application/x-protobuf", "application/x-recordio-protobuf"
DTYPES = ("float32", "float16", "uint8")

ATTRIBUTES_HEADER = "X-Amzn-SageMaker-Custom-Attributes"


@dataclass(frozen=True)
class AnswerForm:
    """Form of an answer.

    media_type: the Content-Type of the answer.
    kind: mask, palette, overlay, summary or probabilities.
    dtype: of stored probabilities; uint8 is round(probability * 255).
    """

    media_type: str
    kind: str
    dtype: str = "float32"

    @property
    def needs_probabilities(self) -> bool:
        """True if Predictor.predict has to return probabilities for it."""
        return self.kind == PROBABILITIES


# In default order of preference, each with its Accept parameters.
_OFFERS: tuple[tuple[AnswerForm, dict[str, str]], ...] = (
    (AnswerForm(PNG, MASK), {}),
    (AnswerForm(PNG, PALETTE), {"palette": "true"}),
    (AnswerForm(JSON, SUMMARY), {}),
    (AnswerForm(JPEG, OVERLAY), {}),
    (AnswerForm(PROTOBUF, PROBABILITIES), {}),
    (AnswerForm(RECORDIO, PROBABILITIES), {}),
    (AnswerForm(NPY, MASK), {}),
    *((AnswerForm(NPY, PROBABILITIES, dtype), {"probabilities": dtype}) for dtype in DTYPES),
    (AnswerForm(NPZ, MASK), {}),
    *((AnswerForm(NPZ, PROBABILITIES, dtype), {"probabilities": dtype}) for dtype in DTYPES),
)
FORMS = tuple(form for form, _ in _OFFERS)
"""All forms that a request can choose; the first one is the default."""

_PARAMETERS = ("palette", "probabilities")  # others, such as charset, are ignored
_OTHER_NAMES = {"image/jpg": JPEG}
_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
_OFFERED = "image/png, image/jpeg, application/json, application/x-npy or application/x-recordio-protobuf"


@dataclass(frozen=True)
class _Range:
    """Element of an Accept header; `position` is its index."""

    media_type: str
    parameters: dict[str, str]
    quality: float
    position: int

    def precedence(self, form: AnswerForm, parameters: dict[str, str], implied: bool) -> int:
        """Specificity of the match: 0 no match, 1 `*/*`, 2 `image/*`, 3 media type, 4 media type and parameters.

        A form with parameters needs all of them, unless another header implies them (`implied`).
        """
        if self.parameters:
            return 4 if (self.media_type, self.parameters) == (form.media_type, parameters) else 0
        if parameters and not implied:
            return 0
        names = ("*/*", form.media_type.split("/")[0] + "/*", form.media_type)
        return names.index(self.media_type) + 1 if self.media_type in names else 0


def choose_answer(accept: str | None, custom_attributes: str | None = None) -> AnswerForm:
    """Return the form that a request asks for; by default a mask in image/png.

    Args:
        accept: the Accept header. Highest quality value first, then the more specific, then the earlier range.
        custom_attributes: the X-Amzn-SageMaker-Custom-Attributes header. `answer=palette` (or another kind of answer)
            restricts the choice; everything else in it is ignored.

    Raises RequestError: 406 if no form matches, 400 for an unknown kind of answer.
    """
    kind = _attribute(custom_attributes)
    ranges = _ranges(accept or "*/*")
    best: tuple[float, int, int, int] | None = None
    chosen = None
    for index, (form, parameters) in enumerate(_OFFERS):
        if kind not in (None, form.kind):
            continue
        implied = kind is not None and form.dtype == "float32"
        matches = [(entry.precedence(form, parameters, implied), entry) for entry in ranges]
        precedence, entry = max(matches, key=lambda match: (match[0], -match[1].position))
        rank = (entry.quality, precedence, -entry.position, -index)
        if precedence and entry.quality > 0 and (best is None or rank > best):
            best, chosen = rank, form
    if chosen is None:
        asked = repr((accept or "")[:100]) + (f" with answer={kind}" if kind else "")
        raise RequestError(406, f"Unsupported answer {asked}; accept {_OFFERED}.")
    return chosen


def _attribute(text: str | None) -> str | None:
    """Return the kind of answer in custom attributes such as `trace=7, answer=overlay`, or None."""
    for part in re.split(r"[,;\s]+", text or ""):
        name, _, value = part.partition("=")
        if name.lower() == "answer":
            if value.lower() not in KINDS:
                raise RequestError(400, f"Unknown answer={value[:40]!r}; expected one of {', '.join(KINDS)}.")
            return value.lower()
    return None


def _ranges(accept: str) -> list[_Range]:
    """Parse an Accept header. An invalid quality value counts as 0."""
    ranges = []
    for position, element in enumerate(accept.split(",")):
        media_type, *rest = (part.strip().lower() for part in element.split(";"))
        if not media_type:
            continue
        pairs = [part.partition("=") for part in rest]
        values = {name.strip(): value.strip().strip('"') for name, _, value in pairs}
        quality = values.get("q", "1")
        parameters = {name: value for name, value in values.items() if name in _PARAMETERS}
        if parameters.get("palette") == "false":
            del parameters["palette"]
        value = float(quality) if _QUALITY.fullmatch(quality) else 0.0
        ranges.append(_Range(_OTHER_NAMES.get(media_type, media_type), parameters, value, position))
    return ranges or [_Range("*/*", {}, 1.0, 0)]
