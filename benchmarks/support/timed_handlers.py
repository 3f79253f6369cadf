"""The endpoint's handlers with the predictor's own time in a Server-Timing header.

The benchmark puts this file next to inference.py in the `code/` of a copied model directory and runs it as the program
of SageMaker's toolkit. It adds two clock readings and one header to inference.py.
"""

from __future__ import annotations

import inspect
import time
from typing import Any

import inference
from inference import input_fn, model_fn

__all__ = ["input_fn", "model_fn", "output_fn", "predict_fn"]


def predict_fn(data: Any, model: Any, context: Any) -> Any:
    start = time.perf_counter()
    try:
        return _call(inference.predict_fn, data, model, context)
    finally:
        milliseconds = 1000 * (time.perf_counter() - start)
        context.set_response_header(0, "Server-Timing", f"predict;dur={milliseconds:.3f}")


def output_fn(prediction: Any, accept: str, context: Any) -> Any:
    return _call(inference.output_fn, prediction, accept, context)


def _call(handler: Any, first: Any, second: Any, context: Any) -> Any:
    """Call a handler like the toolkit: one with an additional parameter takes the context."""
    takes_context = len(inspect.signature(handler).parameters) == 3
    return handler(first, second, context) if takes_context else handler(first, second)
