"""Former module of `open_source`, kept for existing imports."""

from pspnet.stream.sources.factory import open_source

__all__ = ["open_source"]
