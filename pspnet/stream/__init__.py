"""Live masks of videos, cameras and streams: sources, the pipeline, and sinks with retries.

Imports client and the packages below it; torch is imported only when a model directory is loaded. Start with
`streaming.run_stream`, then `pipeline.py` and `delivery.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pspnet.masks.reader import MaskRecord, MaskSegment, read_masks

__all__ = ["MaskRecord", "MaskSegment", "read_masks"]


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that importing a source or sink does not import the mask reader.
    if name in __all__:
        from pspnet.masks import reader as mask_reader

        return getattr(mask_reader, name)
    raise AttributeError(f"module 'pspnet.stream' has no attribute {name!r}")
