"""The endpoint's description for /openapi.json and /docs."""

from __future__ import annotations

from typing import Any

from pspnet.serving.protocol.answers import FORMS

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_SENTENCE = {"text/plain": {"schema": {"type": "string"}}}
_REQUEST_TYPES = ("image/jpeg", "image/png", "image/webp", "application/x-npy")


def _refusal(description: str) -> dict[str, Any]:
    return {"description": description, "content": _SENTENCE}


PATHS: dict[str, Any] = {
    "/ping": {
        "get": {
            "summary": "Does the model answer?",
            "responses": {
                "200": {"description": "It does."},
                "503": _refusal("Not yet, or no more; the body says why."),
            },
        }
    },
    "/invocations": {
        "post": {
            "summary": "An image in, its mask out",
            "parameters": [
                {
                    "name": name,
                    "in": "header",
                    "required": False,
                    "description": text,
                    "schema": {"type": "string"},
                }
                for name, text in (
                    ("Accept", "The form of the answer; image/png (class ids) where it is missing."),
                    ("X-Amzn-SageMaker-Custom-Attributes", "The form of the answer, as name=value."),
                    ("X-Request-Id", "Comes back with the answer and stands in the log."),
                )
            ],
            "requestBody": {"required": True, "content": dict.fromkeys(_REQUEST_TYPES, _BINARY)},
            "responses": {
                "200": {
                    "description": "The answer; Server-Timing holds the milliseconds of each stage.",
                    "content": {form.media_type: _BINARY for form in FORMS},
                },
                "400": _refusal("The body is no readable image."),
                "406": _refusal("No such answer."),
                "408": _refusal("The body came too slowly."),
                "413": _refusal("The body, the image or the answer is too large."),
                "415": _refusal("No such request."),
                "503": _refusal("Too many requests wait, or the model is not ready; Retry-After gives the seconds."),
            },
        }
    },
    "/metrics": {
        "get": {
            "summary": "Numbers of all workers in Prometheus' text format",
            "responses": {"200": {"description": "The numbers.", "content": _SENTENCE}},
        }
    },
}
