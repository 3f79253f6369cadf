"""Everything that talks to AWS: upload the channels, train as a SageMaker job, rehearse that job here, host the model.

>>> from sagemaker_entry import EndpointPredictor
>>> mask = EndpointPredictor("http://127.0.0.1:8080")("frame.jpg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagemaker_entry.hosting.endpoint_predictor import EndpointPredictor

__all__ = ["EndpointPredictor"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the commands that submit jobs need neither Pillow nor NumPy to start.
    if name in __all__:
        from sagemaker_entry.hosting.endpoint_predictor import EndpointPredictor

        return EndpointPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
