"""From a camera to masks: sources, the pipeline, sinks. Nothing here needs torch before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pspnet.masks.reader import MaskRecord, MaskSegment, read_masks

__all__ = ["MaskRecord", "MaskSegment", "read_masks"]


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that a source or sink alone never pays for what reads masks.
    if name in __all__:
        from pspnet.masks import reader as mask_reader

        return getattr(mask_reader, name)
    raise AttributeError(f"module 'pspnet.stream' has no attribute {name!r}")
