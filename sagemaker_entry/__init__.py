"""SageMaker commands and client: upload the channels, train as a job, rehearse that job locally, host the model.

training/, hosting/ and pipeline/ import aws/ and pspnet, but not each other; commands.py lists and starts them. Start
with commands.py.

>>> from sagemaker_entry import EndpointPredictor
>>> mask = EndpointPredictor("http://127.0.0.1:8080")("frame.jpg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagemaker_entry.hosting.endpoint_predictor import EndpointPredictor

__all__ = ["EndpointPredictor"]


def __getattr__(name: str) -> Any:
    # Lazy: the commands that submit jobs start without Pillow and NumPy.
    if name in __all__:
        from sagemaker_entry.hosting.endpoint_predictor import EndpointPredictor

        return EndpointPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
