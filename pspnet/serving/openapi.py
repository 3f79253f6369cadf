"""OpenAPI description of the endpoint for /openapi.json."""

from __future__ import annotations

from typing import Any

import pspnet
from pspnet.serving.protocol.accept import FORMS

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_SENTENCE = {"text/plain": {"schema": {"type": "string"}}}
_REQUEST_TYPES = ("image/jpeg", "image/png", "image/webp", "application/x-npy")


def _refusal(description: str) -> dict[str, Any]:
    return {"description": description, "content": _SENTENCE}


_PATHS: dict[str, Any] = {
    "/ping": {
        "get": {
            "summary": "Readiness of the model",
            "responses": {
                "200": {"description": "The model is ready."},
                "503": _refusal("The model is not ready; the body holds the reason."),
            },
        }
    },
    "/invocations": {
        "post": {
            "summary": "Predict the mask of an image",
            "parameters": [
                {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
                for name, text in (
                    ("Accept", "The form of the answer; image/png (class ids) by default."),
                    ("X-Amzn-SageMaker-Custom-Attributes", "The form of the answer, as name=value."),
                    ("X-Request-Id", "Returned with the answer and written to the log."),
                )
            ],
            "requestBody": {"required": True, "content": dict.fromkeys(_REQUEST_TYPES, _BINARY)},
            "responses": {
                "200": {
                    "description": "The answer; Server-Timing holds the milliseconds of each stage.",
                    "content": {form.media_type: _BINARY for form in FORMS},
                },
                "400": _refusal("The body is not a readable image."),
                "406": _refusal("Unsupported form of answer."),
                "408": _refusal("The body did not arrive in time."),
                "413": _refusal("The body, the image or the answer is too large."),
                "415": _refusal("Unsupported content type."),
                "503": _refusal("The request queue is full or the model is not ready; Retry-After holds seconds."),
            },
        }
    },
    "/metrics": {
        "get": {
            "summary": "Metrics of all workers in Prometheus' text format",
            "responses": {"200": {"description": "The metrics.", "content": _SENTENCE}},
        }
    },
}


def openapi_schema() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    info = {"title": "pspnet", "version": pspnet.__version__, "description": "Semantic segmentation of images."}
    return {"openapi": "3.1.0", "info": info, "paths": _PATHS}
