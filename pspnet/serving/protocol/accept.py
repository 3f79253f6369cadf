"""The forms an answer can take, and the one that a request's headers ask for.

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
    """One form of an answer.

    media_type: what to send as Content-Type.
    kind: what it shows: mask, palette, overlay, summary or probabilities.
    dtype: what probabilities are stored as; uint8 stands for probability * 255, rounded.
    """

    media_type: str
    kind: str
    dtype: str = "float32"

    @property
    def needs_probabilities(self) -> bool:
        """Whether Predictor.predict has to give probabilities for it."""
        return self.kind == PROBABILITIES


# In the order of preference where a caller has none, each with the Accept parameters that ask for it.
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
"""Every form that can be asked for; the first one is the default."""

_PARAMETERS = ("palette", "probabilities")  # all others, such as charset, say nothing about an answer
_OTHER_NAMES = {"image/jpg": JPEG}
_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
_OFFERED = "image/png, image/jpeg, application/json, application/x-npy or application/x-recordio-protobuf"


@dataclass(frozen=True)
class _Range:
    """One element of an Accept header; `place` is its position."""

    media_type: str
    parameters: dict[str, str]
    quality: float
    place: int

    def precedence(self, form: AnswerForm, parameters: dict[str, str], implied: bool) -> int:
        """How specifically the range names a form: 0 not at all, 1 `*/*`, 2 `image/*`, 3 its type, 4 and parameters.

        A form with parameters needs all of them, unless they are `implied` by another header.
        """
        if self.parameters:
            return 4 if (self.media_type, self.parameters) == (form.media_type, parameters) else 0
        if parameters and not implied:
            return 0
        names = ("*/*", form.media_type.split("/")[0] + "/*", form.media_type)
        return names.index(self.media_type) + 1 if self.media_type in names else 0


def choose_answer(accept: str | None, custom_attributes: str | None = None) -> AnswerForm:
    """The form that a request asks for: a mask in image/png where it asks for none.

    Args:
        accept: the Accept header. The highest quality value wins; between equals the more specific range, then the
            earlier one.
        custom_attributes: the X-Amzn-SageMaker-Custom-Attributes header. `answer=palette` (or another kind of answer)
            in it narrows the choice; everything else in it is ignored.

    Raises RequestError: 406 where nothing fits, 400 for an unknown kind of answer.
    """
    kind = _attribute(custom_attributes)
    ranges = _ranges(accept or "*/*")
    best: tuple[float, int, int, int] | None = None
    chosen = None
    for order, (form, parameters) in enumerate(_OFFERS):
        if kind not in (None, form.kind):
            continue
        implied = kind is not None and form.dtype == "float32"
        matches = [(entry.precedence(form, parameters, implied), entry) for entry in ranges]
        precedence, entry = max(matches, key=lambda match: (match[0], -match[1].place))
        rank = (entry.quality, precedence, -entry.place, -order)
        if precedence and entry.quality > 0 and (best is None or rank > best):
            best, chosen = rank, form
    if chosen is None:
        asked = repr((accept or "")[:100]) + (f" with answer={kind}" if kind else "")
        raise RequestError(406, f"The answer cannot be {asked}; accept {_OFFERED}.")
    return chosen


def _attribute(text: str | None) -> str | None:
    """The kind of answer that custom attributes such as `trace=7, answer=overlay` name."""
    for part in re.split(r"[,;\s]+", text or ""):
        name, _, value = part.partition("=")
        if name.lower() == "answer":
            if value.lower() not in KINDS:
                raise RequestError(400, f"The custom attribute answer={value[:40]!r} is none of {', '.join(KINDS)}.")
            return value.lower()
    return None


def _ranges(accept: str) -> list[_Range]:
    """The elements of an Accept header. One whose quality cannot be read counts as refused."""
    ranges = []
    for place, element in enumerate(accept.split(",")):
        media_type, *rest = (part.strip().lower() for part in element.split(";"))
        if not media_type:
            continue
        pairs = [part.partition("=") for part in rest]
        values = {name.strip(): value.strip().strip('"') for name, _, value in pairs}
        quality = values.get("q", "1")
        parameters = {name: value for name, value in values.items() if name in _PARAMETERS}
        if parameters.get("palette") == "false":
            del parameters["palette"]
        ranges.append(
            _Range(
                _OTHER_NAMES.get(media_type, media_type),
                parameters,
                float(quality) if _QUALITY.fullmatch(quality) else 0.0,
                place,
            )
        )
    return ranges or [_Range("*/*", {}, 1.0, 0)]
