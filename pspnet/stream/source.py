"""The former place of `open_source`."""

from pspnet.stream.sources.base import open_source

__all__ = ["open_source"]
